//! Places where files may be: as an administrator writes them, as hosts offer them, and what is in them.
//!
//! ```text
//! text ── parse ─▶ Place (UNC path or local path) ── locate ─▶ Location      what is stored and asked of agents
//! text ◀──────────────────── written ──────────────────────── Location      what is shown
//! ```

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    finding::{Finding, FindingId},
    id::{HostId, ShareId},
    location::{Location, UncError, UncPath},
    share::AttachedShare,
    units::ByteCount,
};

/// Longest path that Linux takes, in bytes.
const PATH_BYTES_MAX: usize = 4095;
/// Longest name of a file or directory that Linux takes, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Entries of a directory that are listed; a person looks for one of them, and an answer stays below 300 KiB.
pub const ENTRIES_MAX: usize = 1_000;
/// Names of a directory that are read to find the first [`ENTRIES_MAX`] of them: about a tenth of a second.
pub const NAMES_READ_MAX: u64 = 100_000;
/// Storage locations of a host: a wizard offers them in one list.
pub const STORAGE_LOCATIONS_MAX: usize = 32;

/// Bytes of a file system or share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Space {
    /// All it can hold.
    pub total: ByteCount,
    /// What can still be written.
    pub free: ByteCount,
}

/// What a name in a directory stands for. Symbolic links that stay inside the place are shown as what they lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A symbolic link that leads to nothing, in a loop, or out of the place.
    Link,
    /// A device, socket or pipe.
    Other,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DirectoryEntry {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub kind: EntryKind,
    /// A file's length.
    pub size: Option<ByteCount>,
    /// What a file takes on the disk, where the file system tells.
    pub allocated: Option<ByteCount>,
}

/// What is in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DirectoryListing {
    /// The first [`ENTRIES_MAX`] names, sorted by their bytes.
    pub entries: Vec<DirectoryEntry>,
    /// How many more there are; at least so many where [`NAMES_READ_MAX`] names were read.
    pub more: u64,
    /// How many names are left out because they are not UTF-8.
    pub unnamed: u64,
    /// Of the file system or share that holds it, where known.
    pub space: Option<Space>,
}

/// A place that a host offers: one of its storage roots, or a share that is attached there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OfferedPlace {
    /// Its top.
    pub location: Location,
    /// Free and total bytes, where known.
    pub space: Option<Space>,
    /// Whether it can be used now; `None` if so, else why not.
    pub trouble: Option<String>,
}

/// A place as an administrator writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `\\server.domain\share\directory`.
    Share {
        /// The share.
        unc: UncPath,
        /// Path inside it, `/` between components; empty for its top.
        path: String,
    },
    /// `/directory`, on a host.
    Local {
        /// Absolute, without `.`, `..` and doubled slashes.
        path: String,
    },
}

/// Why a text is not a place.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlaceError {
    /// It begins with neither a slash nor two backslashes.
    #[error("{text:?} is neither an absolute path nor a UNC path: {why}")]
    Relative {
        /// What was given.
        text: String,
        /// What it looks like.
        why: &'static str,
    },
    /// It holds `..`.
    #[error("{0:?} holds \"..\", and what that leads to depends on the host")]
    Climbs(String),
    /// It holds control characters, or it or a name in it is too long.
    #[error("{0:?} cannot be a path: it holds control characters or is too long")]
    Form(String),
    /// What stands for server and share is none.
    #[error(transparent)]
    Unc(#[from] UncError),
}

impl PlaceError {
    /// The finding that tells a user.
    pub fn finding(&self) -> Finding {
        let (text, fix) = match self {
            Self::Relative { text, .. } => {
                (text, "Write /DIRECTORY, or '\\\\server.domain\\share\\directory' in single quotes")
            }
            Self::Climbs(text) => (text, "Write the path that is meant, without \"..\""),
            Self::Form(text) => {
                (text, "Use names of at most 255 bytes without control characters, 4095 bytes together")
            }
            Self::Unc(error) => return error.finding(error.text()),
        };
        Finding::blocks(FindingId::PlaceForm, text.escape_debug(), self.to_string(), fix)
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("\\\\") || text.starts_with("//") {
            let slashed = text.replace('\\', "/");
            let mut parts = slashed[2..].splitn(3, '/');
            let (server, share) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let inside = components(text, parts.next().unwrap_or_default())?;
            let unc = format!("//{server}/{share}").parse().map_err(|error| match error {
                // The whole text is what the administrator knows.
                UncError::Form(_) => UncError::Form(text.to_owned()),
                other => other,
            })?;
            return Ok(Self::Share { unc, path: inside.join("/") });
        }
        if !text.starts_with('/') {
            return Err(PlaceError::Relative { text: text.to_owned(), why: why_relative(text) });
        }
        Ok(Self::Local { path: format!("/{}", components(text, text)?.join("/")) })
    }
}

