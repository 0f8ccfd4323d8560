//! The step that holds the point of no return: starts the move, follows both ends, and does not end before it is
//! known who has the VM.
//!
//! Reports say how far each end is; they never say who has the VM. After any doubtful end both hosts are asked what
//! they have, and [`ferry_core::migration::verdict`] decides. Where it cannot, this waits and says for what.

use std::time::Duration;

use ferry_client::ClientError;
use ferry_core::{
    api::agent::{Report, Role, Stage},
    backoff::Backoff,
    error::chain,
    finding::FindingId,
    id::VmId,
    migration::{Presence, Verdict},
};
use tokio::sync::watch;

use super::{
    executor::StepFailed,
    participant::{LiveParticipant, Participant as _, is_unknown},
    participants::Participants,
    presence,
    site::Site,
};
use crate::failure::{describe, has_finding};

/// How long an agent may hold the question how far it is.
const POLL_WAIT: Duration = Duration::from_secs(5);
/// How long the destination's carrier has to resume by itself, once the hand-over is done.
const RESUME_WITHIN: Duration = Duration::from_secs(3);
/// How often an agent that does not answer, or an undecided hand-over, is asked about.
const PAUSE: Duration = Duration::from_millis(100);
const ASK: Backoff = Backoff::new(PAUSE, Duration::from_secs(3));

/// What is known of one end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Side {
    /// Nothing yet.
    #[default]
    Unheard,
    /// Its last report.
    Reports(Box<Report>),
    /// Its agent answers and knows nothing of the attempt.
    Lost,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Course {
    /// Nothing: it goes on.
    Follow,
    /// The point of no return is behind us.
    Arrived,
    /// The destination cannot receive any more: the source should not go on for nothing.
    Abort(String),
    /// The attempt is over, by this cause: ask who has the VM.
    Settle(String),
}

/// Starts the move, or finds it started, and follows it. Ok: the destination has the VM.
pub(super) async fn perform<S: Site<Host: LiveParticipant>>(
    ends: &Participants<'_, S>,
    mut take: impl FnMut(&Report) + Send,
) -> Result<(), StepFailed> {
    if ends.running.cancelled.is_cancelled() {
        // Also after a restart: if it had been started before, this ends it, or settling finds it arrived.
        let _ = abort(ends).await;
        return settle(ends, "The move was cancelled".to_owned()).await;
    }
    let begun = match ends.source.perform(ends.attempt).await {
        Ok(report) => {
            take(&report);
            true
        }
        // It may have been started: it is asked again, beside what the reports say.
        Err(error) if error.is_unreachable() => false,
        Err(error) => {
            let _ = abort(ends).await;
            return settle(ends, describe(ends.source.name(), &error)).await;
        }
    };
    let (source_sender, mut source) = watch::channel(Side::Unheard);
    let (destination_sender, mut destination) = watch::channel(Side::Unheard);
    tokio::select! {
        never = follow(ends, Role::Source, source_sender) => never,
        never = follow(ends, Role::Destination, destination_sender) => never,
        outcome = steer(ends, &mut source, &mut destination, take) => outcome,
        refusal = begin_again(ends), if !begun => {
            let _ = abort(ends).await;
            settle(ends, describe(ends.source.name(), &refusal)).await
        }
    }
}

/// Asks a source that may not have heard of it to start the move, until it answers. Returns only with a refusal.
async fn begin_again<S: Site<Host: LiveParticipant>>(ends: &Participants<'_, S>) -> ClientError {
    let mut backoff = ASK;
    loop {
        ends.running.pause(backoff.pause()).await;
        match ends.source.perform(ends.attempt).await {
            Ok(_) => return std::future::pending().await,
            Err(error) if error.is_unreachable() => {}
            Err(error) => return error,
        }
    }
}

