//! Places for files: hosts' storage locations, and browsing.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use ferry_client::ClientError;
use ferry_core::{
    api::server::{AddShare, AddStorageLocation, AttachShare, HostView, PlaceView, PlacesView},
    finding::FindingId as Id,
    location::Location,
    place::{DirectoryListing, ENTRIES_MAX, EntryKind, STORAGE_LOCATIONS_MAX},
    unc::UncPath,
    units::ByteCount,
};
use ferry_drivers::share::fake::FakeExport;
use ferry_testkit::logs::expects_warning;

use crate::support::{Host, Lab, UNC, in_lab, refusal, unc, wait_for};

/// A place on the share, as an administrator writes it.
fn on_share(inside: &str) -> String {
    format!("{UNC}\\{inside}")
}

fn on_host(host: &Host, inside: &str) -> String {
    host.on_host(inside).display().to_string()
}

async fn add(lab: &Lab, host: &str, location: &str) -> Result<HostView, ClientError> {
    lab.client.add_storage_location(host, &AddStorageLocation { location: location.to_owned() }).await
}

fn paths(host: &HostView) -> Vec<&str> {
    host.storage_locations.iter().map(|location| location.path.as_str()).collect()
}

async fn offered(lab: &Lab, host: &str) -> Vec<PlaceView> {
    match lab.client.places(host, None).await.expect("answered") {
        PlacesView::Offered { places } => places,
        other @ PlacesView::Directory { .. } => panic!("{other:?}"),
    }
}

async fn listing(lab: &Lab, host: &str, location: &str) -> (String, DirectoryListing) {
    match lab.client.places(host, Some(location)).await.expect("answered") {
        PlacesView::Directory { path, listing, .. } => (path, listing),
        other @ PlacesView::Offered { .. } => panic!("{other:?}"),
    }
}

#[test]
fn storage_locations_are_checked_kept_in_order_and_outlive_the_server() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        fs::create_dir_all(kvm1.on_share("dir/sub")).expect("made");
        let local = on_host(&kvm1, "").trim_end_matches('/').to_owned();
        assert_eq!(lab.client.host("kvm1").await.expect("known").storage_locations, []);
        add(lab, "kvm1", "//FS1.ferry.lab/VMS/dir/sub/").await.expect("added");
        let view = add(lab, "kvm1", &local).await.expect("added");
        let mine = [on_share("dir\\sub"), local.clone()];
        assert_eq!(paths(&view), mine);
        assert_eq!(paths(&add(lab, "kvm1", &on_share("dir\\sub")).await.expect("again")), mine);
        let share = lab.client.share("vms").await.expect("known").id;
        let stored: Vec<_> = view.storage_locations.iter().map(|one| one.location.clone()).collect();
        let here = Location::Local { host: view.id, path: local.clone() };
        assert_eq!(stored, [Location::Share { share, path: "dir/sub".into() }, here]);
        assert!(view.storage_locations.iter().all(|one| one.trouble.is_none()), "{view:?}");
        let left: Vec<_> = fs::read_dir(kvm1.on_share("dir/sub")).expect("read").collect();
        assert!(left.is_empty(), "nothing stays of the check: {left:?}");

        lab.stop_server().await;
        lab.start_server().await;
        assert_eq!(paths(&lab.client.host("kvm1").await.expect("known")), mine);
        let others = lab.client.hosts().await.expect("answered");
        assert_eq!(others.iter().map(|host| host.storage_locations.len()).collect::<Vec<_>>(), [2, 0]);
        let view = lab.client.remove_storage_location("kvm1", &on_share("dir\\sub")).await.expect("removed");
        assert_eq!(paths(&view), [local.as_str()]);
        let again = lab.client.remove_storage_location("kvm1", &on_share("dir\\sub")).await;
        assert_eq!(refusal(again), (404, vec![Id::StorageUnknown]));
        lab.client.remove_host("kvm1").await.expect("removed");
        lab.add(&kvm1).await.expect("added again");
        assert_eq!(lab.client.host("kvm1").await.expect("known").storage_locations, []);
    });
}

