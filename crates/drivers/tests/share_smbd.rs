//! The SMB driver against a real Samba server, in network and mount namespaces of its own.
//!
//! Needs root, `smbd`, `smbclient` and `smbnetfs` (or the kernel's cifs); if they are missing, reports that and stops.

use std::{cell::RefCell, fs};

use ferry_core::{
    finding::FindingId,
    id::{HostId, ShareId},
    location::Location,
    place::EntryKind,
    share_source::ShareSource,
    units::ByteCount,
};
use ferry_drivers::{
    places::{QemuUser, Roots, ShareRoot},
    share::{ShareDriver, ShareError, conformance, host::HostShares},
};
use smbd::{Samba, credentials, is_inside, wait_until};
use uuid::Uuid;

mod smbd;

fn unc(share: &str) -> ShareSource {
    format!("\\\\fs1.ferry.test\\{share}").parse().expect("well formed")
}

#[test]
fn the_smb_driver_keeps_what_every_share_driver_keeps() {
    if !is_inside("the_smb_driver_keeps_what_every_share_driver_keeps") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let samba = RefCell::new(Samba::new(directory.path(), "server min protocol = SMB3_00"));
    let mounts = directory.path().join("mounts");
    fs::create_dir(&mounts).expect("made");
    conformance::run(&conformance::Site {
        first: &HostShares::new(directory.path().join("work/first")),
        second: &HostShares::new(directory.path().join("work/second")),
        share: unc("vms"),
        credentials: Some(credentials()),
        directory: mounts,
        set_up: &|is_up| if is_up { samba.borrow_mut().start() } else { samba.borrow_mut().stop() },
    });
    samba.borrow_mut().stop();
    let left: Vec<String> = fs::read_to_string("/proc/self/mountinfo")
        .expect("readable")
        .lines()
        .filter(|line| line.contains("smbnetfs") || line.contains(" cifs "))
        .map(str::to_owned)
        .collect();
    assert_eq!(left, Vec::<String>::new(), "nothing stays mounted");
}

#[test]
fn directories_on_a_share_are_listed_checked_and_kept_inside() {
    if !is_inside("directories_on_a_share_are_listed_checked_and_kept_inside") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut samba = Samba::new(directory.path(), "server min protocol = SMB3_00");
    let driver = HostShares::new(directory.path().join("work"));
    let at = directory.path().join("mount");
    driver.attach(&unc("vms"), Some(&credentials()), &at).expect("attached");
    fs::create_dir(at.join("dir")).expect("made");
    fs::write(at.join("dir/disk.raw"), [7; 5000]).expect("written");
    let (host, share) = (HostId(Uuid::from_u128(1)), ShareId(Uuid::from_u128(2)));
    let roots = Roots::new(host, Vec::new(), vec![ShareRoot { id: share, source: unc("vms"), mount: at.clone() }]);
    let on_share = |path: &str| Location::Share { share, path: path.into() };
    let listing = roots.list(&on_share("dir")).expect("listed");
    let seen: Vec<_> = listing.entries.iter().map(|entry| (entry.name.as_str(), entry.kind, entry.size)).collect();
    assert_eq!(seen, [("disk.raw", EntryKind::File, Some(ByteCount(5000)))]);
    roots.check_writable(&on_share("dir"), QemuUser::of_conf("user = \"nobody\"")).expect("QEMU's user may write");
    assert_eq!(fs::read_dir(directory.path().join("data/dir")).expect("read").count(), 1, "nothing stays of the check");
    for (path, id) in [
        ("../other", FindingId::PlaceOutside),
        ("nothing", FindingId::PlaceMissing),
        ("dir/disk.raw", FindingId::PlaceNotADirectory),
    ] {
        assert_eq!(roots.list(&on_share(path)).expect_err(path).finding().id, id, "{path}");
    }
    driver.detach(&unc("vms"), &at).expect("detached");
    samba.stop();
}

#[test]
fn a_server_that_speaks_only_smb_2_is_refused() {
    if !is_inside("a_server_that_speaks_only_smb_2_is_refused") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut samba = Samba::new(directory.path(), "server max protocol = SMB2_10");
    let driver = HostShares::new(directory.path().join("work"));
    let at = directory.path().join("mount");
    for result in [
        driver.probe(&unc("vms"), Some(&credentials())).map(|_| ()),
        driver.attach(&unc("vms"), Some(&credentials()), &at),
    ] {
        assert!(matches!(result, Err(ShareError::Dialect { .. })), "{result:?}");
    }
    samba.stop();
}

#[test]
fn a_mount_whose_process_died_is_told_and_replaced() {
    if !is_inside("a_mount_whose_process_died_is_told_and_replaced") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut samba = Samba::new(directory.path(), "server min protocol = SMB3_00");
    let driver = HostShares::new(directory.path().join("work"));
    let at = directory.path().join("mount");
    driver.attach(&unc("vms"), Some(&credentials()), &at).expect("attached");
    fs::write(at.join("file"), "x").expect("written");
    let mut killed = 0;
    for entry in fs::read_dir("/proc").expect("mounted").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        if fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "smbnetfs") {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            killed += 1;
        }
    }
    if killed == 0 {
        eprintln!("not run: the kernel mounts the share itself");
    } else {
        wait_until("the dead mount is told", || driver.check(&unc("vms"), &at).is_err());
        driver.attach(&unc("vms"), Some(&credentials()), &at).expect("attached again");
        assert_eq!(fs::read_to_string(at.join("file")).expect("read"), "x");
    }
    driver.detach(&unc("vms"), &at).expect("detached");
    samba.stop();
}
