//! Files created by a move, and how they are identified before they are removed: by then another file may have the
//! name.
//!
//! ```text
//! to be created (Making) ─▶ created: inode and time of birth (File) ─▶ removed, or kept for the next attempt,
//!     recorded before          recorded after                            if it is still that file and not in use
//! ```
//! Live moves create a file at its final name; storage and offline moves create it under a temporary name, and rename
//! it when it is complete.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use ferry_core::{api::agent::ArrivalFile, pin::Secret, units::ByteCount, vm::DiskFormat};
use ferry_drivers::{file, identity::InUse, image};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::AgentError;

/// File system types of the kernel's SMB client. It reports the inode number that the file server assigned; the time of
/// birth is a guess on some servers.
const SMB_MAGICS: [u32; 2] = [0xff53_4d42, 0xfe53_4d42];

/// The recorded identity of an incoming disk's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileIdentity {
    /// Only its path is known: an earlier version recorded it, or its mount reports no lasting identity.
    #[default]
    Path,
    /// About to be created: an existing file is ours only if it is empty.
    Making,
    /// Created, with this identity.
    File {
        /// Its inode number.
        inode: u64,
        /// Its time of birth in nanoseconds since 1970, if the file system reports it.
        born_ns: Option<u64>,
    },
}

impl FileIdentity {
    /// The identity of the file that is at `path` now. Blocks.
    ///
    /// # Errors
    /// If there is no file, or it cannot be examined.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let facts = path.symlink_metadata()?;
        let kind = statfs(path)?.filesystem_type();
        // The program behind it invents inode numbers, and may change them later.
        if kind == FUSE_SUPER_MAGIC {
            return Ok(Self::Path);
        }
        // The field's sign and width differ between machines; magic numbers have 32 bits.
        let is_smb = SMB_MAGICS.contains(&(kind.0 as u32));
        let since_1970 = |born: SystemTime| born.duration_since(UNIX_EPOCH).ok().map(|since| since.as_nanos() as u64);
        let born_ns = facts.created().ok().filter(|_| !is_smb).and_then(since_1970);
        Ok(Self::File { inode: facts.ino(), born_ns })
    }

    /// Whether the file at `path` has this identity. Blocks.
    ///
    /// # Errors
    /// If there is no file, or it cannot be examined.
    pub(crate) fn is_of(self, path: &Path, format: DiskFormat, size: ByteCount) -> io::Result<bool> {
        match self {
            Self::Path => path.symlink_metadata().map(|_| true),
            Self::Making => holds_nothing(path, format, size),
            Self::File { .. } => Self::of(path).map(|now| now == self),
        }
    }
}

/// A file that a move created for a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MadeFile<'a> {
    /// The path at which it was created, or which it had then.
    pub(crate) path: &'a Path,
    /// Its identity.
    pub(crate) identity: FileIdentity,
    /// Its format.
    pub(crate) format: DiskFormat,
    /// The disk's virtual size.
    pub(crate) virtual_size: ByteCount,
}

impl MadeFile<'_> {
    /// Whether this file still exists and is not in use: only then may the move remove or rename it. Blocks.
    ///
    /// # Errors
    /// If that is unknown. [`io::ErrorKind::NotFound`] if there is no file of that name.
    pub(crate) fn is_ours(&self, used: &InUse) -> io::Result<bool> {
        if let Some(obstacle) = used.obstacle(self.path)? {
            warn!(file = %self.path.display(), why = %obstacle.why(), "A new file stays");
            return Ok(false);
        }
        let is_it = self.identity.is_of(self.path, self.format, self.virtual_size)?;
        if !is_it {
            warn!(file = %self.path.display(), "A file stays: it is not the one that was made for the move");
        }
        Ok(is_it)
    }

    /// Removes the file, unless `keep` makes use of it. A file that is in use or was replaced stays. The caller must
    /// record that this was done: any later file of that name does not belong to the move. Blocks.
    ///
    /// # Errors
    /// If it is unknown whether the file is ours, or it cannot be removed.
    pub(crate) fn remove(&self, used: &InUse, keep: impl FnOnce() -> bool) -> Result<(), AgentError> {
        let fault = |source| AgentError::File { path: self.path.to_owned(), source };
        match self.is_ours(used) {
            Ok(true) if keep() => Ok(()),
            Ok(false) => Ok(()),
            // Not found: the file is gone, or its folder is, and then nothing is known.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault(error)),
            Ok(true) | Err(_) => file::remove(self.path).map_err(fault),
        }
    }
}

