//! The journal of a storage move, written before each action, so that a restarted agent continues it.

use std::path::PathBuf;

use ferry_core::{
    api::agent::{self, PrepareStorage},
    finding::Finding,
    id::{Generation, JobId},
    units::ByteCount,
};
use serde::{Deserialize, Serialize};

use crate::files::new_file::{FileIdentity, MadeFile};

/// One disk, and its files on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disk {
    /// The disk's name in the definition.
    pub(super) device: String,
    /// The old file.
    pub(super) from: PathBuf,
    /// The new file.
    pub(super) to: PathBuf,
    /// This attempt created the new file and may remove it. Recorded when the file is complete and before it is
    /// renamed: as long as a file named [`Journal::making`] exists, `to` is not this attempt's.
    pub(super) made: bool,
    /// The identity of the new file.
    #[serde(default, rename = "mark")]
    pub(super) identity: FileIdentity,
    /// The space that the old file occupied.
    pub(super) allocated: ByteCount,
    /// A pivot of the disk was requested: the new file may contain the only copy of some data. A journal without this
    /// field was written by an agent that did not record it.
    #[serde(default = "was_asked")]
    pub(super) switch_asked: bool,
}

fn was_asked() -> bool {
    true
}

/// Requested outcome of a move; only ever escalates, except when it turns out to be too late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Wish {
    /// Continue, also after a restart.
    #[default]
    GoOn,
    /// End, unless a disk is already being pivoted.
    End,
    /// End in any stage, even between two disks.
    Forget,
}

/// The stage of a move.
///
/// ```text
/// Prepared → Copying → Switching → Moved → Confirmed
///               └──────────┴─→ Failed | Aborted (before the first disk was pivoted)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// The new files exist.
    Prepared,
    /// Disks are being copied.
    Copying,
    /// Every disk is ready; they are pivoted one after another.
    Switching,
    /// Every disk uses its new file.
    Moved,
    /// The old files are removed, or stay by request.
    Confirmed,
    /// The move failed.
    Failed,
    /// It ended by request; this attempt moved no disk.
    Aborted,
}

impl Stage {
    /// The stage as reported.
    pub(super) fn reported(self) -> agent::Stage {
        match self {
            Self::Prepared => agent::Stage::Prepared,
            Self::Copying | Self::Switching => agent::Stage::Performing,
            Self::Moved => agent::Stage::Delivered,
            Self::Confirmed => agent::Stage::Confirmed,
            Self::Failed => agent::Stage::Failed,
            Self::Aborted => agent::Stage::Aborted,
        }
    }
}

/// The journal: one file per move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) job: JobId,
    pub(super) generation: Generation,
    pub(super) request: PrepareStorage,
    /// In the order of the request.
    pub(super) disks: Vec<Disk>,
    pub(super) stage: Stage,
    pub(super) error: Option<String>,
    #[serde(default)]
    pub(super) wish: Wish,
    #[serde(default)]
    pub(super) findings: Vec<Finding>,
}

impl Journal {
    /// The temporary name of a disk's new file until it is complete: unique to this attempt, so that a restarted agent
    /// can recognise its own leftovers.
    pub(super) fn making(&self, disk: usize) -> PathBuf {
        let name = format!(".ferry-new-{}-{}-{disk}", self.job, self.generation);
        self.disks[disk].to.with_file_name(name)
    }

    /// The new file of a disk.
    pub(super) fn made(&self, disk: usize) -> MadeFile<'_> {
        let (Disk { to, identity, .. }, format) = (&self.disks[disk], self.request.disks[disk].format);
        MadeFile { path: to, identity: *identity, format, virtual_size: ByteCount(0) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// An agent that is upgraded during a move continues it.
    #[test]
    fn what_the_version_before_wrote_down_is_read_and_written_as_it_was() {
        let text = include_str!("../../tests/journals/storage.json");
        let journal: Journal = serde_json::from_str(text).expect("a journal");
        let written = serde_json::to_value(&journal).expect("JSON");
        assert_eq!(written, serde_json::from_str::<Value>(text).expect("JSON"));
    }
}