#[test]
fn what_cannot_be_a_storage_location_is_refused_and_nothing_is_changed() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        fs::write(kvm1.on_host("file"), "x").expect("written");
        symlink(lab.folder("elsewhere"), kvm1.on_host("link")).expect("a link");
        symlink("/etc", kvm1.on_share("etc")).expect("a link");
        symlink("loop", kvm1.on_host("loop")).expect("a link");
        lab.client
            .add_share(&AddShare { name: "iso".into(), source: "//fs1.ferry.lab/iso".into() })
            .await
            .expect("added");
        let mount = kvm1.on_share("").display().to_string();
        for (text, status, id) in [
            ("images".to_owned(), 400, Id::PlaceForm),
            ("C:\\VMs".to_owned(), 400, Id::PlaceForm),
            (String::new(), 400, Id::PlaceForm),
            (on_host(&kvm1, "../../etc"), 400, Id::PlaceForm),
            (on_share("..\\other"), 400, Id::PlaceForm),
            ("\\\\fs1\\vms\\dir".to_owned(), 400, Id::ShareNotQualified),
            ("\\\\fs1.ferry.lab".to_owned(), 400, Id::ShareForm),
            ("\\\\fs9.ferry.lab\\vms\\dir".to_owned(), 404, Id::ShareUnknown),
            ("\\\\fs1.ferry.lab\\iso\\dir".to_owned(), 409, Id::ShareNotAttached),
            ("/etc".to_owned(), 422, Id::PlaceOutside),
            ("/".to_owned(), 422, Id::PlaceOutside),
            (mount, 422, Id::PlaceOutside),
            (on_host(&kvm1, "link"), 422, Id::PlaceOutside),
            (on_share("etc"), 422, Id::PlaceOutside),
            (on_host(&kvm1, "loop"), 422, Id::PlaceUnreadable),
            (on_host(&kvm1, "file"), 422, Id::PlaceNotADirectory),
            (on_host(&kvm1, "missing"), 404, Id::PlaceMissing),
            (on_share("missing"), 404, Id::PlaceMissing),
        ] {
            assert_eq!(refusal(add(lab, "kvm1", &text).await), (status, vec![id]), "{text}");
            let browsed = lab.client.places("kvm1", Some(&text)).await;
            assert_eq!(refusal(browsed), (status, vec![id]), "{text}, browsed");
        }
        assert_eq!(refusal(add(lab, "kvm9", "/x").await), (404, vec![Id::HostUnknown]));
        assert_eq!(lab.client.host("kvm1").await.expect("known").storage_locations, []);
    });
}

#[test]
fn a_directory_that_qemus_user_cannot_write_in_is_refused() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        fs::create_dir(kvm1.on_host("closed")).expect("made");
        // A test that does not run as root uses its own user as QEMU's.
        let conf = fs::read_to_string(&kvm1.config.qemu_conf).expect("read").replace("+0", "nobody");
        fs::write(&kvm1.config.qemu_conf, conf).expect("written");
        let mode = if nix::unistd::geteuid().is_root() { 0o700 } else { 0o500 };
        fs::set_permissions(kvm1.on_host("closed"), fs::Permissions::from_mode(mode)).expect("set");
        let refused = add(lab, "kvm1", &on_host(&kvm1, "closed")).await;
        assert_eq!(refusal(refused), (422, vec![Id::PlaceNotWritable]));
        assert_eq!(lab.client.host("kvm1").await.expect("known").storage_locations, []);
    });
}

#[test]
fn a_host_has_a_bounded_number_of_storage_locations() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        for number in 0..=STORAGE_LOCATIONS_MAX {
            let name = format!("{number}");
            fs::create_dir(kvm1.on_host(&name)).expect("made");
            let added = add(lab, "kvm1", &on_host(&kvm1, &name)).await;
            if number < STORAGE_LOCATIONS_MAX {
                added.expect("added");
            } else {
                assert_eq!(refusal(added), (409, vec![Id::StorageTooMany]));
            }
        }
        assert_eq!(lab.client.host("kvm1").await.expect("known").storage_locations.len(), STORAGE_LOCATIONS_MAX);
    });
}

#[test]
fn a_share_with_a_storage_location_is_not_forgotten_and_its_trouble_is_shown() {
    in_lab(async |lab| {
        let kvm1 = lab.host("kvm1").await;
        lab.add(&kvm1).await.expect("added");
        lab.client.add_share(&AddShare { name: "vms".into(), source: UNC.into() }).await.expect("added");
        lab.attach(&kvm1).await.expect("attached");
        add(lab, "kvm1", UNC).await.expect("added");
        lab.client.detach_share("vms", "kvm1").await.expect("detached");
        let trouble = async || {
            let host = lab.client.host("kvm1").await.expect("known");
            host.storage_locations[0].trouble.clone().is_some_and(|trouble| trouble.contains("is not attached"))
        };
        wait_for("the storage location says that its share is away", trouble).await;
        assert_eq!(refusal(lab.client.remove_share("vms").await), (409, vec![Id::ShareInUse]));
        lab.client.remove_storage_location("kvm1", UNC).await.expect("also while the share is away");
        lab.client.remove_share("vms").await.expect("forgotten");
    });
}

