//! What is mounted where, and whether it is a given share. Pure except [`file_system_of`]: the text of
//! `/proc/self/mountinfo` is an argument.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use ferry_core::{share::FileSystem, share_source::NfsExport, unc::UncPath};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's device number of the file system, such as `0:40`.
    pub device: String,
    /// The directory of the file system that appears at `point`.
    pub root: PathBuf,
    /// Where it appears.
    pub point: PathBuf,
    /// `cifs`, `fuse.smbnetfs`, `nfs4`, …
    pub kind: String,
    /// `//server/share` for cifs, `server:/export` for NFS.
    pub source: String,
    /// The file system's own options, separated by commas.
    pub options: String,
}

/// The mounts in the text of a mountinfo file, in its order: a later one hides an earlier one at the same point.
pub fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(line).collect()
}

/// Parses `36 35 98:0 /root /point rw,noatime master:1 - kind source options`, from proc(5).
fn line(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let mut after = after.split(' ');
    Some(Mount {
        device: before.next()?.to_owned(),
        root: path(before.next()?),
        point: path(before.next()?),
        kind: after.next()?.to_owned(),
        source: path(after.next()?).to_string_lossy().into_owned(),
        options: after.next().unwrap_or_default().to_owned(),
    })
}

/// Decodes the kernel's octal escapes (`\040`).
fn path(escaped: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                bytes.push(value);
                rest = &after[3..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The topmost mount exactly at `point`.
pub fn at<'a>(mounts: &'a [Mount], point: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.point == point)
}

/// The mount that contains `path`, which must be canonical.
pub fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| path.starts_with(&mount.point))
        .max_by_key(|(order, mount)| (mount.point.components().count(), *order))
        .map(|(_, mount)| mount)
}

/// What a mount shows, by names that all mounts of the same have in common: file system, and directory in it. A share
/// that is mounted twice has two device numbers, but one name.
pub fn shown(mount: &Mount) -> (String, PathBuf) {
    let inside = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    match mount.kind.as_str() {
        "cifs" | "smb3" => ("smb".to_owned(), Path::new(&mount.source.replace('\\', "/").to_lowercase()).join(inside)),
        "nfs" | "nfs4" => {
            let (server, export) = mount.source.split_once(':').unwrap_or_default();
            (format!("nfs {}", server.trim_end_matches('.').to_lowercase()), Path::new(export).join(inside))
        }
        _ => (mount.device.clone(), mount.root.clone()),
    }
}

/// All paths of the file at a canonical path: through this mount and other mounts of the same file system, the shortest
/// first. Accesses no file.
pub fn every_name(mounts: &[Mount], canonical: &Path) -> Vec<PathBuf> {
    let Some((mount, inside)) =
        holding(mounts, canonical).and_then(|mount| Some((mount, canonical.strip_prefix(&mount.point).ok()?)))
    else {
        return vec![canonical.to_owned()];
    };
    let (system, directory) = shown(mount);
    // Joining an empty path would append a `/`.
    let join =
        |top: &Path, inside: &Path| if inside.as_os_str().is_empty() { top.to_owned() } else { top.join(inside) };
    let place = join(&directory, inside);
    let through = |other: &Mount| {
        let (other_system, top) = shown(other);
        let inside = place.strip_prefix(top).ok().filter(|_| other_system == system)?;
        let name = join(&other.point, inside);
        // Another mount may cover it.
        (holding(mounts, &name) == Some(other)).then_some(name)
    };
    let mut names: Vec<PathBuf> = mounts.iter().filter_map(through).collect();
    names.sort_by_key(|name| (name.components().count(), name.clone()));
    names.dedup();
    if names.is_empty() { vec![canonical.to_owned()] } else { names }
}

/// Whether programs wait while the file server is down. The kernel's SMB client returns I/O errors unless it was
/// mounted `hard` (mount.cifs(8)), its NFS client only if it was mounted `soft` or `softerr` (nfs(5)); other clients
/// have no known option for this.
pub fn waits(mount: &Mount) -> bool {
    let has = |name: &str| mount.options.split(',').any(|option| option == name);
    match mount.kind.as_str() {
        "cifs" | "smb3" => has("hard"),
        "nfs" | "nfs4" => !has("soft") && !has("softerr"),
        _ => true,
    }
}

/// Checks that the top of the export appears at `path`, which lies on `mount`. The error describes what is there
/// instead.
pub fn shows_export(mount: &Mount, path: &Path, nfs: &NfsExport) -> Result<(), String> {
    if !matches!(mount.kind.as_str(), "nfs" | "nfs4") {
        return Err(format!("it lies on a file system of type {}", mount.kind));
    }
    let (server, export) = mount.source.split_once(":/").unwrap_or_default();
    let is_server = server.trim_end_matches('.').eq_ignore_ascii_case(nfs.server());
    if !is_server || export.trim_matches('/') != nfs.export().trim_matches('/') {
        return Err(format!("{} is mounted there", mount.source));
    }
    let top = mount.root == Path::new("/") && path == mount.point;
    if top { Ok(()) } else { Err("it is a directory inside the export, not its top".to_owned()) }
}

