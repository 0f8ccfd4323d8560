//! A file that a move made: how it is known again when it is to be removed. By then its name may be another file's.
//!
//! ```text
//! about to be made (Making) ─▶ made: number and time of birth (File) ─▶ removed, or kept for the next attempt,
//!     written down before            written down after                   if it is still that file and nobody uses it
//! ```
//! Live moves make a file at its name; moves of disks and offline moves make it under a name of their own, and give it its
//! name when it is whole.

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

/// Mounts of the kernel's SMB client. It keeps the number that the file server gives a file; the time at which a file was
/// made is some servers' guess.
const SMB_MAGICS: [u32; 2] = [0xff53_4d42, 0xfe53_4d42];

/// What is written down of the file of a disk that comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileIdentity {
    /// Only its path is known: an earlier version wrote it down, or its mount tells nothing that lasts.
    #[default]
    Path,
    /// It is about to be made: what is there is ours only if it holds nothing.
    Making,
    /// It is this one.
    File {
        /// Its number on its file system.
        inode: u64,
        /// When it was made, nanoseconds since 1970, if its file system tells.
        born_ns: Option<u64>,
    },
}

impl FileIdentity {
    /// Of the file that is at `path` now. Blocks.
    ///
    /// # Errors
    /// When there is none, or it cannot be asked.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let facts = path.symlink_metadata()?;
        let kind = statfs(path)?.filesystem_type();
        // Its numbers are made up by the program behind it, and again after a while.
        if kind == FUSE_SUPER_MAGIC {
            return Ok(Self::Path);
        }
        // Signed on some machines, and of different width: the magic numbers are of 32 bits.
        let is_smb = SMB_MAGICS.contains(&(kind.0 as u32));
        let since_1970 = |born: SystemTime| born.duration_since(UNIX_EPOCH).ok().map(|since| since.as_nanos() as u64);
        let born_ns = facts.created().ok().filter(|_| !is_smb).and_then(since_1970);
        Ok(Self::File { inode: facts.ino(), born_ns })
    }

    /// Whether the file at `path` is the marked one. Blocks.
    ///
    /// # Errors
    /// When there is none, or it cannot be asked.
    pub(crate) fn is_of(self, path: &Path, format: DiskFormat, size: ByteCount) -> io::Result<bool> {
        match self {
            Self::Path => path.symlink_metadata().map(|_| true),
            Self::Making => holds_nothing(path, format, size),
            Self::File { .. } => Self::of(path).map(|now| now == self),
        }
    }
}

/// A file that a move made for a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MadeFile<'a> {
    /// Where it was made, or what it was named then.
    pub(crate) path: &'a Path,
    /// How it is known again.
    pub(crate) identity: FileIdentity,
    /// How it was laid out.
    pub(crate) format: DiskFormat,
    /// What the guest sees.
    pub(crate) virtual_size: ByteCount,
}

impl MadeFile<'_> {
    /// Whether this file is there still and nobody uses it: only then it is the move's to take away or to rename. Blocks.
    ///
    /// # Errors
    /// When that is not known. [`io::ErrorKind::NotFound`] if there is none of its name.
    pub(crate) fn is_ours(&self, used: &InUse) -> io::Result<bool> {
        if let Some(obstacle) = used.obstacle(self.path)? {
            warn!(file = %self.path.display(), why = obstacle.why(), "A new file stays");
            return Ok(false);
        }
        let is_it = self.identity.is_of(self.path, self.format, self.virtual_size)?;
        if !is_it {
            warn!(file = %self.path.display(), "A file stays: it is not the one that was made for the move");
        }
        Ok(is_it)
    }

    /// Takes the file away, unless `keep` does something better with it; leaves what is in use, and what is another file by
    /// now. Whoever asks writes down that this was done: whatever has the name afterwards is not the move's. Blocks.
    ///
    /// # Errors
    /// When it is not known whether it is ours, or it cannot be removed.
    pub(crate) fn remove(&self, used: &InUse, keep: impl FnOnce() -> bool) -> Result<(), AgentError> {
        let fault = |source| AgentError::File { path: self.path.to_owned(), source };
        match self.is_ours(used) {
            Ok(true) if keep() => Ok(()),
            Ok(false) => Ok(()),
            // Not there: gone, or its folder is, and then it is not known.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault(error)),
            Ok(true) | Err(_) => file::remove(self.path).map_err(fault),
        }
    }
}

/// A disk that comes, and its file on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingDisk {
    /// The disk's name in the definition.
    pub device: String,
    /// The file.
    pub path: PathBuf,
    /// How it is laid out.
    pub format: DiskFormat,
    /// What the guest sees.
    pub virtual_size: ByteCount,
    /// This attempt made the file: it may remove it.
    pub made: bool,
    /// How the file is known again.
    #[serde(default, rename = "mark")]
    pub identity: FileIdentity,
    /// The file was an unfinished copy: what it holds need not be sent.
    #[serde(default, rename = "sown")]
    pub from_partial: Option<PartialKey>,
}

impl IncomingDisk {
    /// Whether a file of this attempt is or may be there.
    pub(crate) fn is_left(&self) -> bool {
        self.made || self.identity == FileIdentity::Making
    }

    /// As the source's agent is told.
    pub(crate) fn file(&self) -> ArrivalFile {
        let (device, path) = (self.device.clone(), self.path.display().to_string());
        ArrivalFile { device, path, format: self.format, sown: self.from_partial.is_some() }
    }
}

/// A partial copy that became the file of a disk which comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialKey {
    /// Of the hashes of this attempt.
    pub key: Secret,
}

/// Whether a file is as it is just after it was made, or while it is made: empty, of this size.
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
