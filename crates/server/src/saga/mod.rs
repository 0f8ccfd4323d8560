//! Jobs that change several hosts: the executor, and one file per saga.

mod ends;
pub(crate) mod executor;
#[cfg(test)]
mod executor_sweep;
pub(crate) mod leftovers;
pub(crate) mod migrate;
pub(crate) mod move_offline;
pub(crate) mod move_storage;
mod perform;
pub(crate) mod plan;
mod presence;
#[cfg(test)]
mod simulation;
mod undo;

use crate::{
    App,
    clock::now_ms,
    jobs::Running,
    store::{JobRecord, LogEntry},
};

/// Writes into a job's log what people should know of how it went.
async fn note(app: &App, running: &Running, job: &JobRecord, notes: Vec<String>) {
    let notes: Vec<LogEntry> = notes.into_iter().map(LogEntry::Note).collect();
    if !notes.is_empty() {
        running.kept(|| app.store.append(job.id, &notes, now_ms())).await;
    }
}
