//! Bodies of the server's REST API, version 1 (`/api/v1`).
//!
//! ```text
//! GET    /api/v1/hosts                              → [HostView]
//! POST   /api/v1/hosts                AddHost       → HostView            (201)
//! GET    /api/v1/hosts/{host}                       → HostView
//! DELETE /api/v1/hosts/{host}                                             (204)
//! GET    /api/v1/shares                             → [ShareView]
//! POST   /api/v1/shares               AddShare      → ShareView           (201)
//! GET    /api/v1/shares/{share}                     → ShareView
//! DELETE /api/v1/shares/{share}                                           (204)
//! PUT    /api/v1/shares/{share}/hosts/{host}  AttachShare → ShareView
//! DELETE /api/v1/shares/{share}/hosts/{host}              → ShareView
//! GET    /api/v1/vms                                → [VmView]
//! GET    /api/v1/vms/{vm}                           → VmView
//! POST   /api/v1/vms/{vm}/start                     → VmView
//! POST   /api/v1/vms/{vm}/shutdown                  → VmView              (the guest was asked)
//! GET    /api/v1/vms/{vm}/hosts                     → [Candidate]
//! POST   /api/v1/vms/{vm}/migrate     MigrateVm     → JobView (202), or Candidate (200) with `dry_run`
//! GET    /api/v1/jobs?limit=                        → [JobView]           (newest first)
//! GET    /api/v1/jobs/{job}                         → JobView
//! POST   /api/v1/jobs/{job}/cancel                  → JobView
//! GET    /api/v1/events                             → text/event-stream of Event, resumable by Last-Event-ID
//! ```
//! `{vm}` is a name, a UUID, or `HOST/NAME` (percent-encoded); an ambiguous name is refused with the list.
//! `{host}` and `{share}` are names or ids. Every call carries `Authorization: Bearer TOKEN`. A POST may carry
//! `Idempotency-Key`: the same key with the same body gets the first answer again.

use serde::{Deserialize, Serialize};

use crate::{
    api::agent::ShareCredentials,
    finding::Finding,
    host::HostFacts,
    id::{HostId, JobId, ShareId, VmId},
    job::{Figures, MoveKind, Progress, StepView},
    location::UncPath,
    migration::Phase,
    pin::Pin,
    share::AttachedShare,
    units::ByteCount,
    vm::{VmFacts, VmState},
};

/// Adds a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AddHost {
    /// How it is called in Ferry: letters, digits, `-`, `_`, `.`; up to 64.
    pub name: String,
    /// `ADDRESS:PORT` of its agent.
    pub address: String,
    /// What `ferry-agent setup` printed.
    pub token: String,
}

/// A host, as the inventory has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostView {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// `ADDRESS:PORT` of its agent.
    pub address: String,
    /// Its agent's key.
    pub pin: Pin,
    /// Whether its agent answered the last call.
    pub reachable: bool,
    /// Unix milliseconds of the last answer.
    pub seen_at_ms: Option<u64>,
    /// What its agent said last.
    pub facts: Option<HostFacts>,
    /// Names and ids of VMs on it.
    pub vms: Vec<VmRow>,
    /// Shares attached on it.
    pub shares: Vec<AttachedShare>,
}

/// A VM in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmRow {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub state: VmState,
    /// Memory.
    pub memory: ByteCount,
}

/// Adds a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AddShare {
    /// How it is called in Ferry.
    pub name: String,
    /// `\\server.domain\share`. Text, so that a refusal can name what is wrong with it.
    pub unc: String,
}

/// Attaches a share on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AttachShare {
    /// Who logs in. The server passes them on and keeps nothing of them.
    pub credentials: Option<ShareCredentials>,
    /// The administrator's own mount, to be adopted.
    pub at: Option<String>,
}

/// A share, as the inventory has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareView {
    /// Its id.
    pub id: ShareId,
    /// Its name.
    pub name: String,
    /// Its UNC path.
    pub unc: UncPath,
    /// Hosts that have it attached.
    pub hosts: Vec<ShareOnHost>,
}

/// A share on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareOnHost {
    /// The host's name.
    pub host: String,
    /// What its agent says.
    pub attached: AttachedShare,
}

/// A VM, as the inventory has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmView {
    /// The name of the host it is on.
    pub host: String,
    /// What that host says.
    pub facts: VmFacts,
    /// The job that moves it now.
    pub job: Option<JobId>,
    /// What is odd about it.
    pub findings: Vec<Finding>,
}

/// One host as the destination of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Candidate {
    /// The host's name.
    pub host: String,
    /// What kind of move it would be; `None`: it cannot work.
    pub kind: Option<MoveKind>,
    /// Why, in one sentence.
    pub why: String,
    /// What blocks it, and what should be known.
    pub findings: Vec<Finding>,
}

/// Moves a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MigrateVm {
    /// The destination's name or id.
    pub destination: String,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// QEMU switches over when the rest fits into this. Milliseconds, 10 to 10,000; default 300.
    #[serde(default)]
    pub downtime_limit_ms: Option<u32>,
    /// Cap on what is sent, bytes per second.
    #[serde(default)]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Aborted after this. Milliseconds; default one hour.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// What it does.
    pub kind: MoveKind,
    /// The VM.
    pub vm: VmId,
    /// The VM's name.
    pub vm_name: String,
    /// The source's name.
    pub source: String,
    /// The destination's name.
    pub destination: String,
    /// Where it stands.
    pub phase: Phase,
    /// Where the VM is, and what to do if somebody has to; one or two sentences.
    pub summary: String,
    /// Who asked for it.
    pub by: String,
    /// Unix milliseconds.
    pub accepted_at_ms: u64,
    /// Unix milliseconds.
    pub ended_at_ms: Option<u64>,
    /// Its steps, in order.
    pub steps: Vec<StepView>,
    /// How far it is, while memory moves.
    pub progress: Option<Progress>,
    /// What it took, when it is done.
    pub figures: Option<Figures>,
    /// What preflight found.
    pub findings: Vec<Finding>,
    /// Its log, oldest first; up to 1,000 lines.
    pub log: Vec<LogLine>,
}

/// One line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// What happened.
    pub message: String,
}

/// Something changed. The SSE `id:` is its sequence number; `event:` is the variant's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// A job's state or progress.
    Job(Box<JobView>),
    /// A host, its VMs or shares: ask again for what you show of it.
    Host {
        /// Its name.
        name: String,
    },
    /// Events were lost between `Last-Event-ID` and now: ask again for everything.
    Reset,
}
