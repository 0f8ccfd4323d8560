//! Shares other than SMB: NFS exports, and paths that an administrator provides on several hosts.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
};

use ferry_client::ClientError;
use ferry_core::{
    api::{
        agent::ShareCredentials,
        server::{AddShare, AddStorageLocation, AttachShare, PlacesView, ShareView},
    },
    finding::FindingId as Id,
    location::Location,
    migration::Phase,
    share::AttachMode,
    share_source::ShareSource,
};
use ferry_drivers::{hypervisor::fake::FakeGuest, share::fake::FakeExport};

use crate::support::{Host, Lab, in_lab, refusal, wait_for};

const NFS: &str = "nfs://fs1.ferry.lab/srv/vms";
const PATH: &str = "/mnt/vms";

async fn add(lab: &Lab, name: &str, source: &str) {
    lab.client.add_share(&AddShare { name: name.into(), source: source.into() }).await.expect("added");
}

async fn attach(lab: &Lab, share: &str, host: &str, at: Option<&PathBuf>) -> Result<ShareView, ClientError> {
    let at = at.map(|path| path.display().to_string());
    lab.client.attach_share(share, host, &AttachShare { credentials: None, at }).await
}

async fn two_hosts(lab: &Lab) -> [Host; 2] {
    let hosts = [lab.host("kvm1").await, lab.host("kvm2").await];
    for host in &hosts {
        lab.add(host).await.expect("added");
    }
    hosts
}

/// The path of the directory that a text denotes on a host.
async fn browsed(lab: &Lab, host: &str, text: &str) -> String {
    match lab.client.places(host, Some(text)).await.expect(text) {
        PlacesView::Directory { path, .. } => path,
        other @ PlacesView::Offered { .. } => panic!("{other:?}"),
    }
}

/// Where a host's administrator mounts a shared path: not below the share root.
fn by_hand(host: &Host) -> PathBuf {
    host.config.qemu_conf.with_file_name("vms")
}

/// Runs a VM on the first host with its disk at `disk`, and moves it to the second.
async fn move_there(lab: &Lab, host: &Host, disk: PathBuf) {
    let vm = host.hypervisor.define(FakeGuest::new("web01", &[disk])).expect("defined");
    wait_for("web01 is seen", async || lab.client.vm("web01").await.is_ok()).await;
    lab.client.start_vm("web01").await.expect("started");
    let job = lab.migrate("web01", "kvm2").await.expect("accepted").id;
    lab.wait_for_job(job, |job| job.phase == Phase::Succeeded).await;
    assert_eq!(lab.running_on(vm).into_iter().collect::<Vec<_>>(), ["kvm2"]);
}

#[test]
fn a_vm_moves_on_an_nfs_export_that_ferry_mounts_without_a_password() {
    in_lab(async |lab| {
        let [kvm1, _kvm2] = two_hosts(lab).await;
        let source: ShareSource = NFS.parse().expect("an export");
        lab.file_servers.export(&source, FakeExport::new(lab.folder("nfs")));
        add(lab, "nfs", "nfs://FS1.ferry.lab/srv/vms/").await;
        let password = Some(ShareCredentials { user: "ferry".into(), password: "secret".into() });
        let login = AttachShare { credentials: password, at: None };
        assert_eq!(refusal(lab.client.attach_share("nfs", "kvm1", &login).await), (422, vec![Id::SharePassword]));
        attach(lab, "nfs", "kvm1", None).await.expect("attached");
        let view = attach(lab, "nfs", "kvm2", None).await.expect("attached, and the same");
        assert_eq!((view.source, view.hosts.len()), (source, 2));
        assert!(view.hosts.iter().all(|on| on.attached.mode == AttachMode::Mounted && on.attached.at.is_none()));
        fs::create_dir_all(kvm1.on_share("dir")).expect("made");
        assert_eq!(browsed(lab, "kvm1", &format!("{NFS}/dir/")).await, format!("{NFS}/dir"));
        let elsewhere = lab.client.places("kvm1", Some("nfs://fs1.ferry.lab/other/dir")).await;
        assert_eq!(refusal(elsewhere), (404, vec![Id::ShareUnknown]));
        move_there(lab, &kvm1, kvm1.on_share("dir/disk.raw")).await;
        let text = serde_json::to_string(&lab.client.vm("web01").await.expect("known")).expect("JSON");
        assert!(!text.contains(&kvm1.config.share_root.display().to_string()), "a mount point is shown: {text}");
    });
}

#[test]
fn a_vm_moves_on_a_path_that_each_host_has_elsewhere() {
    in_lab(async |lab| {
        let [kvm1, kvm2] = two_hosts(lab).await;
        let backing = lab.folder("ceph");
        let source: ShareSource = PATH.parse().expect("a path");
        lab.file_servers.export(&source, FakeExport { kind: "ceph".into(), ..FakeExport::new(&backing) });
        add(lab, "ceph", PATH).await;
        let [here, there] = [&kvm1, &kvm2].map(by_hand);
        for (host, at) in [("kvm1", &here), ("kvm2", &there)] {
            assert_eq!(
                refusal(attach(lab, "ceph", host, Some(at)).await),
                (422, vec![Id::ShareMount]),
                "not mounted yet"
            );
            symlink(&backing, at).expect("a mount of the fake");
            attach(lab, "ceph", host, Some(at)).await.expect("attached");
        }
        fs::create_dir(backing.join("dir")).expect("made");
        let mine = format!("{}/dir", here.display());
        for text in [format!("{PATH}/dir"), mine] {
            assert_eq!(browsed(lab, "kvm1", &text).await, format!("{PATH}/dir"), "{text} is on the share");
        }
        let location = AddStorageLocation { location: format!("{PATH}/dir") };
        let view = lab.client.add_storage_location("kvm1", &location).await.expect("added");
        let share = lab.client.share("ceph").await.expect("known").id;
        assert_eq!(view.storage_locations[0].location, Location::Share { share, path: "dir".into() });
        move_there(lab, &kvm1, here.join("dir/disk.raw")).await;
        lab.client.detach_share("ceph", "kvm1").await.expect("detached");
        assert!(here.join("dir").exists(), "it stays mounted");
        let gone = lab.client.remove_storage_location("kvm1", &format!("{PATH}/dir")).await.expect("by its name");
        assert_eq!(gone.storage_locations, []);
    });
}

