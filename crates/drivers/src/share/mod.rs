//! A file share on one host: probed, mounted or adopted, watched. The content of the share is the caller's business.
//!
//! [`host::HostShares`] is the real driver, for shares of every kind; [`fake::FakeShares`] is the one for tests;
//! [`conformance`] is what both keep.

mod calls;
pub mod conformance;
mod error;
pub mod fake;
pub mod host;
mod mounts;
mod nfs;
mod path;
pub mod smb;

use std::path::Path;

use ferry_core::{api::agent::ShareCredentials, place::Space, release::is_known_as_shared, share_source::ShareSource};

pub(crate) use self::mounts::{Mount, every_name, holding, parse, shown};
pub use self::{error::ShareError, mounts::file_system_of};

/// What a file server said of a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareFacts {
    /// The SMB dialect, `3.1.1`; other kinds agree on theirs when they mount.
    pub dialect: Option<String>,
    /// Free and total bytes, if it told.
    pub space: Option<Space>,
}

/// What is mounted at a path, told so that two answers can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The type of the file system, as the kernel names it.
    pub kind: String,
    /// Type, device or server, and directory in it: the same as long as nobody mounts something else.
    pub what: String,
}

impl Mounted {
    /// Whether libvirt takes every file on such a file system for shared.
    pub fn is_known_as_shared(&self) -> bool {
        is_known_as_shared(&self.kind)
    }
}

/// File shares of one host. All calls block, each for a bounded time: also when the file server or the mount is dead.
pub trait ShareDriver: Send + Sync + 'static {
    /// Asks the file server. Ok promises that it answers; of an SMB share also SMB 3, a valid user and that it exists.
    ///
    /// # Errors
    /// [`ShareError::Unreachable`], [`ShareError::NoShare`], [`ShareError::Password`], [`ShareError::Dialect`],
    /// [`ShareError::Host`].
    fn probe(&self, share: &ShareSource, credentials: Option<&ShareCredentials>) -> Result<ShareFacts, ShareError>;

    /// Mounts the share at `mountpoint`, which is made if it is missing. Ok if it is mounted there already; a dead
    /// mount of it is replaced. Ok promises that its files can be used below `mountpoint`. A path is not mounted.
    ///
    /// # Errors
    /// Those of [`ShareDriver::probe`], [`ShareError::Mount`]. After an error nothing new is mounted.
    fn attach(
        &self,
        share: &ShareSource,
        credentials: Option<&ShareCredentials>,
        mountpoint: &Path,
    ) -> Result<(), ShareError>;

    /// Makes sure that `path` is the top of a mount of the share that somebody else made; of a share that is a path, that
    /// it is a directory on something else than the host's root file system.
    ///
    /// # Errors
    /// [`ShareError::NotAMount`], [`ShareError::Stuck`], [`ShareError::Host`].
    fn adopt(&self, share: &ShareSource, path: &Path) -> Result<(), ShareError>;

    /// What is mounted at `path`, or holds it; `None` if that is not known.
    fn mounted(&self, path: &Path) -> Option<Mounted>;

    /// Whether programs wait, instead of seeing errors, while the file server of the share mounted at `path` is away; true
    /// if that is not known.
    fn waits(&self, path: &Path) -> bool;

    /// Whether QEMU's locks on files below `path` stay among the programs of this host; true if that is not known.
    fn locks_stay(&self, path: &Path) -> bool;

    /// Unmounts what [`ShareDriver::attach`] mounted. Ok if nothing is mounted there.
    ///
    /// # Errors
    /// [`ShareError::Busy`], [`ShareError::Mount`] (something else is mounted there), [`ShareError::Stuck`].
    fn detach(&self, share: &ShareSource, mountpoint: &Path) -> Result<(), ShareError>;

    /// Makes sure that the share's files can be used at `path` now.
    ///
    /// # Errors
    /// [`ShareError::NotAMount`], [`ShareError::Stuck`], [`ShareError::Unreachable`].
    fn check(&self, share: &ShareSource, path: &Path) -> Result<(), ShareError>;

    /// Free and total bytes of the share mounted at `path`, where they can be known. Some mounts do not tell; then the
    /// file server is asked, which needs credentials.
    fn space(&self, share: &ShareSource, credentials: Option<&ShareCredentials>, path: &Path) -> Option<Space>;
}
