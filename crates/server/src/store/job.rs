//! Stored jobs, and the possible results of storing one.

use ferry_core::{
    finding::Finding,
    id::{HostId, JobId, VmId},
    job::{Figures, JobKind},
    job_text::JobText,
    migration::LogEvent,
};

/// A host as a job records it: the name remains known after the host is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    /// Its id.
    pub id: HostId,
    /// Its name at the time when the job was accepted.
    pub name: String,
}

/// The contents of a new job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// The kind of work.
    pub kind: JobKind,
    /// The parent job, if this job is a part.
    pub parent: Option<JobId>,
    /// The VM; nil for a parent job, whose parts do the work.
    pub vm: VmId,
    /// The VM's name.
    pub vm_name: String,
    /// The host that the VM or its disks leave.
    pub source: HostName,
    /// The host that they move to.
    pub destination: HostName,
    /// The name of the caller.
    pub by: String,
    /// When it was accepted, in Unix milliseconds.
    pub accepted_at_ms: u64,
    /// What the saga needs in order to continue after a restart: JSON that only the saga reads.
    pub plan: String,
    /// The findings of the checks before it was accepted.
    pub findings: Vec<Finding>,
}

/// A stored job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// The request.
    pub job: NewJob,
    /// Measured figures of the job, as soon as they are known.
    pub figures: Option<Figures>,
}

/// One line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Its contents.
    pub entry: LogEntry,
}

impl LogRow {
    /// The events among the lines of a log: the phase is folded from them.
    pub fn events(log: &[Self]) -> Vec<LogEvent> {
        let event = |row: &Self| match &row.entry {
            LogEntry::Event(event) => Some(event.clone()),
            LogEntry::Note(_) => None,
        };
        log.iter().filter_map(event).collect()
    }
}

/// The contents of a line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEntry {
    /// An event, for the program: the phase is folded from events.
    Event(LogEvent),
    /// A note, for people only.
    Note(JobText),
}

/// The result of storing a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The job was stored with this number.
    Job(JobId),
    /// Nothing was stored: this job already moves the VM.
    Busy(JobId),
}

/// The result of storing a job with its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreatedMany {
    /// All were stored: the parent, and its parts.
    Jobs(JobId, Vec<JobId>),
    /// Nothing was stored: this job already moves that VM.
    Busy(VmId, JobId),
}

/// The result of queueing a job for another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restarted {
    /// The job waits in the queue.
    Waits,
    /// It has not ended, or has ended well, as this log says.
    Not(Vec<LogEvent>),
    /// This job already moves the VM.
    Busy(JobId),
}