/// An incoming disk, and its file on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingDisk {
    /// The disk's name in the definition.
    pub device: String,
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The virtual size.
    pub virtual_size: ByteCount,
    /// This attempt created the file, and may remove it.
    pub made: bool,
    /// Its identity.
    #[serde(default, rename = "mark")]
    pub identity: FileIdentity,
    /// The file was a partial copy: what it holds need not be sent.
    #[serde(default, rename = "sown")]
    pub from_partial: Option<PartialKey>,
}

impl IncomingDisk {
    /// Whether a file of this attempt exists or may exist.
    pub(crate) fn is_left(&self) -> bool {
        self.made || self.identity == FileIdentity::Making
    }

    /// The file as reported to the source's agent.
    pub(crate) fn file(&self) -> ArrivalFile {
        let (device, path) = (self.device.clone(), self.path.display().to_string());
        ArrivalFile { device, path, format: self.format, sown: self.from_partial.is_some() }
    }
}

/// A partial copy that became the file of an incoming disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialKey {
    /// The key of this attempt's hashes.
    pub key: Secret,
}

/// Whether a file looks newly created, completely or in part: empty, of this size.
fn holds_nothing(path: &Path, format: DiskFormat, size: ByteCount) -> io::Result<bool> {
    let facts = path.symlink_metadata()?;
    if !facts.is_file() {
        return Ok(false);
    }
    let is_whole = match format {
        DiskFormat::Raw => facts.len() == size.0,
        DiskFormat::Qcow2 => {
            image::header(path).is_ok_and(|header| header.is_some_and(|header| header.virtual_size == size))
        }
    };
    let is_empty = || image::extents(path, format).is_ok_and(|extents| extents.is_empty());
    Ok(facts.len() == 0 || (is_whole && is_empty()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SIZE: ByteCount = ByteCount::mib(1);

    fn make(path: &Path, format: DiskFormat) {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        image::create(path, format, SIZE, owner).expect("made");
    }

    #[test]
    fn a_file_is_known_again_and_one_that_took_its_name_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, elsewhere) = (folder.path().join("a.raw"), folder.path().join("b.raw"));
        make(&path, DiskFormat::Raw);
        let identity = FileIdentity::of(&path).expect("there");
        fs::write(&path, "the guest's").expect("written");
        assert!(identity.is_of(&path, DiskFormat::Raw, SIZE).expect("there"), "what it holds does not matter");
        fs::rename(&path, &elsewhere).expect("renamed");
        assert!(identity.is_of(&elsewhere, DiskFormat::Raw, SIZE).expect("there"), "nor does its name");
        make(&path, DiskFormat::Raw);
        assert!(!identity.is_of(&path, DiskFormat::Raw, SIZE).expect("there"), "another of its name and kind");
        let text = serde_json::to_string(&identity).expect("text");
        assert_eq!(serde_json::from_str::<FileIdentity>(&text).expect("the same"), identity);
    }

    #[test]
    fn what_was_about_to_be_made_is_ours_only_while_it_holds_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let path = folder.path().join(format!("disk.{}", format.name()));
            let is_ours = |size| FileIdentity::Making.is_of(&path, format, size);
            assert!(is_ours(SIZE).is_err(), "it is not there");
            fs::write(&path, "").expect("written");
            assert!(is_ours(SIZE).expect("there"), "it was begun");
            fs::remove_file(&path).expect("there");
            make(&path, format);
            assert!(is_ours(SIZE).expect("there"), "{format:?}");
            assert!(!is_ours(ByteCount::mib(2)).expect("there"), "it is of another size");
            let mut tool = std::process::Command::new("qemu-io");
            let done = tool.args(["-f", format.name(), "-c", "write -P 9 0 64k"]).arg(&path).output();
            assert!(done.expect("qemu-io is installed").status.success());
            assert!(!is_ours(SIZE).expect("there"), "somebody wrote to it");
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("disk.raw", &link).expect("made");
        assert!(!FileIdentity::Making.is_of(&link, DiskFormat::Raw, SIZE).expect("there"));
    }
}
