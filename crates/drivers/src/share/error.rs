//! Errors of shares, and their findings for users.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use ferry_core::{
    finding::{ByHand, Command, Finding, FindingId, Fix, Message},
    share_source::ShareSource,
};
use thiserror::Error;

/// Where an NFS server listens.
pub(super) const NFS_PORT: u16 = 2049;
/// Where an SMB server listens.
pub(super) const SMB_PORT: u16 = 445;

/// An error of a share. Each variant is something that a caller treats differently.
#[derive(Debug, Error)]
#[error("{}", self.message())]
pub enum ShareError {
    /// The file server does not answer.
    Unreachable {
        /// The share.
        share: ShareSource,
        /// The client's message.
        reason: String,
    },
    /// The file server has no such share.
    NoShare {
        /// The share.
        share: ShareSource,
    },
    /// The file server refused the user or the password.
    Password {
        /// The share.
        share: ShareSource,
        /// The user.
        user: String,
        /// The client's message.
        reason: String,
    },
    /// The file server speaks no SMB 3 dialect.
    Dialect {
        /// The share.
        share: ShareSource,
        /// The client's message.
        reason: String,
    },
    /// It could not be mounted, or something else is mounted there.
    Mount {
        /// The share.
        share: ShareSource,
        /// Where.
        at: PathBuf,
        /// Why.
        reason: String,
    },
    /// A path to adopt is not a mount of the share.
    NotAMount {
        /// The share.
        share: ShareSource,
        /// The path.
        at: PathBuf,
        /// What is mounted there.
        found: String,
    },
    /// Its files are in use, so it stays mounted.
    Busy {
        /// The share.
        share: ShareSource,
        /// Where.
        at: PathBuf,
    },
    /// It is mounted, but does not answer in time.
    Stuck {
        /// The share.
        share: ShareSource,
        /// Where.
        at: PathBuf,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The host lacks a program, or a file of the driver could not be written.
    Host {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ShareError {
    /// What it says, without a cause that it has.
    fn message(&self) -> Message {
        let at_of = |at: &Path| at.display().to_string();
        match self {
            Self::Unreachable { share, reason } => {
                Message::ServerSilent { share: share.to_string(), reason: reason.clone() }
            }
            Self::NoShare { share } => Message::ServerHasNoShare { share: share.to_string() },
            Self::Password { share, user, reason } => {
                Message::ServerRefused { share: share.to_string(), user: user.clone(), reason: reason.clone() }
            }
            Self::Dialect { share, reason } => {
                Message::ServerDialect { share: share.to_string(), reason: reason.clone() }
            }
            Self::Mount { share, at, reason } => {
                Message::ShareNotMounted { share: share.to_string(), at: at_of(at), reason: reason.clone() }
            }
            Self::NotAMount { share, at, found } => {
                Message::NotAMount { share: share.to_string(), at: at_of(at), reason: found.clone() }
            }
            Self::Busy { share, at } => Message::ShareBusy { share: share.to_string(), at: at_of(at) },
            Self::Stuck { share, at, waited } => {
                Message::ShareSilent { share: share.to_string(), at: at_of(at), seconds: waited.as_secs() }
            }
            Self::Host { what, .. } => Message::CouldNot { what: what.clone() },
        }
    }

    /// The finding to show to a user.
    pub fn finding(&self) -> Finding {
        let at_of = |at: &Path| at.display().to_string();
        let (id, object, fix): (_, _, Fix) = match self {
            Self::Unreachable { share, .. } | Self::Stuck { share, .. } => {
                (FindingId::ShareUnreachable, share.to_string(), how_to_reach(share).into())
            }
            Self::NoShare { share } => (FindingId::ShareUnreachable, share.to_string(), ByHand::CheckShareName.into()),
            Self::Password { share, .. } => {
                (FindingId::SharePassword, share.to_string(), ByHand::GiveRightPassword.into())
            }
            Self::Dialect { share, .. } => (FindingId::ShareDialect, share.to_string(), ByHand::EnableSmb3.into()),
            Self::Mount { at, .. } => (FindingId::ShareMount, at_of(at), ByHand::MendMount.into()),
            Self::NotAMount { share, at, .. } => (FindingId::ShareMount, at_of(at), how_to_mount(share, at).into()),
            Self::Busy { at, .. } => (FindingId::ShareInUse, at_of(at), ByHand::FreeShare.into()),
            Self::Host { what, .. } => (FindingId::ShareMount, what.clone(), Command::SetUpHost.into()),
        };
        let message = match self {
            Self::Host { what, source } => Message::CouldNotBecause { what: what.clone(), reason: source.to_string() },
            Self::Unreachable { .. }
            | Self::NoShare { .. }
            | Self::Password { .. }
            | Self::Dialect { .. }
            | Self::Mount { .. }
            | Self::NotAMount { .. }
            | Self::Busy { .. }
            | Self::Stuck { .. } => self.message(),
        };
        Finding::blocks(id, object, message, fix)
    }
}

fn how_to_reach(share: &ShareSource) -> ByHand {
    match share {
        ShareSource::Smb(unc) => ByHand::CheckServer { server: unc.server().to_owned(), port: SMB_PORT },
        ShareSource::Nfs(nfs) => ByHand::CheckServer { server: nfs.server().to_owned(), port: NFS_PORT },
        ShareSource::Path(_) => ByHand::CheckMountedThere,
    }
}

fn how_to_mount(share: &ShareSource, at: &Path) -> ByHand {
    let at = at.display().to_string();
    match share {
        ShareSource::Smb(_) => ByHand::MountByFullName { share: share.to_string(), at },
        ShareSource::Nfs(nfs) => ByHand::MountByFullName { share: format!("{}:{}", nfs.server(), nfs.export()), at },
        ShareSource::Path(_) => ByHand::MountSharedFileSystem { at },
    }
}
