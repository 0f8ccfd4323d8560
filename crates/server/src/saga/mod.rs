//! Jobs that change several hosts: the executor, and one file per saga.

pub(crate) mod executor;
#[cfg(test)]
mod executor_sweep;
pub(crate) mod migrate;
pub(crate) mod move_offline;
pub(crate) mod move_storage;
pub(crate) mod orphans;
pub(crate) mod participant;
mod participants;
mod perform;
mod presence;
#[cfg(test)]
mod simulation;
mod undo;

use std::sync::Arc;

use crate::{
    clock::now_ms,
    jobs::running::{Running, RunningJobs},
    preflight::Preflight,
    store::{JobRecord, LogEntry, Store},
};

/// What the steps of all jobs share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) preflight: Arc<Preflight>,
    pub(crate) running: Arc<RunningJobs>,
}

/// Writes into a job's log what people should know of how it went.
async fn note(store: &Store, running: &Running, job: &JobRecord, notes: Vec<String>) {
    let notes: Vec<LogEntry> = notes.into_iter().map(LogEntry::Note).collect();
    if !notes.is_empty() {
        running.kept(|| store.append(job.id, &notes, now_ms())).await;
    }
}
