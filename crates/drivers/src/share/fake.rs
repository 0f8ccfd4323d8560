//! File shares that are plain directories: several hosts in one process see the same one.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use ferry_core::{api::agent::ShareCredentials, place::Space, share_source::ShareSource, units::ByteCount};

use super::{Mounted, ShareDriver, ShareError, ShareFacts};

/// A share with a file of this name at its top is mounted in such a way that programs see I/O errors.
pub const SOFT: &str = ".soft";

/// File servers that are reachable from any number of [`FakeShares`]. Clones are the same servers.
#[derive(Clone, Debug, Default)]
pub struct FakeFileServers(Arc<Mutex<BTreeMap<String, (ShareSource, FakeExport)>>>);

/// A share of a fake server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeExport {
    /// The directory with its files.
    pub directory: PathBuf,
    /// The user that may log in.
    pub user: String,
    /// The password.
    pub password: String,
    /// `None`: the server speaks no SMB 3.
    pub dialect: Option<String>,
    /// Whether the server answers.
    pub is_up: bool,
    /// The free and total bytes that it reports.
    pub space: Space,
    /// The kernel's name for the type of its file system.
    pub kind: String,
}

impl FakeExport {
    /// A share over `directory` for user `ferry` with password `secret`, SMB 3.1.1, up.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            user: "ferry".into(),
            password: "secret".into(),
            dialect: Some("3.1.1".into()),
            is_up: true,
            space: Space { total: ByteCount::gib(40), free: ByteCount::gib(10) },
            kind: "nfs4".into(),
        }
    }

    /// Credentials that are accepted.
    pub fn credentials(&self) -> ShareCredentials {
        ShareCredentials { user: self.user.clone(), password: self.password.clone() }
    }
}

impl FakeFileServers {
    /// No servers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a share, or replaces it.
    pub fn export(&self, share: impl Into<ShareSource>, export: FakeExport) {
        let share = share.into();
        self.locked().insert(share.key(), (share, export));
    }

    /// Changes a share that was added before.
    pub fn change(&self, share: impl Into<ShareSource>, change: impl FnOnce(&mut FakeExport)) {
        change(&mut self.locked().get_mut(&share.into().key()).expect("the share was exported before").1);
    }

    fn get(&self, share: &ShareSource) -> Option<FakeExport> {
        self.locked().get(&share.key()).map(|(_, export)| export.clone())
    }

    fn knows_server(&self, share: &ShareSource) -> bool {
        self.locked().values().any(|(known, _)| known.server() == share.server())
    }

    /// The share whose files are in `directory`.
    fn behind(&self, directory: &Path) -> Option<FakeExport> {
        self.locked().values().find(|(_, export)| export.directory == directory).map(|(_, export)| export.clone())
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, (ShareSource, FakeExport)>> {
        self.0.lock().expect("no thread panics while holding this lock")
    }
}

/// Shares of one host. A mount is a symbolic link to the share's directory.
#[derive(Debug)]
pub struct FakeShares {
    servers: FakeFileServers,
}

impl FakeShares {
    /// A host that reaches `servers`.
    pub fn new(servers: FakeFileServers) -> Self {
        Self { servers }
    }

    /// Makes `path` a mount of the share, as the administrator's own `mount` would, so that it can be adopted.
    ///
    /// # Errors
    /// The link cannot be created.
    pub fn mount_by_hand(&self, share: impl Into<ShareSource>, path: &Path) -> io::Result<()> {
        let export = self.servers.get(&share.into()).ok_or(io::ErrorKind::NotFound)?;
        symlink(export.directory, path)
    }

    /// Mounts the share at `path` as an earlier version did: QEMU's locks become locks of the file server. Such a mount
    /// is a link to the directory in another spelling.
    ///
    /// # Errors
    /// The link cannot be created.
    pub fn mount_with_server_locks(&self, share: &ShareSource, path: &Path) -> io::Result<()> {
        let export = self.servers.get(share).ok_or(io::ErrorKind::NotFound)?;
        symlink(export.directory.join("."), path)
    }