#[test]
fn a_path_that_libvirt_does_not_know_as_shared_is_attached_when_qemu_conf_lists_it() {
    in_lab(async |lab| {
        let [kvm1, _kvm2] = two_hosts(lab).await;
        let (backing, at) = (lab.folder("odd"), by_hand(&kvm1));
        let source: ShareSource = PATH.parse().expect("a path");
        lab.file_servers.export(&source, FakeExport { kind: "fuse.odd".into(), ..FakeExport::new(&backing) });
        symlink(&backing, &at).expect("a mount of the fake");
        add(lab, "odd", PATH).await;
        let ClientError::Refused(problem) = attach(lab, "odd", "kvm1", Some(&at)).await.expect_err("refused") else {
            panic!("not answered");
        };
        let finding = &problem.findings[0];
        assert_eq!((problem.status, finding.id), (409, Id::HostSharedFilesystems));
        assert!(finding.message.to_string().contains("fuse.odd"), "{finding:?}");
        let line = finding.fix.to_string().split('`').nth(1).expect("the line to write").to_owned();
        let conf = fs::read_to_string(&kvm1.config.qemu_conf).expect("read");
        let kept: Vec<_> = conf.lines().filter(|line| !line.starts_with("shared_filesystems")).collect();
        fs::write(&kvm1.config.qemu_conf, format!("{}\n{line}\n", kept.join("\n"))).expect("written");
        attach(lab, "odd", "kvm1", Some(&at)).await.expect("the fix works");
        let host = lab.client.host("kvm1").await.expect("known").facts.expect("known");
        assert_eq!(host.findings, [], "the share root is still listed");
    });
}

#[test]
fn a_path_where_something_else_is_mounted_now_cannot_be_used() {
    in_lab(async |lab| {
        let [kvm1, _kvm2] = two_hosts(lab).await;
        let (backing, at) = (lab.folder("ceph"), by_hand(&kvm1));
        let source: ShareSource = PATH.parse().expect("a path");
        lab.file_servers.export(&source, FakeExport::new(&backing));
        symlink(&backing, &at).expect("a mount of the fake");
        add(lab, "ceph", PATH).await;
        add(lab, "twin", "/mnt/twin").await;
        attach(lab, "ceph", "kvm1", Some(&at)).await.expect("attached");
        let twice = attach(lab, "twin", "kvm1", Some(&at)).await;
        assert_eq!(refusal(twice), (422, vec![Id::ShareMount]), "one path is one share");
        fs::remove_file(&at).expect("unmounted");
        let other = lab.folder("other");
        let elsewhere: ShareSource = "/mnt/other".parse().expect("a path");
        lab.file_servers.export(&elsewhere, FakeExport::new(&other));
        symlink(&other, &at).expect("a mount of the fake");
        let refused = lab.client.places("kvm1", Some(PATH)).await;
        assert_eq!(refusal(refused), (422, vec![Id::ShareMount]));
        attach(lab, "ceph", "kvm1", Some(&at)).await.expect("changed on purpose");
        assert_eq!(browsed(lab, "kvm1", PATH).await, PATH);
    });
}

#[test]
fn a_share_on_which_qemus_user_gets_no_file_is_not_attached() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: only root can stand for the agent of a host");
        return;
    }
    in_lab(async |lab| {
        let [kvm1, _kvm2] = two_hosts(lab).await;
        let backing = lab.folder("nfs");
        let source: ShareSource = NFS.parse().expect("an export");
        lab.file_servers.export(&source, FakeExport::new(&backing));
        add(lab, "nfs", NFS).await;
        // QEMU's user cannot enter the directory.
        fs::set_permissions(&backing, fs::Permissions::from_mode(0o700)).expect("set");
        let conf = fs::read_to_string(&kvm1.config.qemu_conf).expect("read").replace("+0", "nobody");
        fs::write(&kvm1.config.qemu_conf, conf).expect("written");
        let ClientError::Refused(problem) = attach(lab, "nfs", "kvm1", None).await.expect_err("refused") else {
            panic!("not answered");
        };
        let finding = &problem.findings[0];
        assert_eq!((problem.status, finding.id), (422, Id::PlaceNotWritable));
        assert!(
            finding.fix.to_string().contains("/srv/vms HOST(") && finding.fix.to_string().contains("no_root_squash"),
            "{finding:?}"
        );
        assert_eq!(lab.client.share("nfs").await.expect("known").hosts, []);
        assert_eq!(fs::read_dir(&kvm1.config.share_root).expect("read").count(), 0, "nothing stays mounted");
        assert_eq!(fs::read_dir(&backing).expect("read").count(), 0, "nothing stays of the trial");
    });
}
