//! Removes what a dismissed live move left at its hosts, when both answer and the source has the VM.
//!
//! ```text
//! dismissed ─▶ ask both hosts ─┬─ the source has the VM ─▶ abort and release at both, the destination first
//!                  ▲           ├─ the destination has it ─▶ nothing: the dismissal accepted that
//!                  └── later ◀─┴─ it is not known yet, or a host does not answer
//! ```
//! In the meantime the VM stays reserved: another move would meet the remains of this one.

use std::time::Duration;

use ferry_client::agent::Attempt;
use ferry_core::{
    backoff::Backoff,
    error::chain,
    job::JobKind,
    migration::{LogEvent, Step, Verdict, newest_attempt},
};

use super::{Context, agent::Agent, executor::StepFailed, participants::Participants, presence, site::Site as _, undo};
use crate::{
    clock::now_ms,
    jobs::running::Running,
    plan::{Kept as _, live::LivePlan},
    preflight::Preflight,
    store::{JobRecord, LogRow, Store, StoreError},
};

/// How often the inventory is checked for answers of both hosts; no host is asked for this.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often hosts are asked that answer but disagree, or refuse. The first repetition is soon, because a restarted
/// agent may not know everything yet; each pause is twice as long as the one before, up to 30 s.
const ASK: Backoff = Backoff::new(ASK_EVERY, Duration::from_secs(30));
/// After a start of the server, only the newest jobs are checked: none older than 30 days, and at most this many.
const DISMISSED_FOR_MS: u64 = 30 * 24 * 60 * 60 * 1000;
const DISMISSED_MAX: u32 = 1000;

/// The outcome of one try.
enum Cleaned {
    /// Nothing is left to do.
    All,
    /// A host does not answer.
    Away,
    /// The hosts answer but disagree, or one refuses.
    NotYet,
}

/// Removes what a dismissed job left. Returns when nothing more can be done.
pub(crate) async fn remove(context: &Context, record: JobRecord) {
    let mut backoff = ASK;
    let mut ended_there = false;
    loop {
        match clean(context, &record, &mut ended_there).await {
            Ok(Cleaned::All) => return,
            Ok(Cleaned::Away) => {
                backoff = ASK;
                tokio::time::sleep(ASK_EVERY).await;
            }
            cleaned @ (Ok(Cleaned::NotYet) | Err(_)) => {
                if let Err(error) = cleaned {
                    tracing::warn!(
                        job = record.id.0,
                        error = %chain(&error),
                        "What a dismissed job left is removed later"
                    );
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

/// The jobs that were dismissed in an earlier run of the server and may have left something.
///
/// # Errors
/// Those of the database.
pub(crate) async fn left(store: &Store) -> Result<Vec<JobRecord>, StoreError> {
    let since_ms = now_ms().saturating_sub(DISMISSED_FOR_MS);
    let jobs = store.jobs(since_ms, DISMISSED_MAX).await?;
    let left = |(record, log): &(JobRecord, Vec<LogRow>)| may_have_left(record.job.kind, &LogRow::events(log));
    Ok(jobs.into_iter().filter(left).map(|(record, _)| record).collect())
}

/// Whether a job with this kind and log was dismissed after its hosts were prepared, and before the switchover was
/// known.
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

/// Makes one try. `ended_there`: whether the destination was already cleaned up; its agent no longer knows the attempt
/// then.
async fn clean(context: &Context, record: &JobRecord, ended_there: &mut bool) -> Result<Cleaned, StoreError> {
    let Preflight { store, .. } = &*context.preflight;
    // The job may have been restarted or removed.
    if !may_have_left(record.job.kind, &LogRow::events(&store.log(record.id).await?)) {
        return Ok(Cleaned::All);
    }
    let host = |name| context.host(name);
    let hosts = (host(&record.job.source), host(&record.job.destination));
    let ((Some(source), Some(destination)), Ok(plan)) = (hosts, LivePlan::from_json(&record.job.plan)) else {
        return Ok(Cleaned::All);
    };
    if !source.host.seen().reachable || !destination.host.seen().reachable {
        return Ok(Cleaned::Away);
    }
    if store.reserve(record.job.vm, record.id).await? != record.id {
        return Ok(Cleaned::NotYet);
    }
    let cleaned = clean_reserved(context, record, &plan, [&source, &destination], ended_there).await;
    store.unreserve(record.id).await?;
    Ok(cleaned)
}

async fn clean_reserved(
    context: &Context,
    record: &JobRecord,
    plan: &LivePlan,
    [source, destination]: [&Agent; 2],
    ended_there: &mut bool,
) -> Cleaned {
    let running = Running::default();
    let attempt = Attempt { job: record.id, generation: plan.generation };
    let mut participants = Participants {
        site: context,
        vm: record.job.vm,
        attempt,
        source,
        destination,
        running: &running,
        ended_there: *ended_there,
    };
    match presence::decide(&participants, false).await.verdict {
        Verdict::Source => {}
        Verdict::Destination => {
            tracing::info!(job = record.id.0, "What a dismissed job left is the destination's: nothing is taken back");
            return Cleaned::All;
        }
        Verdict::SourceUnlessElsewhere | Verdict::Lost | Verdict::Undecided | Verdict::SplitBrain => {
            return Cleaned::NotYet;
        }
    }
    // The destination first: the source may be released only after it is certain that the destination will not run the
    // VM.
    let cleaned = async {
        undo::destination(&participants).await?;
        *ended_there = true;
        participants.ended_there = true;
        undo::source(&participants).await
    };
    if let Err(StepFailed(why)) = cleaned.await {
        tracing::info!(job = record.id.0, %why, "What a dismissed job left is taken away later");
        return Cleaned::NotYet;
    }
    tracing::info!(job = record.id.0, "Nothing is left of a dismissed job");
    Cleaned::All
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_live_move_that_was_dismissed_before_its_switchover_is_looked_after() {
        let begun = vec![LogEvent::Accepted, LogEvent::Intent { step: Step::PrepareDestination }];
        let with = |more: &[LogEvent]| [begun.clone(), more.to_vec()].concat();
        let dismissed = LogEvent::Dismissed { by: "admin".into(), answers: Vec::new() };
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