/// Decides on each change until the attempt is over.
async fn steer<S: Site<Host: LiveParticipant>>(
    ends: &Participants<'_, S>,
    source: &mut watch::Receiver<Side>,
    destination: &mut watch::Receiver<Side>,
    mut take: impl FnMut(&Report) + Send,
) -> Result<(), StepFailed> {
    let cancel = cancel_when_asked(ends);
    tokio::pin!(cancel);
    let mut cancel_done = false;
    let mut abort_reason = None;
    loop {
        let (at_source, at_destination) = (source.borrow_and_update().clone(), destination.borrow_and_update().clone());
        for side in [&at_source, &at_destination] {
            if let Side::Reports(report) = side {
                take(report);
            }
        }
        match course(&at_source, &at_destination) {
            Course::Follow => {}
            Course::Arrived => {
                ends.running.wait_for(None);
                return Ok(());
            }
            Course::Settle(cause) => {
                let asked = ends.running.cancelled.is_cancelled();
                let cause = match abort_reason {
                    _ if asked => "The move was cancelled".to_owned(),
                    // Why the source failed by itself says more than that the destination heard of it.
                    Some(reason) if !failed_by_itself(&at_source) => reason,
                    Some(_) | None => cause,
                };
                return settle(ends, cause).await;
            }
            Course::Abort(cause) if abort_reason.is_none() => {
                let _ = abort(ends).await;
                abort_reason = Some(cause);
            }
            Course::Abort(_) => {}
        }
        tokio::select! {
            _ = source.changed() => {}
            _ = destination.changed() => {}
            () = &mut cancel, if !cancel_done => cancel_done = true,
        }
    }
}

/// Whether the source's own reason ended the move, and nobody's request.
fn failed_by_itself(source: &Side) -> bool {
    matches!(source, Side::Reports(report) if report.stage == Stage::Failed && report.error.is_some())
}

/// Waits for the wish to cancel, then asks the source to end the move until it did. After the point of no return it
/// refuses for good: then the other end of [`steer`] sees the move arrive.
async fn cancel_when_asked<S: Site<Host: LiveParticipant>>(ends: &Participants<'_, S>) {
    ends.running.cancelled.cancelled().await;
    let mut backoff = ASK;
    while let Err(error) = abort(ends).await {
        // Else it has switched over, and will be seen to.
        if !has_finding(&error, FindingId::JobPastPivot) {
            ends.running.wait_for(Some(describe(ends.source.name(), &error)));
        }
        ends.running.pause(backoff.pause()).await;
    }
}

fn course(source: &Side, destination: &Side) -> Course {
    if let Side::Reports(report) = destination
        && matches!(report.stage, Stage::Delivered | Stage::Resumed | Stage::Confirmed)
    {
        return Course::Arrived;
    }
    match source {
        Side::Reports(report) => match report.stage {
            Stage::Delivered | Stage::Confirmed => return Course::Arrived,
            Stage::Failed | Stage::Aborted => {
                let cause = report.error.clone().unwrap_or_else(|| "The source ended the move".to_owned());
                return Course::Settle(cause);
            }
            // A source never resumes; if it says so, only asking helps.
            Stage::Resumed => {
                return Course::Settle("The source reports a stage that it cannot reach".to_owned());
            }
            Stage::Prepared | Stage::Performing => {}
        },
        Side::Lost => return Course::Settle("The source's agent has lost the move".to_owned()),
        Side::Unheard => {}
    }
    match destination {
        Side::Reports(report) => match report.stage {
            Stage::Failed | Stage::Aborted => {
                let cause = report.error.clone().unwrap_or_else(|| "The destination ended the move".to_owned());
                Course::Abort(cause)
            }
            Stage::Prepared | Stage::Performing | Stage::Delivered | Stage::Resumed | Stage::Confirmed => {
                Course::Follow
            }
        },
        Side::Lost => Course::Abort("The destination's agent has lost the move".to_owned()),
        Side::Unheard => Course::Follow,
    }
}

