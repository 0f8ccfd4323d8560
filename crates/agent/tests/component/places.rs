//! What an agent says of directories on its host, asked over its API.

use std::fs;

use crate::site::{SHARE, Site, refusal};
use ferry_core::{
    finding::FindingId,
    id::{HostId, ShareId},
    location::Location,
    place::EntryKind,
    units::ByteCount,
};
use uuid::Uuid;

fn on_share(path: &str) -> Location {
    Location::Share { share: SHARE, path: path.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_offers_its_storage_roots_and_shares_by_location() {
    let site = Site::new().await;
    let places = site.hosts[0].client.places().await.expect("answered");
    let [local, missing, share] = &places[..] else { panic!("{places:?}") };
    assert!(local.trouble.is_none() && local.space.is_some_and(|space| space.free.0 > 0), "{local:?}");
    assert!(missing.trouble.as_ref().is_some_and(|why| why.contains("does not exist")), "{missing:?}");
    assert_eq!(share.location, on_share(""));
    assert_eq!(share.space.map(|space| (space.free, space.total)), Some((ByteCount::gib(10), ByteCount::gib(40))));
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_are_listed_and_checked_in_places_only() {
    let site = Site::new().await;
    let host = &site.hosts[0];
    fs::create_dir(host.path("dir with space & ü")).expect("made");
    fs::write(host.path("dir with space & ü/disk.raw"), "x").expect("written");
    // QEMU's user is whoever runs this.
    fs::write(&host.config.qemu_conf, "user = \"+0\"\n").expect("written");
    let listing = host.client.directory(&on_share("dir with space & ü")).await.expect("listed");
    assert_eq!((listing.entries[0].name.as_str(), listing.entries[0].kind), ("disk.raw", EntryKind::File));
    host.client.check_directory(&on_share("dir with space & ü")).await.expect("usable");
    let Some(Location::Local { host: id, path }) =
        host.client.places().await.expect("answered").into_iter().next().map(|place| place.location)
    else {
        panic!("a storage root comes first")
    };
    let local = |inside: &str| Location::Local { host: id, path: format!("{path}{inside}") };
    assert_eq!(host.client.directory(&local("")).await.expect("listed").entries, []);
    for (location, refused) in [
        (on_share("../other"), (422, FindingId::PlaceOutside)),
        (on_share("nothing"), (404, FindingId::PlaceMissing)),
        (local("/../../state"), (422, FindingId::PlaceOutside)),
        (Location::Local { host: id, path: "/etc".into() }, (422, FindingId::PlaceOutside)),
        (Location::Local { host: HostId(Uuid::nil()), path: path.clone() }, (422, FindingId::PlaceOutside)),
        (Location::Share { share: ShareId(Uuid::nil()), path: String::new() }, (422, FindingId::ShareNotAttached)),
    ] {
        assert_eq!(refusal(host.client.directory(&location).await), refused, "{location:?}");
        assert_eq!(refusal(host.client.check_directory(&location).await), refused, "{location:?}");
    }
}
