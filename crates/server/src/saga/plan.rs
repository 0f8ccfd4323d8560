//! What a job of any kind keeps for its saga.

use ferry_client::{
    ClientError,
    agent::{AgentClient, Attempt},
};
use ferry_core::{files::DiskMove, id::Generation, job::JobKind};
use serde::{Deserialize, Serialize};

use super::{migrate, move_offline, move_storage};
use crate::store::JobRecord;

/// What is kept of a job whose work is done by others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// As asked for.
    #[serde(default)]
    pub(crate) overcommit: bool,
}

impl Parts {
    /// As it is stored.
    pub(crate) fn to_json(self) -> String {
        serde_json::to_string(&self).expect("our types have text keys only")
    }

    /// As it was stored: earlier versions kept nothing.
    pub(crate) fn of(record: &JobRecord) -> Self {
        serde_json::from_str(&record.job.plan).unwrap_or_default()
    }
}

/// A job's plan, by its kind.
pub(crate) enum Plan {
    /// Of a live move.
    Live(migrate::Plan),
    /// Of an offline move.
    Offline(move_offline::Plan),
    /// Of a storage move.
    Storage(move_storage::Plan),
}

impl Plan {
    /// As it was stored. A job whose work is done by others has none.
    pub(crate) fn of(record: &JobRecord) -> Result<Self, serde_json::Error> {
        match record.job.kind {
            JobKind::Storage => move_storage::Plan::from_json(&record.job.plan).map(Self::Storage),
            JobKind::Offline => move_offline::Plan::from_json(&record.job.plan).map(Self::Offline),
            JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
                migrate::Plan::from_json(&record.job.plan).map(Self::Live)
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

    /// Ends it at one host, before the point of no return.
    pub(crate) async fn abort(&self, agent: &AgentClient, attempt: Attempt) -> Result<(), ClientError> {
        match self {
            Self::Live(_) => agent.abort(attempt).await.map(drop),
            Self::Offline(_) => agent.abort_offline(attempt).await.map(drop),
            Self::Storage(_) => agent.abort_storage(attempt).await.map(drop),
        }
    }

    /// Takes away what one host has of it.
    pub(crate) async fn release(&self, agent: &AgentClient, attempt: Attempt) -> Result<(), ClientError> {
        match self {
            Self::Live(_) => agent.release(attempt).await,
            Self::Offline(_) => agent.release_offline(attempt).await,
            Self::Storage(_) => agent.release_storage(attempt).await,
        }
    }
}
