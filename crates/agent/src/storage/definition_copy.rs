//! Keeps a VM's definition beside its disks if the whole VM was moved, as Hyper-V does: for people who find the files,
//! and for Pacemaker, which starts VMs from such files. libvirt's own definition stays on the host and remains
//! authoritative.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use ferry_core::id::VmId;

/// The first line of files that Ferry keeps. No other file is ever replaced or removed.
const HEAD: &str = "<!-- Kept by Ferry when it moved the disks of this VM; libvirt does not read it. -->\n";
/// Longest file that is examined.
const BYTES_MAX: u64 = 4 << 20;

/// The path of a VM's definition beside one of its disks.
fn path(name: &str, disk: &Path) -> Option<PathBuf> {
    // libvirt's names may contain characters that file names must not.
    let safe = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    safe.then(|| disk.parent().map(|folder| folder.join(format!("{name}.xml")))).flatten()
}

/// Whether a file is one that Ferry keeps for this VM.
fn is_ours(path: &Path, vm: VmId) -> io::Result<bool> {
    let found = path.symlink_metadata()?;
    if !found.is_file() || found.len() > BYTES_MAX {
        return Ok(false);
    }
    let text = fs::read_to_string(path)?;
    Ok(text.starts_with(HEAD) && text.contains(&format!("<uuid>{vm}</uuid>")))
}

/// Keeps a definition beside a disk. Returns its path; `None` if the existing file is not Ferry's for this VM; it
/// stays.
///
/// # Errors
/// The file system's; an existing file is intact.
pub(super) fn keep(vm: VmId, name: &str, definition: &str, disk: &Path) -> io::Result<Option<PathBuf>> {
    let Some(path) = path(name, disk) else { return Ok(None) };
    match is_ours(&path, vm) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
        Err(error) => return Err(error),
    }
    write(vm, definition, &path)?;
    Ok(Some(path))
}

/// Updates the definition that Ferry keeps beside a disk; Ok if it keeps none there.
///
/// # Errors
/// The file system's; an existing file is intact.
pub(super) fn refresh(vm: VmId, name: &str, definition: &str, disk: &Path) -> io::Result<()> {
    match path(name, disk) {
        Some(path) if matches!(is_ours(&path, vm), Ok(true)) => write(vm, definition, &path),
        Some(_) | None => Ok(()),
    }
}

/// Moves the definition that Ferry keeps beside a disk to the disk's new folder, and updates it; Ok if it keeps none.
///
/// # Errors
/// The file system's, also if another file is there; an existing file is intact.
pub(super) fn follow(vm: VmId, name: &str, definition: &str, from: &Path, to: &Path) -> io::Result<()> {
    let is_kept = path(name, from).is_some_and(|path| matches!(is_ours(&path, vm), Ok(true)));
    if !is_kept {
        return Ok(());
    }
    match keep(vm, name, definition, to)? {
        Some(kept) => remove(vm, name, from, Some(&kept)),
        None => Err(io::Error::other(format!("another file {name}.xml is beside {}", to.display()))),
    }
}

fn write(vm: VmId, definition: &str, path: &Path) -> io::Result<()> {
    let making = path.with_extension(format!("xml.{vm}"));
    let written = (|| {
        // Left by an agent that died while writing.
        ferry_drivers::file::remove(&making)?;
        let mut file = fs::File::options().write(true).read(true).create_new(true).mode(0o600).open(&making)?;
        file.write_all(HEAD.as_bytes())?;
        file.write_all(definition.as_bytes())?;
        file.sync_all()?;
        fs::rename(&making, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&making);
    }
    written
}

/// Removes the definition that Ferry kept beside a disk that has moved, unless it is `kept`.
///
/// # Errors
/// The file system's.
pub(super) fn remove(vm: VmId, name: &str, disk: &Path, kept: Option<&Path>) -> io::Result<()> {
    match path(name, disk) {
        Some(path) if Some(path.as_path()) == kept => Ok(()),
        Some(path) if matches!(is_ours(&path, vm), Ok(true)) => ferry_drivers::file::remove(&path),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_what_is_ours_is_replaced_or_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (vm, other) = (VmId(Uuid::from_u128(1)), VmId(Uuid::from_u128(2)));
        let (disk, file) = (folder.path().join("disk.raw"), folder.path().join("web01.xml"));
        let text = |vm: VmId, more: &str| format!("<domain><uuid>{vm}</uuid>{more}</domain>");
        let is_kept = |vm: VmId, more: &str| {
            let kept = keep(vm, "web01", &text(vm, more), &disk).expect("looked at");
            assert!(kept.as_ref().is_none_or(|kept| *kept == file));
            kept.is_some()
        };
        refresh(vm, "web01", &text(vm, ""), &disk).expect("nothing is kept there");
        assert!(!file.exists());
        assert!(is_kept(vm, "one") && is_kept(vm, "two"));
        assert!(fs::read_to_string(&file).expect("there").ends_with(&text(vm, "two")));
        refresh(vm, "web01", &text(vm, "three"), &disk).expect("made new");
        assert!(fs::read_to_string(&file).expect("there").ends_with(&text(vm, "three")));
        // Files of another VM of this name, an administrator's file, a link: they stay.
        assert!(!is_kept(other, ""));
        refresh(other, "web01", &text(other, ""), &disk).expect("looked at");
        remove(other, "web01", &disk, None).expect("looked at");
        remove(vm, "web01", &disk, Some(&file)).expect("it is the one that is kept");
        assert!(fs::read_to_string(&file).expect("there").ends_with(&text(vm, "three")));
        remove(vm, "web01", &disk, None).expect("removed");
        assert!(!file.exists());
        for foreign in [text(vm, ""), "\u{feff}".to_owned(), String::new()] {
            fs::write(&file, &foreign).expect("written");
            assert!(!is_kept(vm, ""));
            refresh(vm, "web01", &text(vm, ""), &disk).expect("looked at");
            remove(vm, "web01", &disk, None).expect("looked at");
            assert_eq!(fs::read_to_string(&file).expect("there"), foreign);
        }
        fs::remove_file(&file).expect("removed");
        std::os::unix::fs::symlink("/etc/passwd", &file).expect("linked");
        assert!(!is_kept(vm, ""));
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 1, "nothing is left");
        for name in ["", "..", "a/b", ".hidden"] {
            assert!(keep(vm, name, "", &disk).expect("refused").is_none(), "{name}");
        }
    }
}
