//! The source of a share: an SMB share, an NFS export, or a path that, according to an administrator, has the same
//! content on several hosts. Each has one text form, which is entered, shown, stored and sent:
//!
//! ```text
//! \\server.domain\share      nfs://server.domain/export      /mnt/vms
//! ```

use std::{fmt, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    finding::{ByHand, Finding, FindingId, Message},
    unc::{ServerNameError, UncError, UncPath, server_name},
};

/// Longest path that Linux accepts, in bytes.
const PATH_BYTES_MAX: usize = 4095;
/// Longest name of a file or directory that Linux accepts, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// How the text of an NFS export begins.
const NFS: &str = "nfs://";

/// The source of a share.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ShareSource {
    /// `\\server.domain\share`. Ferry mounts it, or adopts a mount of it.
    Smb(UncPath),
    /// `nfs://server.domain/export`. Ferry mounts it, or adopts a mount of it.
    Nfs(NfsExport),
    /// `/mnt/vms`: a path with the same content on every host that has it attached. Ferry adopts it.
    Path(SharedPath),
}

/// A directory that an NFS server exports, or one inside of it: `nfs://server.domain/export`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NfsExport {
    server: String,
    export: String,
}

/// An absolute path, without `.`, `..` and doubled slashes, and not `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SharedPath(String);

/// Why a text is not the source of a share.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", self.message())]
pub enum SourceError {
    /// It begins like none of the forms.
    Form(String),
    /// It begins like a UNC path, but is not a valid one.
    Unc(#[from] UncError),
    /// It begins like an NFS export, but is not a valid one.
    Nfs(String),
    /// The server of an NFS export has no domain: two hosts may resolve it to different servers.
    NotQualified {
        /// What was given.
        text: String,
        /// The short server name.
        server: String,
    },
    /// It begins like a path, but cannot be the path of a share.
    Path(String),
}

impl SourceError {
    /// What was given, as the administrator wrote it.
    pub fn text(&self) -> &str {
        match self {
            Self::Form(text) | Self::Nfs(text) | Self::NotQualified { text, .. } | Self::Path(text) => text,
            Self::Unc(error) => error.text(),
        }
    }

    pub(crate) fn message(&self) -> Message {
        match self.clone() {
            Self::Form(text) => Message::ShareForm { text },
            Self::Unc(error) => error.message(),
            Self::Nfs(text) => Message::ShareNotNfs { text },
            Self::NotQualified { text, server } => Message::NfsNotQualified { text, server },
            Self::Path(text) => Message::ShareNotPath { text },
        }
    }

    /// The finding to show to a user, on `object`.
    pub fn finding(&self, object: impl fmt::Display) -> Finding {
        let (id, fix) = match self {
            Self::Unc(error) => return error.finding(object),
            Self::Form(_) => (FindingId::ShareForm, ByHand::WriteShare),
            Self::Nfs(_) => (FindingId::ShareForm, ByHand::WriteNfs),
            Self::NotQualified { .. } => (FindingId::ShareNotQualified, ByHand::WriteFullName),
            Self::Path(_) => (FindingId::ShareForm, ByHand::WriteSharedPath),
        };
        Finding::blocks(id, object, self.message(), fix)
    }
}

impl ShareSource {
    /// The text by which sources are compared: SMB ignores case in names.
    pub fn key(&self) -> String {
        match self {
            Self::Smb(unc) => unc.to_string().to_ascii_lowercase(),
            Self::Nfs(_) | Self::Path(_) => self.to_string(),
        }
    }

    /// Whether both mean the same share.
    pub fn same_as(&self, other: &Self) -> bool {
        self.key() == other.key()
    }

    /// The file server's name, if there is one.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::Smb(unc) => Some(unc.server()),
            Self::Nfs(nfs) => Some(nfs.server()),
            Self::Path(_) => None,
        }
    }

    /// Whether its file server requires a user and a password.
    pub fn wants_login(&self) -> bool {
        match self {
            Self::Smb(_) => true,
            Self::Nfs(_) | Self::Path(_) => false,
        }
    }

    /// The file at `path` in the share (`/` between components, empty for the top), as an administrator writes it.
    pub fn written(&self, path: &str) -> String {
        match self {
            Self::Smb(_) if path.is_empty() => self.to_string(),
            Self::Smb(unc) => format!("{unc}\\{}", path.replace('/', "\\")),
            Self::Nfs(_) | Self::Path(_) if path.is_empty() => self.to_string(),
            Self::Nfs(_) | Self::Path(_) => format!("{}/{path}", self.to_string().trim_end_matches('/')),
        }
    }
}

