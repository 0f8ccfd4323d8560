//! The step with the point of no return: starts the move, follows both hosts, and ends only when it is known which host
//! has the VM.
//!
//! Reports tell how far each host is, but never which host has the VM. After any doubtful end both hosts are asked
//! about the VM, and [`ferry_core::migration::verdict`] decides. While it cannot decide, this step waits and shows what
//! it waits for.

use std::time::Duration;

use ferry_client::ClientError;
use ferry_core::{
    api::agent::{Report, Role, Stage},
    backoff::Backoff,
    error::chain,
    finding::FindingId,
    id::VmId,
    job_text::JobText,
    migration::{Presence, Verdict},
};
use tokio::sync::watch;

use super::{
    executor::StepFailed,
    participant::{LiveParticipant, Participant as _, ended_by, failed, is_unknown},
    participants::Participants,
    presence,
    site::Site,
};
use crate::failure::{describe, has_finding};

/// How long an agent may delay its answer while it has nothing newer to report.
const POLL_WAIT: Duration = Duration::from_secs(5);
/// How long the destination's carrier may take to resume the VM by itself after the hand-over.
const RESUME_WITHIN: Duration = Duration::from_secs(3);
/// The pause before an agent that does not answer, or an undecided hand-over, is asked again.
const PAUSE: Duration = Duration::from_millis(100);
const ASK: Backoff = Backoff::new(PAUSE, Duration::from_secs(3));

/// What is known about one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Side {
    /// Nothing yet.
    #[default]
    Unheard,
    /// Its last report.
    Reports(Box<Report>),
    /// Its agent answers but does not know the attempt.
    Lost,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum NextAction {
    /// Wait: the move continues.
    Follow,
    /// The point of no return has passed.
    Arrived,
    /// The destination can no longer receive, so the source must not continue in vain.
    Abort(JobText),
    /// The attempt is over for this reason: ask which host has the VM.
    Settle(JobText),
}

/// Starts the move, or finds it started, and follows it. Ok: the destination has the VM.
pub(super) async fn perform<S: Site<Host: LiveParticipant>>(
    participants: &Participants<'_, S>,
    mut take: impl FnMut(&Report) + Send,
) -> Result<(), StepFailed> {
    if participants.running.cancelled.is_cancelled() {
        // Also after a restart of the server: if the move had started, this ends it, or settling finds that it arrived.
        let _ = abort(participants).await;
        return settle(participants, JobText::WasCancelled).await;
    }
    let begun = match participants.source.perform(participants.attempt).await {
        Ok(report) => {
            take(&report);
            true
        }
        // The move may have started: the source is asked again while its reports are followed.
        Err(error) if error.is_unreachable() => false,
        Err(error) => {
            let _ = abort(participants).await;
            return settle(participants, describe(participants.source.name(), &error)).await;
        }
    };
    let (source_sender, mut source) = watch::channel(Side::Unheard);
    let (destination_sender, mut destination) = watch::channel(Side::Unheard);
    tokio::select! {
        never = follow(participants, Role::Source, source_sender) => never,
        never = follow(participants, Role::Destination, destination_sender) => never,
        outcome = steer(participants, &mut source, &mut destination, take) => outcome,
        refusal = begin_again(participants), if !begun => {
            let _ = abort(participants).await;
            settle(participants, describe(participants.source.name(), &refusal)).await
        }
    }
}

/// Repeats the request to start the move until the source answers, since it may not have received it. Returns only if
/// the source refuses.
async fn begin_again<S: Site<Host: LiveParticipant>>(participants: &Participants<'_, S>) -> ClientError {
    let mut backoff = ASK;
    loop {
        participants.running.pause(backoff.pause()).await;
        match participants.source.perform(participants.attempt).await {
            Ok(_) => return std::future::pending().await,
            Err(error) if error.is_unreachable() => {}
            Err(error) => return error,
        }
    }
}

/// Decides at each change, until the attempt is over.
async fn steer<S: Site<Host: LiveParticipant>>(
    participants: &Participants<'_, S>,
    source: &mut watch::Receiver<Side>,
    destination: &mut watch::Receiver<Side>,
    mut take: impl FnMut(&Report) + Send,
) -> Result<(), StepFailed> {
    let cancel = cancel_when_asked(participants);
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
        match next_action([participants.source.name(), participants.destination.name()], &at_source, &at_destination) {
            NextAction::Follow => {}
            NextAction::Arrived => {
                participants.running.wait_for(None);
                return Ok(());
            }
            NextAction::Settle(cause) => {
                let asked = participants.running.cancelled.is_cancelled();
                let cause = match abort_reason {
                    _ if asked => JobText::WasCancelled,
                    // The source's own reason for a failure says more than the destination's view of it.
                    Some(reason) if !failed_by_itself(&at_source) => reason,
                    Some(_) | None => cause,
                };
                return settle(participants, cause).await;
            }
            NextAction::Abort(cause) if abort_reason.is_none() => {
                let _ = abort(participants).await;
                abort_reason = Some(cause);
            }
            NextAction::Abort(_) => {}
        }
        tokio::select! {
            _ = source.changed() => {}
            _ = destination.changed() => {}
            () = &mut cancel, if !cancel_done => cancel_done = true,
        }
    }
}

