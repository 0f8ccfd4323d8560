//! Administrators' actions on a job that did not go well.
//!
//! | | when | what |
//! |---|---|---|
//! | restart | failed, cancelled | starts another attempt of the same job |
//! | retry | stuck, or waiting for a host | repeats the failing action now |
//! | undo | before the switchover | reverts the job's changes: the VM stays |
//! | dismiss | it does not end by itself | ends the job as it is; after a live move whose VM is at the source, its remains are removed once both hosts answer |
//!
//! [`ferry_core::migration::ends_by_itself`] decides from the hosts' answers whether a job ends by itself.

use std::sync::Arc;

use ferry_core::{
    api::{problem::Title, server::JobView},
    error::chain,
    finding::{Action, ByHand, Finding, FindingId, Message},
    job::JobKind,
    job_text::JobText,
    migration::{
        Accepted, Has, HostAnswer, JobAction, LogEvent, Refused, answer, ends_by_itself, is_taken_back, newest_attempt,
        phase,
    },
    preflight::busy_by,
};
use futures_util::future::join_all;

use super::{
    App,
    cancel_job::{cancel_job, refused},
    show_jobs,
};
use crate::{
    clock::now_ms,
    failure::Failure,
    inventory::Host,
    plan::Plan,
    saga::{agent::Agent, participant::Participant as _},
    store::{JobRecord, LogEntry, LogRow, NewJob, Restarted, StoreError},
    view::words::whereabouts,
};

/// Starts another attempt; for a parent job, another attempt of each part that did not succeed.
pub(crate) async fn restart_job(app: &Arc<App>, reference: &str, by: &str) -> Result<JobView, Failure> {
    let title = Title::RestartJob { job: reference.to_owned() };
    let (record, _) = show_jobs::find(app, &title, reference).await?;
    if !record.job.kind.is_parent() {
        restart(app, &title, &record, by).await?;
        return show_jobs::again(app, &title, record.id).await;
    }
    let mut again = 0;
    for (child, log) in app.store.children(record.id).await? {
        if answer(JobAction::Restart, &LogRow::events(&log), false).is_ok() {
            restart(app, &title, &child, by).await?;
            again += 1;
        }
    }
    if again == 0 {
        let (message, fix) = (Message::JobPartsNotFailed { job: record.id }, Action::ShowJobNumber { job: record.id });
        return Err(Failure::found(title, Finding::blocks(FindingId::JobOpen, record.id, message, fix)));
    }
    show_jobs::again(app, &title, record.id).await
}

async fn restart(app: &Arc<App>, title: &Title, record: &JobRecord, by: &str) -> Result<(), Failure> {
    let now = now_ms();
    let plan = Plan::of(record).map_err(|error| {
        let message = Message::JobUnreadable { job: record.id, reason: error.to_string() };
        Failure::found(title, Finding::blocks(FindingId::JobUnreadable, record.id, message, ByHand::StartNewMove))
    })?;
    for host in [&record.job.source, &record.job.destination] {
        if app.inventory.by_id(host.id).is_none() {
            let message = Message::HostRemoved { host: host.name.clone() };
            let finding = Finding::blocks(FindingId::HostUnknown, &host.name, message, Action::NewMove);
            return Err(Failure::found(title, finding));
        }
    }
    let plan = plan.renewed(now);
    match app.store.restart(record.id, &plan, by, now).await? {
        Restarted::Waits => {}
        Restarted::Not(log) => return Err(refused(title, record, &log, JobAction::Restart, Refused::NotFailed)),
        Restarted::Busy(other) => return Err(Failure::found(title, busy_by(&record.job.vm_name, other))),
    }
    tracing::info!(job = record.id.0, by, "Another attempt was asked for");
    // Not read from the database again: the read could fail, and the job is already in the queue.
    let stored = JobRecord { job: NewJob { plan, ..record.job.clone() }, figures: None, ..record.clone() };
    app.jobs.enqueue([stored]);
    app.jobs.publish(record.id).await;
    Ok(())
}

/// Repeats a failing action now.
pub(crate) async fn retry_job(app: &Arc<App>, reference: &str, by: &str) -> Result<JobView, Failure> {
    let title = Title::RetryJob { job: reference.to_owned() };
    let (record, log) = one(app, &title, reference).await?;
    if let Err(why) = answer(JobAction::Retry, &log, app.jobs.now(record.id).waits()) {
        return Err(refused(&title, &record, &log, JobAction::Retry, why));
    }
    let asked = LogEntry::Note(JobText::RetryAsked { by: by.to_owned() });
    app.store.append(record.id, &[asked], now_ms()).await?;
    if let Some(running) = app.jobs.running().get(record.id) {
        running.retry();
    }
    show_jobs::again(app, &title, record.id).await
}

/// Reverts the job's changes, which is possible only before the switchover.
pub(crate) async fn undo_job(app: &Arc<App>, reference: &str, by: &str) -> Result<JobView, Failure> {
    let title = Title::UndoJob { job: reference.to_owned() };
    let (record, log) = one(app, &title, reference).await?;
    match answer(JobAction::Undo, &log, app.jobs.now(record.id).waits()) {
        // The undoing itself keeps failing.
        Ok(Accepted::Now) if is_taken_back(newest_attempt(&log)) => retry_job(app, reference, by).await,
        Ok(Accepted::Now | Accepted::Again | Accepted::Already) => cancel_job(app, reference, by).await,
        Err(why) => Err(refused(&title, &record, &log, JobAction::Undo, why)),
    }
}

