//! UNC paths, the names of SMB shares.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::finding::{ByHand, Finding, FindingId, Message};

/// A UNC path of a share: `\\server\share`, with a fully qualified server name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UncPath {
    server: String,
    share: String,
}

/// Why a text is not a usable UNC path.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", self.message())]
pub enum UncError {
    /// Not of the form `\\server\share`.
    Form(String),
    /// The server name has no domain: two hosts may resolve it to different servers.
    NotQualified {
        /// What was given.
        unc: String,
        /// The short server name.
        server: String,
        /// The share name.
        share: String,
    },
}

impl UncError {
    /// What was given, as the administrator wrote it.
    pub fn text(&self) -> &str {
        match self {
            Self::Form(text) => text,
            Self::NotQualified { unc, .. } => unc,
        }
    }

    pub(crate) fn message(&self) -> Message {
        match self.clone() {
            Self::Form(text) => Message::ShareNotUnc { text },
            Self::NotQualified { unc, server, share } => Message::UncNotQualified { unc, server, share },
        }
    }

    /// The finding to show to a user, on `object`.
    pub fn finding(&self, object: impl fmt::Display) -> Finding {
        let (id, fix) = match self {
            Self::Form(_) => (FindingId::ShareForm, ByHand::WriteUnc),
            Self::NotQualified { .. } => (FindingId::ShareNotQualified, ByHand::WriteFullName),
        };
        Finding::blocks(id, object, self.message(), fix)
    }
}

impl UncPath {
    /// The server's fully qualified name, in lower case.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The share's name as given. SMB ignores case in share names; so does [`UncPath::same_as`].
    pub fn share(&self) -> &str {
        &self.share
    }

    /// Whether both name the same share.
    pub fn same_as(&self, other: &Self) -> bool {
        self.server == other.server && self.share.eq_ignore_ascii_case(&other.share)
    }
}

impl FromStr for UncPath {
    type Err = UncError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || UncError::Form(text.to_owned());
        let slashed = text.replace('\\', "/");
        let rest = slashed.strip_prefix("//").ok_or_else(form)?;
        let mut parts = rest.trim_end_matches('/').split('/');
        let (Some(server), Some(share), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(form());
        };
        if !is_name(share, &['-', '_', '.', '$']) || share.len() > 80 {
            return Err(form());
        }
        let server = server_name(server).map_err(|error| match error {
            ServerNameError::Form => form(),
            ServerNameError::NotQualified => UncError::NotQualified {
                unc: format!("\\\\{server}\\{share}"),
                server: server.to_owned(),
                share: share.to_owned(),
            },
        })?;
        Ok(Self { server, share: share.to_owned() })
    }
}

/// Why a text is not the full name of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerNameError {
    /// It is not a valid name.
    Form,
    /// It has no domain, or is an address.
    NotQualified,
}

/// A server's fully qualified name, in lower case.
pub(crate) fn server_name(text: &str) -> Result<String, ServerNameError> {
    if !is_name(text, &['-', '.']) {
        return Err(ServerNameError::Form);
    }
    let name = text.trim_end_matches('.');
    if name.parse::<std::net::Ipv4Addr>().is_ok() || !name.contains('.') {
        return Err(ServerNameError::NotQualified);
    }
    Ok(name.to_ascii_lowercase())
}

fn is_name(text: &str, extra: &[char]) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && !text.starts_with(['-', '.'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(&c))
}

impl fmt::Display for UncPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\\\\{}\\{}", self.server, self.share)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_unc_path_needs_a_fully_qualified_server() {
        for good in ["\\\\fs1.contoso.com\\vms", "//FS1.contoso.com/vms", "\\\\fs1.contoso.com.\\vms\\"] {
            let unc: UncPath = good.parse().expect(good);
            assert_eq!(unc.server(), "fs1.contoso.com");
            assert_eq!(unc.to_string(), "\\\\fs1.contoso.com\\vms");
        }
        for short in ["\\\\fs1\\vms", "//10.0.0.1/vms"] {
            assert!(matches!(short.parse::<UncPath>(), Err(UncError::NotQualified { .. })), "{short}");
        }
        for bad in [
            "",
            "vms",
            "\\\\fs1.contoso.com",
            "\\\\a.b\\c\\d",
            "\\\\a b.c\\d",
            "\\\\-a.b\\c",
            "\\\\a.b\\..;rm",
            "/a.b/c",
        ] {
            assert!(matches!(bad.parse::<UncPath>(), Err(UncError::Form(_))), "{bad}");
        }
    }

    #[test]
    fn share_names_compare_without_case() {
        let a: UncPath = "\\\\fs.x.org\\VMs".parse().expect("well formed");
        let b: UncPath = "\\\\FS.x.org\\vms".parse().expect("well formed");
        assert!(a.same_as(&b));
    }

    proptest! {
        #[test]
        fn unc_parsing_never_panics_and_is_stable(text: String) {
            if let Ok(unc) = text.parse::<UncPath>() {
                prop_assert_eq!(unc.to_string().parse::<UncPath>(), Ok(unc));
            }
        }
    }
}
