//! The summary of a live move.

use ferry_core::{
    files::{DiskProgress, DiskStage},
    job::JobKind,
    job_text::JobText,
    migration::{LogEvent, Phase, Step},
};

use super::words::{waits_in_queue, why};
use crate::{
    jobs::running::Now,
    store::{JobRecord, NewJob},
};

/// The state of a live move, and what a user has to do, if anything.
pub(super) fn summary(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> JobText {
    let NewJob { vm_name, source, destination, kind, .. } = &record.job;
    let (job, vm) = (record.id, vm_name.clone());
    let (source, destination) = (source.name.clone(), destination.name.clone());
    let resumed = events.contains(&LogEvent::Succeeded { step: Step::Resume });
    let why = || why(&record.job, events);
    let tries = || JobText::KeepsTrying { job }.into();
    let left = || match *kind == JobKind::LiveVsm {
        true => JobText::CopiesRemoved { host: destination.clone() }.into(),
        false => JobText::NothingLeft { host: destination.clone() }.into(),
    };
    match phase {
        Phase::Queued => {
            let wait = waits_in_queue(now.queued.as_ref(), JobText::MoveWaits);
            JobText::LiveQueued { vm, source, wait }
        }
        Phase::Preparing => JobText::LivePreparing { vm, source, destination },
        Phase::Migrating if now.waits_for.is_some() => JobText::LiveUnknown { vm, source, destination },
        Phase::Migrating if now.disks.iter().any(is_copied) => JobText::LiveDisks { vm, source, destination },
        Phase::Migrating => JobText::LiveMemory { vm, source, destination },
        Phase::Completing if resumed => JobText::LiveFinishing { vm, destination },
        Phase::Completing => JobText::LiveResuming { vm, destination },
        Phase::RollingBack => JobText::LiveTakenBack { vm, source },
        Phase::Succeeded => JobText::LiveDone { vm, destination },
        Phase::Cancelled => JobText::LiveCancelled { vm, source, left: left(), job },
        Phase::Failed => JobText::LiveFailed { vm, source, why: why(), left: left(), job },
        Phase::Stuck if events.iter().any(|event| matches!(event, LogEvent::UndoFailed { .. })) => {
            JobText::LiveNotTakenBack { vm, source, why: why(), tries: tries() }
        }
        Phase::Stuck if resumed => JobText::LiveNotFinished { vm, source, destination, why: why(), tries: tries() },
        Phase::Stuck => JobText::LiveNotResumed { vm, source, destination, why: why(), tries: tries() },
    }
}

/// Whether a disk is still being copied.
fn is_copied(disk: &DiskProgress) -> bool {
    match disk.stage {
        DiskStage::Waiting | DiskStage::Copying => true,
        DiskStage::Ready | DiskStage::Moved => false,
    }
}
