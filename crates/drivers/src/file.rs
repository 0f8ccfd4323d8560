//! Operations on files by name: rename without overwriting, removal, allocated and free space.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use ferry_core::units::ByteCount;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};

use crate::busy::retry_busy;

/// Whether two names mean the same file.
///
/// # Errors
/// The file system's errors. A name that does not exist equals no other.
pub fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let identity = |path: &Path| match path.symlink_metadata() {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let (one, other) = (identity(one)?, identity(other)?);
    Ok(one.is_some() && one == other)
}

/// Removes a regular file. Ok if the folder exists and does not contain it.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a link, a device or anything else that is not a regular file; it is left
/// untouched. [`io::ErrorKind::NotFound`] if the folder does not exist: its file system may be mounted again later,
/// with the file. Otherwise the file system's errors.
pub fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|facts| !facts.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file, and is not removed"));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => Ok(()),
        other => other,
    }
}

/// Renames a file to a name that does not exist yet. Ok promises that the new name is on disk. May be repeated after a
/// crash in between. Takes a few seconds at most if a process still has the file open.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], with both files untouched; the file system's errors.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    retry_busy(|| try_rename_new(from, to))
}

fn try_rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => sync_name(to),
        // Some file systems do not support this, for instance most mounts of shares.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => rename_new_by_hand(from, to),
        // The host went down during an earlier rename by hard link.
        Err(Errno::EEXIST) if is_same(from, to)? => fs::remove_file(from).and_then(|()| sync_name(to)),
        Err(error) => Err(error.into()),
    }
}

/// As [`rename_new`], with operations that every file system supports. Without hard links, another process may create a
/// file of that name between the check and the rename.
fn rename_new_by_hand(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_same(from, to)? => fs::remove_file(from)?,
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
            return Err(error);
        }
        Err(_) if to.symlink_metadata().is_ok() => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to)?,
    }
    sync_name(to)
}

/// A file name is on disk only when its folder is synced. Not every mount of a share supports that.
pub(crate) fn sync_name(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    match File::open(folder)?.sync_all() {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) || is_unsupported(&error) => Ok(()),
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOSYS) => Ok(()),
        other => other,
    }
}

/// Whether the file system does not support the operation.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported) || error.raw_os_error() == Some(nix::libc::EOPNOTSUPP)
}

/// The allocated size of a file, as far as its file system reports it: a mount of a share may report the file's length.
///
/// # Errors
/// The file system's errors.
pub fn allocated(path: &Path) -> io::Result<ByteCount> {
    Ok(ByteCount(fs::metadata(path)?.blocks() * 512))
}

/// The id of a folder's file system, and its free space for users other than root; `None` if it does not report that,
/// like some mounts of shares.
///
/// # Errors
/// The file system's errors.
pub fn free(folder: &Path) -> io::Result<(u64, Option<ByteCount>)> {
    let device = fs::metadata(folder)?.dev();
    let stat = nix::sys::statvfs::statvfs(folder)?;
    let known = stat.blocks() > 0;
    Ok((device, known.then(|| ByteCount(stat.blocks_available() as u64 * stat.fragment_size() as u64))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_a_name_that_is_free_and_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("part"), folder.path().join("vda.raw"));
        for rename in [rename_new, rename_new_by_hand] {
            fs::write(&from, "new").expect("written");
            fs::write(&to, "precious").expect("written");
            assert_eq!(rename(&from, &to).expect_err("it is there").kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(
                (fs::read(&from).expect("there"), fs::read(&to).expect("there")),
                (b"new".into(), b"precious".into())
            );
            fs::remove_file(&to).expect("removed");
            // Interrupted after the first of two steps: both names exist.
            fs::hard_link(&from, &to).expect("linked");
            rename(&from, &to).expect("renamed");
            assert!(!from.exists());
            assert_eq!(rename(&from, &to).expect_err("gone").kind(), io::ErrorKind::NotFound);
            assert_eq!(fs::read(&to).expect("there"), b"new");
            fs::remove_file(&to).expect("removed");
            fs::write(&from, "new").expect("written");
            rename(&from, &to).expect("renamed");
            assert!(!from.exists() && to.exists());
            fs::remove_file(&to).expect("removed");
        }
    }

    #[test]
    fn an_image_gets_its_name_only_where_nothing_has_it() {
        type Named = fn(&Path, &Path) -> io::Result<()>;
        for named in [rename_new as Named, rename_new_by_hand as Named] {
            let folder = tempfile::tempdir().expect("a folder");
            let (made, path) = (folder.path().join("made"), folder.path().join("vda.raw"));
            fs::write(&made, "new").expect("written");
            fs::write(&path, "precious").expect("written");
            assert_eq!(named(&made, &path).expect_err("it is there").kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).expect("there"), b"precious");
            assert!(!is_same(&made, &path).expect("looked at"));
            fs::remove_file(&path).expect("removed");
            named(&made, &path).expect("named");
            assert_eq!(fs::read(&path).expect("there"), b"new");
            assert!(!made.exists() && !is_same(&made, &path).expect("looked at"));
            fs::hard_link(&path, &made).expect("linked");
            assert!(is_same(&made, &path).expect("looked at"));
        }
    }
}
