//! Detects whether a file of a VM that is shut off was written.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use ferry_core::location::Location;
use serde::{Deserialize, Serialize};

use crate::AgentError;

/// The state of a file at one moment. Writing to the file or replacing it changes at least one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileFingerprint {
    /// Zero for a file on a share: not every mount gives a file the same inode number twice.
    inode: u64,
    length: u64,
    /// Seconds, nanoseconds.
    modified: (i64, i64),
    /// Seconds, nanoseconds.
    changed: (i64, i64),
}

impl FileFingerprint {
    /// The current fingerprint of a file. Blocks.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn of(path: &Path, place: &Location) -> Result<Self, AgentError> {
        let found = path.metadata().map_err(|source| AgentError::File { path: path.to_owned(), source })?;
        let inode = match place {
            Location::Local { .. } => found.ino(),
            Location::Share { .. } => 0,
        };
        Ok(Self {
            inode,
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl FileFingerprint {
    /// Whether a file is unchanged; false if it cannot be examined. Blocks.
    pub(crate) fn is_of(&self, path: &Path, place: &Location) -> bool {
        Self::of(path, place).is_ok_and(|now| now == *self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ferry_core::id::HostId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_write_and_another_file_in_its_place_are_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, other) = (folder.path().join("vda.raw"), folder.path().join("other.raw"));
        let place = Location::Local { host: HostId(Uuid::nil()), path: path.display().to_string() };
        fs::write(&path, "one").expect("written");
        let before = FileFingerprint::of(&path, &place).expect("there");
        fs::read(&path).expect("read");
        assert_eq!(FileFingerprint::of(&path, &place).expect("there"), before, "reading changes nothing");
        fs::write(&other, "two").expect("written");
        fs::rename(&other, &path).expect("renamed");
        assert_ne!(FileFingerprint::of(&path, &place).expect("there"), before);
        let before = FileFingerprint::of(&path, &place).expect("there");
        // Until the file system's clock has advanced, a write cannot be distinguished from the previous one.
        while FileFingerprint::of(&path, &place).expect("there") == before {
            fs::write(&path, "2.0").expect("written");
        }
    }
}