#[test]
fn browsing_shows_what_the_host_offers_with_free_space_and_who_has_it_too() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        let iso: UncPath = "\\\\fs1.ferry.lab\\iso".parse().expect("a UNC path");
        let export = FakeExport::new(lab.folder("iso"));
        let credentials = Some(export.credentials());
        lab.file_servers.export(&iso, export);
        lab.client.add_share(&AddShare { name: "iso".into(), source: iso.to_string() }).await.expect("added");
        lab.client.attach_share("iso", "kvm1", &AttachShare { credentials, at: None }).await.expect("attached");
        lab.file_servers.change(&unc(), |export| export.space.free = ByteCount::gib(7));
        let places = offered(lab, "kvm1").await;
        let shown: Vec<_> = places
            .iter()
            .map(|place| (place.path.trim_end_matches('/'), place.share.as_deref(), place.also_on.join(" ")))
            .collect();
        let local = on_host(&kvm1, "");
        let expected = [
            (local.trim_end_matches('/'), None, String::new()),
            (UNC, Some("vms"), "kvm2".to_owned()),
            ("\\\\fs1.ferry.lab\\iso", Some("iso"), String::new()),
        ];
        assert_eq!(shown, expected);
        let space = places[1].offered.space.expect("the file server tells");
        assert_eq!((space.free, space.total), (ByteCount::gib(7), ByteCount::gib(40)), "as it is now");
        assert!(places[0].offered.space.is_some_and(|space| space.free.0 > 0 && space.total > space.free));
        let text = serde_json::to_string(&places).expect("JSON");
        assert!(!text.contains(&kvm1.config.share_root.display().to_string()), "a mount point is shown: {text}");
    });
}

#[test]
fn browsing_a_directory_shows_what_is_in_it() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        fs::create_dir_all(kvm1.on_share("dir/sub")).expect("made");
        fs::write(kvm1.on_share("dir/web01.raw"), vec![1; 4096]).expect("written");
        symlink("sub", kvm1.on_share("dir/to-sub")).expect("a link");
        symlink("/etc", kvm1.on_share("dir/to-etc")).expect("a link");
        let (path, listing_on_share) = listing(lab, "kvm2", &on_share("dir")).await;
        assert_eq!(path, on_share("dir"), "the same on the other host");
        let seen: Vec<_> = listing_on_share.entries.iter().map(|one| (one.name.as_str(), one.kind)).collect();
        let expected = [
            ("sub", EntryKind::Directory),
            ("to-etc", EntryKind::Link),
            ("to-sub", EntryKind::Directory),
            ("web01.raw", EntryKind::File),
        ];
        assert_eq!(seen, expected);
        assert_eq!(listing_on_share.entries[3].size, Some(ByteCount(4096)));
        assert_eq!(listing_on_share.space.map(|space| space.total), Some(ByteCount::gib(40)));
        for number in 0..ENTRIES_MAX + 5 {
            fs::write(kvm1.on_host(&format!("{number:04}")), "").expect("written");
        }
        let (_, huge) = listing(lab, "kvm1", &on_host(&kvm1, "")).await;
        assert_eq!((huge.entries.len(), huge.more), (ENTRIES_MAX, 5));
    });
}

#[test]
fn a_host_or_file_server_that_is_away_is_told() {
    expects_warning(r#"A request failed title="The file server of"#);
    expects_warning("The host's agent does not answer");
    in_lab(async |lab| {
        let (_kvm1, mut kvm2, _) = lab.two_hosts().await;
        lab.file_servers.change(&unc(), |export| export.is_up = false);
        assert_eq!(refusal(lab.client.places("kvm1", Some(UNC)).await), (502, vec![Id::ShareUnreachable]));
        assert_eq!(refusal(add(lab, "kvm1", UNC).await), (502, vec![Id::ShareUnreachable]));
        lab.file_servers.change(&unc(), |export| export.is_up = true);
        kvm2.stop().await;
        assert_eq!(refusal(lab.client.places("kvm2", None).await), (502, vec![Id::HostUnreachable]));
    });
}
