use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    os::unix::{ffi::OsStrExt, fs::symlink},
};

use ferry_core::{
    finding::FindingId,
    place::{ENTRIES_MAX, EntryKind},
};

use super::*;

const HOST: HostId = HostId(Uuid::from_u128(1));
const VMS: ShareId = ShareId(Uuid::from_u128(2));

/// A storage root `local` and a share mounted at `mount`, beside a directory `outside`.
struct Site {
    folder: tempfile::TempDir,
    roots: Roots,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["local/a/b", "mount/dir/sub", "outside/secret"] {
            fs::create_dir_all(folder.path().join(name)).expect("made");
        }
        let source = "\\\\fs1.contoso.com\\vms".parse().expect("a UNC path");
        let shares = vec![ShareRoot { id: VMS, source, mount: folder.path().join("mount") }];
        let roots = Roots::new(HOST, vec![folder.path().join("local")], shares);
        Self { folder, roots }
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside)
    }

    fn local(&self, inside: &str) -> Location {
        Location::Local { host: HOST, path: format!("{}/local{inside}", self.folder.path().display()) }
    }

    fn refusal(&self, location: &Location) -> FindingId {
        let finding = self.roots.list(location).expect_err("refused").finding();
        assert!(!finding.object.is_empty() && !finding.fix.to_string().is_empty(), "{finding:?}");
        if matches!(location, Location::Share { .. }) {
            assert!(!finding.message.to_string().contains("mount/"), "a mount point is shown: {finding:?}");
        }
        finding.id
    }
}

fn share(path: &str) -> Location {
    Location::Share { share: VMS, path: path.into() }
}

#[test]
fn directories_in_roots_are_opened() {
    let site = Site::new();
    for (location, path) in [
        (site.local(""), "local"),
        (site.local("/"), "local"),
        (site.local("/a/./b/"), "local/a/b"),
        (share(""), "mount"),
        (share("dir/sub"), "mount/dir/sub"),
    ] {
        let directory = site.roots.open(&location).expect(path);
        assert_eq!(directory.path().components().collect::<PathBuf>(), site.path(path));
    }
    assert_eq!(site.roots.open(&share("dir/sub")).expect("opened").written(), "\\\\fs1.contoso.com\\vms\\dir\\sub");
}

#[test]
fn whatever_lies_or_leads_outside_is_refused() {
    use FindingId as Id;
    let site = Site::new();
    fs::write(site.path("local/file"), "x").expect("written");
    for (link, target) in [
        ("local/absolute", site.path("outside").display().to_string()),
        ("local/inside-by-absolute", site.path("local/a").display().to_string()),
        ("local/climbs", "../outside".to_owned()),
        ("local/a/climbs", "../../outside/secret".to_owned()),
        ("local/loop", "loop".to_owned()),
        ("local/one", "two".to_owned()),
        ("local/two", "one".to_owned()),
        ("local/magic", "/proc/self/root".to_owned()),
        ("local/dangling", "nothing".to_owned()),
        ("mount/etc", "/etc".to_owned()),
        ("mount/climbs", "../outside".to_owned()),
    ] {
        symlink(target, site.path(link)).expect("a link");
    }
    let elsewhere = |path: &str| Location::Local { host: HOST, path: path.into() };
    let outside = elsewhere(&format!("{}/local-beside", site.folder.path().display()));
    fs::create_dir(site.path("local-beside")).expect("made");
    for (location, id) in [
        (elsewhere("/etc"), Id::PlaceOutside),
        (elsewhere("/"), Id::PlaceOutside),
        (elsewhere("relative"), Id::PlaceOutside),
        (outside, Id::PlaceOutside),
        (elsewhere(&site.path("mount/dir").display().to_string()), Id::PlaceOutside),
        (Location::Local { host: HostId(Uuid::from_u128(9)), path: "/etc".into() }, Id::PlaceOutside),
        (site.local("/.."), Id::PlaceOutside),
        (site.local("/a/../../outside"), Id::PlaceOutside),
        (site.local("/a/../a"), Id::PlaceOutside),
        (site.local("/absolute"), Id::PlaceOutside),
        (site.local("/absolute/secret"), Id::PlaceOutside),
        (site.local("/inside-by-absolute"), Id::PlaceOutside),
        (site.local("/climbs"), Id::PlaceOutside),
        (site.local("/a/climbs"), Id::PlaceOutside),
        (site.local("/magic"), Id::PlaceOutside),
        (site.local("/loop"), Id::PlaceUnreadable),
        (site.local("/one/x"), Id::PlaceUnreadable),
        (site.local("/dangling"), Id::PlaceMissing),
        (site.local("/nothing"), Id::PlaceMissing),
        (site.local("/file"), Id::PlaceNotADirectory),
        (site.local("/file/x"), Id::PlaceNotADirectory),
        (share("/etc"), Id::PlaceOutside),
        (share(".."), Id::PlaceOutside),
        (share("dir/../../outside"), Id::PlaceOutside),
        (share("etc"), Id::PlaceOutside),
        (share("climbs/secret"), Id::PlaceOutside),
        (Location::Share { share: ShareId(Uuid::from_u128(9)), path: "x".into() }, Id::ShareNotAttached),
    ] {
        assert_eq!(site.refusal(&location), id, "{location:?}");
    }
}

