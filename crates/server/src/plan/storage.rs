//! The plan of a storage move.

use ferry_core::{api::agent::PrepareStorage, files::DiskProgress, id::Generation, migration::Contents};
use serde::{Deserialize, Serialize};

use super::kept::Kept;

/// What the saga needs after a restart of the server. Stored with the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoragePlan {
    /// Starts at the time of acceptance, so that generations rise even if a server starts with an empty database.
    pub(crate) generation: Generation,
    /// The request to the agent.
    pub(crate) request: PrepareStorage,
    /// Whether the old files stay.
    pub(crate) keep_source: bool,
    /// The progress of the disks according to the agent's last report.
    #[serde(default)]
    pub(crate) disks: Vec<DiskProgress>,
}

impl Kept for StoragePlan {}

impl StoragePlan {
    /// Both ends are one host, so there is no source to prepare; the VM runs on.
    pub(crate) const CONTENTS: Contents = Contents { changes_host: false, memory: false };

    /// The same plan for another attempt.
    pub(crate) fn renewed(&self, now_ms: u64) -> Self {
        Self { generation: self.generation.next().max(Generation(now_ms)), disks: Vec::new(), ..self.clone() }
    }
}
