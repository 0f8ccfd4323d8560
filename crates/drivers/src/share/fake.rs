//! File shares that are plain directories: several hosts of one process see the same one.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use ferry_core::{api::agent::ShareCredentials, location::UncPath, place::Space, units::ByteCount};

use super::{ShareDriver, ShareError, ShareFacts};

/// A share with a file of this name at its top is mounted so that programs see errors.
pub const SOFT: &str = ".soft";
/// A file of this name in an export makes its mounts ones on which QEMU's locks are the file server's.
pub const SERVER_LOCKS: &str = ".server-locks";

/// File servers that any number of [`FakeShares`] reach. Clones are the same servers.
#[derive(Clone, Debug, Default)]
pub struct FakeFileServers(Arc<Mutex<BTreeMap<(String, String), FakeExport>>>);

/// What a share of a fake server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeExport {
    /// The directory that holds its files.
    pub directory: PathBuf,
    /// Who may log in.
    pub user: String,
    /// The password.
    pub password: String,
    /// `None`: the server speaks no SMB 3.
    pub dialect: Option<String>,
    /// Whether the server answers.
    pub is_up: bool,
    /// Free and total bytes that it tells.
    pub space: Space,
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
    pub fn export(&self, unc: &UncPath, export: FakeExport) {
        self.locked().insert(key(unc), export);
    }

    /// Changes a share that was added before.
    pub fn change(&self, unc: &UncPath, change: impl FnOnce(&mut FakeExport)) {
        change(self.locked().get_mut(&key(unc)).expect("the share was exported before"));
    }

    fn get(&self, unc: &UncPath) -> Option<FakeExport> {
        self.locked().get(&key(unc)).cloned()
    }

    fn knows_server(&self, unc: &UncPath) -> bool {
        self.locked().keys().any(|(server, _)| server == unc.server())
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<(String, String), FakeExport>> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

fn key(unc: &UncPath) -> (String, String) {
    (unc.server().to_owned(), unc.share().to_ascii_lowercase())
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

    /// What the administrator's own `mount` would do: makes `path` a mount of the share, for adoption.
    ///
    /// # Errors
    /// The link cannot be made.
    pub fn mount_by_hand(&self, unc: &UncPath, path: &Path) -> io::Result<()> {
        let export = self.servers.get(unc).ok_or(io::ErrorKind::NotFound)?;
        symlink(export.directory, path)
    }

    fn up(&self, unc: &UncPath) -> Result<FakeExport, ShareError> {
        let export = self.servers.get(unc);
        match export {
            Some(export) if export.is_up => Ok(export),
            None if self.servers.knows_server(unc) => Err(ShareError::NoShare { unc: unc.clone() }),
            _ => Err(ShareError::Unreachable { unc: unc.clone(), reason: "NT_STATUS_HOST_UNREACHABLE".into() }),
        }
    }

    /// What a link at `path` points to.
    fn mounted(path: &Path) -> Option<PathBuf> {
        fs::read_link(path).ok()
    }
}

impl ShareDriver for FakeShares {
    fn probe(&self, unc: &UncPath, credentials: &ShareCredentials) -> Result<ShareFacts, ShareError> {
        let export = self.up(unc)?;
        let Some(dialect) = export.dialect.clone() else {
            return Err(ShareError::Dialect { unc: unc.clone(), reason: "NT_STATUS_NOT_SUPPORTED".into() });
        };
        if *credentials != export.credentials() {
            let user = credentials.user.clone();
            return Err(ShareError::Password { unc: unc.clone(), user, reason: "NT_STATUS_LOGON_FAILURE".into() });
        }
        Ok(ShareFacts { dialect, space: Some(export.space) })
    }

    fn attach(&self, unc: &UncPath, credentials: &ShareCredentials, mountpoint: &Path) -> Result<(), ShareError> {
        let refuse = |reason: String| ShareError::Mount { unc: unc.clone(), at: mountpoint.to_owned(), reason };
        if let Some(found) = Self::mounted(mountpoint) {
            return match self.servers.get(unc) {
                Some(export) if export.directory == found => self.check(unc, mountpoint),
                _ => Err(refuse(format!("{} is mounted there", found.display()))),
            };
        }
        self.probe(unc, credentials)?;
        let export = self.up(unc)?;
        let parent = mountpoint.parent().unwrap_or(Path::new("/"));
        // The driver makes a missing mount point; one that is there and empty is covered by the mount.
        let _ = fs::remove_dir(mountpoint);
        fs::create_dir_all(parent)
            .and_then(|()| symlink(&export.directory, mountpoint))
            .map_err(|error| refuse(error.to_string()))
    }

    fn locks_stay(&self, path: &Path) -> bool {
        !path.join(SERVER_LOCKS).exists()
    }

    fn waits(&self, path: &Path) -> bool {
        !path.join(SOFT).exists()
    }

    fn adopt(&self, unc: &UncPath, path: &Path) -> Result<(), ShareError> {
        self.check(unc, path)
    }

    fn detach(&self, unc: &UncPath, mountpoint: &Path) -> Result<(), ShareError> {
        let refuse = |reason: String| ShareError::Mount { unc: unc.clone(), at: mountpoint.to_owned(), reason };
        let Some(found) = Self::mounted(mountpoint) else { return Ok(()) };
        if self.servers.get(unc).is_none_or(|export| export.directory != found) {
            return Err(refuse(format!("{} is mounted there", found.display())));
        }
        fs::remove_file(mountpoint).map_err(|error| refuse(error.to_string()))
    }

    fn check(&self, unc: &UncPath, path: &Path) -> Result<(), ShareError> {
        let known = self.servers.get(unc).map(|export| export.directory);
        match Self::mounted(path) {
            Some(found) if Some(&found) == known.as_ref() => self.up(unc).map(|_| ()),
            found => Err(ShareError::NotAMount {
                unc: unc.clone(),
                at: path.to_owned(),
                found: found.map_or("nothing is mounted there".into(), |found| found.display().to_string()),
            }),
        }
    }

    fn space(&self, unc: &UncPath, _credentials: Option<&ShareCredentials>, path: &Path) -> Option<Space> {
        self.check(unc, path).ok()?;
        self.servers.get(unc).map(|export| export.space)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::conformance::{Site, run};

    #[test]
    fn the_fake_keeps_what_every_share_driver_keeps() {
        let directory = tempfile::tempdir().expect("a directory");
        let backing = directory.path().join("backing");
        fs::create_dir(&backing).expect("made");
        let servers = FakeFileServers::new();
        let unc: UncPath = "\\\\fs1.ferry.test\\vms".parse().expect("well formed");
        let export = FakeExport::new(&backing);
        let credentials = export.credentials();
        servers.export(&unc, export);
        run(&Site {
            first: &FakeShares::new(servers.clone()),
            second: &FakeShares::new(servers.clone()),
            unc: unc.clone(),
            credentials,
            directory: directory.path().to_owned(),
            set_up: &|is_up| servers.change(&unc, |export| export.is_up = is_up),
        });
    }

    #[test]
    fn a_server_without_smb_3_is_refused() {
        let servers = FakeFileServers::new();
        let unc: UncPath = "\\\\old.ferry.test\\vms".parse().expect("well formed");
        let export = FakeExport { dialect: None, ..FakeExport::new("/nowhere") };
        let credentials = export.credentials();
        servers.export(&unc, export);
        let result = FakeShares::new(servers).probe(&unc, &credentials);
        assert!(matches!(result, Err(ShareError::Dialect { .. })));
    }
}
