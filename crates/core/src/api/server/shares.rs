//! Shares, and the hosts that they are attached to.

use serde::{Deserialize, Serialize};

use crate::{api::agent::ShareCredentials, id::ShareId, share::AttachedShare, share_source::ShareSource};

/// Adds a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AddShare {
    /// Its name in Ferry.
    #[cfg_attr(feature = "schema", schema(pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$", min_length = 1, max_length = 64))]
    pub name: String,
    /// `\\server.domain\share`, `nfs://server.domain/export` or `/path`. A string, so that a refusal can explain what
    /// is wrong with it. Named `unc` between processes, because earlier versions know no other name.
    #[serde(rename = "unc")]
    pub source: String,
}

/// Attaches a share on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AttachShare {
    /// The user to log in as. The server passes the credentials on and stores none of them.
    pub credentials: Option<ShareCredentials>,
    /// An existing mount of the administrator, to be adopted.
    pub at: Option<String>,
}

/// A share in the inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareView {
    /// Its id.
    pub id: ShareId,
    /// Its name.
    pub name: String,
    /// Its source: `\\server.domain\share`, `nfs://server.domain/export` or `/path`.
    #[serde(rename = "unc")]
    pub source: ShareSource,
    /// The hosts that have it attached.
    pub hosts: Vec<ShareOnHost>,
}

/// A share on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareOnHost {
    /// The host's name.
    pub host: String,
    /// The share as the host's agent reports it.
    pub attached: AttachedShare,
}
