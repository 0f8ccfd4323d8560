//! Facts about file shares.

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

/// A share on one host, as its agent reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AttachedShare {
    /// The share.
    pub id: ShareId,
    /// Its source. Named `unc` between processes, because earlier versions know no other name.
    #[serde(rename = "unc")]
    pub source: ShareSource,
    /// Who mounted it.
    pub mode: AttachMode,
    /// Why its files cannot be used now; `None` if they can.
    pub trouble: Option<String>,
    /// `trouble` as a finding, with its kind and the fix. An agent of an earlier version omits the field.
    #[serde(default)]
    pub finding: Option<Finding>,
    /// Free bytes, where the file server reports them.
    pub free: Option<ByteCount>,
    /// Capacity in bytes, where the file server reports it. An agent of an earlier version omits the field.
    #[serde(default)]
    pub total: Option<ByteCount>,
    /// Programs see I/O errors while the file server is down, instead of waiting: a kernel mount without `hard`.
    #[serde(default)]
    pub soft: bool,
    /// QEMU's locks become locks of the file server, which then block QEMU itself: a mount by the kernel's SMB client
    /// without `nobrl`. An agent of an earlier version omits the field.
    #[serde(default)]
    pub server_locks: bool,
    /// The path of the administrator's mount on this host, if the source is a path; it may differ from the source.
    #[serde(default)]
    pub at: Option<String>,
    /// Its file system on the host, once determined. An agent of an earlier version omits the field.
    #[serde(default)]
    pub file_system: Option<FileSystem>,
}

/// A file system as a host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileSystem {
    /// The kernel's name of its type: `cifs`, `nfs4`, `fuse.smbnetfs`.
    pub kind: String,
    /// Whether the mount fixes the owner of all files, so that chown has no effect.
    pub fixed_owner: bool,
}
