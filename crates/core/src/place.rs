//! Places where files may be: as an administrator writes them, as hosts offer them, and their contents.
//!
//! ```text
//! text ── parse ─▶ Place (UNC path, NFS path or local path) ── locate ─▶ Location      stored, and sent to agents
//! text ◀──────────────────── written ──────────────────────── Location      shown to users
//! ```

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    finding::{Action, ByHand, Finding, FindingId, Message},
    id::{HostId, ShareId},
    location::Location,
    share::AttachedShare,
    share_source::{self, BadPath, NAME_BYTES_MAX, NfsExport, ShareSource, SourceError, below},
    unc::{UncError, UncPath},
    units::ByteCount,
};

/// Limit of entries in a directory listing: a person looks for one of them, and a response stays below 300 KiB.
pub const ENTRIES_MAX: usize = 1_000;
/// Limit of names that are read to find the first [`ENTRIES_MAX`] of them: about a tenth of a second.
pub const NAMES_READ_MAX: u64 = 100_000;
/// Limit of storage locations per host: clients offer them in one list.
pub const STORAGE_LOCATIONS_MAX: usize = 32;

/// Capacity of a file system or share, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Space {
    /// Its capacity.
    pub total: ByteCount,
    /// Its free space.
    pub free: ByteCount,
}

/// What a directory entry is. Symbolic links that stay inside the place are resolved to their targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A symbolic link that is dangling, in a loop, or leads out of the place.
    Link,
    /// A device, socket or pipe.
    Other,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DirectoryEntry {
    /// The name.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// A file's length.
    pub size: Option<ByteCount>,
    /// Allocated space of a file, where the file system reports it.
    pub allocated: Option<ByteCount>,
}

/// The content of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DirectoryListing {
    /// The first [`ENTRIES_MAX`] entries, sorted bytewise by name.
    pub entries: Vec<DirectoryEntry>,
    /// The number of further entries; a lower bound if [`NAMES_READ_MAX`] names were read.
    pub more: u64,
    /// The number of entries left out because their names are not UTF-8.
    pub unnamed: u64,
    /// Capacity of the file system or share that contains it, where known.
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
    /// Why it cannot be used now; `None` if it can.
    pub trouble: Option<String>,
    /// `trouble` as a finding. An agent of an earlier version omits the field.
    #[serde(default)]
    pub finding: Option<Finding>,
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
    /// `nfs://server.domain/export/directory`. Only the inventory knows where the export ends.
    Nfs(NfsExport),
    /// `/directory`: on a host, or on a share whose source is a path.
    Local {
        /// Absolute, without `.`, `..` and doubled slashes.
        path: String,
    },
}

