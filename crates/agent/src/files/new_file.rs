//! Files that a move makes: one life cycle for every kind of move.
//!
//! ```text
//! Planned ─▶ Making ─▶ Made ─▶ Complete ─▶ Given ─▶ the VM's
//!    ▲         └────────┴─────────┴──────────┴─▶ removed, or kept for the next attempt: if it is still that file, nobody
//!    └────────────────────────────────────────── uses it, and it holds nothing that no other file holds
//! ```
//! Each step is recorded, and the first one before the file is made, since this process may die in between. Whether an
//! attempt may remove a file is decided in one place ([`ferry_core::files::cleanup::new_file`]), by the file's identity
//! and not by its name: by then another file may have the name.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use ferry_core::{
    files::cleanup::{self, Cleanup, GuestWrites},
    pin::Secret,
    units::ByteCount,
    vm::DiskFormat,
};
use ferry_drivers::{file, identity::InUse, image};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{AgentError, refusal::exists};

/// File system types of the kernel's SMB client. It reports the inode number that the file server assigned; the time of
/// birth is a guess on some servers.
const SMB_MAGICS: [u32; 2] = [0xff53_4d42, 0xfe53_4d42];

/// How far a new file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Flags", into = "Flags")]
pub enum Lifecycle {
    /// Not made yet, or gone again: a file of its name is not this attempt's.
    #[default]
    Planned,
    /// About to be made.
    Making,
    /// Made, and being filled.
    Made {
        /// Its identity.
        identity: FileIdentity,
        /// It was a partial copy: what it holds need not be sent.
        from_partial: Option<PartialKey>,
    },
    /// Offline moves: everything has arrived, and is on disk.
    Complete(FileIdentity),
    /// The VM may have it. Offline moves: it is being renamed to its final name, or has it. Storage moves: a pivot of the
    /// disk to it was requested.
    HandedOver(FileIdentity),
}

impl Lifecycle {
    /// The partial copy that the file was.
    pub(crate) fn partial(self) -> Option<PartialKey> {
        match self {
            Self::Made { from_partial, .. } => from_partial,
            Self::Planned | Self::Making | Self::Complete(_) | Self::HandedOver(_) => None,
        }
    }

    /// A later state of the same file; unchanged if this attempt has made none.
    pub(crate) fn then(self, state: fn(FileIdentity) -> Self) -> Self {
        match self {
            Self::Planned | Self::Making => self,
            Self::Made { identity, .. } | Self::Complete(identity) | Self::HandedOver(identity) => state(identity),
        }
    }
}

/// [`Lifecycle`] as it is written, and as the version before wrote it, which called the last step of a storage move another
/// way.
#[derive(Default, Serialize, Deserialize)]
struct Flags {
    made: bool,
    #[serde(default, rename = "mark")]
    identity: StoredIdentity,
    #[serde(default, rename = "sown", skip_serializing_if = "Option::is_none")]
    from_partial: Option<PartialKey>,
    #[serde(default)]
    arrived: bool,
    #[serde(default, alias = "switch_asked")]
    named: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredIdentity {
    Making,
    #[serde(untagged)]
    Made(FileIdentity),
}

impl Default for StoredIdentity {
    fn default() -> Self {
        Self::Made(FileIdentity::default())
    }
}

impl From<Flags> for Lifecycle {
    fn from(flags: Flags) -> Self {
        match flags {
            Flags { identity: StoredIdentity::Making, .. } => Self::Making,
            Flags { made: false, .. } => Self::Planned,
            Flags { named: true, identity: StoredIdentity::Made(identity), .. } => Self::HandedOver(identity),
            Flags { arrived: true, identity: StoredIdentity::Made(identity), .. } => Self::Complete(identity),
            Flags { identity: StoredIdentity::Made(identity), from_partial, .. } => {
                Self::Made { identity, from_partial }
            }
        }
    }
}

impl From<Lifecycle> for Flags {
    fn from(lifecycle: Lifecycle) -> Self {
        let made = |identity| Self { made: true, identity: StoredIdentity::Made(identity), ..Self::default() };
        match lifecycle {
            Lifecycle::Planned => Self::default(),
            Lifecycle::Making => Self { identity: StoredIdentity::Making, ..Self::default() },
            Lifecycle::Made { identity, from_partial } => Self { from_partial, ..made(identity) },
            Lifecycle::Complete(identity) => Self { arrived: true, ..made(identity) },
            Lifecycle::HandedOver(identity) => Self { arrived: true, named: true, ..made(identity) },
        }
    }
}

/// A partial copy that became a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialKey {
    /// The key of this attempt's hashes.
    pub key: Secret,
}

/// What identifies a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileIdentity {
    /// Only its path is known: its mount reports no lasting identity.
    #[default]
    Path,
    /// What the file system reports.
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
    fn of(path: &Path) -> io::Result<Self> {
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

    fn is_of(self, path: &Path) -> io::Result<bool> {
        match self {
            Self::Path => path.symlink_metadata().map(|_| true),
            Self::File { .. } => Self::of(path).map(|now| now == self),
        }
    }
}

