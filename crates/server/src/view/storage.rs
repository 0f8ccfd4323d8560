//! A move of disks on one host, in words.

use ferry_core::{
    files::DiskStage,
    migration::{LogEvent, Phase},
};

use super::words::{waits_in_queue, why};
use crate::{
    jobs::running::Now,
    store::{JobRecord, NewJob},
};

/// How a storage move stands, and what to do if somebody has to.
pub(super) fn summary(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> String {
    let NewJob { vm_name: vm, source: host, .. } = &record.job;
    let (id, host) = (record.id, &host.name);
    let why = why(events);
    let disks = &now.disks;
    let moved = disks.iter().filter(|disk| disk.stage == DiskStage::Moved).count();
    let again = format!("mend the cause, then try again with `ferry job restart {id}`");
    let tries = format!("Ferry keeps trying: `ferry job retry {id}` tries now, `ferry job dismiss {id}` gives it up");
    match phase {
        Phase::Queued => match &now.waits {
            Some(wait) => format!("The disks of VM {vm} on {host} move later; {}.", waits_in_queue(wait)),
            None => format!("The disks of VM {vm} on {host} move later; the move waits for its turn."),
        },
        Phase::Preparing => format!("The move of the disks of VM {vm} on {host} is being prepared."),
        Phase::Migrating => {
            format!("The disks of VM {vm} on {host} are copied; {moved} of {} use their new files.", disks.len())
        }
        Phase::Completing => {
            format!("VM {vm} on {host} has its new files; the old ones are being removed.")
        }
        Phase::RollingBack => {
            format!("VM {vm} on {host} keeps its old files; what was prepared for its disks is being taken back.")
        }
        Phase::Succeeded => format!("VM {vm} on {host} has its disks where they were asked for."),
        Phase::Failed | Phase::Cancelled if moved > 0 => format!(
            "VM {vm} on {host} has some disks moved and others not: {why}. \
             Every disk is whole; {again}, which moves what is left."
        ),
        Phase::Cancelled => format!(
            "VM {vm} on {host} has its old files: the move was cancelled, and its new files are removed. \
             Move them after all with `ferry job restart {id}`."
        ),
        Phase::Failed => {
            format!("VM {vm} on {host} has its old files: {why}. New files are removed; {again}.")
        }
        Phase::Stuck => {
            format!("The move of the disks of VM {vm} on {host} cannot be ended yet: {why}. {tries}.")
        }
    }
}