/// Why a text is not a place.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", self.message())]
pub enum PlaceError {
    /// It begins with neither a slash nor two backslashes.
    Relative {
        /// What was given.
        text: String,
        /// What the text looks like.
        why: Message,
    },
    /// It contains `..`.
    Climbs(String),
    /// It contains control characters, or it or a name in it is too long.
    Form(String),
    /// The part for server and share is invalid.
    Unc(#[from] UncError),
    /// The part for server and export is invalid.
    Nfs(#[from] SourceError),
}

impl PlaceError {
    fn message(&self) -> Message {
        match self.clone() {
            Self::Relative { text, why } => Message::PlaceRelative { text, why: why.into() },
            Self::Climbs(text) => Message::PlaceClimbs { text },
            Self::Form(text) => Message::PlaceForm { text },
            Self::Unc(error) => error.message(),
            Self::Nfs(error) => error.message(),
        }
    }

    /// The finding to show to a user.
    pub fn finding(&self) -> Finding {
        let (text, fix) = match self {
            Self::Relative { text, .. } => (text, ByHand::WritePlace),
            Self::Climbs(text) => (text, ByHand::WritePathMeant),
            Self::Form(text) => (text, ByHand::UseShortNames),
            Self::Unc(error) => return error.finding(error.text()),
            Self::Nfs(error) => return error.finding(error.text().escape_debug()),
        };
        Finding::blocks(FindingId::PlaceForm, text.escape_debug(), self.message(), fix)
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if share_source::is_nfs(text) {
            return match text.parse() {
                Ok(nfs) => Ok(Self::Nfs(nfs)),
                Err(SourceError::Nfs(_)) if text.split('/').any(|name| name == "..") => {
                    Err(PlaceError::Climbs(text.to_owned()))
                }
                Err(error) => Err(error.into()),
            };
        }
        if share_source::is_unc(text) {
            let slashed = text.replace('\\', "/");
            let mut parts = slashed[2..].splitn(3, '/');
            let (server, share) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let inside = components(text, parts.next().unwrap_or_default())?;
            let unc = format!("//{server}/{share}").parse().map_err(|error| match error {
                // The administrator knows only the whole text.
                UncError::Form(_) => UncError::Form(text.to_owned()),
                other @ UncError::NotQualified { .. } => other,
            })?;
            return Ok(Self::Share { unc, path: inside.join("/") });
        }
        if !text.starts_with('/') {
            return Err(PlaceError::Relative { text: text.to_owned(), why: why_relative(text) });
        }
        Ok(Self::Local { path: format!("/{}", components(text, text)?.join("/")) })
    }
}

/// The components of a path, without empty ones and `.`.
fn components<'a>(text: &str, path: &'a str) -> Result<Vec<&'a str>, PlaceError> {
    share_source::components(path).map_err(|bad| match bad {
        BadPath::Climbs => PlaceError::Climbs(text.to_owned()),
        BadPath::Form => PlaceError::Form(text.chars().take(NAME_BYTES_MAX).collect()),
    })
}

fn why_relative(text: &str) -> Message {
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (None, _) => Message::PlaceIsEmpty,
        (Some('\\'), _) => Message::PlaceHasOneBackslash,
        (Some(drive), Some(':')) if drive.is_ascii_alphabetic() => Message::PlaceHasDrive,
        _ => Message::PlaceHasNoRoot,
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share { unc, path } => f.write_str(&ShareSource::from(unc).written(path)),
            Self::Nfs(nfs) => nfs.fmt(f),
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
    /// Its source.
    pub source: &'a ShareSource,
}

/// The location of a place on a host that has the shares `attached`. If several shares contain it, the innermost
/// counts.
///
/// # Errors
/// `share.unknown`, with the command that adds the share.
pub fn locate(
    place: &Place,
    host: HostId,
    shares: &[KnownShare<'_>],
    attached: &[AttachedShare],
) -> Result<Location, Finding> {
    let on_share = match place {
        Place::Share { unc, path } => {
            shares.iter().find(|share| share.source.same_as(&unc.into())).map(|share| (share.id, path.as_str()))
        }
        Place::Nfs(nfs) => closest(shares.iter().filter_map(|share| Some((share.id, inside_export(share, nfs)?)))),
        Place::Local { path } => {
            let by_name = shares.iter().filter_map(|share| Some((share.id, inside_path(share.source, path)?)));
            let by_mount = attached.iter().filter_map(|share| Some((share.id, below(share.at.as_ref()?, path)?)));
            closest(by_name.chain(by_mount))
        }
    };
    match (on_share, place) {
        (Some((share, path)), _) => Ok(Location::Share { share, path: path.to_owned() }),
        (None, Place::Local { path }) => Ok(Location::Local { host, path: path.clone() }),
        (None, Place::Share { unc, .. }) => Err(unknown(&unc.into())),
        (None, Place::Nfs(nfs)) => Err(unknown(&nfs.into())),
    }
}

/// The share with the shortest remaining path.
fn closest<'a>(found: impl Iterator<Item = (ShareId, &'a str)>) -> Option<(ShareId, &'a str)> {
    found.min_by_key(|(_, inside)| inside.len())
}