/// Asks until it is known who has the VM. Ok: the destination; an error: the source.
async fn settle<S: Site<Host: LiveParticipant>>(ends: &Participants<'_, S>, cause: String) -> Result<(), StepFailed> {
    let mut backoff = ASK;
    let mut delivered = false;
    loop {
        let decision = presence::decide(ends, delivered).await;
        delivered = decision.delivered;
        match decision.verdict {
            Verdict::Source => {
                ends.running.wait_for(None);
                return Err(StepFailed(cause + &condition(decision.source, ends.vm)));
            }
            Verdict::Destination => {
                ends.running.wait_for(None);
                return Ok(());
            }
            Verdict::SourceUnlessElsewhere | Verdict::Lost | Verdict::Undecided | Verdict::SplitBrain => {
                ends.running.wait_for(Some(decision.awaited));
            }
        }
        ends.running.pause(backoff.pause()).await;
    }
}

/// How the VM is at the source, if it does not run there.
fn condition(source: Presence, vm: VmId) -> String {
    match source {
        Presence::Absent | Presence::Off | Presence::Ended => {
            format!(". It does not run there any more: start it with `ferry vm start {vm}`")
        }
        Presence::Paused | Presence::Stopped | Presence::HandedOver | Presence::Left => {
            ". It is paused there, and goes on as soon as its disks are free; see `ferry vm list`".to_owned()
        }
        Presence::Halted => format!(". Its guest crashed or suspended itself there: see `ferry vm show {vm}`"),
        Presence::Running | Presence::Receiving | Presence::Arrived | Presence::Unknown => String::new(),
    }
}

/// Asks the source to end the move. It refuses after the point of no return.
async fn abort<S: Site<Host: LiveParticipant>>(ends: &Participants<'_, S>) -> Result<(), ClientError> {
    let answer = ends.source.abort(ends.attempt).await;
    if let Err(error) = &answer {
        tracing::info!(host = ends.source.name(), error = %chain(&error), "The source did not end the move");
    }
    answer.map(drop)
}

