//! A file share on one host: probed, mounted or adopted, watched. The content of the share is the caller's business.
//!
//! [`smb::SmbShares`] is the real driver, [`fake::FakeShares`] the one for tests; [`conformance`] is what both keep.

pub mod conformance;
pub mod fake;
mod mounts;
pub mod smb;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use ferry_core::{
    api::agent::ShareCredentials,
    finding::{Finding, FindingId},
    location::UncPath,
    place::Space,
};
use thiserror::Error;

pub use self::mounts::file_system_of;

/// What a file server said of a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareFacts {
    /// The SMB dialect, `3.1.1`.
    pub dialect: String,
    /// Free and total bytes, if it told.
    pub space: Option<Space>,
}

/// What can go wrong with a share. Each variant is something that a caller treats differently.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The file server does not answer.
    #[error("The file server of {unc} does not answer: {reason}")]
    Unreachable {
        /// The share.
        unc: UncPath,
        /// What the SMB client said.
        reason: String,
    },
    /// The file server has no such share.
    #[error("The file server of {unc} has no share of that name")]
    NoShare {
        /// The share.
        unc: UncPath,
    },
    /// The file server refused the user or the password.
    #[error("The file server of {unc} refused user {user:?}: {reason}")]
    Password {
        /// The share.
        unc: UncPath,
        /// The user.
        user: String,
        /// What the SMB client said.
        reason: String,
    },
    /// The file server speaks no SMB 3 dialect.
    #[error("The file server of {unc} speaks no SMB 3 dialect: {reason}")]
    Dialect {
        /// The share.
        unc: UncPath,
        /// What the SMB client said.
        reason: String,
    },
    /// It could not be mounted, or something else is mounted there.
    #[error("Could not mount {unc} at {}: {reason}", .at.display())]
    Mount {
        /// The share.
        unc: UncPath,
        /// Where.
        at: PathBuf,
        /// Why.
        reason: String,
    },
    /// A path that shall be adopted is not a mount of the share.
    #[error("{} is not a mount of {unc}: {found}", .at.display())]
    NotAMount {
        /// The share.
        unc: UncPath,
        /// The path.
        at: PathBuf,
        /// What is there.
        found: String,
    },
    /// Its files are in use, so it stays mounted.
    #[error("{unc} at {} is in use", .at.display())]
    Busy {
        /// The share.
        unc: UncPath,
        /// Where.
        at: PathBuf,
    },
    /// It is mounted and does not answer in time.
    #[error("{unc} at {} gave no answer within {} s", .at.display(), .waited.as_secs())]
    Stuck {
        /// The share.
        unc: UncPath,
        /// Where.
        at: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The host lacks a program, or a file of the driver could not be written.
    #[error("Could not {what}")]
    Host {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ShareError {
    /// The finding that tells a user.
    pub fn finding(&self) -> Finding {
        let (id, object, fix) = match self {
            Self::Unreachable { unc, .. } | Self::Stuck { unc, .. } => (
                FindingId::ShareUnreachable,
                unc.to_string(),
                format!("Check that {} resolves on this host and answers on TCP port 445", unc.server()),
            ),
            Self::NoShare { unc } => (
                FindingId::ShareUnreachable,
                unc.to_string(),
                format!("Check the share's name; the server's administrator knows the shares of {}", unc.server()),
            ),
            Self::Password { unc, .. } => {
                (FindingId::SharePassword, unc.to_string(), "Give the right user and password".to_owned())
            }
            Self::Dialect { unc, .. } => (
                FindingId::ShareDialect,
                unc.to_string(),
                format!("Enable SMB 3 on {}; older dialects lose locks and writes on a reconnect", unc.server()),
            ),
            Self::Mount { at, .. } => (
                FindingId::ShareMount,
                at.display().to_string(),
                "Mend what the message names, then attach the share again".to_owned(),
            ),
            Self::NotAMount { unc, at, .. } => (
                FindingId::ShareMount,
                at.display().to_string(),
                format!("Mount {unc} at {} by its full name first, or let Ferry mount it", at.display()),
            ),
            Self::Busy { at, .. } => (
                FindingId::ShareInUse,
                at.display().to_string(),
                "Move or stop the VMs that use it, and close what else has files open there".to_owned(),
            ),
            Self::Host { what, .. } => (
                FindingId::ShareMount,
                what.clone(),
                "Run `ferry-agent setup` on the host; it says what is missing".to_owned(),
            ),
        };
        let cause = std::error::Error::source(self).map(|cause| format!(": {cause}")).unwrap_or_default();
        Finding::blocks(id, object, format!("{self}{cause}"), fix)
    }
}

/// File shares of one host. All calls block, each for a bounded time: also when the file server or the mount is dead.
pub trait ShareDriver: Send + Sync + 'static {
    /// Logs in to the share and asks what it is. Ok promises SMB 3, a valid user and an existing share.
    ///
    /// # Errors
    /// [`ShareError::Unreachable`], [`ShareError::NoShare`], [`ShareError::Password`], [`ShareError::Dialect`],
    /// [`ShareError::Host`].
    fn probe(&self, unc: &UncPath, credentials: &ShareCredentials) -> Result<ShareFacts, ShareError>;

    /// Mounts the share at `mountpoint`, which is made if it is missing. Ok if it is mounted there already; a dead
    /// mount of it is replaced. Ok promises that its files can be used below `mountpoint`.
    ///
    /// # Errors
    /// Those of [`ShareDriver::probe`], [`ShareError::Mount`]. After an error nothing new is mounted.
    fn attach(&self, unc: &UncPath, credentials: &ShareCredentials, mountpoint: &Path) -> Result<(), ShareError>;

    /// Makes sure that `path` is the top of a mount of the share that somebody else made.
    ///
    /// # Errors
    /// [`ShareError::NotAMount`], [`ShareError::Stuck`], [`ShareError::Host`].
    fn adopt(&self, unc: &UncPath, path: &Path) -> Result<(), ShareError>;

    /// Whether programs wait, instead of seeing errors, while the file server of the share mounted at `path` is away; true
    /// if that is not known.
    fn waits(&self, path: &Path) -> bool;

    /// Unmounts what [`ShareDriver::attach`] mounted. Ok if nothing is mounted there.
    ///
    /// # Errors
    /// [`ShareError::Busy`], [`ShareError::Mount`] (something else is mounted there), [`ShareError::Stuck`].
    fn detach(&self, unc: &UncPath, mountpoint: &Path) -> Result<(), ShareError>;

    /// Makes sure that the share's files can be used at `path` now.
    ///
    /// # Errors
    /// [`ShareError::NotAMount`], [`ShareError::Stuck`], [`ShareError::Unreachable`].
    fn check(&self, unc: &UncPath, path: &Path) -> Result<(), ShareError>;

    /// Free and total bytes of the share mounted at `path`, where they can be known. Some mounts do not tell; then the
    /// file server is asked, which needs credentials.
    fn space(&self, unc: &UncPath, credentials: Option<&ShareCredentials>, path: &Path) -> Option<Space>;
}
