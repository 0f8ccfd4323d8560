//! What a job of each kind needs in its next step, in its next attempt and after a restart of the server: JSON in the
//! job's row.
//!
//! Data only. New fields have a default, so that plans of an earlier version can be read.

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
    migration::{Step, steps},
    network::Route,
    transfer::Transfer,
};
use serde::{Deserialize, Serialize};

use crate::store::JobRecord;
pub(crate) use kept::Kept;
use live::LivePlan;
use offline::OfflinePlan;
use storage::StoragePlan;

/// The stored plan of a parent job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// As requested.
    #[serde(default)]
    pub(crate) overcommit: bool,
}

impl Kept for Parts {}

impl Parts {
    /// The plan of a parent job; earlier versions stored none.
    pub(crate) fn of(record: &JobRecord) -> Self {
        Self::from_json(&record.job.plan).unwrap_or_default()
    }
}

/// A job's plan, by its kind.
pub(crate) enum Plan {
    /// The plan of a live move.
    Live(LivePlan),
    /// The plan of an offline move.
    Offline(OfflinePlan),
    /// The plan of a storage move.
    Storage(StoragePlan),
}

impl Plan {
    /// Parses a job's plan. Parent jobs have none.
    pub(crate) fn of(record: &JobRecord) -> Result<Self, serde_json::Error> {
        match record.job.kind {
            JobKind::Storage => StoragePlan::from_json(&record.job.plan).map(Self::Storage),
            JobKind::Offline => OfflinePlan::from_json(&record.job.plan).map(Self::Offline),
            JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
                LivePlan::from_json(&record.job.plan).map(Self::Live)
            }
        }
    }

    /// The stored form of the plan for another attempt.
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

    /// The attempt in the form that agents know.
    pub(crate) fn attempt(&self, record: &JobRecord) -> Attempt {
        Attempt { job: record.id, generation: self.generation() }
    }

    /// The disks that move on their host, or that migrate with the VM.
    pub(crate) fn disks(self) -> Vec<DiskMove> {
        match self {
            Self::Live(plan) => plan.migrated,
            Self::Offline(_) => Vec::new(),
            Self::Storage(plan) => plan.request.disks,
        }
    }

    /// How the bytes of a live move travel.
    pub(crate) fn transfer(&self) -> Option<Transfer> {
        match self {
            Self::Live(plan) => Some(plan.transfer()),
            Self::Offline(_) | Self::Storage(_) => None,
        }
    }

    /// Where the bytes of a move to another host travel, since its attempt has begun.
    pub(crate) fn route(&self) -> Option<Route> {
        match self {
            Self::Live(plan) => plan.route,
            Self::Offline(plan) => plan.route,
            Self::Storage(_) => None,
        }
    }

    /// Whether the user accepted that the destination's memory may not suffice.
    pub(crate) fn overcommits(record: &JobRecord) -> bool {
        match record.job.kind.is_parent() {
            true => Parts::of(record).overcommit,
            false => matches!(Self::of(record), Ok(Self::Live(plan)) if plan.overcommit),
        }
    }

    /// Whether the source has a persistent definition of the VM.
    pub(crate) fn is_persistent(&self) -> bool {
        match self {
            Self::Live(plan) => plan.persistent,
            Self::Offline(_) | Self::Storage(_) => true,
        }
    }
}

/// The steps of a job, in order; none for a parent. What its plan contains is known from its kind, so a view, or a list of
/// many, parses no plan for them.
pub(crate) fn steps_of(record: &JobRecord) -> Vec<Step> {
    match record.job.kind {
        JobKind::Live | JobKind::LiveVsm => steps(LivePlan::CONTENTS),
        JobKind::Offline => steps(OfflinePlan::CONTENTS),
        JobKind::Storage => steps(StoragePlan::CONTENTS),
        JobKind::Several | JobKind::Drain => Vec::new(),
    }
}

/// The progress of a job's disks according to the agents' last reports; empty if it moves no disks or nothing was reported
/// yet.
pub(crate) fn progress_of(record: &JobRecord) -> Vec<DiskProgress> {
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

/// The memory that was promised to a job, and on which host; `None`: the job is not a live move.
pub(crate) fn memory_of(record: &JobRecord) -> Option<(HostId, Need)> {
    match Plan::of(record) {
        Ok(Plan::Live(plan)) => Some((record.job.destination.id, plan.need)),
        Ok(Plan::Offline(_) | Plan::Storage(_)) | Err(_) => None,
    }
}