/// Keeps `sender` at what one end reports, and says when nothing is heard of it. Never ends.
async fn follow<S: Site<Host: LiveParticipant>>(
    ends: &Participants<'_, S>,
    role: Role,
    sender: watch::Sender<Side>,
) -> ! {
    let end = match role {
        Role::Source => ends.source,
        Role::Destination => ends.destination,
    };
    let mut after = 0;
    let mut backoff = ASK;
    loop {
        match end.report(ends.attempt, after, POLL_WAIT).await {
            Ok(report) => {
                if backoff != ASK {
                    ends.running.wait_for(None);
                    backoff = ASK;
                }
                // A lower sequence is that of another life of the carrier's keeper: its next is asked for all the same.
                after = report.sequence;
                let report = Side::Reports(Box::new(report));
                let news = sender.send_if_modified(|side| {
                    let news = *side != report;
                    *side = report;
                    news
                });
                // One whose carrier is gone has nothing to wait for and answers at once.
                if !news {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Err(error) => {
                if is_unknown(&error) {
                    sender.send_replace(Side::Lost);
                } else {
                    ends.running.wait_for(Some(describe(end.name(), &error)));
                    if role == Role::Source {
                        presence::remember(ends).await;
                    }
                }
                ends.running.pause(backoff.pause()).await;
            }
        }
    }
}

/// Whether the move is over and the destination has the VM: for a server that was away meanwhile.
pub(super) async fn has_arrived<S: Site<Host: LiveParticipant>>(ends: &Participants<'_, S>) -> bool {
    let report = ends.destination.report(ends.attempt, 0, Duration::ZERO).await;
    report.is_ok_and(|report| matches!(report.stage, Stage::Delivered | Stage::Resumed | Stage::Confirmed))
}

/// Sees that the VM runs at the destination: it does so by itself, or is asked to, once it is known that it has the VM.
/// Ok holds the destination's report, if there is one.
pub(super) async fn resume<S: Site<Host: LiveParticipant>>(
    ends: &Participants<'_, S>,
) -> Result<Option<Report>, StepFailed> {
    let report = match resumed_by_itself(ends).await {
        Some(report) => report,
        None => {
            // It was known to be the destination's: whatever is not there any more has been.
            let decision = presence::decide(ends, true).await;
            if decision.verdict != Verdict::Destination {
                let awaited = match decision.verdict {
                    Verdict::Source => format!("Host {} has the VM again", ends.source.name()),
                    Verdict::SourceUnlessElsewhere
                    | Verdict::Destination
                    | Verdict::Lost
                    | Verdict::Undecided
                    | Verdict::SplitBrain => decision.awaited,
                };
                ends.running.wait_for(Some(awaited.clone()));
                return Err(StepFailed(awaited));
            }
            // It was shut down, or died, or crashed after it was handed over, and there is nothing to run.
            if matches!(decision.destination, Presence::Running | Presence::Halted | Presence::Off | Presence::Absent) {
                ends.running.wait_for(None);
                return Ok(None);
            }
            if decision.source == Presence::Left {
                // First: what is left of it there has the disks.
                let ended = ends.source.end_copy(ends.attempt).await;
                ended.map_err(|error| StepFailed(describe(ends.source.name(), &error)))?;
            }
            let asked = ends.destination.resume(ends.attempt).await;
            asked.map_err(|error| StepFailed(describe(ends.destination.name(), &error)))?
        }
    };
    ends.running.wait_for(None);
    match report.stage {
        Stage::Resumed | Stage::Confirmed => Ok(Some(report)),
        Stage::Prepared | Stage::Performing | Stage::Delivered | Stage::Failed | Stage::Aborted => {
            let why = report.error.unwrap_or_else(|| format!("it is {:?}", report.stage));
            Err(StepFailed(format!("Host {} has not resumed the VM yet: {why}", ends.destination.name())))
        }
    }
}

/// The destination's report once it has resumed the VM by itself; `None` when it has not in time.
async fn resumed_by_itself<S: Site<Host: LiveParticipant>>(ends: &Participants<'_, S>) -> Option<Report> {
    let waiting = async {
        let mut after = 0;
        loop {
            let report = ends.destination.report(ends.attempt, after, RESUME_WITHIN).await.ok()?;
            match report.stage {
                Stage::Resumed | Stage::Confirmed => return Some(report),
                Stage::Failed | Stage::Aborted => return None,
                Stage::Prepared | Stage::Performing | Stage::Delivered => after = report.sequence,
            }
        }
    };
    tokio::time::timeout(RESUME_WITHIN, waiting).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use ferry_core::id::{Generation, JobId};

    use super::*;

    fn at(role: Role, stage: Stage) -> Side {
        Side::Reports(Box::new(Report::new(JobId(1), Generation(1), role, 1, stage)))
    }

    const STAGES: [Stage; 7] = [
        Stage::Prepared,
        Stage::Performing,
        Stage::Delivered,
        Stage::Resumed,
        Stage::Confirmed,
        Stage::Failed,
        Stage::Aborted,
    ];

    #[test]
    fn an_attempt_ends_only_by_delivery_or_by_the_source_ending_it() {
        for source in STAGES {
            for destination in STAGES {
                let course = course(&at(Role::Source, source), &at(Role::Destination, destination));
                let delivered = matches!(source, Stage::Delivered | Stage::Confirmed)
                    || matches!(destination, Stage::Delivered | Stage::Resumed | Stage::Confirmed);
                assert_eq!(course == Course::Arrived, delivered, "{source:?} {destination:?}");
                if !delivered {
                    let source_ended = !matches!(source, Stage::Prepared | Stage::Performing);
                    assert_eq!(matches!(course, Course::Settle(_)), source_ended, "{source:?} {destination:?}");
                }
            }
        }
    }

    #[test]
    fn a_silent_source_is_waited_for() {
        for destination in STAGES {
            let course = course(&Side::Unheard, &at(Role::Destination, destination));
            assert!(!matches!(course, Course::Settle(_)), "{destination:?}");
        }
    }
}