/// The name that a file has while it is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// Its final one: libvirt's copies are opened by it. The file has the disk's size from the start, and one that was
    /// about to be made is ours only while it holds nothing.
    Final,
    /// One that names its VM, as offline moves give: nobody takes half a disk for a disk, and an attempt goes on with what
    /// an earlier one left. So any file of this name is the VM's. It is empty at first, so that what a mount reports of it
    /// grows as it does.
    OfVm,
}

/// A new file of an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewFile<'a> {
    /// The disk's name in the definition.
    pub(crate) device: &'a str,
    /// The path that it has now, or will have when it is made.
    pub(crate) path: &'a Path,
    /// Its format.
    pub(crate) format: DiskFormat,
    /// The disk's virtual size.
    pub(crate) virtual_size: ByteCount,
    /// What its name says.
    pub(crate) naming: Naming,
    /// How far it is.
    pub(crate) lifecycle: Lifecycle,
}

impl NewFile<'_> {
    /// Makes the file: of the partial copy that `partial` gives it, else empty. Calls `record` before and after. Blocks.
    ///
    /// # Errors
    /// `file.exists`, with the existing file untouched; the file system's, with nothing left behind; those of `record`.
    pub(crate) fn make(
        &self,
        owner: (u32, u32),
        partial: impl FnOnce(&Self) -> Option<PartialKey>,
        mut record: impl FnMut(Lifecycle) -> Result<(), AgentError>,
    ) -> Result<(), AgentError> {
        record(Lifecycle::Making)?;
        let (is_there, size) = match self.naming {
            Naming::Final => (false, self.virtual_size),
            Naming::OfVm => (self.path.symlink_metadata().is_ok_and(|found| found.is_file()), ByteCount(0)),
        };
        let from_partial = if is_there { None } else { partial(self) };
        if !is_there
            && from_partial.is_none()
            && let Err(source) = image::create(self.path, self.format, size, owner)
        {
            // If there is a file now, it was not made by this attempt.
            record(Lifecycle::Planned)?;
            let is_other = source.kind() == io::ErrorKind::AlreadyExists;
            return Err(if is_other { exists(self.path) } else { self.fault(source) });
        }
        record(Lifecycle::Made { identity: FileIdentity::of(self.path).unwrap_or_default(), from_partial })
    }

    /// What happens to the file when its move is undone or forgotten. Blocks.
    ///
    /// # Errors
    /// If it is unknown whether the file is ours, or who uses it.
    pub(crate) fn cleanup(&self, used: &InUse, guest_writes: GuestWrites) -> Result<Cleanup, AgentError> {
        let made = self.lifecycle != Lifecycle::Planned;
        let obstacle = if made { used.obstacle(self.path).map_err(|error| self.fault(error))? } else { None };
        let is_it = made && self.is_it().map_err(|error| self.fault(error))?;
        match obstacle {
            Some(obstacle) if guest_writes == GuestWrites::Never => {
                warn!(file = %self.path.display(), why = %obstacle.why(), "A new file stays");
            }
            None if made && !is_it => {
                warn!(file = %self.path.display(), "A file stays: it is not the one that was made for the move");
            }
            Some(_) | None => {}
        }
        Ok(cleanup::new_file(&cleanup::NewFile { made, is_it, obstacle, guest_writes }))
    }

    /// Removes the file if this attempt may, unless `keep` makes use of it. Returns its state from now on, which the
    /// caller must record at once: a later file of that name is not this attempt's. Blocks.
    ///
    /// # Errors
    /// As [`Self::cleanup`]; if the file cannot be removed.
    pub(crate) fn remove(
        &self,
        used: &InUse,
        guest_writes: GuestWrites,
        keep: impl FnOnce(&Self) -> bool,
    ) -> Result<Lifecycle, AgentError> {
        match self.cleanup(used, guest_writes)? {
            Cleanup::Remove if keep(self) => {}
            Cleanup::Remove => file::remove(self.path).map_err(|error| self.fault(error))?,
            Cleanup::Keep => {}
            Cleanup::KeepAndReport => {
                let file = self.path.display();
                warn!(disk = self.device, %file, "A new file stays: it may hold the newest data of its disk");
                return Ok(self.lifecycle);
            }
        }
        Ok(Lifecycle::Planned)
    }

    /// Whether the file that has its name is this one; true if there is none, whose removal then shows whether its folder
    /// is there.
    fn is_it(&self) -> io::Result<bool> {
        let is_it = match (self.lifecycle, self.naming) {
            (Lifecycle::Planned, _) => Ok(false),
            (Lifecycle::Making, Naming::Final) => holds_nothing(self.path, self.format, self.virtual_size),
            (Lifecycle::Making, Naming::OfVm) => Ok(true),
            (Lifecycle::Made { identity, .. } | Lifecycle::Complete(identity) | Lifecycle::HandedOver(identity), _) => {
                identity.is_of(self.path)
            }
        };
        if is_it.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) { Ok(true) } else { is_it }
    }

    fn fault(&self, source: io::Error) -> AgentError {
        AgentError::File { path: self.path.to_owned(), source }
    }
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

    fn owner() -> (u32, u32) {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    }

    fn make(path: &Path, format: DiskFormat) {
        image::create(path, format, SIZE, owner()).expect("made");
    }

    fn new_file(path: &Path, naming: Naming) -> NewFile<'_> {
        NewFile {
            device: "vda",
            path,
            format: DiskFormat::Raw,
            virtual_size: SIZE,
            naming,
            lifecycle: Lifecycle::Planned,
        }
    }

    #[test]
    fn a_file_is_known_again_and_one_that_took_its_name_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, elsewhere) = (folder.path().join("a.raw"), folder.path().join("b.raw"));
        make(&path, DiskFormat::Raw);
        let identity = FileIdentity::of(&path).expect("there");
        fs::write(&path, "the guest's").expect("written");
        assert!(identity.is_of(&path).expect("there"), "what it holds does not matter");
        fs::rename(&path, &elsewhere).expect("renamed");
        assert!(identity.is_of(&elsewhere).expect("there"), "nor does its name");
        make(&path, DiskFormat::Raw);
        assert!(!identity.is_of(&path).expect("there"), "another of its name and kind");
    }

    #[test]
    fn what_is_written_of_a_file_is_read_again_also_as_the_version_before_wrote_it() {
        let identity = FileIdentity::File { inode: 131, born_ns: Some(5) };
        let from_partial = Some(PartialKey { key: Secret([4; 32]) });
        for lifecycle in [
            Lifecycle::Planned,
            Lifecycle::Making,
            Lifecycle::Made { identity: FileIdentity::Path, from_partial: None },
            Lifecycle::Made { identity, from_partial },
            Lifecycle::Complete(identity),
            Lifecycle::HandedOver(identity),
        ] {
            let text = serde_json::to_string(&lifecycle).expect("text");
            assert_eq!(serde_json::from_str::<Lifecycle>(&text).expect("read"), lifecycle, "{text}");
        }
        let mark = r#""mark": {"file": {"inode": 131, "born_ns": 5}}"#;
        for (text, lifecycle) in [
            (r#"{"made": false, "mark": "path", "sown": null}"#.to_owned(), Lifecycle::Planned),
            (r#"{"made": false, "mark": "making", "sown": null}"#.to_owned(), Lifecycle::Making),
            (format!(r#"{{"made": true, {mark}, "sown": null}}"#), Lifecycle::Made { identity, from_partial: None }),
            (r#"{"made": true}"#.to_owned(), Lifecycle::Made { identity: FileIdentity::Path, from_partial: None }),
            (format!(r#"{{"made": true, {mark}, "arrived": true, "named": false}}"#), Lifecycle::Complete(identity)),
            (format!(r#"{{"made": true, {mark}, "arrived": true, "named": true}}"#), Lifecycle::HandedOver(identity)),
            (format!(r#"{{"made": true, {mark}, "switch_asked": true}}"#), Lifecycle::HandedOver(identity)),
            (format!(r#"{{"made": false, {mark}, "arrived": true, "named": false}}"#), Lifecycle::Planned),
        ] {
            assert_eq!(serde_json::from_str::<Lifecycle>(&text).expect("read"), lifecycle, "{text}");
        }
    }

    #[test]
    fn a_file_is_recorded_before_it_is_made_and_is_not_ours_if_it_could_not_be_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let (free, taken) = (folder.path().join("free.raw"), folder.path().join("taken.raw"));
        fs::write(&taken, "precious").expect("written");
        let used = InUse::of(std::collections::BTreeSet::new()).expect("known");
        let made = |path: &Path, naming| {
            let (mut file, mut recorded) = (new_file(path, naming), Vec::new());
            let made = file.make(
                owner(),
                |_| None,
                |lifecycle| {
                    recorded.push((lifecycle, path.exists()));
                    Ok(())
                },
            );
            file.lifecycle = recorded.last().expect("recorded").0;
            let gone = file.remove(&used, GuestWrites::Never, |_| false).expect("looked at");
            assert_eq!(gone, Lifecycle::Planned);
            (made.is_ok(), recorded[0], matches!(file.lifecycle, Lifecycle::Made { .. }), path.exists())
        };
        assert_eq!(made(&free, Naming::Final), (true, (Lifecycle::Making, false), true, false));
        assert_eq!(made(&taken, Naming::Final), (false, (Lifecycle::Making, true), false, true));
        assert_eq!(fs::read(&taken).expect("there"), b"precious");
        assert_eq!(
            made(&taken, Naming::OfVm),
            (true, (Lifecycle::Making, true), true, false),
            "its name says whose it is"
        );
    }

    #[test]
    fn what_was_about_to_be_made_is_ours_only_while_it_holds_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let path = folder.path().join(format!("disk.{}", format.name()));
            let is_ours = |virtual_size| {
                NewFile { format, virtual_size, lifecycle: Lifecycle::Making, ..new_file(&path, Naming::Final) }.is_it()
            };
            assert!(is_ours(SIZE).expect("looked at"), "it is not there");
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
        let made = NewFile { lifecycle: Lifecycle::Making, ..new_file(&link, Naming::Final) };
        assert!(!made.is_it().expect("there"));
    }
}
