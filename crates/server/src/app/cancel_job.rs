//! Cancels a job: before the switchover the VM stays, running, where it was; after it the wish is refused.

use std::sync::Arc;

use ferry_client::agent::Attempt;
use ferry_core::{
    api::server::JobView,
    finding::{Finding, FindingId},
    migration::{LogEvent, Phase, Step, StepClass, phase},
};

use super::show_jobs;
use crate::{
    App,
    clock::now_ms,
    failure::Failure,
    saga::migrate::Plan,
    store::{JobRecord, LogEntry},
};

pub(crate) async fn cancel_job(app: &Arc<App>, reference: &str, by: &str) -> Result<JobView, Failure> {
    let title = format!("Could not cancel job {reference}");
    let record = show_jobs::find(app, &title, reference).await?;
    let log: Vec<LogEvent> = app
        .store
        .log(record.id)
        .await?
        .into_iter()
        .filter_map(|row| match row.entry {
            LogEntry::Event(event) => Some(event),
            LogEntry::Note(_) => None,
        })
        .collect();
    let failed = log.iter().any(|event| {
        matches!(event, LogEvent::Failed { step, .. } if step.class() != StepClass::Retriable)
            || matches!(event, LogEvent::Undone { .. } | LogEvent::UndoFailed { .. })
    });
    match phase(&log) {
        Phase::Succeeded | Phase::Cancelled | Phase::Failed => {
            let message = format!("Job {} has ended: {}", record.id, phase(&log).title());
            let fix = "Nothing is left to cancel; a new move can be started";
            Err(Failure::found(title, Finding::blocks(FindingId::JobEnded, record.id, message, fix)))
        }
        // It is being taken back already.
        Phase::RollingBack => Ok(app.job_view(&record).await?),
        Phase::Stuck if failed => Ok(app.job_view(&record).await?),
        Phase::Completing | Phase::Stuck => Err(past_pivot(&title, &record)),
        Phase::Queued | Phase::Preparing | Phase::Migrating => {
            if !log.iter().any(|event| matches!(event, LogEvent::CancelRequested { .. })) {
                let event = LogEntry::Event(LogEvent::CancelRequested { by: by.to_owned() });
                app.store.append(record.id, &[event], now_ms()).await?;
            }
            if let Some(running) = app.jobs.running(record.id) {
                running.cancelled.cancel();
                running.changed();
            }
            tracing::info!(job = record.id.0, by, "A cancel was asked for");
            if log.contains(&LogEvent::Intent { step: Step::Perform }) {
                ask_source(app, &title, &record).await?;
            }
            Ok(app.job_view(&record).await?)
        }
    }
}

/// Only the source knows whether it is too late. The job's task asks it too; this is for the answer to the caller.
async fn ask_source(app: &App, title: &str, record: &JobRecord) -> Result<(), Failure> {
    let Ok(plan) = Plan::from_json(&record.job.plan) else {
        return Ok(());
    };
    let Some(source) = app.inventory.by_id(record.job.source.id) else {
        return Ok(());
    };
    let attempt = Attempt { job: record.id, generation: plan.generation };
    let answer = source.agent.abort(attempt).await;
    let too_late = answer.err().is_some_and(|error| {
        let findings = error.problem().map(|problem| problem.findings.clone()).unwrap_or_default();
        findings.iter().any(|finding| finding.id == FindingId::JobPastPivot)
    });
    if too_late { Err(past_pivot(title, record)) } else { Ok(()) }
}

fn past_pivot(title: &str, record: &JobRecord) -> Failure {
    let (vm, destination) = (&record.job.vm_name, &record.job.destination.name);
    let message = format!("VM {vm} has switched over to {destination}: job {} can only be finished", record.id);
    let fix = format!(
        "Wait for the job to end, then move the VM back: `ferry vm migrate {vm} --to {}`",
        record.job.source.name
    );
    Failure::found(title, Finding::blocks(FindingId::JobPastPivot, record.id, message, fix))
}
