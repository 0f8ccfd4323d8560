//! What a live move that was dismissed has left at its hosts: taken away when both answer, if the VM is the source's.
//!
//! ```text
//! dismissed ─▶ both hosts are asked ─┬─ the VM is the source's ─▶ abort and release at both, the destination first
//!                   ▲                ├─ it is the destination's ─▶ nothing: that is what was accepted
//!                   └─── later ◀─────┴─ it is not known yet, or a host does not answer
//! ```
//! Meanwhile the VM is reserved: another move of it would meet half of this one.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ferry_core::{
    job::JobKind,
    migration::{LogEvent, Step, Verdict, newest_attempt},
};

use super::{
    ends::{End, Ends, Logged, OtherHosts},
    executor::StepFailed,
    migrate::Plan,
    presence, undo,
};
use crate::{
    App,
    clock::now_ms,
    inventory::Host,
    jobs::{Running, events},
    store::{JobRecord, StoreError},
};

/// How often it is looked whether both hosts answer: nobody is asked for that.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often hosts are asked that answer and are not of one mind, or refuse: at first soon, for an agent that has just been
/// started may not know all yet; then twice as late each time, up to this.
const ASK_PAUSE_MAX: Duration = Duration::from_secs(30);
/// After a start of the server, jobs are looked at that are no older than 30 days, and no more than so many.
const LOOKED_AT_FOR_MS: u64 = 30 * 24 * 60 * 60 * 1000;
const LOOKED_AT_MAX: u32 = 1000;

/// What came of a look.
enum Looked {
    /// Nothing is left to be done.
    Done,
    /// A host does not answer.
    Away,
    /// The hosts answer and are not of one mind, or one refuses.
    NotYet,
}

/// Looks after what a dismissed job has left, until nothing can be done about it any more.
pub(crate) fn look_after(app: &Arc<App>, record: JobRecord) {
    let looked_after = app.clone();
    app.jobs.beside(async move {
        let mut pause = LOOK_EVERY;
        let mut ended_there = false;
        loop {
            match clean(&looked_after, &record, &mut ended_there).await {
                Ok(Looked::Done) => return,
                Ok(Looked::Away) => {
                    pause = LOOK_EVERY;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                looked @ (Ok(Looked::NotYet) | Err(_)) => {
                    if let Err(error) = looked {
                        tracing::warn!(
                            job = record.id.0,
                            error = error.chain(),
                            "What a dismissed job left is looked after later"
                        );
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ASK_PAUSE_MAX);
                }
            }
        }
    });
}

/// Looks after what jobs have left that were dismissed in an earlier life of the server.
///
/// # Errors
/// The database's.
pub(crate) async fn take_up(app: &Arc<App>) -> Result<(), StoreError> {
    let since_ms = now_ms().saturating_sub(LOOKED_AT_FOR_MS);
    for (record, log) in app.store.jobs(since_ms, LOOKED_AT_MAX).await? {
        if may_have_left(record.job.kind, &events(&log)) {
            look_after(app, record);
        }
    }
    Ok(())
}

/// Whether a job of this kind and log was dismissed before the switchover was known, with its hosts prepared.
fn may_have_left(kind: JobKind, log: &[LogEvent]) -> bool {
    let attempt = newest_attempt(log);
    let has = |event| attempt.contains(&event);
    match kind {
        JobKind::Live | JobKind::LiveVsm => {
            attempt.iter().any(|event| matches!(event, LogEvent::Dismissed { .. }))
                && has(LogEvent::Intent { step: Step::PrepareDestination })
                && !has(LogEvent::Succeeded { step: Step::Perform })
        }
        JobKind::Storage | JobKind::Offline | JobKind::Several | JobKind::Drain => false,
    }
}

/// One look. `ended_there`: the destination is clean; it has forgotten by now that it is.
async fn clean(app: &Arc<App>, record: &JobRecord, ended_there: &mut bool) -> Result<Looked, StoreError> {
    // It may have been restarted, or forgotten.
    if !may_have_left(record.job.kind, &events(&app.store.log(record.id).await?)) {
        return Ok(Looked::Done);
    }
    let hosts = (app.inventory.by_id(record.job.source.id), app.inventory.by_id(record.job.destination.id));
    let ((Some(source), Some(destination)), Ok(plan)) = (hosts, Plan::from_json(&record.job.plan)) else {
        return Ok(Looked::Done);
    };
    if !source.seen().reachable || !destination.seen().reachable {
        return Ok(Looked::Away);
    }
    if app.store.reserve(record.job.vm, record.id).await? != record.id {
        return Ok(Looked::NotYet);
    }
    let looked = clean_reserved(app, record, &plan, [&source, &destination], ended_there).await;
    app.store.unreserve(record.id).await?;
    Ok(looked)
}

async fn clean_reserved(
    app: &App,
    record: &JobRecord,
    plan: &Plan,
    [source, destination]: [&Host; 2],
    ended_there: &mut bool,
) -> Looked {
    let running = Running::default();
    let memory = Logged::new(&app.store, record.id, &running);
    memory.ended_there.store(*ended_there, Ordering::SeqCst);
    let ends = Ends {
        vm: record.job.vm,
        attempt: ferry_client::agent::Attempt { job: record.id, generation: plan.generation },
        source: End { name: source.name(), agent: &source.agent },
        destination: End { name: destination.name(), agent: &destination.agent },
        others: &OtherHosts { inventory: &app.inventory, ends: [source.record.id, destination.record.id] },
        memory: &memory,
        running: &running,
    };
    match presence::decide(&ends, false).await.verdict {
        Verdict::Source => {}
        Verdict::Destination => {
            tracing::info!(job = record.id.0, "What a dismissed job left is the destination's: nothing is taken back");
            return Looked::Done;
        }
        Verdict::SourceUnlessElsewhere | Verdict::Lost | Verdict::Undecided | Verdict::SplitBrain => {
            return Looked::NotYet;
        }
    }
    // The destination first: only once it is sure not to run the VM may the source be let go.
    let cleaned = async {
        undo::destination(&ends).await?;
        *ended_there = true;
        memory.ended_there.store(true, Ordering::SeqCst);
        undo::source(&ends).await
    };
    if let Err(StepFailed(why)) = cleaned.await {
        tracing::info!(job = record.id.0, why, "What a dismissed job left is taken away later");
        return Looked::NotYet;
    }
    tracing::info!(job = record.id.0, "Nothing is left of a dismissed job");
    Looked::Done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_live_move_that_was_dismissed_before_its_switchover_is_looked_after() {
        let begun = vec![LogEvent::Accepted, LogEvent::Intent { step: Step::PrepareDestination }];
        let with = |more: &[LogEvent]| [begun.clone(), more.to_vec()].concat();
        let dismissed = LogEvent::Dismissed { by: "admin".into(), told: Vec::new() };
        let arrived = LogEvent::Succeeded { step: Step::Perform };
        for (row, kind, log, expected) in [
            ("it goes on", JobKind::Live, begun.clone(), false),
            ("it was dismissed", JobKind::LiveVsm, with(std::slice::from_ref(&dismissed)), true),
            ("nothing was prepared", JobKind::Live, vec![LogEvent::Accepted, dismissed.clone()], false),
            ("the VM had arrived", JobKind::Live, with(&[arrived, dismissed.clone()]), false),
            ("another attempt began", JobKind::Live, with(&[dismissed.clone(), LogEvent::Accepted]), false),
            ("others see to theirs", JobKind::Offline, with(&[dismissed]), false),
        ] {
            assert_eq!(may_have_left(kind, &log), expected, "{row}");
        }
    }
}
