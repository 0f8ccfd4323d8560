//! Whether there is room for new files: by file system or share, over all of them together.

use std::{collections::BTreeMap, path::Path};

use ferry_core::{finding::FindingId, id::ShareId, location::Location, storage::space_needed, units::ByteCount};
use ferry_drivers::image;

use super::{Reach, outside, refused};
use crate::AgentError;

/// What room is counted by: a share, or a file system of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Room {
    Share(ShareId),
    FileSystem(u64),
}

/// What new files need, and what is free there.
#[derive(Default)]
pub(crate) struct Needs(BTreeMap<Room, Need>);

struct Need {
    needed: ByteCount,
    free: ByteCount,
    folder: String,
}

impl Needs {
    /// Counts a file that will take about as much as `allocated`.
    ///
    /// # Errors
    /// When the place is outside of where files may be, or does not answer.
    pub(crate) fn add(&mut self, reach: &Reach, to: &Location, allocated: ByteCount) -> Result<(), AgentError> {
        let (folder, name) = reach.roots.open_parent(to).map_err(|error| outside(&error))?;
        if let Some((room, free)) = room_in(reach, to, folder.path())? {
            // What was written names the file.
            let written = folder.written().strip_suffix(&name).unwrap_or(folder.written());
            let written = written.trim_end_matches(['/', '\\']).to_owned();
            let need = Need { needed: ByteCount(0), free, folder: written };
            let entry = self.0.entry(room).or_insert(need);
            entry.needed = ByteCount(entry.needed.0.saturating_add(space_needed(allocated).0));
        }
        Ok(())
    }

    /// Whether each place has room for all that goes there.
    ///
    /// # Errors
    /// `file.space` for the first that has not.
    pub(crate) fn are_met(&self) -> Result<(), AgentError> {
        match self.0.values().find(|need| need.needed > need.free) {
            None => Ok(()),
            Some(Need { needed, free, folder }) => Err(refused(
                FindingId::FileSpace,
                folder,
                format!(
                    "The copies need {} MiB, and {} MiB are free in {folder}",
                    needed.0.div_ceil(1 << 20),
                    free.0 >> 20
                ),
                "Make room there, or choose another place or fewer disks",
            )),
        }
    }
}

/// Whose room a new file takes, and what is free there; `None` if nobody tells.
fn room_in(reach: &Reach, to: &Location, folder: &Path) -> Result<Option<(Room, ByteCount)>, AgentError> {
    match to {
        Location::Share { share, .. } => Ok(reach.shares.space(*share)?.map(|space| (Room::Share(*share), space.free))),
        Location::Local { .. } => {
            let fault = |source| AgentError::File { path: folder.to_owned(), source };
            let (device, free) = image::free(folder).map_err(fault)?;
            Ok(free.map(|free| (Room::FileSystem(device), free)))
        }
    }
}
