//! A move of a VM that is shut off, in words.

use ferry_core::migration::{LogEvent, Phase};

use super::words::{waits_in_queue, why};
use crate::{
    jobs::running::Now,
    store::{JobRecord, NewJob},
};

/// How a move of a VM that is shut off stands, and what to do if somebody has to.
pub(super) fn summary(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> String {
    let NewJob { vm_name: vm, source, destination, .. } = &record.job;
    let (id, source, destination) = (record.id, &source.name, &destination.name);
    let why = why(events);
    let kept = format!(
        "what was copied to {destination} is removed, or kept for a day so that `ferry job restart {id}` sends the rest"
    );
    let tries = format!("Ferry keeps trying: `ferry job retry {id}` tries now, `ferry job dismiss {id}` gives it up");
    match phase {
        Phase::Queued => match &now.waits {
            Some(wait) => format!("VM {vm} is shut off on {source}; {}.", waits_in_queue(wait)),
            None => format!("VM {vm} is shut off on {source}; its move waits for its turn."),
        },
        Phase::Preparing => format!("VM {vm} is shut off on {source}; its move to {destination} is being prepared."),
        Phase::Migrating => {
            format!("VM {vm} is shut off, and held so, on {source} while its files are copied to {destination}.")
        }
        Phase::Completing => {
            format!("VM {vm} is shut off on {destination}; what was left on {source} is being removed.")
        }
        Phase::RollingBack => {
            format!("VM {vm} stays on {source}, shut off; what was prepared is being taken back.")
        }
        Phase::Succeeded => {
            format!("VM {vm} is shut off on {destination}, with its files. Start it with `ferry vm start {vm}`.")
        }
        Phase::Cancelled => format!("VM {vm} stays on {source}, shut off: the move was cancelled; {kept}."),
        Phase::Failed => format!("VM {vm} stays on {source}, shut off: {why}. Mend the cause; {kept}."),
        Phase::Stuck if events.iter().any(|event| matches!(event, LogEvent::UndoFailed { .. })) => format!(
            "VM {vm} is shut off on {source}, but what was prepared could not be taken back yet: {why}. See that both \
             hosts and their agents are up. {tries}."
        ),
        Phase::Stuck => format!(
            "VM {vm} is shut off on {destination}, but the move could not be finished yet: {why}. Do not start the VM \
             on {source}. {tries}."
        ),
    }
}
