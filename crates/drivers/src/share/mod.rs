//! A file share on one host: probed, mounted or adopted, watched. The content of the share is the caller's business.
//!
//! [`host::HostShares`] is the real driver, for shares of every kind; [`fake::FakeShares`] is the one for tests;
//! [`conformance`] is what both keep.

mod calls;
pub mod conformance;
pub mod fake;
pub mod host;
mod mounts;
mod nfs;
mod path;
pub mod smb;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use ferry_core::{
    api::agent::ShareCredentials,
    finding::{Finding, FindingId},
    place::Space,
    release::is_known_as_shared,
    share_source::ShareSource,
};
use thiserror::Error;

pub use self::mounts::file_system_of;
pub(crate) use self::mounts::{Mount, every_name, holding, parse, shown};

/// What a file server said of a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareFacts {
    /// The SMB dialect, `3.1.1`; other kinds agree on theirs when they mount.
    pub dialect: Option<String>,
    /// Free and total bytes, if it told.
    pub space: Option<Space>,
}

/// What can go wrong with a share. Each variant is something that a caller treats differently.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The file server does not answer.
    #[error("The file server of {share} does not answer: {reason}")]
    Unreachable {
        /// The share.
        share: ShareSource,
        /// What the client said.
        reason: String,
    },
    /// The file server has no such share.
    #[error("The file server of {share} has no share of that name")]
    NoShare {
        /// The share.
        share: ShareSource,
    },
    /// The file server refused the user or the password.
    #[error("The file server of {share} refused user {user:?}: {reason}")]
    Password {
        /// The share.
        share: ShareSource,
        /// The user.
        user: String,
        /// What the client said.
        reason: String,
    },
    /// The file server speaks no SMB 3 dialect.
    #[error("The file server of {share} speaks no SMB 3 dialect: {reason}")]
    Dialect {
        /// The share.
        share: ShareSource,
        /// What the client said.
        reason: String,
    },
    /// It could not be mounted, or something else is mounted there.
    #[error("Could not mount {share} at {}: {reason}", .at.display())]
    Mount {
        /// The share.
        share: ShareSource,
        /// Where.
        at: PathBuf,
        /// Why.
        reason: String,
    },
    /// A path that shall be adopted is not a mount of the share.
    #[error("{} is not a mount of {share}: {found}", .at.display())]
    NotAMount {
        /// The share.
        share: ShareSource,
        /// The path.
        at: PathBuf,
        /// What is there.
        found: String,
    },
    /// Its files are in use, so it stays mounted.
    #[error("{share} at {} is in use", .at.display())]
    Busy {
        /// The share.
        share: ShareSource,
        /// Where.
        at: PathBuf,
    },
    /// It is mounted and does not answer in time.
    #[error("{share} at {} gave no answer within {} s", .at.display(), .waited.as_secs())]
    Stuck {
        /// The share.
        share: ShareSource,
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
            Self::Unreachable { share, .. } | Self::Stuck { share, .. } => {
                (FindingId::ShareUnreachable, share.to_string(), how_to_reach(share))
            }
            Self::NoShare { share } => (
                FindingId::ShareUnreachable,
                share.to_string(),
                "Check the share's name; the file server's administrator knows its shares".to_owned(),
            ),
            Self::Password { share, .. } => {
                (FindingId::SharePassword, share.to_string(), "Give the right user and password".to_owned())
            }
            Self::Dialect { share, .. } => (
                FindingId::ShareDialect,
                share.to_string(),
                "Enable SMB 3 on the file server; older dialects lose locks and writes on a reconnect".to_owned(),
            ),
            Self::Mount { at, .. } => (
                FindingId::ShareMount,
                at.display().to_string(),
                "Mend what the message names, then attach the share again".to_owned(),
            ),
            Self::NotAMount { share, at, .. } => {
                (FindingId::ShareMount, at.display().to_string(), how_to_mount(share, at))
            }
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

fn how_to_reach(share: &ShareSource) -> String {
    let answers =
        |server: &str, port| format!("Check that {server} resolves on this host and answers on TCP port {port}");
    match share {
        ShareSource::Smb(unc) => answers(unc.server(), 445),
        ShareSource::Nfs(nfs) => answers(nfs.server(), nfs::PORT),
        ShareSource::Path(_) => "Check the file system that is mounted there on this host".to_owned(),
    }
}

fn how_to_mount(share: &ShareSource, at: &Path) -> String {
    match share {
        ShareSource::Smb(_) => {
            format!("Mount {share} at {} by its full name first, or let Ferry mount it", at.display())
        }
        ShareSource::Nfs(nfs) => format!(
            "Mount {}:{} at {} by its full name first, or let Ferry mount it",
            nfs.server(),
            nfs.export(),
            at.display()
        ),
        ShareSource::Path(_) => format!(
            "Mount the shared file system on this host and name its directory; attach the share again if what is mounted \
             at {} was changed on purpose",
            at.display()
        ),
    }
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