    fn up(&self, share: &ShareSource) -> Result<FakeExport, ShareError> {
        let export = self.servers.get(share);
        match export {
            Some(export) if export.is_up => Ok(export),
            None if self.servers.knows_server(share) => Err(ShareError::NoShare { share: share.clone() }),
            _ => Err(ShareError::Unreachable { share: share.clone(), reason: "NT_STATUS_HOST_UNREACHABLE".into() }),
        }
    }

    /// The target of a link at `path`.
    fn mounted_at(path: &Path) -> Option<PathBuf> {
        fs::read_link(path).ok()
    }
}

impl ShareDriver for FakeShares {
    fn probe(&self, share: &ShareSource, credentials: Option<&ShareCredentials>) -> Result<ShareFacts, ShareError> {
        let export = match self.up(share) {
            // Without a login, the server's answer shows only that it is up.
            Ok(_) | Err(ShareError::NoShare { .. }) if !share.wants_login() => {
                return Ok(ShareFacts { dialect: None, space: None });
            }
            reached => reached?,
        };
        let Some(dialect) = export.dialect.clone() else {
            return Err(ShareError::Dialect { share: share.clone(), reason: "NT_STATUS_NOT_SUPPORTED".into() });
        };
        if credentials != Some(&export.credentials()) {
            let user = credentials.map(|credentials| credentials.user.clone()).unwrap_or_default();
            return Err(ShareError::Password { share: share.clone(), user, reason: "NT_STATUS_LOGON_FAILURE".into() });
        }
        Ok(ShareFacts { dialect: Some(dialect), space: Some(export.space) })
    }

    fn attach(
        &self,
        share: &ShareSource,
        credentials: Option<&ShareCredentials>,
        mountpoint: &Path,
    ) -> Result<(), ShareError> {
        let refuse = |reason: String| ShareError::Mount { share: share.clone(), at: mountpoint.to_owned(), reason };
        if matches!(share, ShareSource::Path(_)) {
            return Err(refuse("a path is adopted".to_owned()));
        }
        if let Some(found) = Self::mounted_at(mountpoint) {
            return match self.servers.get(share) {
                Some(export) if export.directory == found => self.check(share, mountpoint),
                _ => Err(refuse(format!("{} is mounted there", found.display()))),
            };
        }
        self.probe(share, credentials)?;
        let export = self.up(share).map_err(|error| {
            let is_no_share = matches!(error, ShareError::NoShare { .. });
            if is_no_share { refuse("the server exports no such directory".to_owned()) } else { error }
        })?;
        let parent = mountpoint.parent().unwrap_or(Path::new("/"));
        // The driver creates a missing mount point; an existing empty one is covered by the mount.
        let _ = fs::remove_dir(mountpoint);
        fs::create_dir_all(parent)
            .and_then(|()| symlink(&export.directory, mountpoint))
            .map_err(|error| refuse(error.to_string()))
    }

    fn locks_stay(&self, path: &Path) -> bool {
        !Self::mounted_at(path).is_some_and(|found| found.as_os_str().as_bytes().ends_with(b"/."))
    }

    fn waits(&self, path: &Path) -> bool {
        !path.join(SOFT).exists()
    }

    fn adopt(&self, share: &ShareSource, path: &Path) -> Result<(), ShareError> {
        self.check(share, path)
    }

    fn mounted(&self, path: &Path) -> Option<Mounted> {
        let directory = Self::mounted_at(path)?;
        Some(Mounted { kind: self.servers.behind(&directory)?.kind, what: directory.display().to_string() })
    }

