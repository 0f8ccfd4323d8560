//! Errors of shares, and their findings for users.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use ferry_core::{
    finding::{Finding, FindingId},
    share_source::ShareSource,
};
use thiserror::Error;

/// Where an NFS server listens.
pub(super) const NFS_PORT: u16 = 2049;

/// An error of a share. Each variant is something that a caller treats differently.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The file server does not answer.
    #[error("The file server of {share} does not answer: {reason}")]
    Unreachable {
        /// The share.
        share: ShareSource,
        /// The client's message.
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
        /// The client's message.
        reason: String,
    },
    /// The file server speaks no SMB 3 dialect.
    #[error("The file server of {share} speaks no SMB 3 dialect: {reason}")]
    Dialect {
        /// The share.
        share: ShareSource,
        /// The client's message.
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
    /// A path to adopt is not a mount of the share.
    #[error("{} is not a mount of {share}: {found}", .at.display())]
    NotAMount {
        /// The share.
        share: ShareSource,
        /// The path.
        at: PathBuf,
        /// What is mounted there.
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
    /// It is mounted, but does not answer in time.
    #[error("{share} at {} gave no answer within {} s", .at.display(), .waited.as_secs())]
    Stuck {
        /// The share.
        share: ShareSource,
        /// Where.
        at: PathBuf,
        /// How long the caller waited.
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
    /// The finding to show to a user.
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
        ShareSource::Nfs(nfs) => answers(nfs.server(), NFS_PORT),
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
