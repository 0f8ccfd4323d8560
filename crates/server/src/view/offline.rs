//! The summary of an offline move.

use ferry_core::{
    job_text::JobText,
    migration::{LogEvent, Phase},
};

use super::words::{waits_in_queue, why};
use crate::{
    jobs::running::Now,
    store::{JobRecord, NewJob},
};

/// The state of an offline move, and what a user has to do, if anything.
pub(super) fn summary(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> JobText {
    let NewJob { vm_name, source, destination, .. } = &record.job;
    let (job, vm) = (record.id, vm_name.clone());
    let (source, destination) = (source.name.clone(), destination.name.clone());
    let why = || why(&record.job, events);
    let kept = || JobText::CopiesKept { host: destination.clone(), job }.into();
    let tries = || JobText::KeepsTrying { job }.into();
    match phase {
        Phase::Queued => {
            let wait = waits_in_queue(now.queued.as_ref(), JobText::ItsMoveWaits);
            JobText::OfflineQueued { vm, source, wait }
        }
        Phase::Preparing => JobText::OfflinePreparing { vm, source, destination },
        Phase::Migrating => JobText::OfflineCopying { vm, source, destination },
        Phase::Completing => JobText::OfflineFinishing { vm, source, destination },
        Phase::RollingBack => JobText::OfflineTakenBack { vm, source },
        Phase::Succeeded => JobText::OfflineDone { vm, destination },
        Phase::Cancelled => JobText::OfflineCancelled { vm, source, kept: kept() },
        Phase::Failed => JobText::OfflineFailed { vm, source, why: why(), kept: kept() },
        Phase::Stuck if events.iter().any(|event| matches!(event, LogEvent::UndoFailed { .. })) => {
            JobText::OfflineNotTakenBack { vm, source, why: why(), tries: tries() }
        }
        Phase::Stuck => JobText::OfflineNotFinished { vm, source, destination, why: why(), tries: tries() },
    }
}