    fn detach(&self, share: &ShareSource, mountpoint: &Path) -> Result<(), ShareError> {
        let refuse = |reason: String| ShareError::Mount { share: share.clone(), at: mountpoint.to_owned(), reason };
        if matches!(share, ShareSource::Path(_)) {
            return Ok(());
        }
        let Some(found) = Self::mounted_at(mountpoint) else { return Ok(()) };
        if self.servers.get(share).is_none_or(|export| export.directory != found) {
            return Err(refuse(format!("{} is mounted there", found.display())));
        }
        fs::remove_file(mountpoint).map_err(|error| refuse(error.to_string()))
    }

    fn check(&self, share: &ShareSource, path: &Path) -> Result<(), ShareError> {
        let known = self.servers.get(share).map(|export| export.directory);
        match (share, Self::mounted_at(path)) {
            // The source is a path: any mount there will do.
            (ShareSource::Path(_), Some(_)) => Ok(()),
            (_, Some(found)) if Some(&found) == known.as_ref() => self.up(share).map(|_| ()),
            (_, found) => Err(ShareError::NotAMount {
                share: share.clone(),
                at: path.to_owned(),
                found: found.map_or("nothing is mounted there".into(), |found| found.display().to_string()),
            }),
        }
    }

    fn space(&self, share: &ShareSource, _credentials: Option<&ShareCredentials>, path: &Path) -> Option<Space> {
        self.check(share, path).ok()?;
        let directory = Self::mounted_at(path)?;
        self.servers.behind(&directory).map(|export| export.space)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::conformance::{PathSite, Site, run, run_paths};

    fn keeps(share: &str, credentials: Option<ShareCredentials>) {
        let directory = tempfile::tempdir().expect("a directory");
        let backing = directory.path().join("backing");
        fs::create_dir(&backing).expect("made");
        let servers = FakeFileServers::new();
        let share: ShareSource = share.parse().expect(share);
        servers.export(&share, FakeExport::new(&backing));
        run(&Site {
            first: &FakeShares::new(servers.clone()),
            second: &FakeShares::new(servers.clone()),
            share: share.clone(),
            credentials,
            directory: directory.path().to_owned(),
            set_up: &|is_up| servers.change(&share, |export| export.is_up = is_up),
        });
    }

    #[test]
    fn the_fake_keeps_what_every_share_driver_keeps() {
        keeps("\\\\fs1.ferry.test\\vms", Some(FakeExport::new("/").credentials()));
        keeps("nfs://fs1.ferry.test/srv/vms", None);
    }

    #[test]
    fn the_fake_keeps_what_every_driver_keeps_of_paths() {
        let directory = tempfile::tempdir().expect("a directory");
        let servers = FakeFileServers::new();
        let at = |name: &str| directory.path().join(name);
        for (share, name) in [("/mnt/vms", "backing"), ("/mnt/other", "other")] {
            fs::create_dir(at(name)).expect("made");
            servers.export(share.parse::<ShareSource>().expect(share), FakeExport::new(at(name)));
        }
        let driver = FakeShares::new(servers.clone());
        let mount = |share: &str, path: &Path| {
            driver.mount_by_hand(share.parse::<ShareSource>().expect(share), path).expect("mounted");
        };
        run_paths(&PathSite {
            driver: &driver,
            share: "/mnt/vms".parse().expect("a path"),
            paths: [at("a"), at("b")],
            mount: &|path| mount("/mnt/vms", path),
            mount_other: &|path| mount("/mnt/other", path),
            unmount: &|path| fs::remove_file(path).expect("a link"),
        });
    }

    #[test]
    fn a_server_without_smb_3_is_refused() {
        let servers = FakeFileServers::new();
        let share: ShareSource = "\\\\old.ferry.test\\vms".parse().expect("well formed");
        let export = FakeExport { dialect: None, ..FakeExport::new("/nowhere") };
        let credentials = export.credentials();
        servers.export(&share, export);
        let result = FakeShares::new(servers).probe(&share, Some(&credentials));
        assert!(matches!(result, Err(ShareError::Dialect { .. })));
    }
}