/// Ends a job as it is: nothing more is done for it.
pub(crate) async fn dismiss_job(app: &Arc<App>, reference: &str, by: &str) -> Result<JobView, Failure> {
    let title = Title::DismissJob { job: reference.to_owned() };
    let (record, log) = one(app, &title, reference).await?;
    let now = phase(&log);
    if now.ended() {
        return Err(refused(&title, &record, &log, JobAction::Dismiss, Refused::Ended));
    }
    let answers = ask_all(app, &record).await;
    let waits = app.jobs.now(record.id).waits();
    let sides: Vec<Has> =
        answers.iter().filter(|answer| is_end(&record, &answer.host)).map(|answer| answer.has).collect();
    if ends_by_itself(now, waits, &sides) {
        let vm = whereabouts(&record.job.vm_name, &answers).into();
        let message = Message::JobGoesOn { job: record.id, phase: now, vm };
        let fix = Action::WaitForJobToEnd { job: record.id };
        return Err(Failure::found(title, Finding::blocks(FindingId::JobOpen, record.id, message, fix)));
    }
    // The task ends first: it must not write to the log after the job's end.
    app.jobs.dismiss(record.id).await;
    match give_up(app, &record, by, answers).await {
        Ok(()) => app.jobs.leave(record.id),
        Err(error) => {
            app.jobs.go_on(record);
            return Err(error.into());
        }
    }
    app.jobs.publish(record.id).await;
    show_jobs::again(app, &title, record.id).await
}

/// Asks all hosts now. Returns the answers of the job's two hosts, and of every other host that has the VM.
async fn ask_all(app: &Arc<App>, record: &JobRecord) -> Vec<HostAnswer> {
    let ask = |host: Arc<Host>| async move {
        let seen = app.inventory.refresh(&host).await;
        let has = match (seen.reachable, seen.vm(record.job.vm)) {
            (false, _) => Has::NoAnswer,
            (true, None) => Has::Nothing,
            (true, Some(facts)) => Has::It(facts.state),
        };
        HostAnswer { host: host.name().to_owned(), has }
    };
    let mut answers = join_all(app.inventory.hosts().into_iter().map(ask)).await;
    answers.retain(|answer| is_end(record, &answer.host) || matches!(answer.has, Has::It(_)));
    answers
}

fn is_end(record: &JobRecord, host: &str) -> bool {
    [&record.job.source.name, &record.job.destination.name].into_iter().any(|end| end == host)
}

/// Records that the job was dismissed, unless it has ended in the meantime. Its task has already ended.
async fn give_up(app: &Arc<App>, record: &JobRecord, by: &str, answers: Vec<HostAnswer>) -> Result<(), StoreError> {
    let log = LogRow::events(&app.store.log(record.id).await?);
    if phase(&log).ended() {
        return Ok(());
    }
    // First, because an ended job must not keep its VM reserved; an open job does not need the reservation.
    app.store.unreserve(record.id).await?;
    let event = LogEntry::Event(LogEvent::Dismissed { by: by.to_owned(), answers });
    app.store.append(record.id, &[event], now_ms()).await?;
    tracing::warn!(job = record.id.0, by, "The job was dismissed");
    if is_taken_back(newest_attempt(&log)) {
        clean_what_answers(app, record).await;
    }
    app.jobs.remove_orphans(record.clone());
    Ok(())
}

/// Cleans up at the hosts that answer: the VM stays at the source, so whatever a host still has of the move is not
/// needed. A host that does not answer keeps it; its agent refuses to release the hold on the VM only where the VM
/// could otherwise run twice.
async fn clean_what_answers(app: &App, record: &JobRecord) {
    let Ok(plan) = Plan::of(record) else { return };
    let attempt = plan.attempt(record);
    let (source, destination) = (&record.job.source, &record.job.destination);
    // In an offline move the destination decides which host has the VM: until it has answered, the source keeps its
    // hold.
    let destination_first = record.job.kind == JobKind::Offline;
    for host in if destination_first { [destination, source] } else { [source, destination] } {
        let Some(host) = app.inventory.by_id(host.id).filter(|host| host.seen().reachable) else {
            if destination_first {
                return;
            }
            continue;
        };
        let agent = Agent { host };
        let cleaned = async {
            agent.abort(attempt).await?;
            agent.release(attempt).await
        };
        if let Err(error) = cleaned.await {
            tracing::info!(host = agent.name(), error = %chain(&error), "A host was left as it is");
            if destination_first {
                return;
            }
        }
    }
}

async fn one(app: &Arc<App>, title: &Title, reference: &str) -> Result<(JobRecord, Vec<LogEvent>), Failure> {
    let (record, log) = show_jobs::find(app, title, reference).await?;
    if record.job.kind.is_parent() {
        let message = Message::JobHasParts { job: record.id };
        return Err(super::invalid(title, reference, message, Action::ShowParts { job: record.id }));
    }
    Ok((record, LogRow::events(&log)))
}
