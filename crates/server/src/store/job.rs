//! A job as it is stored, and what the database answers when it is asked to store one.

use ferry_core::{
    finding::Finding,
    id::{HostId, JobId, VmId},
    job::{Figures, JobKind},
    migration::{LogEvent, Phase},
};

/// A host as a job remembers it: the name outlives the host's removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    /// Its id.
    pub id: HostId,
    /// Its name when the job was accepted.
    pub name: String,
}

/// What a job is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// What it does.
    pub kind: JobKind,
    /// The job that it is a part of.
    pub parent: Option<JobId>,
    /// The VM; nil for a job whose work is done by jobs of its own.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// From where.
    pub source: HostName,
    /// To where.
    pub destination: HostName,
    /// Who asked.
    pub by: String,
    /// When. Unix milliseconds.
    pub accepted_at_ms: u64,
    /// What the saga needs to know to go on after a restart; JSON that only it reads.
    pub plan: String,
    /// What was found before it was accepted.
    pub findings: Vec<Finding>,
}

/// A job as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// What was asked.
    pub job: NewJob,
    /// What it took, as soon as that is known.
    pub figures: Option<Figures>,
}

/// One line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// What it says.
    pub entry: LogEntry,
}

impl LogRow {
    /// The events among the lines of a log: what its phase is folded from.
    pub fn events(log: &[Self]) -> Vec<LogEvent> {
        let event = |row: &Self| match &row.entry {
            LogEntry::Event(event) => Some(event.clone()),
            LogEntry::Note(_) => None,
        };
        log.iter().filter_map(event).collect()
    }
}

/// What a line of a job's log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEntry {
    /// To the program: the phase is folded from these.
    Event(LogEvent),
    /// To people only.
    Note(String),
}

/// Whether a job was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was, with this number.
    Job(JobId),
    /// It was not: this job moves the VM.
    Busy(JobId),
}

/// Whether a job and its parts were stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreatedMany {
    /// They were: the parent, and its parts.
    Jobs(JobId, Vec<JobId>),
    /// None was: this job moves that VM.
    Busy(VmId, JobId),
}

/// Whether a job waits for another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restarted {
    /// It does.
    Waits,
    /// It has not ended, or has ended well.
    Not(Phase),
    /// This job moves the VM.
    Busy(JobId),
}
