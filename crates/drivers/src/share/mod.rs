//! A file share on one host: probe, mount or adopt, and check. The share's content is the caller's concern.
//!
//! [`host::HostShares`] is the real driver, for all kinds of shares; [`fake::FakeShares`] is the one for tests; both
//! pass the suite in [`conformance`].

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

/// A file server's answer about a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareFacts {
    /// The SMB dialect, such as `3.1.1`; other kinds negotiate it when they mount.
    pub dialect: Option<String>,
    /// Free and total bytes, if the server reported them.
    pub space: Option<Space>,
}

/// The mount at a path, in a form in which two answers can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The kernel's name for the type of the file system.
    pub kind: String,
    /// Type, device or server, and directory in it: unchanged as long as nothing else is mounted there.
    pub what: String,
}

impl Mounted {
    /// Whether libvirt treats every file on such a file system as shared.
    pub fn is_known_as_shared(&self) -> bool {
        is_known_as_shared(&self.kind)
    }
}

/// File shares of one host. All calls block for a bounded time, even if the file server or the mount is dead.
pub trait ShareDriver: Send + Sync + 'static {
    /// Queries the file server. Ok promises that it answers; for an SMB share also that it speaks SMB 3, that the user
    /// is valid and that the share exists.
    ///
    /// # Errors
    /// [`ShareError::Unreachable`], [`ShareError::NoShare`], [`ShareError::Password`], [`ShareError::Dialect`],
    /// [`ShareError::Host`].
    fn probe(&self, share: &ShareSource, credentials: Option<&ShareCredentials>) -> Result<ShareFacts, ShareError>;

    /// Mounts the share at `mountpoint`, which is created if missing. Ok if it is already mounted there; a dead mount
    /// of it is replaced. Ok promises that its files can be used below `mountpoint`. A share that is a path is not
    /// mounted.
    ///
    /// # Errors
    /// Those of [`ShareDriver::probe`]; [`ShareError::Mount`]. After an error nothing new is mounted.
    fn attach(
        &self,
        share: &ShareSource,
        credentials: Option<&ShareCredentials>,
        mountpoint: &Path,
    ) -> Result<(), ShareError>;

    /// Checks that `path` is the top of an existing mount of the share; for a share that is a path, that it is a
    /// directory that does not lie on the host's root file system.
    ///
    /// # Errors
    /// [`ShareError::NotAMount`], [`ShareError::Stuck`], [`ShareError::Host`].
    fn adopt(&self, share: &ShareSource, path: &Path) -> Result<(), ShareError>;

    /// The mount at `path`, or the one that contains it; `None` if unknown.
    fn mounted(&self, path: &Path) -> Option<Mounted>;

    /// Whether programs wait, instead of seeing I/O errors, while the file server of the share mounted at `path` is
    /// down; true if unknown.
    fn waits(&self, path: &Path) -> bool;

    /// Whether QEMU's locks on files below `path` stay local to this host; true if unknown.
    fn locks_stay(&self, path: &Path) -> bool;

    /// Unmounts what [`ShareDriver::attach`] mounted. Ok if nothing is mounted there.
    ///
    /// # Errors
    /// [`ShareError::Busy`]; [`ShareError::Mount`] if something else is mounted there; [`ShareError::Stuck`].
    fn detach(&self, share: &ShareSource, mountpoint: &Path) -> Result<(), ShareError>;

    /// Checks that the share's files can be used at `path` now.
    ///
    /// # Errors
    /// [`ShareError::NotAMount`], [`ShareError::Stuck`], [`ShareError::Unreachable`].
    fn check(&self, share: &ShareSource, path: &Path) -> Result<(), ShareError>;

    /// Free and total bytes of the share mounted at `path`, if they can be determined. Some mounts do not report them;
    /// then the file server is queried, which requires credentials.
    fn space(&self, share: &ShareSource, credentials: Option<&ShareCredentials>, path: &Path) -> Option<Space>;
}
