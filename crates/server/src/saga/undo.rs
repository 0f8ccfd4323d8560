//! Takes back what a live move has changed at its hosts, after its step failed or somebody gave it up. In this order: a source
//! that does not run the VM is let go only once the destination has said that it will not run it.

use ferry_core::migration::{Presence, Verdict};

use super::{
    executor::StepFailed,
    participant::{LiveParticipant, Participant as _, gone_or, take_back},
    participants::Participants,
    presence,
    site::Site,
};

/// The source's part: it ends the move and is let go.
pub(super) async fn source<S: Site<Host: LiveParticipant>>(ends: &Participants<'_, S>) -> Result<(), StepFailed> {
    let aborted = ends.source.abort(ends.attempt).await;
    let has_it = |presence| matches!(presence, Presence::Running | Presence::Paused | Presence::Halted);
    let is_here = matches!(&aborted, Ok(report) if has_it(report.presence));
    gone_or(ends.source, aborted.map(drop))?;
    if !is_here {
        gone_or(ends.destination, ends.destination.abort(ends.attempt).await.map(drop))?;
        // Somebody may have run the copy there since it was asked who has the VM, and moved it on.
        if ends.arrived().await {
            let decision = presence::decide(ends, false).await;
            if decision.verdict != Verdict::Source {
                return Err(StepFailed(decision.awaited));
            }
        }
    }
    gone_or(ends.source, ends.source.release(ends.attempt).await)
}

/// The destination's part: its copy goes, with all that came for it.
pub(super) async fn destination<S: Site<Host: LiveParticipant>>(ends: &Participants<'_, S>) -> Result<(), StepFailed> {
    take_back(ends.destination, ends.attempt).await
}
