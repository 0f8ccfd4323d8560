//! Takes back what a live move has changed at its hosts, after its step failed or somebody gave it up. In this order: a source
//! that does not run the VM is let go only once the destination has said that it will not run it.

use ferry_core::migration::{Presence, Verdict};

use super::{
    executor::StepFailed,
    participant::gone_or,
    participants::{MoveAgent, Participants},
    presence,
};

/// The source's part: it ends the move and is let go.
pub(super) async fn source(ends: &Participants<'_, impl MoveAgent>) -> Result<(), StepFailed> {
    let aborted = ends.source.agent.abort(ends.attempt).await;
    let has_it = |presence| matches!(presence, Presence::Running | Presence::Paused | Presence::Halted);
    let is_here = matches!(&aborted, Ok(report) if has_it(report.presence));
    gone_or(ends.source.name, aborted.map(drop))?;
    if !is_here {
        gone_or(ends.destination.name, ends.destination.agent.abort(ends.attempt).await.map(drop))?;
        // Somebody may have run the copy there since it was asked who has the VM, and moved it on.
        if ends.memory.arrived().await {
            let decision = presence::decide(ends, false).await;
            if decision.verdict != Verdict::Source {
                return Err(StepFailed(decision.awaited));
            }
        }
    }
    gone_or(ends.source.name, ends.source.agent.release(ends.attempt).await)
}

/// The destination's part: its copy goes, with all that came for it.
pub(super) async fn destination(ends: &Participants<'_, impl MoveAgent>) -> Result<(), StepFailed> {
    gone_or(ends.destination.name, ends.destination.agent.abort(ends.attempt).await.map(drop))?;
    gone_or(ends.destination.name, ends.destination.agent.release(ends.attempt).await)
}
