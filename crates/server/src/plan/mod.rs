//! What a job of any kind keeps for its next step, its next attempt and the next life of the server: JSON in the job's row.
//!
//! Data only. Fields are added with a default, so that what an earlier version stored is read.

mod kept;
pub(crate) mod live;
pub(crate) mod offline;
pub(crate) mod storage;

use ferry_client::agent::Attempt;
use ferry_core::{
    files::{DiskMove, DiskProgress},
    id::{Generation, HostId},
    job::JobKind,
    memory::Need,
    migration::Step,
};
use serde::{Deserialize, Serialize};

use crate::store::JobRecord;
pub(crate) use kept::Kept;
use live::LivePlan;
use offline::OfflinePlan;
use storage::StoragePlan;

/// What is kept of a job whose work is done by others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// As asked for.
    #[serde(default)]
    pub(crate) overcommit: bool,
}

impl Kept for Parts {}

impl Parts {
    /// Those of a job: earlier versions kept nothing.
    pub(crate) fn of(record: &JobRecord) -> Self {
        Self::from_json(&record.job.plan).unwrap_or_default()
    }
}

/// A job's plan, by its kind.
pub(crate) enum Plan {
    /// Of a live move.
    Live(LivePlan),
    /// Of an offline move.
    Offline(OfflinePlan),
    /// Of a storage move.
    Storage(StoragePlan),
}

impl Plan {
    /// As it was stored. A job whose work is done by others has none.
    pub(crate) fn of(record: &JobRecord) -> Result<Self, serde_json::Error> {
        match record.job.kind {
            JobKind::Storage => StoragePlan::from_json(&record.job.plan).map(Self::Storage),
            JobKind::Offline => OfflinePlan::from_json(&record.job.plan).map(Self::Offline),
            JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
                LivePlan::from_json(&record.job.plan).map(Self::Live)
            }
        }
    }

    /// As it is stored for another attempt.
    pub(crate) fn renewed(&self, now_ms: u64) -> String {
        match self {
            Self::Live(plan) => plan.renewed(now_ms).to_json(),
            Self::Offline(plan) => plan.renewed(now_ms).to_json(),
            Self::Storage(plan) => plan.renewed(now_ms).to_json(),
        }
    }

    fn generation(&self) -> Generation {
        match self {
            Self::Live(plan) => plan.generation,
            Self::Offline(plan) => plan.generation,
            Self::Storage(plan) => plan.generation,
        }
    }

    /// The attempt, as the agents know it.
    pub(crate) fn attempt(&self, record: &JobRecord) -> Attempt {
        Attempt { job: record.id, generation: self.generation() }
    }

    /// Disks that move on their host, or along.
    pub(crate) fn disks(self) -> Vec<DiskMove> {
        match self {
            Self::Live(plan) => plan.along,
            Self::Offline(_) => Vec::new(),
            Self::Storage(plan) => plan.request.disks,
        }
    }

    /// Whether somebody took it that the destination's memory may not do.
    pub(crate) fn overcommits(record: &JobRecord) -> bool {
        match record.job.kind.is_parent() {
            true => Parts::of(record).overcommit,
            false => matches!(Self::of(record), Ok(Self::Live(plan)) if plan.overcommit),
        }
    }

    /// Whether its source keeps a definition of the VM.
    pub(crate) fn is_persistent(&self) -> bool {
        match self {
            Self::Live(plan) => plan.persistent,
            Self::Offline(_) | Self::Storage(_) => true,
        }
    }
}

/// The steps of a live move, in order.
const LIVE: [Step; 8] = Step::ALL;
/// Of an offline one: nothing runs, so nothing is resumed.
const OFFLINE: [Step; 7] = [
    Step::Preflight,
    Step::Reserve,
    Step::PrepareDestination,
    Step::PrepareSource,
    Step::Perform,
    Step::Confirm,
    Step::Release,
];
/// Of a storage move: both ends are one host, so there is no source to prepare, and the VM never stands still.
const STORAGE: [Step; 6] =
    [Step::Preflight, Step::Reserve, Step::PrepareDestination, Step::Perform, Step::Confirm, Step::Release];

/// The steps of a job, in order; of one whose work is done by others, none. The first is compensable, one is the pivot, and
/// the last ends the job.
pub(crate) fn steps_of(record: &JobRecord) -> Vec<Step> {
    match record.job.kind {
        JobKind::Live | JobKind::LiveVsm => LIVE.to_vec(),
        JobKind::Offline => OFFLINE.to_vec(),
        JobKind::Storage => STORAGE.to_vec(),
        JobKind::Several | JobKind::Drain => Vec::new(),
    }
}

/// How the disks of a job stood when agents said so last. None: it moves none, or nothing was said yet.
pub(crate) fn progress_of(record: &JobRecord) -> Vec<DiskProgress> {
    // A job is shown at each of its changes: the plan of one that moves no disks is not read for that.
    if matches!(record.job.kind, JobKind::Live | JobKind::Several | JobKind::Drain) {
        return Vec::new();
    }
    match Plan::of(record) {
        Ok(Plan::Live(plan)) => plan.progress,
        Ok(Plan::Offline(plan)) => plan.progress,
        Ok(Plan::Storage(plan)) => plan.disks,
        Err(_) => Vec::new(),
    }
}

/// The memory that a job was promised, and at which host; `None`: it is no live move.
pub(crate) fn memory_of(record: &JobRecord) -> Option<(HostId, Need)> {
    match Plan::of(record) {
        Ok(Plan::Live(plan)) => Some((record.job.destination.id, plan.need)),
        Ok(Plan::Offline(_) | Plan::Storage(_)) | Err(_) => None,
    }
}
