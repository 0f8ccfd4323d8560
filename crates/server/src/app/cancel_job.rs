//! Cancels a job: before the switchover the VM stays, running, where it was; after it the wish is refused. Cancelling a
//! job with parts cancels those of them that have not switched over.

use std::sync::Arc;

use ferry_core::{
    api::server::JobView,
    finding::{Finding, FindingId},
    job::JobKind,
    migration::{LogEvent, Phase, Step, newest_attempt, phase},
};

use super::{App, show_jobs};
use crate::{
    clock::now_ms,
    failure::{Failure, has_finding},
    plan::Plan,
    saga::{agent::Agent, participant::Participant as _},
    store::{JobRecord, LogEntry, LogRow},
};

pub(crate) async fn cancel_job(app: &Arc<App>, reference: &str, by: &str) -> Result<JobView, Failure> {
    let title = format!("Could not cancel job {reference}");
    let (record, log) = show_jobs::find(app, &title, reference).await?;
    if record.job.kind.is_parent() {
        cancel_parts(app, &title, &record, by).await?;
    } else {
        cancel(app, &title, &record, &LogRow::events(&log), by).await?;
    }
    show_jobs::again(app, &title, record.id).await
}

/// Ok if at least one part could be cancelled.
async fn cancel_parts(app: &Arc<App>, title: &str, parent: &JobRecord, by: &str) -> Result<(), Failure> {
    let mut refused = None;
    let mut cancelled = 0;
    // Those that wait first: none of them begins because another ended.
    let mut parts = app.store.children(parent.id).await?;
    parts.sort_by_key(|(_, log)| phase(&LogRow::events(log)) != Phase::Queued);
    for (record, log) in parts {
        match cancel(app, title, &record, &LogRow::events(&log), by).await {
            Ok(()) => cancelled += 1,
            Err(Failure::Store(error)) => return Err(error.into()),
            Err(failure) => refused = Some(failure),
        }
    }
    match refused {
        Some(failure) if cancelled == 0 => Err(failure),
        None if cancelled == 0 => Err(ended(title, parent, "it has nothing left to do")),
        _ => Ok(()),
    }
}

async fn cancel(app: &Arc<App>, title: &str, record: &JobRecord, log: &[LogEvent], by: &str) -> Result<(), Failure> {
    let attempt = newest_attempt(log);
    match phase(log) {
        now @ (Phase::Succeeded | Phase::Cancelled | Phase::Failed) => Err(ended(title, record, now.title())),
        // It is being taken back already.
        Phase::RollingBack => Ok(()),
        Phase::Stuck if is_taken_back(attempt) => Ok(()),
        Phase::Completing | Phase::Stuck => Err(past_pivot(title, record)),
        Phase::Queued | Phase::Preparing | Phase::Migrating => {
            if !attempt.iter().any(|event| matches!(event, LogEvent::CancelRequested { .. })) {
                let event = LogEntry::Event(LogEvent::CancelRequested { by: by.to_owned() });
                app.store.append(record.id, &[event], now_ms()).await?;
            }
            tracing::info!(job = record.id.0, by, "A cancel was asked for");
            match app.jobs.running().get(record.id) {
                Some(running) => {
                    running.cancelled.cancel();
                    running.changed();
                }
                None => {
                    app.jobs.take_out(record.id);
                    app.jobs.publish(record.id).await;
                }
            }
            if attempt.contains(&LogEvent::Intent { step: Step::Perform }) {
                ask_host(app, title, record).await?;
            }
            Ok(())
        }
    }
}

/// Whether an attempt failed before the switchover, so that what it prepared is taken back.
pub(super) fn is_taken_back(attempt: &[LogEvent]) -> bool {
    attempt.iter().any(|event| {
        matches!(event, LogEvent::Failed { step, .. } if step.class().is_taken_back())
            || matches!(event, LogEvent::Undone { .. } | LogEvent::UndoFailed { .. })
    })
}

/// Only one host knows whether it is too late: the source, or, of a VM that is shut off, the destination. The job's task
/// asks it too; this is for the answer to the caller.
async fn ask_host(app: &App, title: &str, record: &JobRecord) -> Result<(), Failure> {
    let Ok(plan) = Plan::of(record) else {
        return Ok(());
    };
    let host = if record.job.kind == JobKind::Offline { &record.job.destination } else { &record.job.source };
    let Some(host) = app.inventory.by_id(host.id) else {
        return Ok(());
    };
    let answer = Agent { host }.abort(plan.attempt(record)).await;
    let too_late = answer.err().is_some_and(|error| has_finding(&error, FindingId::JobPastPivot));
    if too_late { Err(past_pivot(title, record)) } else { Ok(()) }
}

pub(super) fn ended(title: &str, record: &JobRecord, how: &str) -> Failure {
    let message = format!("Job {} has ended: {how}", record.id);
    let fix = "Nothing is left to do for it; a new move can be started";
    Failure::found(title, Finding::blocks(FindingId::JobEnded, record.id, message, fix))
}

pub(super) fn past_pivot(title: &str, record: &JobRecord) -> Failure {
    let (vm, destination) = (&record.job.vm_name, &record.job.destination.name);
    if record.job.kind == JobKind::Storage {
        let message = format!("Disks of VM {vm} have switched over: job {} can only be finished", record.id);
        let fix = format!("Wait for the job to end, then move them back: `ferry vm move-storage {vm} --to PLACE`");
        return Failure::found(title, Finding::blocks(FindingId::JobPastPivot, record.id, message, fix));
    }
    let message = format!("VM {vm} has switched over to {destination}: job {} can only be finished", record.id);
    let fix = format!(
        "Wait for the job to end, then move the VM back: `ferry vm migrate {vm} --to {}`",
        record.job.source.name
    );
    Failure::found(title, Finding::blocks(FindingId::JobPastPivot, record.id, message, fix))
}