/// The names of a path, without empty ones and `.`.
fn components<'a>(text: &str, path: &'a str) -> Result<Vec<&'a str>, PlaceError> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if names.contains(&"..") {
        return Err(PlaceError::Climbs(text.to_owned()));
    }
    let too_long = path.len() > PATH_BYTES_MAX || names.iter().any(|name| name.len() > NAME_BYTES_MAX);
    if too_long || path.contains(char::is_control) {
        return Err(PlaceError::Form(text.chars().take(NAME_BYTES_MAX).collect()));
    }
    Ok(names)
}

fn why_relative(text: &str) -> &'static str {
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (None, _) => "it is empty",
        (Some('\\'), _) => "it begins with one backslash; a shell takes one of two that stand outside of quotes",
        (Some(drive), Some(':')) if drive.is_ascii_alphabetic() => "hosts have no drive letters",
        _ => "a relative path means something else on each host",
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share { unc, path } if path.is_empty() => unc.fmt(f),
            Self::Share { unc, path } => write!(f, "{unc}\\{}", path.replace('/', "\\")),
            Self::Local { path } => f.write_str(path),
        }
    }
}

/// A share of the inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownShare<'a> {
    /// Its id.
    pub id: ShareId,
    /// Its name.
    pub name: &'a str,
    /// Its UNC path.
    pub unc: &'a UncPath,
}