#[test]
fn a_path_below_a_mount_point_is_refused_with_the_unc_path_to_write() {
    let site = Site::new();
    let path = site.path("mount/dir").display().to_string();
    let finding = site.roots.open(&Location::Local { host: HOST, path }).expect_err("refused").finding();
    assert_eq!(finding.id, FindingId::PlaceOutside);
    assert_eq!(finding.fix.to_string(), "Write \\\\fs1.contoso.com\\vms\\dir");
}

#[test]
fn a_path_below_a_share_inside_a_storage_root_is_on_the_share() {
    let site = Site::new();
    fs::create_dir_all(site.path("local/vms/dir/own")).expect("made");
    let root = |path: &str| ShareRoot { id: VMS, source: path.parse().expect("a path"), mount: site.path("local/vms") };
    let roots =
        |local: &[&str]| Roots::new(HOST, local.iter().map(|path| site.path(path)).collect(), vec![root("/mnt/vms")]);
    let finding = roots(&["local"]).open(&site.local("/vms/dir")).expect_err("refused").finding();
    assert_eq!((finding.id, finding.fix.to_string().as_str()), (FindingId::PlaceOutside, "Write /mnt/vms/dir"));
    assert!(roots(&["local"]).open(&share("dir")).is_ok());
    assert!(roots(&["local"]).open(&site.local("/a")).is_ok(), "beside it is the host's own");
    let deeper = roots(&["local", "local/vms/dir/own"]);
    assert!(deeper.open(&site.local("/vms/dir/own")).is_ok(), "a storage root inside a share is what was configured");
}

#[test]
fn links_that_stay_inside_are_followed() {
    let site = Site::new();
    fs::write(site.path("local/a/b/disk.raw"), "x").expect("written");
    symlink("a/b", site.path("local/link")).expect("a link");
    symlink("../../a", site.path("local/a/b/up")).expect("a link");
    let listing = site.roots.list(&site.local("/link")).expect("inside");
    let names: Vec<_> = listing.entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    assert_eq!(names, [("disk.raw", EntryKind::File), ("up", EntryKind::Directory)]);
    assert!(site.roots.list(&site.local("/link/up/b")).is_ok());
}

#[test]
fn a_root_that_is_itself_a_link_is_the_administrators_choice() {
    let site = Site::new();
    symlink(site.path("outside"), site.path("configured")).expect("a link");
    let roots = Roots::new(HOST, vec![site.path("configured")], Vec::new());
    let location =
        |inside: &str| Location::Local { host: HOST, path: format!("{}{inside}", site.path("configured").display()) };
    assert!(roots.open(&location("/secret")).is_ok());
    assert!(roots.open(&location("/../local")).is_err());
}

#[test]
fn a_directory_that_was_opened_stays_the_same_when_its_path_is_swapped() {
    let site = Site::new();
    let directory = site.roots.open(&site.local("/a")).expect("opened");
    fs::rename(site.path("local/a"), site.path("local/before")).expect("renamed");
    symlink(site.path("outside"), site.path("local/a")).expect("a link");
    directory.create_file("disk.raw").expect("made").write_all(b"x").expect("written");
    assert!(site.path("local/before/disk.raw").exists() && !site.path("outside/disk.raw").exists());
}