impl NfsExport {
    /// The server's fully qualified name, in lower case.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The absolute path on the server.
    pub fn export(&self) -> &str {
        &self.export
    }

    /// The path of `inner` inside this export; `None` if it is not inside.
    pub fn holds<'a>(&self, inner: &'a Self) -> Option<&'a str> {
        if self.server == inner.server { below(&self.export, &inner.export) } else { None }
    }
}

impl SharedPath {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The part of `path` below the directory `top`; `None` if it is not below.
pub(crate) fn below<'a>(top: &str, path: &'a str) -> Option<&'a str> {
    Path::new(path).strip_prefix(top).ok()?.to_str()
}

/// Why a text is not a valid path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadPath {
    /// It contains `..`.
    Climbs,
    /// It contains control characters, or it or a name in it is too long.
    Form,
}

/// The components of a path, without empty ones and `.`.
pub(crate) fn components(path: &str) -> Result<Vec<&str>, BadPath> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if names.contains(&"..") {
        return Err(BadPath::Climbs);
    }
    let too_long = path.len() > PATH_BYTES_MAX || names.iter().any(|name| name.len() > NAME_BYTES_MAX);
    if too_long || path.contains(char::is_control) {
        return Err(BadPath::Form);
    }
    Ok(names)
}

/// Whether a text looks like an NFS export.
pub(crate) fn is_nfs(text: &str) -> bool {
    text.get(..NFS.len()).is_some_and(|start| start.eq_ignore_ascii_case(NFS))
}

/// Whether a text looks like a UNC path.
pub(crate) fn is_unc(text: &str) -> bool {
    text.starts_with("\\\\") || text.starts_with("//")
}

impl FromStr for NfsExport {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || SourceError::Nfs(text.chars().take(NAME_BYTES_MAX).collect());
        if !is_nfs(text) {
            return Err(form());
        }
        let (server, path) = text[NFS.len()..].split_once('/').ok_or_else(form)?;
        let names = components(path).map_err(|_| form())?;
        let server = server_name(server).map_err(|error| match error {
            ServerNameError::Form => form(),
            ServerNameError::NotQualified => {
                SourceError::NotQualified { text: text.to_owned(), server: server.to_owned() }
            }
        })?;
        Ok(Self { server, export: format!("/{}", names.join("/")) })
    }
}

impl fmt::Display for NfsExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NFS}{}{}", self.server, self.export)
    }
}

impl FromStr for SharedPath {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || SourceError::Path(text.chars().take(NAME_BYTES_MAX).collect());
        let names = components(text).map_err(|_| refused())?;
        if names.is_empty() || !text.starts_with('/') {
            return Err(refused());
        }
        Ok(Self(format!("/{}", names.join("/"))))
    }
}

impl FromStr for ShareSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_unc(text) {
            Ok(Self::Smb(text.parse()?))
        } else if is_nfs(text) {
            Ok(Self::Nfs(text.parse()?))
        } else if text.starts_with('/') {
            Ok(Self::Path(text.parse()?))
        } else {
            Err(SourceError::Form(text.chars().take(NAME_BYTES_MAX).collect()))
        }
    }
}

impl fmt::Display for ShareSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Smb(unc) => unc.fmt(f),
            Self::Nfs(nfs) => nfs.fmt(f),
            Self::Path(SharedPath(path)) => f.write_str(path),
        }
    }
}

