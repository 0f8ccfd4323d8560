//! What is written down of a storage move before it happens, so that a restarted agent goes on with it.

use std::path::PathBuf;

use ferry_core::{
    api::agent::{self, PrepareStorage},
    finding::Finding,
    id::{Generation, JobId},
    units::ByteCount,
};
use serde::{Deserialize, Serialize};

use crate::files::new_file::{FileIdentity, MadeFile};

/// One disk: its files on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disk {
    /// The disk's name in the definition.
    pub(super) device: String,
    /// The old file.
    pub(super) from: PathBuf,
    /// The new file.
    pub(super) to: PathBuf,
    /// The new file was made by this attempt: it may be removed by it. Written down when it is whole and before it gets
    /// its name: as long as there is a file of [`Journal::making`]'s name, `to` is not this attempt's.
    pub(super) made: bool,
    /// How the new file is known again.
    #[serde(default, rename = "mark")]
    pub(super) identity: FileIdentity,
    /// What the old file took.
    pub(super) allocated: ByteCount,
    /// It was asked to switch the disk over: the new file may hold what no other file holds. A journal that does not say
    /// is of an agent that did not write it down.
    #[serde(default = "was_asked")]
    pub(super) switch_asked: bool,
}

fn was_asked() -> bool {
    true
}

/// What is wanted of a move. Never taken back to less, but by whoever finds that it is too late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Wish {
    /// It goes on, also after a restart.
    #[default]
    GoOn,
    /// It ends, if no disk is being switched over yet.
    End,
    /// It ends wherever it is, also between two disks.
    Forget,
}

/// How far a move is.
///
/// ```text
/// Prepared → Copying → Switching → Moved → Confirmed
///               └──────────┴─→ Failed | Aborted (before the first disk was switched over)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// The new files are there.
    Prepared,
    /// Disks are being copied.
    Copying,
    /// Every disk is ready, and one after the other is switched over.
    Switching,
    /// Every disk uses its new file.
    Moved,
    /// The old files are gone, or stay by request.
    Confirmed,
    /// It ended by an error.
    Failed,
    /// It ended by request; no disk was moved by this attempt.
    Aborted,
}

impl Stage {
    /// As it is reported.
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

/// One file for each move.
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
    /// What the new file of a disk is called until it is whole: a name that nobody else takes, so that what an agent that
    /// died left behind is known to be its own.
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

    /// An agent that is upgraded in the midst of a move goes on with it.
    #[test]
    fn what_the_version_before_wrote_down_is_read_and_written_as_it_was() {
        let text = include_str!("../../tests/journals/storage.json");
        let journal: Journal = serde_json::from_str(text).expect("a journal");
        let written = serde_json::to_value(&journal).expect("JSON");
        assert_eq!(written, serde_json::from_str::<Value>(text).expect("JSON"));
    }
}