/// Whether the source ended the move for its own reason, and not on request.
fn failed_by_itself(source: &Side) -> bool {
    matches!(source, Side::Reports(report) if report.stage == Stage::Failed && report.error.is_some())
}

/// Waits for a cancellation, then asks the source to end the move until it does. After the point of no return the
/// source always refuses; [`steer`] then sees the move arrive.
async fn cancel_when_asked<S: Site<Host: LiveParticipant>>(participants: &Participants<'_, S>) {
    participants.running.cancelled.cancelled().await;
    let mut backoff = ASK;
    while let Err(error) = abort(participants).await {
        // With this finding the VM has switched over, and [`steer`] handles the rest.
        if !has_finding(&error, FindingId::JobPastPivot) {
            participants.running.wait_for(Some(describe(participants.source.name(), &error)));
        }
        participants.running.pause(backoff.pause()).await;
    }
}

/// `names` are those of the source and of the destination.
fn next_action(names: [&str; 2], source: &Side, destination: &Side) -> NextAction {
    let lost_by = |host: &str| JobText::LostBy { host: host.to_owned() };
    if let Side::Reports(report) = destination
        && matches!(report.stage, Stage::Delivered | Stage::Resumed | Stage::Confirmed)
    {
        return NextAction::Arrived;
    }
    match source {
        Side::Reports(report) => match report.stage {
            Stage::Delivered | Stage::Confirmed => return NextAction::Arrived,
            Stage::Failed | Stage::Aborted => return NextAction::Settle(ended_by(report, names[0])),
            // A source never resumes. If it reports that it did, only asking both hosts helps.
            Stage::Resumed => return NextAction::Settle(JobText::NotPossibleAt { host: names[0].to_owned() }),
            Stage::Prepared | Stage::Performing => {}
        },
        Side::Lost => return NextAction::Settle(lost_by(names[0])),
        Side::Unheard => {}
    }
    match destination {
        Side::Reports(report) => match report.stage {
            Stage::Failed | Stage::Aborted => NextAction::Abort(ended_by(report, names[1])),
            Stage::Prepared | Stage::Performing | Stage::Delivered | Stage::Resumed | Stage::Confirmed => {
                NextAction::Follow
            }
        },
        Side::Lost => NextAction::Abort(lost_by(names[1])),
        Side::Unheard => NextAction::Follow,
    }
}

/// Asks until it is known which host has the VM. Ok: the destination; an error: the source.
async fn settle<S: Site<Host: LiveParticipant>>(
    participants: &Participants<'_, S>,
    cause: JobText,
) -> Result<(), StepFailed> {
    let mut backoff = ASK;
    let mut delivered = false;
    loop {
        let decision = presence::decide(participants, delivered).await;
        delivered = decision.delivered;
        match decision.verdict {
            Verdict::Source => {
                participants.running.wait_for(None);
                return Err(StepFailed(with_condition(
                    cause,
                    participants.source.name(),
                    decision.source,
                    participants.vm,
                )));
            }
            Verdict::Destination => {
                participants.running.wait_for(None);
                return Ok(());
            }
            Verdict::SourceUnlessElsewhere | Verdict::Lost | Verdict::Undecided | Verdict::SplitBrain => {
                participants.running.wait_for(decision.awaited);
            }
        }
        participants.running.pause(backoff.pause()).await;
    }
}

/// Why it failed, and how the VM is at the source if it does not run there.
fn with_condition(why: JobText, source: &str, has: Presence, vm: VmId) -> JobText {
    let (why, source, vm) = (Box::new(why), source.to_owned(), vm.to_string());
    match has {
        Presence::Absent | Presence::Off | Presence::Ended => JobText::ButShutOff { why, source, vm },
        Presence::Paused | Presence::Stopped | Presence::HandedOver | Presence::Left => {
            JobText::ButPaused { why, source }
        }
        Presence::Halted => JobText::ButHalted { why, source, vm },
        Presence::Running | Presence::Receiving | Presence::Arrived | Presence::Unknown => *why,
    }
}

/// Asks the source to end the move. The source refuses after the point of no return.
async fn abort<S: Site<Host: LiveParticipant>>(participants: &Participants<'_, S>) -> Result<(), ClientError> {
    let answer = participants.source.abort(participants.attempt).await;
    if let Err(error) = &answer {
        tracing::info!(host = participants.source.name(), error = %chain(&error), "The source did not end the move");
    }
    answer.map(drop)
}