/// The location that a place means on a host.
///
/// # Errors
/// `share.unknown`, with the command that adds the share.
pub fn locate(place: &Place, host: HostId, shares: &[KnownShare<'_>]) -> Result<Location, Finding> {
    match place {
        Place::Local { path } => Ok(Location::Local { host, path: path.clone() }),
        Place::Share { unc, path } => match shares.iter().find(|share| share.unc.same_as(unc)) {
            Some(share) => Ok(Location::Share { share: share.id, path: path.clone() }),
            None => Err(Finding::blocks(
                FindingId::ShareUnknown,
                unc,
                format!("Share {unc} was not added to Ferry"),
                format!(
                    "Add it with `ferry share add NAME '{unc}'`, then attach it with `ferry share attach NAME --host HOST`"
                ),
            )),
        },
    }
}

/// Whether a host has what a location lies on: a share must be attached there.
///
/// # Errors
/// `share.not-attached`, with the command that attaches the share.
pub fn reachable(
    location: &Location,
    host: &str,
    attached: &[AttachedShare],
    shares: &[KnownShare<'_>],
) -> Result<(), Finding> {
    let Location::Share { share, .. } = location else { return Ok(()) };
    if attached.iter().any(|each| each.id == *share) {
        return Ok(());
    }
    let known = shares.iter().find(|known| known.id == *share);
    let (name, unc) =
        known.map_or(("NAME".to_owned(), share.to_string()), |known| (known.name.to_owned(), known.unc.to_string()));
    Err(Finding::blocks(
        FindingId::ShareNotAttached,
        &unc,
        format!("Share {unc} is not attached on host {host}"),
        format!("Attach it with `ferry share attach {name} --host {host}`"),
    ))
}

/// A location as an administrator writes it.
pub fn written(location: &Location, shares: &[KnownShare<'_>]) -> String {
    match location {
        Location::Local { path, .. } => path.clone(),
        Location::Share { share, path } => match shares.iter().find(|known| known.id == *share) {
            Some(known) => Place::Share { unc: known.unc.clone(), path: path.clone() }.to_string(),
            None => format!("share {share}: {path}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::share::AttachMode;

    const HOST: HostId = HostId(Uuid::from_u128(1));
    const VMS: ShareId = ShareId(Uuid::from_u128(2));

    fn unc() -> UncPath {
        "\\\\fs1.contoso.com\\vms".parse().expect("well formed")
    }

    #[test]
    fn a_place_is_written_as_administrators_write_it() {
        for (text, shown) in [
            ("\\\\fs1.contoso.com\\vms\\dir\\sub", "\\\\fs1.contoso.com\\vms\\dir\\sub"),
            ("//FS1.contoso.com/vms/dir/", "\\\\fs1.contoso.com\\vms\\dir"),
            ("\\\\fs1.contoso.com\\vms", "\\\\fs1.contoso.com\\vms"),
            ("\\\\fs1.contoso.com\\vms\\", "\\\\fs1.contoso.com\\vms"),
            ("//fs1.contoso.com/vms//a/./b", "\\\\fs1.contoso.com\\vms\\a\\b"),
            ("\\\\fs1.contoso.com\\vms\\with space\\ü", "\\\\fs1.contoso.com\\vms\\with space\\ü"),
            ("/var/lib/libvirt/images", "/var/lib/libvirt/images"),
            ("/var//lib/./libvirt/images/", "/var/lib/libvirt/images"),
            ("/back\\slash", "/back\\slash"),
            ("/..hidden", "/..hidden"),
            ("/", "/"),
        ] {
            let place: Place = text.parse().expect(text);
            assert_eq!(place.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused_with_its_reason() {
        let long = format!("/{}", "x".repeat(256));
        let deep = format!("/{}", "x/".repeat(2_500));
        for (text, id, word) in [
            ("", FindingId::PlaceForm, "empty"),
            ("images", FindingId::PlaceForm, "relative"),
            ("./images", FindingId::PlaceForm, "relative"),
            ("../images", FindingId::PlaceForm, "relative"),
            ("~/images", FindingId::PlaceForm, "relative"),
            ("C:\\VMs", FindingId::PlaceForm, "drive letters"),
            ("\\fs1.contoso.com\\vms", FindingId::PlaceForm, "one backslash"),
            ("/var/../etc", FindingId::PlaceForm, "\"..\""),
            ("\\\\fs1.contoso.com\\vms\\..\\other", FindingId::PlaceForm, "\"..\""),
            ("/a\nb", FindingId::PlaceForm, "control characters"),
            ("/a\0b", FindingId::PlaceForm, "control characters"),
            (&long, FindingId::PlaceForm, "too long"),
            (&deep, FindingId::PlaceForm, "too long"),
            ("\\\\fs1\\vms\\dir", FindingId::ShareNotQualified, "without a domain"),
            ("//10.0.0.1/vms/dir", FindingId::ShareNotQualified, "without a domain"),
            ("\\\\fs1.contoso.com", FindingId::ShareForm, "not a UNC path"),
            ("\\\\fs1.contoso.com\\..\\x", FindingId::ShareForm, "not a UNC path"),
            ("//", FindingId::ShareForm, "not a UNC path"),
        ] {
            let finding = text.parse::<Place>().expect_err(text).finding();
            assert_eq!(finding.id, id, "{text}");
            assert!(finding.message.contains(word) && !finding.fix.is_empty(), "{text}: {finding:?}");
            assert!(!finding.object.contains(char::is_control), "{finding:?}");
        }
    }

    #[test]
    fn a_unc_path_of_an_unknown_or_detached_share_says_how_to_get_it() {
        let (unc, other): (_, Place) = (unc(), "//fs2.contoso.com/vms/a".parse().expect("well formed"));
        let shares = [KnownShare { id: VMS, name: "vms", unc: &unc }];
        let place: Place = "//fs1.contoso.com/VMS/a/b".parse().expect("well formed");
        let location = locate(&place, HOST, &shares).expect("known");
        assert_eq!(location, Location::Share { share: VMS, path: "a/b".into() });
        assert_eq!(written(&location, &shares), "\\\\fs1.contoso.com\\vms\\a\\b");
        let unknown = locate(&other, HOST, &shares).expect_err("not added");
        assert_eq!(unknown.id, FindingId::ShareUnknown);
        assert!(unknown.fix.contains("ferry share add NAME '\\\\fs2.contoso.com\\vms'"), "{}", unknown.fix);

        let detached = reachable(&location, "kvm1", &[], &shares).expect_err("not attached");
        assert_eq!(detached.id, FindingId::ShareNotAttached);
        assert!(detached.fix.contains("ferry share attach vms --host kvm1"), "{}", detached.fix);
        let mode = AttachMode::Mounted;
        let attached = AttachedShare {
            id: VMS,
            unc: unc.clone(),
            mode,
            trouble: None,
            free: None,
            total: None,
            soft: false,
            file_system: None,
        };
        assert_eq!(reachable(&location, "kvm1", &[attached], &shares), Ok(()));
        let local = Location::Local { host: HOST, path: "/x".into() };
        assert_eq!(reachable(&local, "kvm1", &[], &shares), Ok(()));
        assert_eq!(locate(&"/x".parse().expect("absolute"), HOST, &[]), Ok(local));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text: String) {
            if let Ok(place) = text.parse::<Place>() {
                prop_assert_eq!(place.to_string().parse::<Place>(), Ok(place));
            }
        }

        #[test]
        fn no_place_climbs(text in "(/|//f[.]s/v/)?([a-z.]{0,3}[/\\\\]){0,5}") {
            match text.parse::<Place>() {
                Ok(Place::Share { path, .. } | Place::Local { path }) => {
                    prop_assert!(!path.split('/').any(|name| name == ".." || name == "."), "{}", path);
                }
                Err(error) => prop_assert!(!error.finding().message.is_empty()),
            }
        }
    }
}
