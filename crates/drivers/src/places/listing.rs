//! Lists a directory, bounded and sorted.

use std::{collections::BTreeSet, path::Path};

use ferry_core::{
    place::{DirectoryEntry, DirectoryListing, ENTRIES_MAX, EntryKind, NAMES_READ_MAX},
    units::ByteCount,
};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat, fstatat},
        statfs::{FUSE_SUPER_MAGIC, fstatfs},
    },
};

use super::directory::{Directory, RootsError};

/// The unit in which `stat` reports a file's allocated size, whatever the file system's block size is.
const STAT_BLOCK_BYTES: u64 = 512;

/// The first entries of a directory. A name that is removed meanwhile is omitted.
///
/// # Errors
/// [`RootsError::Unreadable`].
pub(super) fn list(directory: &Directory) -> Result<DirectoryListing, RootsError> {
    let Names { first, more, unnamed } = names(directory).map_err(|errno| directory.unreadable(errno))?;
    // FUSE file systems invent the number of blocks.
    let knows_allocated = fstatfs(directory.fd()).is_ok_and(|stat| stat.filesystem_type() != FUSE_SUPER_MAGIC);
    let entries = first.into_iter().filter_map(|name| entry(directory, name, knows_allocated)).collect();
    Ok(DirectoryListing { entries, more, unnamed, space: directory.space() })
}

#[derive(Default)]
struct Names {
    first: BTreeSet<String>,
    more: u64,
    unnamed: u64,
}

fn names(directory: &Directory) -> Result<Names, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut dir = Dir::openat(directory.fd(), ".", flags, Mode::empty())?;
    let mut names = Names::default();
    for (_, entry) in (0..NAMES_READ_MAX).zip(dir.iter().filter(|entry| !is_itself(entry))) {
        match entry?.file_name().to_str() {
            Ok(name) => drop(names.first.insert(name.to_owned())),
            Err(_) => names.unnamed += 1,
        }
        if names.first.len() > ENTRIES_MAX {
            names.first.pop_last();
            names.more += 1;
        }
    }
    Ok(names)
}

fn is_itself(entry: &Result<nix::dir::Entry, Errno>) -> bool {
    entry.as_ref().is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."))
}

fn entry(directory: &Directory, name: String, knows_allocated: bool) -> Option<DirectoryEntry> {
    let mut stat = fstatat(directory.fd(), name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    if kind(&stat) == EntryKind::Link
        && let Ok(behind) = directory.follow(Path::new(&name))
    {
        stat = fstat(&behind).ok()?;
    }
    let kind = kind(&stat);
    let of_file = |bytes: u64| (kind == EntryKind::File).then_some(ByteCount(bytes));
    let allocated = stat.st_blocks.cast_unsigned().saturating_mul(STAT_BLOCK_BYTES);
    Some(DirectoryEntry {
        kind,
        size: of_file(stat.st_size.cast_unsigned()),
        allocated: of_file(allocated).filter(|_| knows_allocated),
        name,
    })
}

fn kind(stat: &FileStat) -> EntryKind {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => EntryKind::Directory,
        SFlag::S_IFREG => EntryKind::File,
        SFlag::S_IFLNK => EntryKind::Link,
        _ => EntryKind::Other,
    }
}
