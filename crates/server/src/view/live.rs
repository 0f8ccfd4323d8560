//! A live move, in words.

use ferry_core::{
    files::{DiskProgress, DiskStage},
    job::JobKind,
    migration::{LogEvent, Phase, Step},
};

use super::words::{waits_in_queue, why};
use crate::{
    jobs::running::Now,
    store::{JobRecord, NewJob},
};

/// How a live move stands, and what to do if somebody has to.
pub(super) fn summary(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> String {
    let NewJob { vm_name: vm, source, destination, .. } = &record.job;
    let (id, source, destination) = (record.id, &source.name, &destination.name);
    let resumed = events.contains(&LogEvent::Succeeded { step: Step::Resume });
    let why = why(events);
    let tries = format!("Ferry keeps trying: `ferry job retry {id}` tries now, `ferry job dismiss {id}` gives it up");
    let left = if record.job.kind == JobKind::LiveVsm {
        format!("What was copied to {destination} is removed, or kept for a day for the next attempt")
    } else {
        format!("Nothing is left on {destination}")
    };
    match phase {
        Phase::Queued => match &now.waits {
            Some(wait) => format!("VM {vm} stays on {source} until then: {}.", waits_in_queue(wait)),
            None => format!("VM {vm} stays on {source} until then: the move waits for its turn."),
        },
        Phase::Preparing => {
            format!("VM {vm} is on {source}; its move to {destination} is being prepared.")
        }
        Phase::Migrating if now.waits_for.is_some() => {
            format!("VM {vm} is on its way from {source} to {destination}; who has it is not known yet.")
        }
        Phase::Migrating if now.disks.iter().any(is_copied) => format!(
            "VM {vm} runs on {source} while its disks are copied to {destination}; its memory moves when they are ready."
        ),
        Phase::Migrating => {
            format!("VM {vm} runs on {source} while its memory moves to {destination}.")
        }
        Phase::Completing if resumed => {
            format!("VM {vm} has moved to {destination}; the move is being finished.")
        }
        Phase::Completing => {
            format!("VM {vm} is at {destination} and is being resumed there.")
        }
        Phase::RollingBack => {
            format!("VM {vm} stays on {source}; what was prepared is being taken back.")
        }
        Phase::Succeeded => format!("VM {vm} has moved to {destination}."),
        Phase::Cancelled => format!(
            "VM {vm} stays on {source}: the move was cancelled. {left}. \
             Move it after all with `ferry job restart {id}`."
        ),
        Phase::Failed => format!(
            "VM {vm} stays on {source}: {why}. {left}; \
             mend the cause, then try again with `ferry job restart {id}`."
        ),
        Phase::Stuck if events.iter().any(|event| matches!(event, LogEvent::UndoFailed { .. })) => {
            format!(
                "VM {vm} stays on {source}, but what was prepared could not be taken back yet: {why}. \
                 See that both hosts and their agents are up. {tries}."
            )
        }
        Phase::Stuck if resumed => format!(
            "VM {vm} has moved to {destination}, but the move could not be finished yet: {why}. \
             Do not start the VM on {source}. {tries}."
        ),
        Phase::Stuck => format!(
            "VM {vm} is at {destination} but could not be resumed there yet: {why}. \
             Do not start the VM on {source}. {tries}."
        ),
    }
}

/// Whether a disk is still to be copied.
fn is_copied(disk: &DiskProgress) -> bool {
    match disk.stage {
        DiskStage::Waiting | DiskStage::Copying => true,
        DiskStage::Ready | DiskStage::Moved => false,
    }
}