fn inside_export<'a>(share: &KnownShare<'_>, nfs: &'a NfsExport) -> Option<&'a str> {
    match share.source {
        ShareSource::Nfs(export) => export.holds(nfs),
        ShareSource::Smb(_) | ShareSource::Path(_) => None,
    }
}

fn inside_path<'a>(source: &ShareSource, path: &'a str) -> Option<&'a str> {
    match source {
        ShareSource::Path(top) => below(top.as_str(), path),
        ShareSource::Smb(_) | ShareSource::Nfs(_) => None,
    }
}

fn unknown(source: &ShareSource) -> Finding {
    Finding::blocks(
        FindingId::ShareUnknown,
        source,
        Message::ShareNotAdded { share: source.to_string() },
        Action::AddShare { share: source.to_string() },
    )
}

/// Whether a host can reach a location: if it lies on a share, the host must have that share attached.
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
    let (name, source) =
        known.map_or(("NAME".to_owned(), share.to_string()), |known| (known.name.to_owned(), known.source.to_string()));
    Err(Finding::blocks(
        FindingId::ShareNotAttached,
        &source,
        Message::ShareNotAttached { share: source.clone(), host: host.to_owned() },
        Action::AttachShareWith { share: name, host: host.to_owned() },
    ))
}

/// A location as an administrator writes it.
pub fn written(location: &Location, shares: &[KnownShare<'_>]) -> String {
    match location {
        Location::Local { path, .. } => path.clone(),
        Location::Share { share, path } => match shares.iter().find(|known| known.id == *share) {
            Some(known) => known.source.written(path),
            None => format!("share {share}: {path}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::{fixtures, share::AttachMode};

    const HOST: HostId = HostId(Uuid::from_u128(1));
    const VMS: ShareId = ShareId(Uuid::from_u128(2));

    fn source() -> ShareSource {
        "\\\\fs1.contoso.com\\vms".parse().expect("well formed")
    }

    fn attached(id: ShareId, source: &ShareSource, at: Option<&str>) -> AttachedShare {
        let (source, at, mode) = (source.clone(), at.map(str::to_owned), AttachMode::Adopted);
        AttachedShare { source, at, mode, file_system: None, ..fixtures::attached(id.0.as_u128()) }
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
            ("nfs://FS1.contoso.com/srv/vms//a/", "nfs://fs1.contoso.com/srv/vms/a"),
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
            ("nfs://fs1.contoso.com", FindingId::ShareForm, "not an NFS export"),
            ("nfs://fs1.contoso.com/a\nb", FindingId::ShareForm, "not an NFS export"),
            ("nfs://fs1.contoso.com/a/../b", FindingId::PlaceForm, "\"..\""),
            ("nfs://fs1/vms/a", FindingId::ShareNotQualified, "without a domain"),
        ] {
            let finding = text.parse::<Place>().expect_err(text).finding();
            assert_eq!(finding.id, id, "{text}");
            assert!(
                finding.message.to_string().contains(word) && !finding.fix.to_string().is_empty(),
                "{text}: {finding:?}"
            );
            assert!(!finding.object.contains(char::is_control), "{finding:?}");
        }
    }

    #[test]
    fn a_unc_path_of_an_unknown_or_detached_share_says_how_to_get_it() {
        let (source, other): (_, Place) = (source(), "//fs2.contoso.com/vms/a".parse().expect("well formed"));
        let shares = [KnownShare { id: VMS, name: "vms", source: &source }];
        let place: Place = "//fs1.contoso.com/VMS/a/b".parse().expect("well formed");
        let location = locate(&place, HOST, &shares, &[]).expect("known");
        assert_eq!(location, Location::Share { share: VMS, path: "a/b".into() });
        assert_eq!(written(&location, &shares), "\\\\fs1.contoso.com\\vms\\a\\b");
        let unknown = locate(&other, HOST, &shares, &[]).expect_err("not added");
        assert_eq!(unknown.id, FindingId::ShareUnknown);
        assert!(unknown.fix.to_string().contains("ferry share add NAME '\\\\fs2.contoso.com\\vms'"), "{}", unknown.fix);

        let detached = reachable(&location, "kvm1", &[], &shares).expect_err("not attached");
        assert_eq!(detached.id, FindingId::ShareNotAttached);
        assert!(detached.fix.to_string().contains("ferry share attach vms --host kvm1"), "{}", detached.fix);
        assert_eq!(reachable(&location, "kvm1", &[attached(VMS, &source, None)], &shares), Ok(()));
        let local = Location::Local { host: HOST, path: "/x".into() };
        assert_eq!(reachable(&local, "kvm1", &[], &shares), Ok(()));
        assert_eq!(locate(&"/x".parse().expect("absolute"), HOST, &[], &[]), Ok(local));
    }

    #[test]
    fn a_place_is_on_the_closest_share_that_holds_it() {
        let id = |number| ShareId(Uuid::from_u128(number));
        let sources: Vec<ShareSource> =
            ["nfs://fs1.contoso.com/srv", "nfs://fs1.contoso.com/srv/vms", "/mnt/vms", "/mnt/vms/deep"]
                .map(|text| text.parse().expect(text))
                .into();
        let known = |(number, source)| KnownShare { id: id(number), name: "x", source };
        let shares: Vec<KnownShare<'_>> = (0..).zip(&sources).map(known).collect();
        // This host has the share /mnt/vms at another path.
        let here = [attached(id(2), &sources[2], Some("/data/vms"))];
        let on = |number, path: &str| Location::Share { share: id(number), path: path.into() };
        let local = |path: &str| Location::Local { host: HOST, path: path.into() };
        for (text, location) in [
            ("nfs://fs1.contoso.com/srv/iso", on(0, "iso")),
            ("nfs://fs1.contoso.com/srv/vms/a/b", on(1, "a/b")),
            ("nfs://fs1.contoso.com/srv/vms", on(1, "")),
            ("nfs://fs1.contoso.com/srv/vmsx", on(0, "vmsx")),
            ("/mnt/vms/a", on(2, "a")),
            ("/mnt/vms/deep/a", on(3, "a")),
            ("/data/vms/a", on(2, "a")),
            ("/data/vmsx", local("/data/vmsx")),
            ("/mnt", local("/mnt")),
        ] {
            let place: Place = text.parse().expect(text);
            let found = locate(&place, HOST, &shares, &here).expect(text);
            assert_eq!(found, location, "{text}");
            let again: Place = written(&found, &shares).parse().expect("what is shown can be written");
            assert_eq!(locate(&again, HOST, &shares, &here), Ok(location), "{text}");
        }
        let elsewhere: Place = "nfs://fs2.contoso.com/srv".parse().expect("well formed");
        let unknown = locate(&elsewhere, HOST, &shares, &here).expect_err("not added");
        assert_eq!(unknown.id, FindingId::ShareUnknown);
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text: String) {
            if let Ok(place) = text.parse::<Place>() {
                prop_assert_eq!(place.to_string().parse::<Place>(), Ok(place));
            }
        }

        #[test]
        fn no_place_climbs(text in "(/|//f[.]s/v/|nfs://f[.]s/)?([a-z.]{0,3}[/\\\\]){0,5}") {
            match text.parse::<Place>() {
                Ok(Place::Share { path, .. } | Place::Local { path }) => {
                    prop_assert!(!path.split('/').any(|name| name == ".." || name == "."), "{}", path);
                }
                Ok(Place::Nfs(nfs)) => {
                    prop_assert!(!nfs.export().split('/').any(|name| name == ".." || name == "."), "{}", nfs);
                }
                Err(error) => prop_assert!(!error.finding().message.to_string().is_empty()),
            }
        }
    }
}
