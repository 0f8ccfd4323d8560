//! Undoes the changes of a live move on its hosts, after a step failed or the move was cancelled. The order matters: a
//! source that does not run the VM is released only after the destination has confirmed that it will not run it.

use ferry_core::{
    job_text::JobText,
    migration::{Presence, Verdict},
};

use super::{
    executor::StepFailed,
    participant::{LiveParticipant, Participant as _, gone_or, take_back},
    participants::Participants,
    presence,
    site::Site,
};

/// Undoes the source's part: it ends the move and is released.
pub(super) async fn source<S: Site<Host: LiveParticipant>>(
    participants: &Participants<'_, S>,
) -> Result<(), StepFailed> {
    let aborted = participants.source.abort(participants.attempt).await;
    let has_it = |presence| matches!(presence, Presence::Running | Presence::Paused | Presence::Halted);
    let is_here = matches!(&aborted, Ok(report) if has_it(report.presence));
    gone_or(participants.source, aborted.map(drop))?;
    if !is_here {
        gone_or(participants.destination, participants.destination.abort(participants.attempt).await.map(drop))?;
        // Somebody may have resumed the copy there since the last verdict, and moved it on.
        if participants.arrived().await {
            let decision = presence::decide(participants, false).await;
            if decision.verdict != Verdict::Source {
                let has_vm = || JobText::HasVm { host: participants.destination.name().to_owned() };
                return Err(StepFailed(decision.awaited.unwrap_or_else(has_vm)));
            }
        }
    }
    gone_or(participants.source, participants.source.release(participants.attempt).await)
}

/// Undoes the destination's part: its copy is removed, with all its files.
pub(super) async fn destination<S: Site<Host: LiveParticipant>>(
    participants: &Participants<'_, S>,
) -> Result<(), StepFailed> {
    take_back(participants.destination, participants.attempt).await
}
