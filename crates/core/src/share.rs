//! What is known of file shares.

use serde::{Deserialize, Serialize};

use crate::{finding::Finding, id::ShareId, share_source::ShareSource, units::ByteCount};

/// How a host reaches a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// The agent mounted it and unmounts it when it is detached.
    Mounted,
    /// The administrator mounted it; the agent only uses it.
    Adopted,
}

/// A share on one host, as its agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AttachedShare {
    /// The share.
    pub id: ShareId,
    /// What stands behind it. Called `unc` between processes: earlier versions know no other name.
    #[serde(rename = "unc")]
    pub source: ShareSource,
    /// Who mounted it.
    pub mode: AttachMode,
    /// Whether its files can be used now; `None` if so, else why not.
    pub trouble: Option<String>,
    /// The same, with its kind and what to do about it. An agent of an earlier version does not say.
    #[serde(default)]
    pub finding: Option<Finding>,
    /// Free bytes, where the file server tells.
    pub free: Option<ByteCount>,
    /// All bytes, where the file server tells. An agent of an earlier version does not say.
    #[serde(default)]
    pub total: Option<ByteCount>,
    /// Programs see errors while the file server is away, instead of waiting: a mount of the kernel's without `hard`.
    #[serde(default)]
    pub soft: bool,
    /// QEMU's locks become locks of the file server, which keep QEMU itself from the file: a mount of the kernel's SMB
    /// client without `nobrl`. An agent of an earlier version does not say.
    #[serde(default)]
    pub server_locks: bool,
    /// Where the administrator has it on this host, if it is a path: not always the one by which it was added.
    #[serde(default)]
    pub at: Option<String>,
    /// What it appears as on the host, once that was looked at. An agent of an earlier version does not say.
    #[serde(default)]
    pub file_system: Option<FileSystem>,
}

/// A file system as a host has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileSystem {
    /// The kernel's word: `cifs`, `nfs4`, `fuse.smbnetfs`.
    pub kind: String,
    /// Whether the mount says whose every file is, and whoever gives one to another changes nothing.
    pub fixed_owner: bool,
}
