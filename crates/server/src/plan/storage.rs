//! What a move of disks on one host keeps of what was asked.

use ferry_core::{api::agent::PrepareStorage, files::DiskProgress, id::Generation};
use serde::{Deserialize, Serialize};

use super::kept::Kept;

/// What the saga must know again after a restart. Stored with the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoragePlan {
    /// Begins at the time of acceptance, so that it rises even if a server starts with an empty database.
    pub(crate) generation: Generation,
    /// What the agent is asked for.
    pub(crate) request: PrepareStorage,
    /// Whether the old files stay.
    pub(crate) keep_source: bool,
    /// How the disks stood when the agent said so last.
    #[serde(default)]
    pub(crate) disks: Vec<DiskProgress>,
}

impl Kept for StoragePlan {}

impl StoragePlan {
    /// The same for another attempt.
    pub(crate) fn renewed(&self, now_ms: u64) -> Self {
        Self { generation: self.generation.next().max(Generation(now_ms)), disks: Vec::new(), ..self.clone() }
    }
}
