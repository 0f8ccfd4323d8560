//! Jobs, their record, and events.

use serde::{Deserialize, Serialize};

use crate::{
    admission::Slot,
    files::DiskProgress,
    finding::Finding,
    id::{JobId, VmId},
    job::{Figures, JobKind, Progress},
    job_text::JobText,
    migration::{JobAction, Phase, Step},
    network::{Route, Subnet},
    transfer::Transfer,
    units::ByteCount,
};

/// The reason why a job waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WaitView {
    /// Its place in the queue, from 1.
    pub position: u32,
    /// The slots that are not free.
    pub places: Vec<Place>,
}

/// A slot that is not free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Place {
    /// The host that the slot belongs to.
    pub host: String,
    /// The kind of slot.
    pub slot: Slot,
    /// Jobs that occupy a slot, or that were passed so often that one is reserved for them.
    pub jobs: Vec<JobId>,
}

/// A part of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ChildView {
    /// Its number.
    pub id: JobId,
    /// The VM's name.
    pub vm_name: String,
    /// The source's name.
    pub source: String,
    /// The destination's name.
    pub destination: String,
    /// Its phase.
    pub phase: Phase,
    /// Where the VM is.
    pub summary: String,
    /// The same, as data.
    #[serde(default, rename = "says")]
    pub sentences: Vec<JobText>,
}

/// One page of the records of ended jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// Oldest first.
    pub records: Vec<AuditRecord>,
    /// Pass this as `after=` to get more; `None`: there are no more.
    pub next: Option<JobId>,
}

/// The record of a job that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// The job.
    pub job: JobId,
    /// The job that it was a part of.
    pub parent: Option<JobId>,
    /// Who requested it.
    pub by: String,
    /// When it was accepted. Unix milliseconds.
    pub accepted_at_ms: u64,
    /// When it ended. Unix milliseconds.
    pub ended_at_ms: u64,
    /// The kind of job.
    pub kind: JobKind,
    /// The VM.
    pub vm: Option<VmId>,
    /// The VM's name, or the number of VMs.
    pub vm_name: String,
    /// The source's name.
    pub source: String,
    /// The destination's name.
    pub destination: String,
    /// How bytes travelled: `standard` means unchanged, over TCP; `compression` means compressed where that paid.
    pub preset: String,
    /// The migration network in which they travelled; `None`: its hosts had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Subnet>,
    /// How it ended.
    pub outcome: Phase,
    /// The number of attempts that began.
    pub attempts: u32,
    /// Bytes on the wire.
    pub wire: Option<ByteCount>,
    /// Downtime in milliseconds.
    pub downtime_ms: Option<u64>,
    /// What the job changed, and where.
    pub changes: Vec<JobText>,
    /// Why it did not succeed, and where the VM is.
    pub summary: String,
    /// Whether the user accepted that the destination may have too little memory.
    #[serde(default)]
    pub overcommit: bool,
}

/// The state of one step of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It has not begun.
    Waiting,
    /// It is in progress.
    Running,
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// It was undone.
    Undone,
    /// Undoing it failed.
    UndoFailed,
}

/// One step of a job, as shown to users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StepView {
    /// The step.
    pub step: Step,
    /// Its name to show to users.
    pub title: String,
    /// Its state.
    pub state: StepState,
    /// When it began. Unix milliseconds.
    pub started_at_ms: Option<u64>,
    /// When it ended. Unix milliseconds.
    pub ended_at_ms: Option<u64>,
    /// Why it failed, in English.
    pub message: Option<String>,
    /// The same, as data.
    #[serde(default, rename = "says", skip_serializing_if = "Option::is_none")]
    pub sentence: Option<JobText>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// What kind of job it is.
    pub kind: JobKind,
    /// The job that it is a part of.
    pub parent: Option<JobId>,
    /// Its parts, if other jobs do its work.
    pub children: Vec<ChildView>,
    /// The VM; `None` for a job with parts.
    pub vm: Option<VmId>,
    /// The VM's name, or the number of VMs.
    pub vm_name: String,
    /// The source's name; empty if there are several.
    pub source: String,
    /// The destination's name; empty if there are several.
    pub destination: String,
    /// The number of its attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// The reason why it waits, while it is queued.
    pub waits: Option<WaitView>,
    /// Its phase.
    pub phase: Phase,
    /// Where the VM is, and what the administrator has to do, if anything; one or two sentences, in English.
    pub summary: String,
    /// The sentences of `summary`, as data.
    #[serde(default, rename = "says")]
    pub sentences: Vec<JobText>,
    /// Who requested it.
    pub by: String,
    /// When it was accepted. Unix milliseconds.
    pub accepted_at_ms: u64,
    /// When it ended. Unix milliseconds.
    pub ended_at_ms: Option<u64>,
    /// Its steps, in order.
    pub steps: Vec<StepView>,
    /// Its progress while memory is sent.
    pub progress: Option<Progress>,
    /// Each disk that moves, during the job and afterwards.
    #[serde(default)]
    pub disks: Vec<DiskProgress>,
    /// What may be asked of it now, as far as its log tells: a host may know better.
    #[serde(default)]
    pub next: Vec<JobAction>,
    /// Its measurements, once it has succeeded.
    pub figures: Option<Figures>,
    /// How its bytes travel; only in the view of a single job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// Where its bytes travel, since its newest attempt has begun; `None`: its hosts have no migration networks. Only in
    /// the view of a single job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    /// The findings of preflight.
    pub findings: Vec<Finding>,
    /// Its log, oldest first; up to 1,000 lines. Empty in lists and events.
    pub log: Vec<LogLine>,
}

/// One line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// What happened, in English.
    pub message: String,
    /// The same, as data.
    #[serde(default, rename = "says", skip_serializing_if = "Option::is_none")]
    pub sentence: Option<JobText>,
}

/// A change. The SSE `id:` is its sequence number; `event:` is the variant's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// A job's state or progress.
    Job(Box<JobView>),
    /// A host, its VMs or its shares: query again what you show of it.
    Host {
        /// Its name.
        name: String,
    },
    /// Events between `Last-Event-ID` and now were lost: query everything again.
    Reset,
}
