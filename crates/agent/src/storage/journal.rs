//! The journal of a storage move, written before each action, so that a restarted agent continues it.

use std::path::PathBuf;

use ferry_core::{
    api::agent::{self, PrepareStorage},
    finding::Finding,
    id::{Generation, JobId},
    units::ByteCount,
};
use serde::{Deserialize, Serialize};

use crate::files::new_file::{Lifecycle, Naming, NewFile};

/// One disk, and its files on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disk {
    /// The disk's name in the definition.
    pub(super) device: String,
    /// The old file.
    pub(super) from: PathBuf,
    /// The new file.
    pub(super) to: PathBuf,
    /// How far the new file is.
    #[serde(flatten)]
    pub(super) lifecycle: Lifecycle,
    /// The disk's virtual size. The version before does not write it.
    #[serde(default)]
    pub(super) virtual_size: ByteCount,
    /// The space that the old file occupied.
    pub(super) allocated: ByteCount,
}

/// Requested outcome of a move; only ever escalates, except when it turns out to be too late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Intent {
    /// Continue, also after a restart.
    #[default]
    GoOn,
    /// End, unless a disk is already being pivoted.
    End,
    /// End in any stage, even between two disks.
    Forget,
}

/// The state of a move.
///
/// ```text
/// Prepared → Copying → Switching → Moved → Confirmed
///               └──────────┴─→ Failed | Aborted (before the first disk was pivoted)
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(super) enum State {
    /// The new files exist.
    Prepared {
        #[serde(default, rename = "wish")]
        intent: Intent,
    },
    /// Disks are being copied.
    Copying {
        #[serde(default, rename = "wish")]
        intent: Intent,
    },
    /// Every disk is ready; they are pivoted one after another.
    Switching {
        #[serde(default, rename = "wish")]
        intent: Intent,
    },
    /// Every disk uses its new file.
    Moved,
    /// The old files are removed, or stay by request.
    Confirmed,
    /// The move failed.
    Failed { error: String },
    /// It ended by request; this attempt moved no disk.
    Aborted,
}

impl State {
    /// The stage as reported.
    pub(super) fn reported(&self) -> agent::Stage {
        match self {
            Self::Prepared { .. } => agent::Stage::Prepared,
            Self::Copying { .. } | Self::Switching { .. } => agent::Stage::Performing,
            Self::Moved => agent::Stage::Delivered,
            Self::Confirmed => agent::Stage::Confirmed,
            Self::Failed { .. } => agent::Stage::Failed,
            Self::Aborted => agent::Stage::Aborted,
        }
    }

    /// Why it failed.
    pub(super) fn error(&self) -> Option<&String> {
        match self {
            Self::Failed { error } => Some(error),
            Self::Prepared { .. }
            | Self::Copying { .. }
            | Self::Switching { .. }
            | Self::Moved
            | Self::Confirmed
            | Self::Aborted => None,
        }
    }

    /// Before the first disk is pivoted.
    pub(super) fn is_early(&self) -> bool {
        matches!(self, Self::Prepared { .. } | Self::Copying { .. })
    }

    /// The requested outcome; none of a move that has ended.
    pub(super) fn intent(&mut self) -> Option<&mut Intent> {
        match self {
            Self::Prepared { intent } | Self::Copying { intent } | Self::Switching { intent } => Some(intent),
            Self::Moved | Self::Confirmed | Self::Failed { .. } | Self::Aborted => None,
        }
    }

    /// Whether it must not go on.
    pub(super) fn must_end(&self) -> bool {
        match self {
            Self::Prepared { intent } | Self::Copying { intent } => *intent != Intent::GoOn,
            Self::Switching { intent } => *intent == Intent::Forget,
            Self::Moved | Self::Confirmed | Self::Failed { .. } | Self::Aborted => true,
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
    #[serde(flatten)]
    pub(super) state: State,
    #[serde(default)]
    pub(super) findings: Vec<Finding>,
}

impl Journal {
    /// The new file of a disk.
    pub(super) fn new_file(&self, disk: usize) -> NewFile<'_> {
        let (Disk { device, to: path, virtual_size, lifecycle, .. }, requested) =
            (&self.disks[disk], &self.request.disks[disk]);
        let (format, virtual_size, lifecycle) = (requested.format, *virtual_size, *lifecycle);
        NewFile { device, path, format, virtual_size, naming: Naming::Final, lifecycle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::new_file::FileIdentity;

    /// An agent that is upgraded during a move continues it.
    #[test]
    fn what_the_version_before_wrote_down_is_read_and_what_is_written_is_read_again() {
        let text = include_str!("../../tests/journals/storage.json");
        let journal: Journal = serde_json::from_str(text).expect("a journal");
        assert_eq!(journal.state, State::Switching { intent: Intent::GoOn });
        let identity = FileIdentity::File { inode: 131, born_ns: None };
        assert_eq!(journal.disks[0].lifecycle, Lifecycle::HandedOver(identity));
        for state in [
            State::Prepared { intent: Intent::End },
            State::Switching { intent: Intent::Forget },
            State::Confirmed,
            State::Failed { error: "no".to_owned() },
        ] {
            let journal = Journal { state, ..journal.clone() };
            let text = serde_json::to_string(&journal).expect("JSON");
            assert_eq!(serde_json::from_str::<Journal>(&text).expect("a journal"), journal);
        }
    }
}