impl TryFrom<String> for ShareSource {
    type Error = SourceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ShareSource> for String {
    fn from(source: ShareSource) -> Self {
        source.to_string()
    }
}

impl From<&ShareSource> for ShareSource {
    fn from(source: &ShareSource) -> Self {
        source.clone()
    }
}

impl From<&UncPath> for ShareSource {
    fn from(unc: &UncPath) -> Self {
        Self::Smb(unc.clone())
    }
}

impl From<&NfsExport> for ShareSource {
    fn from(nfs: &NfsExport) -> Self {
        Self::Nfs(nfs.clone())
    }
}

impl From<&SharedPath> for ShareSource {
    fn from(path: &SharedPath) -> Self {
        Self::Path(path.clone())
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for ShareSource {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for ShareSource {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(text: &str) -> ShareSource {
        text.parse().expect(text)
    }

    #[test]
    fn a_share_is_smb_nfs_or_a_path_and_has_one_text() {
        for (text, shown, server) in [
            ("//FS1.contoso.com/vms", "\\\\fs1.contoso.com\\vms", Some("fs1.contoso.com")),
            ("nfs://FS1.contoso.com/srv//vms/", "nfs://fs1.contoso.com/srv/vms", Some("fs1.contoso.com")),
            ("NFS://fs1.contoso.com./srv/./vms", "nfs://fs1.contoso.com/srv/vms", Some("fs1.contoso.com")),
            ("nfs://fs1.contoso.com/", "nfs://fs1.contoso.com/", Some("fs1.contoso.com")),
            ("/mnt//vms/", "/mnt/vms", None),
        ] {
            let source = source(text);
            assert_eq!((source.to_string().as_str(), source.server()), (shown, server), "{text}");
            assert_eq!(serde_json::to_string(&source).expect("JSON"), format!("{shown:?}"), "{text}");
        }
    }

    #[test]
    fn what_names_no_share_is_refused_with_its_reason() {
        let long = format!("/{}", "x".repeat(256));
        for (text, id, word) in [
            ("", FindingId::ShareForm, "names no share"),
            ("vms", FindingId::ShareForm, "names no share"),
            ("fs1.contoso.com:/vms", FindingId::ShareForm, "names no share"),
            ("\\fs1.contoso.com\\vms", FindingId::ShareForm, "names no share"),
            ("\\\\fs1.contoso.com", FindingId::ShareForm, "not a UNC path"),
            ("\\\\fs1\\vms", FindingId::ShareNotQualified, "without a domain"),
            ("nfs://fs1.contoso.com", FindingId::ShareForm, "not an NFS export"),
            ("nfs:///vms", FindingId::ShareForm, "not an NFS export"),
            ("nfs://a,b.c/vms", FindingId::ShareForm, "not an NFS export"),
            ("nfs://fs1.contoso.com/a/../b", FindingId::ShareForm, "not an NFS export"),
            ("nfs://fs1.contoso.com/a\nb", FindingId::ShareForm, "not an NFS export"),
            ("nfs://fs1/vms", FindingId::ShareNotQualified, "without a domain"),
            ("nfs://10.0.0.1/vms", FindingId::ShareNotQualified, "without a domain"),
            ("/", FindingId::ShareForm, "cannot be the path"),
            ("/a/../b", FindingId::ShareForm, "cannot be the path"),
            ("/a\0b", FindingId::ShareForm, "cannot be the path"),
            (&long, FindingId::ShareForm, "cannot be the path"),
        ] {
            let finding = text.parse::<ShareSource>().expect_err(text).finding("vms");
            assert_eq!((finding.id, finding.object.as_str()), (id, "vms"), "{text}");
            assert!(
                finding.message.to_string().contains(word) && !finding.fix.to_string().is_empty(),
                "{text}: {finding:?}"
            );
        }
    }

    #[test]
    fn only_smb_compares_without_case() {
        for (one, other, same) in [
            ("\\\\fs.x.org\\VMs", "//FS.x.org/vms", true),
            ("nfs://FS.x.org/vms", "nfs://fs.x.org/vms/", true),
            ("nfs://fs.x.org/VMs", "nfs://fs.x.org/vms", false),
            ("/mnt/VMs", "/mnt/vms", false),
            ("/mnt/vms", "nfs://fs.x.org/mnt/vms", false),
        ] {
            assert_eq!(source(one).same_as(&source(other)), same, "{one} {other}");
        }
    }

    #[test]
    fn what_lies_in_a_share_is_written_in_the_form_of_the_share() {
        for (text, path, written) in [
            ("//fs.x.org/vms", "a/b.raw", "\\\\fs.x.org\\vms\\a\\b.raw"),
            ("nfs://fs.x.org/vms", "a/b.raw", "nfs://fs.x.org/vms/a/b.raw"),
            ("nfs://fs.x.org/", "a", "nfs://fs.x.org/a"),
            ("nfs://fs.x.org/vms", "", "nfs://fs.x.org/vms"),
            ("/mnt/vms", "a/b.raw", "/mnt/vms/a/b.raw"),
            ("/mnt/vms", "", "/mnt/vms"),
        ] {
            assert_eq!(source(text).written(path), written);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text in "(nfs://|NFS://f[.]s/|/|//f[.]s/)?\\PC{0,20}") {
            if let Ok(source) = text.parse::<ShareSource>() {
                prop_assert_eq!(source.to_string().parse::<ShareSource>(), Ok(source));
            }
        }
    }
}
