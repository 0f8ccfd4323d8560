//! Renders places where files may be, and their contents, as text.

use ferry_core::{
    api::server::{PlaceView, PlacesView, StorageLocation},
    place::{DirectoryEntry, DirectoryListing, EntryKind, NAMES_READ_MAX, Space},
    units::ByteCount,
};

use crate::output::{table, usable};

pub(crate) fn storage_locations(locations: &[StorageLocation]) -> String {
    let state = |location: &StorageLocation| usable(location.trouble.as_deref(), location.finding.as_ref());
    let rows = locations.iter().map(|location| vec![plain(&location.path), state(location)]).collect();
    table(&["STORAGE LOCATION", "STATE"], rows)
}

pub(crate) fn places(host: &str, view: &PlacesView) -> String {
    match view {
        PlacesView::Offered { places } => {
            let mut text = table(&["PLACE", "FREE", "TOTAL", "ALSO ON", "STATE"], places.iter().map(offered).collect());
            if let Some(first) = places.iter().find(|place| place.offered.trouble.is_none()) {
                text += &format!("\n\nLook into one with `ferry host browse {host} '{}'`", plain(&first.path));
            }
            text
        }
        PlacesView::Directory { path, listing, .. } => directory(path, listing),
    }
}

fn offered(place: &PlaceView) -> Vec<String> {
    let bytes = |of: fn(&Space) -> ByteCount| place.offered.space.as_ref().map(|space| of(space).to_string());
    let also_on = match &place.share {
        None => "(this host only)".to_owned(),
        Some(_) => place.also_on.join(", "),
    };
    vec![
        plain(&place.path),
        bytes(|space| space.free).unwrap_or_else(unknown),
        bytes(|space| space.total).unwrap_or_else(unknown),
        also_on,
        usable(place.offered.trouble.as_deref(), place.offered.finding.as_ref()),
    ]
}

fn directory(path: &str, listing: &DirectoryListing) -> String {
    let mut text = plain(path);
    if let Some(space) = listing.space {
        text += &format!("\n  {} free of {}", space.free, space.total);
    }
    text += &match listing.entries[..] {
        [] => "\n\nThe directory is empty".to_owned(),
        _ => format!(
            "\n\n{}",
            table(&["NAME", "KIND", "SIZE", "ALLOCATED"], listing.entries.iter().map(entry).collect())
        ),
    };
    if listing.more > 0 {
        let read = listing.entries.len() as u64 + listing.more + listing.unnamed;
        let least = if read >= NAMES_READ_MAX { "at least " } else { "" };
        text += &format!("\n… and {least}{} more", listing.more);
    }
    if listing.unnamed > 0 {
        text += &format!("\n! {} name(s) are left out because they are not UTF-8", listing.unnamed);
    }
    text
}

fn entry(entry: &DirectoryEntry) -> Vec<String> {
    let kind = match entry.kind {
        EntryKind::Directory => "directory",
        EntryKind::File => "file",
        EntryKind::Link => "link (leads nowhere here)",
        EntryKind::Other => "other",
    };
    // A file's allocated size may be unknown; a directory has none.
    let allocated = match (entry.size, entry.allocated) {
        (None, _) => String::new(),
        (Some(_), allocated) => allocated.map_or_else(unknown, |bytes| bytes.to_string()),
    };
    let size = entry.size.map(|bytes| bytes.to_string()).unwrap_or_default();
    vec![plain(&entry.name), kind.to_owned(), size, allocated]
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// Escapes a file name, which may contain terminal control sequences.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use ferry_core::{
        id::{HostId, ShareId},
        location::Location,
        place::OfferedPlace,
    };
    use uuid::Uuid;

    use super::*;

    const LOCAL: &str = "/var/lib/libvirt/images";
    const SHARE: &str = "\\\\fs1.contoso.com\\vms";

    fn place(path: &str, share: Option<&str>, trouble: Option<&str>) -> PlaceView {
        let location = match share {
            Some(_) => Location::Share { share: ShareId(Uuid::from_u128(1)), path: String::new() },
            None => Location::Local { host: HostId(Uuid::from_u128(2)), path: path.to_owned() },
        };
        let space = Space { total: ByteCount::gib(200), free: ByteCount::gib(80) };
        let trouble = trouble.map(str::to_owned);
        let offered =
            OfferedPlace { location, space: Some(space).filter(|_| trouble.is_none()), trouble, finding: None };
        let also_on = share.map(|_| "kvm2".to_owned()).into_iter().collect();
        PlaceView { path: path.to_owned(), share: share.map(str::to_owned), offered, also_on }
    }

    #[test]
    fn what_a_host_offers_is_told_in_full() {
        let view = PlacesView::Offered {
            places: vec![place(LOCAL, None, Some("it is away")), place(SHARE, Some("vms"), None)],
        };
        let text = places("kvm1", &view);
        for expected in [LOCAL, "it is away", "unknown", SHARE, "80.0 GiB", "200.0 GiB", "kvm2", "(this host only)"] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert!(text.ends_with("`ferry host browse kvm1 '\\\\fs1.contoso.com\\vms'`"), "{text}");
    }

    #[test]
    fn what_is_in_a_directory_is_told_and_what_is_left_out_counted() {
        let entry = |name: &str, kind, size, allocated| DirectoryEntry { name: name.to_owned(), kind, size, allocated };
        let entries = vec![
            entry("db", EntryKind::Directory, None, None),
            entry("evil\u{1b}[2J", EntryKind::Other, None, None),
            entry("thin.raw", EntryKind::File, Some(ByteCount::gib(40)), Some(ByteCount::gib(3))),
            entry("unknown.raw", EntryKind::File, Some(ByteCount::gib(1)), None),
        ];
        let mut listing = DirectoryListing { entries, more: 12, unnamed: 1, space: None };
        let text = directory(SHARE, &listing);
        for expected in ["40.0 GiB", "3.0 GiB", "unknown", "… and 12 more", "! 1 name(s) are left out"] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text:?}");
        listing.more = NAMES_READ_MAX;
        assert!(directory(SHARE, &listing).contains("at least 100000 more"));
        let empty = DirectoryListing { entries: Vec::new(), more: 0, unnamed: 0, space: None };
        assert!(directory(SHARE, &empty).contains("The directory is empty"));
    }
}