/// Forwards one host's reports to `sender`, and shows when the host does not answer. Never ends.
async fn follow<S: Site<Host: LiveParticipant>>(
    participants: &Participants<'_, S>,
    role: Role,
    sender: watch::Sender<Side>,
) -> ! {
    let end = match role {
        Role::Source => participants.source,
        Role::Destination => participants.destination,
    };
    let mut after = 0;
    let mut backoff = ASK;
    loop {
        match end.report(participants.attempt, after, POLL_WAIT).await {
            Ok(report) => {
                if backoff != ASK {
                    participants.running.wait_for(None);
                    backoff = ASK;
                }
                // A lower sequence comes from another run of the carrier's parent. The next report after it is
                // requested in the same way.
                after = report.sequence;
                let report = Side::Reports(Box::new(report));
                let news = sender.send_if_modified(|side| {
                    let news = *side != report;
                    *side = report;
                    news
                });
                // If the carrier is gone, the agent has nothing to wait for and answers at once.
                if !news {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Err(error) => {
                if is_unknown(&error) {
                    sender.send_replace(Side::Lost);
                } else {
                    participants.running.wait_for(Some(describe(end.name(), &error)));
                    if role == Role::Source {
                        presence::remember(participants).await;
                    }
                }
                participants.running.pause(backoff.pause()).await;
            }
        }
    }
}

/// Whether the move is over and the destination has the VM: asked by a server that was away in the meantime.
pub(super) async fn has_arrived<S: Site<Host: LiveParticipant>>(participants: &Participants<'_, S>) -> bool {
    let report = participants.destination.report(participants.attempt, 0, Duration::ZERO).await;
    report.is_ok_and(|report| matches!(report.stage, Stage::Delivered | Stage::Resumed | Stage::Confirmed))
}

/// Ensures that the VM runs at the destination. The destination resumes it by itself, or is asked to, once it is known
/// that it has the VM. Ok contains the destination's report, if there is one.
pub(super) async fn resume<S: Site<Host: LiveParticipant>>(
    participants: &Participants<'_, S>,
) -> Result<Option<Report>, StepFailed> {
    let report = match resumed_by_itself(participants).await {
        Some(report) => report,
        None => {
            // The verdict was that the destination has the VM, so a VM that is no longer there was there before.
            let decision = presence::decide(participants, true).await;
            if decision.verdict != Verdict::Destination {
                let has_vm = || JobText::HasVm { host: participants.source.name().to_owned() };
                let awaited = decision.awaited.unwrap_or_else(has_vm);
                participants.running.wait_for(Some(awaited.clone()));
                return Err(StepFailed(awaited));
            }
            // The VM was shut down, died or crashed after the hand-over, and there is nothing to resume.
            if matches!(decision.destination, Presence::Running | Presence::Halted | Presence::Off | Presence::Absent) {
                participants.running.wait_for(None);
                return Ok(None);
            }
            if decision.source == Presence::Left {
                // First, because the process that is left at the source locks the disks.
                let ended = participants.source.end_copy(participants.attempt).await;
                ended.map_err(|error| failed(participants.source, &error))?;
            }
            let asked = participants.destination.resume(participants.attempt).await;
            asked.map_err(|error| failed(participants.destination, &error))?
        }
    };
    participants.running.wait_for(None);
    match report.stage {
        Stage::Resumed | Stage::Confirmed => Ok(Some(report)),
        Stage::Prepared | Stage::Performing | Stage::Delivered | Stage::Failed | Stage::Aborted => {
            let host = participants.destination.name().to_owned();
            Err(StepFailed(match report.error {
                Some(why) => JobText::NotResumedBecause { host, why },
                None => JobText::NotResumed { host },
            }))
        }
    }
}

/// The destination's report after it resumed the VM by itself; `None`: it did not do so in time.
async fn resumed_by_itself<S: Site<Host: LiveParticipant>>(participants: &Participants<'_, S>) -> Option<Report> {
    let waiting = async {
        let mut after = 0;
        loop {
            let report = participants.destination.report(participants.attempt, after, RESUME_WITHIN).await.ok()?;
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

    const NAMES: [&str; 2] = ["kvm1", "kvm2"];
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
                let action = next_action(NAMES, &at(Role::Source, source), &at(Role::Destination, destination));
                let delivered = matches!(source, Stage::Delivered | Stage::Confirmed)
                    || matches!(destination, Stage::Delivered | Stage::Resumed | Stage::Confirmed);
                assert_eq!(action == NextAction::Arrived, delivered, "{source:?} {destination:?}");
                if !delivered {
                    let source_ended = !matches!(source, Stage::Prepared | Stage::Performing);
                    assert_eq!(matches!(action, NextAction::Settle(_)), source_ended, "{source:?} {destination:?}");
                }
            }
        }
    }

    #[test]
    fn a_silent_source_is_waited_for() {
        for destination in STAGES {
            let action = next_action(NAMES, &Side::Unheard, &at(Role::Destination, destination));
            assert!(!matches!(action, NextAction::Settle(_)), "{destination:?}");
        }
    }
}
