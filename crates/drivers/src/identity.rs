//! Identifies files independently of their names. A file can have many names, through links, bind mounts, and a share
//! that is mounted twice.
//!
//! On one host a file is identified by its inode. Hosts have no inodes in common; between them, a file is identified by
//! its path with all links and nested mounts resolved.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use ferry_core::{error::chain, files::cleanup::Obstacle};

use crate::share::{Mount, every_name, holding, parse, shown};

/// How long file systems may take to identify the files of VMs.
const PROBE_WITHIN: Duration = Duration::from_secs(20);

/// The mounts of this host.
#[derive(Clone, Debug)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// The present mounts in this process's view.
    ///
    /// # Errors
    /// The system's errors.
    pub fn now() -> io::Result<Self> {
        Ok(Self(parse(&fs::read_to_string("/proc/self/mountinfo")?)))
    }

    /// The path that identifies the file at a canonical path on this and other hosts: its path on a share if one shows
    /// it, otherwise the shortest. `shares` are the shares' directories, with links resolved and as they are
    /// configured. Accesses no file.
    pub fn real(&self, shares: &[(PathBuf, &Path)], canonical: &Path) -> PathBuf {
        let mut all = every_name(&self.0, canonical);
        let on_share = |name: &PathBuf| {
            let inside = shares.iter().filter_map(|(top, share)| Some((top, *share, name.strip_prefix(top).ok()?)));
            let (_, share, inside) = inside.max_by_key(|(top, ..)| top.components().count())?;
            Some(share.components().chain(inside.components()).collect())
        };
        match all.iter().find_map(on_share) {
            Some(on_share) => on_share,
            None => all.swap_remove(0),
        }
    }
}

/// The identity of a file on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    /// Its first name, whichever mount shows it. Inode numbers alone do not suffice, because not every file system
    /// keeps them.
    name: PathBuf,
}

impl Identity {
    /// The identity of a path's target; `None` if it does not exist.
    fn of(mounts: &[Mount], path: &Path) -> io::Result<Option<Self>> {
        let found = path.metadata().and_then(|facts| Ok((facts, path.canonicalize()?)));
        match found {
            Ok((facts, canonical)) => {
                let name = every_name(mounts, &canonical).swap_remove(0);
                Ok(Some(Self { device: facts.dev(), inode: facts.ino(), name }))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode) || self.name == other.name
    }
}

/// Files that must not be removed, by identity.
#[derive(Debug)]
pub struct InUse {
    mounts: Vec<Mount>,
    paths: BTreeSet<PathBuf>,
    known: Vec<Identity>,
    /// File systems that did not answer the query for used files on them.
    silent: BTreeSet<String>,
}

impl InUse {
    /// From the paths of used files. Blocks for at most 20 s, because a file server may be down; files on a file system
    /// that does not answer are then never reported as unused.
    ///
    /// # Errors
    /// The mounts cannot be read.
    pub fn of(paths: BTreeSet<PathBuf>) -> io::Result<Self> {
        let Mounts(mounts) = Mounts::now()?;
        let mut by_system: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for path in paths.iter().filter(|path| path.is_absolute()) {
            let system = holding(&mounts, path).map(|mount| shown(mount).0).unwrap_or_default();
            by_system.entry(system).or_default().push(path.clone());
        }
        let (sender, receiver) = mpsc::channel();
        let mut silent: BTreeSet<String> = by_system.keys().cloned().collect();
        for (system, paths) in by_system {
            let (sender, mounts) = (sender.clone(), mounts.clone());
            let probe = move || {
                let found: io::Result<Vec<_>> = paths.iter().map(|path| Identity::of(&mounts, path)).collect();
                let _ = sender.send((system, found));
            };
            thread::Builder::new().name("files-in-use".to_owned()).spawn(probe)?;
        }
        drop(sender);
        let (until, mut known) = (Instant::now() + PROBE_WITHIN, Vec::new());
        // Until all file systems have answered, or the time is over.
        while let Ok((system, found)) = receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            match found {
                Ok(found) => {
                    silent.remove(&system);
                    known.extend(found.into_iter().flatten());
                }
                Err(error) => {
                    tracing::warn!(system, error = %chain(&error), "What the files of VMs there are could not be seen")
                }
            }
        }
        Ok(Self { mounts, paths, known, silent })
    }

