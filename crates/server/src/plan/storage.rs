//! What a move of disks on one host keeps of what was asked.

use ferry_core::{api::agent::PrepareStorage, files::DiskProgress, id::Generation};
use serde::{Deserialize, Serialize};

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

impl StoragePlan {
    /// As it is stored.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("our types have text keys only")
    }

    /// As it was stored.
    pub(crate) fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The same for another attempt.
    pub(crate) fn renewed(&self, now_ms: u64) -> Self {
        Self { generation: Generation(now_ms.max(self.generation.0 + 1)), disks: Vec::new(), ..self.clone() }
    }
}
