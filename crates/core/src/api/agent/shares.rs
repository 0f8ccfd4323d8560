//! Shares of a host: which ones are attached, and the proof that two hosts have the same one.

use serde::{Deserialize, Serialize};

use crate::share_source::ShareSource;

/// How to reach a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// The share's source. Called `unc` between processes, because earlier versions know no other name.
    #[serde(rename = "unc")]
    pub source: ShareSource,
    /// The login for an SMB share that the agent is to mount. An adopted mount also needs it if the share is to be
    /// probed.
    pub credentials: Option<ShareCredentials>,
    /// The administrator's own mount of the share, to be adopted. A share that is a path is adopted there, or at the
    /// path of its name.
    pub at: Option<String>,
}

/// A login for a file server. The agent keeps it in a file that only root can read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareCredentials {
    /// The user; `DOMAIN\user` is allowed.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for ShareCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShareCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The content of a token file, which proves that two mounts are of the same share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareToken {
    /// Up to 64 letters and digits.
    pub content: String,
}

/// A step of the trial of whether QEMU's locks allow a hand-over on a share: two hosts take the locks on a scratch
/// image in the order of a real hand-over.
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
    /// The source creates the image, and QEMU's tool opens, locks and writes it, like the QEMU of a running VM.
    Hold,
    /// The destination opens the image without a lock, like the QEMU of an incoming VM.
    Open,
    /// The source's QEMU writes once more, while two hosts have the file open, and closes it.
    LetGo,
    /// The destination takes the locks of a running VM's QEMU, reads the source's last data, and writes.
    Take,
    /// The source reads the destination's data.
    Check,
}