/// Whether QEMU's locks stay local to the host. The kernel's SMB client turns them into locks of the file server unless
/// it was mounted with `nobrl` (mount.cifs(8)), and those are mandatory: a shared lock prevents its own holder from
/// writing, and an exclusive lock is refused to the holder of the shared one.
pub fn locks_stay(mount: &Mount) -> bool {
    !matches!(mount.kind.as_str(), "cifs" | "smb3") || mount.options.split(',').any(|option| option == "nobrl")
}

/// Options of the kernel's SMB client with which each file has its own owner (mount.cifs(8)): without them the mount
/// fixes the owner of all files, and chown(2) has no effect.
const OWNER_OPTIONS: [&str; 6] = ["cifsacl", "modefromsid", "idsfromsid", "posix", "unix", "setuids"];

/// A mount's file system, as far as it matters to libvirt, which gives files to the users of its VMs.
pub fn file_system(mount: &Mount) -> FileSystem {
    let has_owners = || mount.options.split(',').any(|option| OWNER_OPTIONS.contains(&option));
    let fixed_owner = match mount.kind.as_str() {
        "cifs" | "smb3" => !has_owners(),
        "fuse.smbnetfs" => true,
        _ => false,
    };
    FileSystem { kind: mount.kind.clone(), fixed_owner }
}

/// The file system of a path, which must be canonical, in this process's view; `None` if the kernel does not report it.
/// Accesses no file, because the file server may be down.
pub fn file_system_of(path: &Path) -> Option<FileSystem> {
    let mounts = parse(&std::fs::read_to_string("/proc/self/mountinfo").ok()?);
    holding(&mounts, path).map(file_system)
}

/// Checks that the top of the share appears at `path`, which lies on `mount`. The error describes what is there
/// instead.
pub fn shows(mount: &Mount, path: &Path, unc: &UncPath) -> Result<(), String> {
    let inside = path.strip_prefix(&mount.point).unwrap_or(Path::new(""));
    match mount.kind.as_str() {
        "cifs" | "smb3" => {
            let source = mount.source.replace('\\', "/");
            if !source.strip_prefix("//").is_some_and(|source| names(source, unc)) {
                return Err(format!("{} is mounted there", mount.source));
            }
            let top = mount.root == Path::new("/") && inside.as_os_str().is_empty();
            if top { Ok(()) } else { Err("it is a directory inside the share, not its top".to_owned()) }
        }
        "fuse.smbnetfs" => {
            let shown = mount.root.join(inside);
            let shown = shown.to_string_lossy();
            if names(shown.trim_start_matches('/'), unc) {
                Ok(())
            } else {
                Err(format!("smbnetfs shows {shown} there, not /{}/{}", unc.server(), unc.share()))
            }
        }
        kind => Err(format!("it lies on a file system of type {kind}")),
    }
}

