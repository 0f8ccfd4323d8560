//! What a live move keeps of what was asked.

use ferry_core::{
    files::{DiskMove, DiskProgress},
    id::{Generation, SessionId, ShareId},
    job::OnStall,
    memory::Need,
    pin::Secret,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::kept::Kept;

/// What the saga must know again after a restart. Stored with the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LivePlan {
    /// The attempt on the wire.
    pub(crate) session: SessionId,
    /// Known to both agents of the session only.
    pub(crate) secret: Secret,
    /// Begins at the time of acceptance, so that it rises even if a server starts with an empty database.
    pub(crate) generation: Generation,
    /// As asked for.
    pub(crate) downtime_limit_ms: u32,
    /// As asked for.
    pub(crate) bandwidth_bytes_per_s: Option<u64>,
    /// As asked for.
    pub(crate) timeout_ms: u64,
    /// As asked for.
    #[serde(default)]
    pub(crate) on_stall: OnStall,
    /// What the VM takes of the destination's memory.
    #[serde(default)]
    pub(crate) need: Need,
    /// As asked for.
    #[serde(default)]
    pub(crate) overcommit: bool,
    /// Whether the source keeps a definition of the VM.
    pub(crate) persistent: bool,
    /// Whether the source starts the VM at boot: what it says when it holds the VM, which clears it there, and what
    /// Confirm sets at the destination.
    pub(crate) autostart: bool,
    /// Shares that the VM's files lie on.
    pub(crate) shares: Vec<ShareId>,
    /// Disks that move along.
    #[serde(default)]
    pub(crate) along: Vec<DiskMove>,
    /// Whether their old files stay.
    #[serde(default)]
    pub(crate) keep_source: bool,
    /// How these disks stood when the agents said so last.
    #[serde(default)]
    pub(crate) progress: Vec<DiskProgress>,
}

impl Kept for LivePlan {}

impl LivePlan {
    /// The same for another attempt: no carrier or request of an earlier one is taken for one of it.
    pub(crate) fn renewed(&self, now_ms: u64) -> Self {
        Self {
            session: SessionId(Uuid::new_v4()),
            secret: ferry_trust::random_secret(),
            generation: self.generation.next().max(Generation(now_ms)),
            progress: Vec::new(),
            ..self.clone()
        }
    }
}
