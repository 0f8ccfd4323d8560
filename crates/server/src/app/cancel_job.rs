//! Cancels a job. Before the switchover the VM stays where it was and keeps running; after the switchover the request
//! is refused. Cancelling a job with parts cancels those parts that have not switched over.

use std::sync::Arc;

use ferry_core::{
    api::{problem::Title, server::JobView},
    finding::{Action, ByHand, Finding, FindingId, Message},
    job::JobKind,
    migration::{Accepted, JobAction, LogEvent, Phase, Refused, Step, answer, newest_attempt, phase},
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
    let title = Title::CancelJob { job: reference.to_owned() };
    let (record, log) = show_jobs::find(app, &title, reference).await?;
    if record.job.kind.is_parent() {
        cancel_parts(app, &title, &record, by).await?;
    } else {
        cancel(app, &title, &record, &LogRow::events(&log), by).await?;
    }
    show_jobs::again(app, &title, record.id).await
}

/// Ok if at least one part could be cancelled.
async fn cancel_parts(app: &Arc<App>, title: &Title, parent: &JobRecord, by: &str) -> Result<(), Failure> {
    let mut refused = None;
    let mut cancelled = 0;
    // Waiting parts first, so that none of them starts because another one ended.
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
        None if cancelled == 0 => Err(ended(title, parent, Message::JobHasNothingLeft { job: parent.id })),
        _ => Ok(()),
    }
}

async fn cancel(app: &Arc<App>, title: &Title, record: &JobRecord, log: &[LogEvent], by: &str) -> Result<(), Failure> {
    match answer(JobAction::Cancel, log, app.jobs.now(record.id).waits()) {
        Ok(Accepted::Now) => {
            let event = LogEntry::Event(LogEvent::CancelRequested { by: by.to_owned() });
            app.store.append(record.id, &[event], now_ms()).await?;
        }
        Ok(Accepted::Again) => {}
        Ok(Accepted::Already) => return Ok(()),
        Err(why) => return Err(refused(title, record, log, JobAction::Cancel, why)),
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
    if newest_attempt(log).contains(&LogEvent::Intent { step: Step::Perform }) {
        ask_host(app, title, record).await?;
    }
    Ok(())
}

/// Only one host knows whether it is too late: the source, or for an offline move the destination. The job's task asks
/// it as well; this call is for the answer to the caller.
async fn ask_host(app: &App, title: &Title, record: &JobRecord) -> Result<(), Failure> {
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

fn ended(title: &Title, record: &JobRecord, message: Message) -> Failure {
    Failure::found(title, Finding::blocks(FindingId::JobEnded, record.id, message, ByHand::NothingIsLeft))
}

/// The answer to a request for an action that [`answer`] refuses.
pub(super) fn refused(title: &Title, record: &JobRecord, log: &[LogEvent], action: JobAction, why: Refused) -> Failure {
    let (job, phase) = (record.id, phase(log));
    let open = |message, fix| Failure::found(title, Finding::blocks(FindingId::JobOpen, job, message, fix));
    match why {
        Refused::Ended if action == JobAction::Retry && answer(JobAction::Restart, log, false).is_ok() => {
            let finding =
                Finding::blocks(FindingId::JobEnded, job, Message::JobEnded { job, phase }, Action::RestartJob { job });
            Failure::found(title, finding)
        }
        Refused::TooLate => past_pivot(title, record),
        Refused::GoesOn => open(Message::JobContinues { job, phase }, Action::WaitForJobToEnd { job }),
        Refused::Ended => ended(title, record, Message::JobEnded { job, phase }),
        Refused::NotFailed => open(Message::JobNotFailed { job, phase }, Action::ShowJobNumber { job }),
    }
}

fn past_pivot(title: &Title, record: &JobRecord) -> Failure {
    let (job, vm) = (record.id, record.job.vm_name.clone());
    let (message, fix) = match record.job.kind == JobKind::Storage {
        true => (Message::JobDisksSwitched { vm: vm.clone(), job }, Action::MoveDisksBack { vm }),
        false => (
            Message::JobSwitched { vm: vm.clone(), host: record.job.destination.name.clone(), job },
            Action::MoveBack { vm, host: record.job.source.name.clone() },
        ),
    };
    Failure::found(title, Finding::blocks(FindingId::JobPastPivot, record.id, message, fix))
}
