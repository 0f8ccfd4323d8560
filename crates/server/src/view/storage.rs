//! The summary of a storage move.

use ferry_core::{
    files::DiskStage,
    job_text::JobText,
    migration::{LogEvent, Phase},
};

use super::words::{waits_in_queue, why};
use crate::{
    jobs::running::Now,
    store::{JobRecord, NewJob},
};

/// The state of a storage move, and what a user has to do, if anything.
pub(super) fn summary(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> JobText {
    let NewJob { vm_name, source, .. } = &record.job;
    let (job, vm, host) = (record.id, vm_name.clone(), source.name.clone());
    let why = || why(&record.job, events);
    let (count, moved) = (now.disks.len(), now.disks.iter().filter(|disk| disk.stage == DiskStage::Moved).count());
    match phase {
        Phase::Queued => {
            let wait = waits_in_queue(now.queued.as_ref(), JobText::MoveWaits);
            JobText::StorageQueued { vm, host, wait }
        }
        Phase::Preparing => JobText::StoragePreparing { vm, host },
        Phase::Migrating => JobText::StorageCopying { vm, host, moved: moved as u64, count: count as u64 },
        Phase::Completing => JobText::StorageFinishing { vm, host },
        Phase::RollingBack => JobText::StorageTakenBack { vm, host },
        Phase::Succeeded => JobText::StorageDone { vm, host },
        Phase::Failed | Phase::Cancelled if moved > 0 => JobText::StorageHalf { vm, host, why: why(), job },
        Phase::Cancelled => JobText::StorageCancelled { vm, host, job },
        Phase::Failed => JobText::StorageFailed { vm, host, why: why(), job },
        Phase::Stuck => {
            let tries = JobText::KeepsTrying { job }.into();
            JobText::StorageStuck { vm, host, why: why(), tries }
        }
    }
}
