//! The plan of a live move.

use ferry_core::{
    files::{DiskMove, DiskProgress},
    id::{Generation, SessionId, ShareId},
    job::OnStall,
    memory::Need,
    migration::Contents,
    network::Route,
    pin::Secret,
    transfer::Transfer,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::kept::Kept;

/// What the saga needs after a restart of the server. Stored with the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LivePlan {
    /// The session of the attempt.
    pub(crate) session: SessionId,
    /// A secret that only both agents of the session know.
    pub(crate) secret: Secret,
    /// Starts at the time of acceptance, so that generations rise even if a server starts with an empty database.
    pub(crate) generation: Generation,
    /// As requested.
    pub(crate) downtime_limit_ms: u32,
    /// As requested; earlier versions stored no more about how its bytes travel.
    pub(crate) bandwidth_bytes_per_s: Option<u64>,
    /// How its bytes travel; `None` in plans of an earlier version.
    #[serde(default)]
    pub(crate) transfer: Option<Transfer>,
    /// As requested.
    pub(crate) timeout_ms: u64,
    /// As requested.
    #[serde(default)]
    pub(crate) on_stall: OnStall,
    /// The memory that the VM needs at the destination.
    #[serde(default)]
    pub(crate) need: Need,
    /// As requested.
    #[serde(default)]
    pub(crate) overcommit: bool,
    /// Whether the source has a persistent definition of the VM.
    pub(crate) persistent: bool,
    /// Whether the source starts the VM at boot. The source reports it when it holds the VM, which clears it there;
    /// Confirm sets it at the destination.
    pub(crate) autostart: bool,
    /// Shares that hold files of the VM.
    pub(crate) shares: Vec<ShareId>,
    /// The migrated disks.
    #[serde(default, rename = "along")]
    pub(crate) migrated: Vec<DiskMove>,
    /// Whether the old files of migrated disks stay.
    #[serde(default)]
    pub(crate) keep_source: bool,
    /// The progress of migrated disks according to the agents' last reports.
    #[serde(default)]
    pub(crate) progress: Vec<DiskProgress>,
    /// Where its bytes travel, by the checks at the start of the attempt.
    #[serde(default)]
    pub(crate) route: Option<Route>,
}

impl Kept for LivePlan {}

impl LivePlan {
    /// The VM runs, and changes its host.
    pub(crate) const CONTENTS: Contents = Contents { changes_host: true, memory: true };

    /// How its bytes travel.
    pub(crate) fn transfer(&self) -> Transfer {
        self.transfer.unwrap_or_else(|| Transfer::as_before(self.bandwidth_bytes_per_s))
    }

    /// The same plan for another attempt, with a new session and generation: no carrier or request of an earlier
    /// attempt can be mistaken for one of the new attempt.
    pub(crate) fn renewed(&self, now_ms: u64) -> Self {
        Self {
            session: SessionId(Uuid::new_v4()),
            secret: ferry_trust::random_secret(),
            generation: self.generation.next().max(Generation(now_ms)),
            progress: Vec::new(),
            route: None,
            ..self.clone()
        }
    }
}