    /// The reason why a file must not be removed now; `None` also if the file does not exist. Blocks.
    ///
    /// # Errors
    /// The file, or used files on its file system, could not be queried.
    pub fn obstacle(&self, path: &Path) -> io::Result<Option<Obstacle>> {
        let facts = match path.symlink_metadata() {
            Ok(facts) => facts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if self.paths.contains(path) {
            return Ok(Some(Obstacle::InUse));
        }
        if facts.is_symlink() {
            return Ok(Some(Obstacle::Link));
        }
        if !facts.is_file() {
            return Ok(Some(Obstacle::Irregular));
        }
        let Some(identity) = Identity::of(&self.mounts, path)? else { return Ok(None) };
        let system = holding(&self.mounts, &identity.name).map(|mount| shown(mount).0).unwrap_or_default();
        if self.known.iter().any(|used| used.is_same(&identity)) {
            return Ok(Some(Obstacle::InUse));
        }
        if self.silent.contains(&system) {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "whether a VM uses it is not known: its file system did not answer when it was asked for the VMs' files",
            ));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const TEXT: &str = "22 1 8:1 / / rw - ext4 /dev/vda rw\n\
        30 22 8:1 /data/images /var/lib/libvirt/images rw - ext4 /dev/vda rw\n\
        31 22 8:2 / /srv rw - xfs /dev/vdb rw\n\
        40 22 0:40 / /run/shares/vms rw - cifs //FS1.ferry.test/vms rw\n\
        41 22 0:41 / /mnt/by-hand rw - cifs //fs1.ferry.test/vms rw\n\
        42 22 0:42 / /mnt/part rw - cifs //fs1.ferry.test/vms/part rw\n\
        43 22 0:40 /deep /mnt/deep rw - cifs //FS1.ferry.test/vms rw\n\
        50 22 0:50 / /mnt/nfs rw - nfs4 fs2:/export rw\n\
        51 22 0:51 / /mnt/nfs-part rw - nfs4 fs2.:/export/part rw\n\
        60 22 8:2 /hidden /mnt/covered rw - xfs /dev/vdb rw\n\
        61 22 0:60 / /mnt/covered rw - tmpfs tmpfs rw\n";

    #[test]
    fn a_file_has_one_name_whichever_mount_shows_it_and_that_is_on_its_share() {
        let shares = |top: &str| [(PathBuf::from(top), Path::new("/run/shares/vms"))];
        let mounts = Mounts(parse(TEXT));
        for (path, expected) in [
            ("/var/lib/libvirt/images/a.raw", "/data/images/a.raw"),
            ("/data/images/a.raw", "/data/images/a.raw"),
            ("/srv/hidden/a.raw", "/srv/hidden/a.raw"),
            ("/mnt/covered/a.raw", "/mnt/covered/a.raw"),
            ("/run/shares/vms/a/b.raw", "/run/shares/vms/a/b.raw"),
            ("/mnt/by-hand/a/b.raw", "/run/shares/vms/a/b.raw"),
            ("/mnt/part/b.raw", "/run/shares/vms/part/b.raw"),
            ("/mnt/deep/b.raw", "/run/shares/vms/deep/b.raw"),
            ("/mnt/nfs/part/b.raw", "/mnt/nfs-part/b.raw"),
            ("/mnt/nfs-part/b.raw", "/mnt/nfs-part/b.raw"),
            ("/mnt/nfs/other/b.raw", "/mnt/nfs/other/b.raw"),
            ("/srv/a.raw", "/srv/a.raw"),
        ] {
            assert_eq!(mounts.real(&shares("/run/shares/vms"), Path::new(path)), Path::new(expected), "{path}");
        }
        let named_by_a_link = mounts.real(&shares("/mnt/by-hand"), Path::new("/run/shares/vms/a.raw"));
        assert_eq!(named_by_a_link, Path::new("/run/shares/vms/a.raw"));
        assert_eq!(mounts.real(&[], Path::new("/run/shares/vms/a.raw")), Path::new("/mnt/by-hand/a.raw"));
    }

    #[test]
    fn a_used_file_is_known_by_every_name_and_what_is_no_regular_file_is_never_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("images")).expect("made");
        symlink("images", at("store")).expect("made");
        for name in ["images/base", "images/hard", "images/free", "images/linked", "images/far"] {
            fs::write(at(name), name).expect("written");
        }
        fs::hard_link(at("images/hard"), at("images/second")).expect("made");
        symlink("images/linked", at("link")).expect("made");
        symlink("images/far", at("to-free")).expect("made");
        symlink("images/nothing", at("dangling")).expect("made");
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("bound");
        let names = ["store/base", "images/hard", "link", "images/gone", "gone/at-all", "images/base/of-a-file"];
        let used = names.map(&at).into_iter().chain(["pool/volume".into(), "/dev/null".into()]);
        let used = InUse::of(used.collect()).expect("known");
        for (name, expected) in [
            ("images/base", Some(Obstacle::InUse)),
            ("store/base", Some(Obstacle::InUse)),
            ("images/second", Some(Obstacle::InUse)),
            ("images/linked", Some(Obstacle::InUse)),
            ("link", Some(Obstacle::InUse)),
            ("images/free", None),
            ("store/free", None),
            ("to-free", Some(Obstacle::Link)),
            ("dangling", Some(Obstacle::Link)),
            ("socket", Some(Obstacle::Irregular)),
            ("images", Some(Obstacle::Irregular)),
            ("nothing", None),
        ] {
            assert_eq!(used.obstacle(&at(name)).expect("asked"), expected, "{name}");
        }
        assert_eq!(used.obstacle(Path::new("/dev/zero")).expect("asked"), Some(Obstacle::Irregular));
        drop(socket);
    }

    #[test]
    fn of_what_lies_on_a_file_system_that_does_not_tell_is_not_said_that_nobody_uses_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new.raw");
        fs::write(&path, "").expect("written");
        let mut used = InUse::of(BTreeSet::new()).expect("known");
        assert_eq!(used.obstacle(&path).expect("asked"), None);
        used.silent.insert("0:999999".to_owned());
        assert_eq!(used.obstacle(&path).expect("asked"), None, "another file system is silent");
        let canonical = path.canonicalize().expect("there");
        used.silent.insert(shown(holding(&used.mounts, &canonical).expect("mounted")).0);
        assert_eq!(used.obstacle(&path).expect_err("not known").kind(), io::ErrorKind::TimedOut);
        assert_eq!(used.obstacle(folder.path()).expect("asked"), Some(Obstacle::Irregular), "whoever uses it");
    }
}
