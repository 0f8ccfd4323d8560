//! Where a file is: on a share or on one host. Mount points differ between hosts and never appear here.

use serde::{Deserialize, Serialize};

use crate::id::{HostId, ShareId};

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "on", rename_all = "snake_case")]
pub enum Location {
    /// On a share, at a path inside it (`/` between components, no leading slash).
    Share {
        /// The share.
        share: ShareId,
        /// Path inside the share.
        path: String,
    },
    /// On one host only, at an absolute path.
    Local {
        /// The host.
        host: HostId,
        /// Absolute path on that host.
        path: String,
    },
}

impl Location {
    /// The share it lies on, if it lies on one.
    pub fn share(&self) -> Option<ShareId> {
        match self {
            Self::Share { share, .. } => Some(*share),
            Self::Local { .. } => None,
        }
    }

    /// Its path: inside the share, or on the host.
    pub fn path(&self) -> &str {
        let (Self::Share { path, .. } | Self::Local { path, .. }) = self;
        path
    }

    /// Another path on the same share or host.
    pub fn with_path(&self, path: String) -> Self {
        match self {
            Self::Share { share, .. } => Self::Share { share: *share, path },
            Self::Local { host, .. } => Self::Local { host: *host, path },
        }
    }

    /// The last component of its path; `None` if the path ends in a slash or is empty.
    pub fn file_name(&self) -> Option<&str> {
        self.path().rsplit('/').next().filter(|name| !name.is_empty())
    }

    /// The folder that contains it; for an entry at the top, the top of the share or host.
    pub fn parent(&self) -> Self {
        let folder = self.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        match self {
            Self::Local { .. } if folder.is_empty() => self.with_path("/".to_owned()),
            Self::Local { .. } | Self::Share { .. } => self.with_path(folder.to_owned()),
        }
    }

    /// The location of `name` in this folder.
    pub fn join(&self, name: &str) -> Self {
        let path = self.path();
        let folder = path.trim_end_matches('/');
        let is_top_of_share = folder.is_empty() && !path.starts_with('/');
        self.with_path(if is_top_of_share { name.to_owned() } else { format!("{folder}/{name}") })
    }
}

#[cfg(test)]
mod tests {

    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_name_is_put_into_a_folder_and_taken_from_it() {
        let local = |path: &str| Location::Local { host: HostId(Uuid::nil()), path: path.into() };
        let share = |path: &str| Location::Share { share: ShareId(Uuid::nil()), path: path.into() };
        for (folder, parent, file) in [
            (local("/"), local("/"), local("/x.raw")),
            (local("/a"), local("/a"), local("/a/x.raw")),
            (local("/a/"), local("/a"), local("/a/x.raw")),
            (share(""), share(""), share("x.raw")),
            (share("a/b/"), share("a/b"), share("a/b/x.raw")),
        ] {
            assert_eq!(folder.join("x.raw"), file);
            assert_eq!((file.parent(), file.file_name()), (parent, Some("x.raw")), "{file:?}");
        }
        assert_eq!((local("/a/").file_name(), share("").file_name(), share("x").parent()), (None, None, share("")));
    }
}