#[test]
fn a_listing_is_sorted_and_tells_kinds_and_sizes() {
    let site = Site::new();
    let at = |name: &str| site.path("local").join(name);
    let sparse = fs::File::create(at("sparse.raw")).expect("made");
    sparse.set_len(1 << 30).expect("sized");
    fs::write(at("full.raw"), vec![7; 1 << 20]).expect("written");
    fs::write(at("Big"), "").expect("written");
    symlink(site.path("outside"), at("out")).expect("a link");
    symlink("sparse.raw", at("thin")).expect("a link");
    fs::create_dir(at("dir")).expect("made");
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("made");
    let listing = site.roots.list(&site.local("")).expect("listed");
    let seen: Vec<_> = listing.entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    use EntryKind::{Directory, File, Link, Other};
    let expected = [
        ("Big", File),
        ("a", Directory),
        ("dir", Directory),
        ("full.raw", File),
        ("out", Link),
        ("pipe", Other),
        ("sparse.raw", File),
        ("thin", File),
    ];
    assert_eq!(seen, expected);
    let of = |name: &str| listing.entries.iter().find(|entry| entry.name == name).expect("listed");
    assert_eq!(of("sparse.raw").size.map(|size| size.0), Some(1 << 30));
    assert!(of("sparse.raw").allocated.is_some_and(|allocated| allocated.0 < 1 << 20), "{:?}", of("sparse.raw"));
    assert!(of("full.raw").allocated.is_some_and(|allocated| allocated.0 >= 1 << 20), "{:?}", of("full.raw"));
    assert_eq!(of("thin").size, of("sparse.raw").size);
    assert_eq!((of("dir").size, of("pipe").size), (None, None));
    assert!(listing.space.is_some_and(|space| space.free.0 > 0 && space.free <= space.total), "{:?}", listing.space);
}

#[test]
fn names_that_are_not_text_are_counted() {
    let site = Site::new();
    for name in [b"\xff.raw".as_slice(), b"caf\xe9"] {
        fs::write(site.path("local/a").join(OsStr::from_bytes(name)), "").expect("written");
    }
    let listing = site.roots.list(&site.local("/a")).expect("listed");
    assert_eq!((listing.entries.len(), listing.unnamed, listing.more), (1, 2, 0));
}

#[test]
fn a_huge_directory_shows_its_first_names_and_how_many_more() {
    let site = Site::new();
    let number = ENTRIES_MAX + 234;
    for file in (0..number).rev() {
        File::create(site.path(&format!("local/a/b/{file:05}"))).expect("made");
    }
    let listing = site.roots.list(&site.local("/a/b")).expect("listed");
    assert_eq!((listing.entries.len(), listing.more), (ENTRIES_MAX, 234));
    assert_eq!(listing.entries[0].name, "00000");
    assert_eq!(listing.entries[ENTRIES_MAX - 1].name, format!("{:05}", ENTRIES_MAX - 1));
}

#[test]
fn the_parent_of_a_file_is_opened_and_its_name_given() {
    let site = Site::new();
    let (directory, name) = site.roots.open_parent(&share("dir/web01.qcow2")).expect("opened");
    assert_eq!((directory.path(), name.as_str()), (site.path("mount/dir").as_path(), "web01.qcow2"));
    let (directory, name) = site.roots.open_parent(&site.local("/disk.raw")).expect("opened");
    assert_eq!((directory.path(), name.as_str()), (site.path("local/").as_path(), "disk.raw"));
    for location in [share(""), site.local(""), share("../x"), share("nothing/x")] {
        assert!(site.roots.open_parent(&location).is_err(), "{location:?}");
    }
}

#[test]
fn a_new_file_has_a_plain_name_and_replaces_nothing() {
    let site = Site::new();
    fs::write(site.path("local/taken"), "x").expect("written");
    symlink(site.path("outside/made"), site.path("local/link")).expect("a link");
    let directory = site.roots.open(&site.local("")).expect("opened");
    for name in ["taken", "link", "a/file", "../file", "/file", "", ".", ".."] {
        assert!(matches!(directory.create_file(name), Err(RootsError::NotWritable { .. })), "{name:?}");
    }
    assert!(!site.path("outside/made").exists());
    directory.create_file("new").expect("made");
    directory.remove_file("new").expect("removed");
}

#[test]
fn a_directory_that_qemu_cannot_use_is_told_and_nothing_stays() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new();
    let empty = || fs::read_dir(site.path("local/a/b")).expect("read").count() == 0;
    let check = |conf: &str| site.roots.check_writable(&site.local("/a/b"), QemuUser::of_conf(conf));
    check("user = \"+0\"").expect("who runs this may write");
    assert!(empty());
    let mode = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    let refused = if nix::unistd::geteuid().is_root() {
        mode(site.path("local"), 0o700);
        check("user = \"nobody\"")
    } else {
        mode(site.path("local/a/b"), 0o500);
        check("")
    };
    let finding = refused.expect_err("refused").finding();
    assert_eq!(finding.id, FindingId::PlaceNotWritable, "{finding:?}");
    assert!(empty());
    if nix::unistd::geteuid().is_root() {
        mode(site.path(""), 0o711);
        mode(site.path("local"), 0o711);
        check("user = \"nobody\"").expect("a file is given to QEMU's user, who need not own the directory");
        assert!(empty());
    }
}
