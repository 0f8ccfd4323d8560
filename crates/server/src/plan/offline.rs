//! What a move of a VM that is shut off keeps of what was asked.

use ferry_core::{
    files::DiskProgress,
    files::FileMove,
    id::{Generation, SessionId, ShareId},
    pin::Secret,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::kept::Kept;

/// What the saga must know again after a restart. Stored with the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OfflinePlan {
    /// The attempt on the wire.
    pub(crate) session: SessionId,
    /// Known to both agents of the session only.
    pub(crate) secret: Secret,
    /// Begins at the time of acceptance, so that it rises even if a server starts with an empty database.
    pub(crate) generation: Generation,
    /// What moves.
    pub(crate) files: Vec<FileMove>,
    /// Shares with files that stay.
    pub(crate) shares: Vec<ShareId>,
    /// Whether the old files stay.
    pub(crate) keep_source: bool,
    /// Whether the source starts the VM at boot.
    pub(crate) autostart: bool,
    /// How files stood when the agents said so last.
    #[serde(default)]
    pub(crate) progress: Vec<DiskProgress>,
}

impl Kept for OfflinePlan {}

impl OfflinePlan {
    /// The same for another attempt.
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
