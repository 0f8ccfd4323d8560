//! File shares of one host: what Ferry needs of an SMB client, and nothing else.

mod command;
pub mod fake;
pub mod smb;

use std::path::{Path, PathBuf};

use ferry_core::{
    api::agent::ShareCredentials,
    id::ShareId,
    location::UncPath,
};
use thiserror::Error;

/// What can go wrong with a share. Each variant is a finding of its own.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ShareError {
    /// The server speaks no SMB 3 dialect.
    #[error("The server of {unc} speaks no SMB 3 dialect")]
    Dialect {
        /// The share.
        unc: UncPath,
    },
    /// The server refused user or password.
    #[error("The server of {unc} refused user {user} or the password")]
    Password {
        /// The share.
        unc: UncPath,
        /// Who tried to log in.
        user: String,
    },
    /// The server does not answer, or has no such share.
    #[error("Share {unc} cannot be reached: {reason}")]
    Unreachable {
        /// The share.
        unc: UncPath,
        /// The client's words.
        reason: String,
    },
    /// The mount failed, or is not one of this share.
    #[error("Share {unc} cannot be used at {}: {reason}", path.display())]
    Mount {
        /// The share.
        unc: UncPath,
        /// Where.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// A share to mount.
#[derive(Clone, Debug)]
pub struct Attach<'a> {
    /// Its id; the mount point is named by it.
    pub id: ShareId,
    /// What to mount.
    pub unc: &'a UncPath,
    /// Who logs in.
    pub credentials: &'a ShareCredentials,
}

/// The file shares of one host. All calls block, and none longer than a minute.
pub trait ShareDriver: Send + Sync + 'static {
    /// Logs in once. Ok promises that the share exists, speaks SMB 3, and takes the credentials.
    ///
    /// # Errors
    /// Any but [`ShareError::Mount`].
    fn probe(&self, unc: &UncPath, credentials: &ShareCredentials) -> Result<(), ShareError>;

    /// Mounts a share. Ok holds the directory of its content; repeating it is safe.
    ///
    /// # Errors
    /// [`ShareError::Mount`]; nothing is left mounted.
    fn attach(&self, attach: &Attach<'_>) -> Result<PathBuf, ShareError>;

    /// Checks that `path` is in a mount of this share that somebody else made. Ok holds the directory of its content.
    ///
    /// # Errors
    /// [`ShareError::Mount`] saying what is there instead.
    fn adopt(&self, unc: &UncPath, path: &Path) -> Result<PathBuf, ShareError>;

    /// Unmounts what [`ShareDriver::attach`] mounted. Ok if it is not mounted.
    ///
    /// # Errors
    /// [`ShareError::Mount`], also while files on it are open.
    fn detach(&self, id: ShareId, unc: &UncPath) -> Result<(), ShareError>;

    /// Why the content at `path` cannot be used now, if so. Answers within seconds also when the mount hangs.
    fn trouble(&self, path: &Path) -> Option<String>;
}
