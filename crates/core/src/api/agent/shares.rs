//! Shares of a host: what is attached, and how it is shown to be the same as another host's.

use serde::{Deserialize, Serialize};

use crate::share_source::ShareSource;

/// How a share is to be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// What to reach. Called `unc` between processes: earlier versions know no other name.
    #[serde(rename = "unc")]
    pub source: ShareSource,
    /// Who logs in, if the agent is to mount an SMB share. Needed also for an adopted mount when the share is to be probed.
    pub credentials: Option<ShareCredentials>,
    /// The administrator's own mount of it, to be adopted. A share that is a path is adopted there, or where its name says.
    pub at: Option<String>,
}

/// Who logs in to a file server. Kept by the agent in a file that only root reads.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareCredentials {
    /// User, `DOMAIN\user` allowed.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for ShareCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShareCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Content of a token file, by which two mounts are shown to be of one share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareToken {
    /// Up to 64 letters and digits.
    pub content: String,
}

/// A step of the trial whether QEMU's locks let a VM be handed over on a share: two hosts take them on a scratch image in
/// the order in which the QEMUs of a hand-over do.
///
/// ```text
/// source        Hold ─────────────────── LetGo ────────── Check
///                open, locked, written    write, close     reads what the destination wrote
/// destination            Open ────────────────── Take
///                         open beside it          lock, read, write
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockStep {
    /// The source makes the image, and QEMU's tool opens, locks and writes it, as a running VM's QEMU has it.
    Hold,
    /// The destination opens the image without a lock, as an incoming VM's QEMU does.
    Open,
    /// The source's QEMU writes once more, now that the file is open on two hosts, and closes it.
    LetGo,
    /// The destination takes the locks that a running VM's QEMU has, reads what the source wrote last, and writes.
    Take,
    /// The source reads what the destination wrote.
    Check,
}
