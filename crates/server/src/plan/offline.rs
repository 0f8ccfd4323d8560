//! The plan of an offline move.

use ferry_core::{
    files::DiskProgress,
    files::FileMove,
    id::{Generation, SessionId, ShareId},
    migration::Contents,
    network::Route,
    pin::Secret,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::kept::Kept;

/// What the saga needs after a restart of the server. Stored with the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OfflinePlan {
    /// The session of the attempt.
    pub(crate) session: SessionId,
    /// A secret that only both agents of the session know.
    pub(crate) secret: Secret,
    /// Starts at the time of acceptance, so that generations rise even if a server starts with an empty database.
    pub(crate) generation: Generation,
    /// The files that move.
    pub(crate) files: Vec<FileMove>,
    /// Shares with files that stay.
    pub(crate) shares: Vec<ShareId>,
    /// Whether the old files stay.
    pub(crate) keep_source: bool,
    /// Whether the source starts the VM at boot.
    pub(crate) autostart: bool,
    /// The progress of files according to the agents' last reports.
    #[serde(default)]
    pub(crate) progress: Vec<DiskProgress>,
    /// Where its bytes travel, by the checks at the start of the attempt.
    #[serde(default)]
    pub(crate) route: Option<Route>,
}

impl Kept for OfflinePlan {}

impl OfflinePlan {
    /// The VM changes its host, and nothing of it runs: nothing is resumed.
    pub(crate) const CONTENTS: Contents = Contents { changes_host: true, memory: false };

    /// The same plan for another attempt.
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