/// Whether `text` is the share's `server/share`. Both names are compared without case, as in SMB.
fn names(text: &str, unc: &UncPath) -> bool {
    let (server, share) = text.trim_end_matches('/').split_once('/').unwrap_or_default();
    server.trim_end_matches('.').eq_ignore_ascii_case(unc.server()) && share.eq_ignore_ascii_case(unc.share())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "22 1 8:1 / / rw - ext4 /dev/vda rw\n\
        66 22 0:39 / /srv/ferry/.tree rw,nosuid - fuse.smbnetfs smbnetfs rw,user_id=0\n\
        67 22 0:39 /fs1.ferry.test/vms /srv/ferry/vms rw,nosuid master:3 - fuse.smbnetfs smbnetfs rw\n\
        68 22 0:40 / /srv/with\\040space rw - cifs //FS1.ferry.test/VMs rw,vers=3.1.1\n\
        69 22 0:40 /sub /srv/sub rw - cifs //fs1.ferry.test/vms rw\n\
        70 22 0:41 / /srv/short rw - cifs //fs1/vms rw\n\
        71 22 0:42 / /srv/deep rw - cifs //fs1.ferry.test/vms/deep rw\n\
        72 22 0:43 / /srv/four rw - nfs4 FS1.ferry.test:/srv/vms rw,vers=4.2,hard\n\
        73 22 0:44 / /srv/three rw - nfs fs1.ferry.test:/srv/vms/ rw,vers=3,soft\n\
        74 22 0:43 / /srv/inner rw - nfs4 fs1.ferry.test:/srv/vms/inner rw\n\
        75 22 0:43 / /srv/brief rw - nfs4 fs1:/srv/vms rw\n\
        nonsense\n";

    fn unc() -> UncPath {
        "\\\\fs1.ferry.test\\vms".parse().expect("a UNC path")
    }

    #[test]
    fn only_a_mount_that_says_whose_its_files_are_has_fixed_owners() {
        for (kind, options, fixed_owner) in [
            ("cifs", "rw,vers=3.1.1,cache=strict,uid=64055,forceuid,gid=104,nounix,nobrl,hard", true),
            ("smb3", "rw,vers=3.0", true),
            ("cifs", "rw,vers=3.1.1,cifsacl", false),
            ("cifs", "rw,vers=3.1.1,posix,posixpaths", false),
            ("fuse.smbnetfs", "rw,user_id=0,group_id=0,allow_other", true),
            ("fuse.sshfs", "rw", false),
            ("nfs4", "rw,vers=4.2", false),
            ("ext4", "rw", false),
        ] {
            let line = format!("70 22 0:41 / /srv/a rw - {kind} source {options}\n");
            let found = file_system(&parse(&line)[0]);
            assert_eq!(found, FileSystem { kind: kind.to_owned(), fixed_owner }, "{options}");
        }
        let proc = file_system_of(Path::new("/proc/self/mountinfo")).expect("it is mounted");
        assert_eq!((proc.kind.as_str(), proc.fixed_owner), ("proc", false));
    }

    #[test]
    fn a_path_is_the_share_only_at_the_top_of_a_mount_of_it_by_its_full_name() {
        let mounts = parse(TEXT);
        for (path, is_it) in [
            ("/srv/ferry/vms", true),
            ("/srv/ferry/vms/a", false),
            ("/srv/ferry/.tree/fs1.ferry.test/vms", true),
            ("/srv/ferry/.tree/fs1.ferry.test/other", false),
            ("/srv/ferry/.tree", false),
            ("/srv/with space", true),
            ("/srv/with space/a", false),
            ("/srv/sub", false),
            ("/srv/short", false),
            ("/srv/deep", false),
            ("/srv/plain", false),
        ] {
            let mount = holding(&mounts, Path::new(path)).expect("at least the root");
            let shown = shows(mount, Path::new(path), &unc());
            assert_eq!(shown.is_ok(), is_it, "{path}: {shown:?}");
        }
    }

    #[test]
    fn a_path_is_the_export_only_at_the_top_of_a_mount_of_it_by_its_full_name() {
        let mounts = parse(TEXT);
        let nfs = "nfs://fs1.ferry.test/srv/vms".parse().expect("an export");
        for (path, is_it) in [
            ("/srv/four", true),
            ("/srv/three", true),
            ("/srv/four/a", false),
            ("/srv/inner", false),
            ("/srv/brief", false),
            ("/srv/with space", false),
            ("/srv/plain", false),
        ] {
            let mount = holding(&mounts, Path::new(path)).expect("at least the root");
            let shown = shows_export(mount, Path::new(path), &nfs);
            assert_eq!(shown.is_ok(), is_it, "{path}: {shown:?}");
        }
    }

    #[test]
    fn a_mount_of_nfs_is_told_if_it_is_soft() {
        for (options, expected) in [("rw,vers=4.2,hard", true), ("rw", true), ("rw,soft", false), ("softerr,rw", false)]
        {
            for kind in ["nfs", "nfs4"] {
                let text = format!("68 22 0:40 / /srv/a rw - {kind} fs1.ferry.test:/vms {options}\n");
                assert_eq!(waits(&parse(&text)[0]), expected, "{text}");
            }
        }
    }

    #[test]
    fn a_mount_of_the_kernel_that_is_not_hard_is_told() {
        for (options, expected) in [
            ("rw,vers=3.1.1,hard,echo=60", true),
            ("rw,vers=3.1.1,soft", false),
            ("rw", false),
            ("rw,hardly", false),
            ("", false),
        ] {
            for (kind, hard) in [("cifs", expected), ("smb3", expected), ("fuse.smbnetfs", true)] {
                let text = format!("68 22 0:40 / /srv/a rw - {kind} //fs1.ferry.test/vms {options}\n");
                assert_eq!(waits(&parse(&text)[0]), hard, "{text}");
            }
        }
    }

    #[test]
    fn a_mount_of_the_kernel_whose_locks_are_the_servers_is_told() {
        for (kind, options, expected) in [
            ("cifs", "rw,vers=3.1.1,hard,nobrl,echo=60", true),
            ("smb3", "rw,nobrl", true),
            ("cifs", "rw,vers=3.1.1,hard", false),
            ("smb3", "rw,brl", false),
            ("fuse.smbnetfs", "rw", true),
            ("nfs4", "rw,vers=4.2", true),
        ] {
            let text = format!("68 22 0:40 / /srv/a rw - {kind} //fs1.ferry.test/vms {options}\n");
            assert_eq!(locks_stay(&parse(&text)[0]), expected, "{text}");
        }
    }

    #[test]
    fn the_newest_mount_at_a_point_is_the_one_seen() {
        let text = format!("{TEXT}90 22 0:50 / /srv/short rw - tmpfs tmpfs rw\n");
        let mounts = parse(&text);
        assert_eq!(at(&mounts, Path::new("/srv/short")).map(|mount| mount.kind.as_str()), Some("tmpfs"));
        assert_eq!(holding(&mounts, Path::new("/srv/short/a")).map(|mount| mount.kind.as_str()), Some("tmpfs"));
        assert_eq!(at(&mounts, Path::new("/srv")), None);
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "[0-9 /\\\\a-z-]{0,80}") {
            let _ = parse(&text);
        }
    }
}
