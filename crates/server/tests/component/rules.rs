//! Rules for VM files: which ones move, stay or are refused, in every way in which a file may move.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
};

use ferry_core::{
    api::server::{JobView, MigrateVm, MoveDisk, MoveStorage},
    finding::{Finding, FindingId, Severity},
    id::VmId,
    migration::Phase,
    units::ByteCount,
    vm::{DiskFeature, DiskFormat, FileRole, VmFile, VmState},
};
use ferry_drivers::{
    hypervisor::{
        Domains as _, Power as _,
        fake::{FakeGuest, Hold, Point},
    },
    share::fake::SOFT,
};
use ferry_testkit::logs::expects_warning;

use crate::{
    moves::reached,
    support::{Host, Lab, UNC, in_lab, refusal, unc, wait_for},
};

/// The ways in which a file may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path3 {
    /// On its host, while the VM runs.
    Storage,
    /// With the running VM, to another host.
    WithDisks,
    /// With a VM that is shut off.
    Offline,
}

const ALL: [Path3; 3] = [Path3::Storage, Path3::WithDisks, Path3::Offline];

fn disk_to(device: &str, to: &str, format: Option<DiskFormat>) -> Vec<MoveDisk> {
    vec![MoveDisk { device: device.into(), to: Some(to.to_owned()), format }]
}

/// The findings against a move of disk `vda` of VM `db`, which is first put into the state that this way needs.
async fn against(lab: &Lab, kvm1: &Host, kvm2: &Host, vm: VmId, how: Path3) -> Vec<Finding> {
    let host = if how == Path3::Storage { kvm1 } else { kvm2 };
    against_to(lab, kvm1, vm, how, &host.on_host("new").display().to_string(), None).await
}

async fn against_to(
    lab: &Lab,
    kvm1: &Host,
    vm: VmId,
    how: Path3,
    to: &str,
    format: Option<DiskFormat>,
) -> Vec<Finding> {
    if how == Path3::Offline {
        kvm1.hypervisor.destroy(vm).expect("ended");
        lab.wait_for_state("db", VmState::ShutOff).await;
    } else {
        kvm1.hypervisor.start(vm).expect("started");
        lab.wait_for_state("db", VmState::Running).await;
    }
    let disks = disk_to("vda", to, format);
    if how == Path3::Storage {
        let body = MoveStorage { disks, ..MoveStorage::default() };
        return lab.client.try_move_storage("db", &body).await.expect("tried").findings;
    }
    let offline = how == Path3::Offline;
    let body = MigrateVm { destination: "kvm2".into(), disks, offline, ..MigrateVm::default() };
    lab.client.try_migrate("db", &body).await.expect("tried").findings
}

fn ids(findings: &[Finding]) -> Vec<(FindingId, Severity)> {
    findings.iter().map(|finding| (finding.id, finding.severity)).collect()
}

fn overlay(base: &Path, top: &Path) {
    fs::create_dir_all(top.parent().expect("a folder")).expect("made");
    let mut tool = std::process::Command::new("qemu-img");
    tool.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(top);
    assert!(tool.status().expect("qemu-img is installed").success());
}

/// Another path to the directory `db` of the share on one host: a separate directory that is a link.
fn alias(host: &Host) -> PathBuf {
    let alias = host.on_host("store");
    let _ = fs::create_dir_all(host.on_host(""));
    if !alias.is_symlink() {
        symlink(host.on_share("db"), &alias).expect("made");
    }
    alias
}

/// Two hosts with a directory `new`, and a VM `db` on the first of them, which is shut off and has one disk on the
/// share.
async fn db(lab: &Lab, change: impl FnOnce(&mut FakeGuest)) -> (Host, Host, VmId) {
    let (kvm1, kvm2, _) = lab.two_hosts().await;
    for host in [&kvm1, &kvm2] {
        fs::create_dir_all(host.on_host("new")).expect("made");
    }
    fs::create_dir_all(kvm1.on_share("db")).expect("made");
    fs::write(kvm1.on_share("db/disk.raw"), vec![7; 1 << 20]).expect("written");
    let vm = lab.define(&kvm1, "db", change).await;
    (kvm1, kvm2, vm)
}

#[test]
fn what_another_vm_needs_is_never_taken_away() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = db(lab, |_| {}).await;
        for how in ALL {
            assert_eq!(against(lab, &kvm1, &kvm2, vm, how).await, [], "{how:?}: nobody else uses it");
        }
        let top = |host: &Host| host.on_share("clone/top.qcow2");
        for (row, host, runs, is_overlay, by_alias) in [
            ("the same file", &kvm1, false, false, false),
            ("the same file, on another host", &kvm2, true, false, false),
            ("a clone that runs", &kvm1, true, true, false),
            ("a clone that is shut off", &kvm1, false, true, false),
            ("a clone that runs on another host", &kvm2, true, true, false),
            ("a clone that is shut off on another host", &kvm2, false, true, false),
            ("the same file by another name", &kvm1, true, false, true),
            ("the same file by another name, on another host", &kvm2, false, false, true),
            ("a clone by another name", &kvm1, false, true, true),
            ("a clone that runs by another name, on another host", &kvm2, true, true, true),
        ] {
            let base = match by_alias {
                true => alias(host).join("disk.raw"),
                false => host.on_share("db/disk.raw"),
            };
            let mut guest = FakeGuest::new("clone", &[if is_overlay { top(host) } else { base.clone() }]);
            if is_overlay {
                overlay(&base, &top(host));
                guest.facts.files[0].format = Some(DiskFormat::Qcow2);
                // The definition of a VM that is shut off does not show it.
                if runs {
                    guest.facts.files[0].below = vec![base];
                    guest.facts.files[0].has_backing = true;
                }
            }
            let clone = host.hypervisor.define(guest).expect("defined");
            if runs {
                host.hypervisor.start(clone).expect("started");
            }
            wait_for(row, async || {
                let seen = lab.client.vm("clone").await;
                seen.is_ok_and(|vm| {
                    let file = &vm.facts.files[0];
                    let is_followed = if is_overlay { !file.real_below.is_empty() } else { file.real.is_some() };
                    file.below.is_empty() != is_overlay && is_followed == by_alias
                })
            })
            .await;
            for how in ALL {
                let findings = against(lab, &kvm1, &kvm2, vm, how).await;
                assert_eq!(ids(&findings), [(FindingId::DiskTwice, Severity::Blocks)], "{row}, {how:?}: {findings:#?}");
                assert!(findings[0].message.to_string().contains("VM clone on"), "{row}: {findings:?}");
            }
            host.hypervisor.destroy(clone).expect("ended");
            host.hypervisor.undefine(clone).expect("removed");
            wait_for("it is gone", async || lab.client.vm("clone").await.is_err()).await;
        }
    });
}

/// Starts a move of `db` to the directories `new`, and holds it after the copy, before anything is removed.
async fn held(lab: &Lab, kvm1: &Host, kvm2: &Host, vm: VmId, how: Path3) -> (JobView, Arc<Hold>) {
    if how != Path3::Offline {
        kvm1.hypervisor.start(vm).expect("started");
        lab.wait_for_state("db", VmState::Running).await;
    }
    let (host, point) = match how {
        Path3::Storage => (kvm1, Point::PivotDisk),
        Path3::WithDisks => (kvm2, Point::Resume),
        Path3::Offline => (kvm2, Point::Define),
    };
    let disks = disk_to("vda", &host.on_host("new").display().to_string(), None);
    let hold = Arc::new(host.hypervisor.faults().hold(point));
    let job = match how {
        Path3::Storage => lab.client.move_storage("db", &MoveStorage { disks, ..MoveStorage::default() }).await,
        Path3::WithDisks | Path3::Offline => {
            let offline = how == Path3::Offline;
            let body = MigrateVm { destination: "kvm2".into(), disks, offline, ..MigrateVm::default() };
            lab.client.migrate("db", &body).await
        }
    };
    let job = job.expect("accepted");
    reached(&hold).await;
    (job, hold)
}

/// The job's notes about files that stay.
fn stays(job: &JobView) -> String {
    let texts = job.findings.iter().map(|finding| finding.message.to_string());
    texts.chain(job.log.iter().map(|line| line.message.clone())).filter(|text| text.contains("stay")).collect()
}

#[test]
fn a_base_that_a_clone_began_to_need_during_the_move_stays_by_whatever_name_and_on_whichever_host() {
    for how in ALL {
        for on_another_host in [false, true] {
            in_lab(async |lab| {
                let (kvm1, kvm2, vm) = db(lab, |_| {}).await;
                let (job, hold) = held(lab, &kvm1, &kvm2, vm, how).await;
                let host = if on_another_host { &kvm2 } else { &kvm1 };
                let top = host.on_host("clone.qcow2");
                overlay(&alias(host).join("disk.raw"), &top);
                let mut guest = FakeGuest::new("clone", &[top]);
                guest.facts.files[0].format = Some(DiskFormat::Qcow2);
                host.hypervisor.define(guest).expect("defined");
                wait_for("its base is known", async || {
                    lab.client.vm("clone").await.is_ok_and(|vm| !vm.facts.files[0].real_below.is_empty())
                })
                .await;
                hold.release();
                let job = lab.ends(&job, Phase::Succeeded).await;
                assert!(kvm1.on_share("db/disk.raw").exists(), "{how:?}: the clone is nothing without it");
                assert!(!stays(&job).is_empty(), "{how:?}: {job:#?}");
            });
        }
    }
}

#[test]
fn an_image_that_is_a_link_keeps_it_and_the_job_says_so() {
    expects_warning("An old file stays");
    // An offline move cannot read links, and fails.
    for how in [Path3::Storage, Path3::WithDisks] {
        in_lab(async |lab| {
            let (kvm1, kvm2, vm) = db(lab, |_| {}).await;
            let (link, data) = (kvm1.on_share("db/disk.raw"), kvm1.on_share("db/data.raw"));
            fs::rename(&link, &data).expect("renamed");
            symlink("data.raw", &link).expect("made");
            let (job, hold) = held(lab, &kvm1, &kvm2, vm, how).await;
            hold.release();
            let job = lab.ends(&job, Phase::Succeeded).await;
            assert!(link.is_symlink() && data.is_file(), "{how:?}");
            assert!(stays(&job).contains("symbolic link"), "{how:?}: {job:#?}");
        });
    }
}

#[test]
fn a_shareable_disk_stays_while_the_others_move() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        fs::create_dir_all(kvm1.on_host("new")).expect("made");
        let files = ["quorum", "data"].map(|name| kvm1.on_share(&format!("db/{name}.raw")));
        let guest = |guest: &mut FakeGuest| {
            guest.facts.files = FakeGuest::new("db", &files).facts.files;
            guest.facts.files[0].shareable = true;
        };
        let vm = lab.run(&kvm1, "db", guest).await;
        lab.wait_for_state("db", VmState::Running).await;
        let to = kvm1.on_host("new").display().to_string();
        let all = MoveStorage { to: Some(to.clone()), ..MoveStorage::default() };
        let plan = lab.client.try_move_storage("db", &all).await.expect("tried");
        assert_eq!(ids(&plan.findings), [(FindingId::DiskShareable, Severity::Warns)]);
        assert!(plan.findings[0].fix.to_string().contains("Shut down every VM that uses it"), "{plan:?}");
        let named = MoveStorage { disks: disk_to("vda", &to, None), ..MoveStorage::default() };
        assert_eq!(refusal(lab.client.move_storage("db", &named).await).1, [FindingId::DiskShareable]);
        let job = lab.client.move_storage("db", &all).await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        let facts = kvm1.hypervisor.vm(vm).expect("reachable").expect("there");
        let places: Vec<_> = facts.files.into_iter().map(|file| file.place).collect();
        assert_eq!(places, [files[0].clone(), kvm1.on_host("new/data.raw")]);
        assert!(files[0].exists() && !files[1].exists());
    });
}

/// Gives a guest UEFI variables in a file.
pub fn add_nvram(guest: &mut FakeGuest, place: &Path) {
    let nvram = VmFile { bypasses_cache: true, ..VmFile::new(FileRole::Nvram, "nvram", place.to_owned()) };
    guest.facts.files.push(nvram);
}

#[test]
fn uefi_variables_move_along_alone_where_every_disk_is_on_a_share() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = db(lab, |guest| {
            let share = guest.facts.files[0].place.clone();
            add_nvram(guest, &share.with_file_name("vars.fd"));
        })
        .await;
        fs::write(kvm1.on_share("db/vars.fd"), vec![5; 540 << 10]).expect("written");
        kvm1.hypervisor.start(vm).expect("started");
        lab.wait_for_state("db", VmState::Running).await;
        let disks = disk_to("nvram", &kvm2.on_host("new").display().to_string(), None);
        let body = MigrateVm { destination: "kvm2".into(), disks, ..MigrateVm::default() };
        let job = lab.client.migrate("db", &body).await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        let facts = kvm2.hypervisor.vm(vm).expect("reachable").expect("there");
        let places: Vec<_> = facts.files.into_iter().map(|file| file.place).collect();
        assert_eq!(places, [kvm2.on_share("db/disk.raw"), kvm2.on_host("new/vars.fd")]);
        assert!(!kvm1.on_share("db/vars.fd").exists() && kvm1.on_share("db/disk.raw").exists());
        // If the destination does not reach them and the request does not place them, the move is refused.
        let (status, found) = refusal(lab.migrate("db", "kvm1").await);
        assert_eq!((status, found), (409, vec![FindingId::DiskNotShared]));
    });
}

#[test]
fn uefi_variables_move_along_with_the_running_vm() {
    expects_warning("libvirt's migrate call failed");
    expects_warning("The local socket could not be reached");
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        fs::create_dir_all(kvm2.on_host("new")).expect("made");
        fs::create_dir_all(kvm1.on_host("old")).expect("made");
        let (old, new) = (kvm1.on_host("old/vars.fd"), kvm2.on_host("new/vars.fd"));
        fs::write(&old, vec![5; 540 << 10]).expect("written");
        fs::write(kvm1.on_host("old/vda.raw"), vec![7; 1 << 20]).expect("written");
        let guest = |guest: &mut FakeGuest| {
            guest.facts.files = FakeGuest::new("db", &[kvm1.on_host("old/vda.raw")]).facts.files;
            add_nvram(guest, &old);
        };
        let vm = lab.run(&kvm1, "db", guest).await;
        lab.wait_for_state("db", VmState::Running).await;
        let storage = Some(kvm2.on_host("new").display().to_string());
        let body = MigrateVm { destination: "kvm2".into(), storage, ..MigrateVm::default() };
        let tried = lab.client.try_migrate("db", &body).await.expect("tried");
        assert!(tried.why.contains("vda, nvram"), "{tried:?}");

        fs::write(&new, "precious").expect("written");
        assert_eq!(refusal(lab.client.migrate("db", &body).await).1, [FindingId::FileExists]);
        fs::remove_file(&new).expect("removed");

        kvm1.hypervisor.faults().fail(Point::Pass(1), "no such luck");
        let job = lab.client.migrate("db", &body).await.expect("accepted");
        lab.ends(&job, Phase::Failed).await;
        assert!(old.exists() && !new.exists(), "everything is taken back");

        let job = lab.client.migrate("db", &body).await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        let facts = kvm2.hypervisor.vm(vm).expect("reachable").expect("there");
        assert_eq!(facts.files[1].place, new);
        // QEMU writes the guest's variables there; they must fit.
        assert_eq!(fs::metadata(&new).expect("there").len(), 540 << 10);
        assert!(!old.exists(), "the old file is gone");
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn snapshots_inside_of_an_image_are_not_lost_silently() {
    in_lab(async |lab| {
        let qcow2 = |guest: &mut FakeGuest| guest.facts.files[0].format = Some(DiskFormat::Qcow2);
        let (kvm1, kvm2, vm) = db(lab, qcow2).await;
        let image = kvm1.on_share("db/disk.raw");
        for arguments in [&["create", "-q", "-f", "qcow2"][..], &["snapshot", "-c", "one"]] {
            let mut tool = std::process::Command::new("qemu-img");
            tool.args(arguments).arg(&image);
            if arguments[0] == "create" {
                tool.arg("4M");
            }
            assert!(tool.status().expect("qemu-img is installed").success());
        }
        for how in [Path3::Storage, Path3::WithDisks] {
            let findings = against(lab, &kvm1, &kvm2, vm, how).await;
            assert_eq!(ids(&findings), [(FindingId::VmSnapshot, Severity::Blocks)], "{how:?}: {findings:#?}");
            assert!(
                findings[0].message.to_string().contains("vda")
                    && findings[0].fix.to_string().contains("qemu-img snapshot -d")
            );
        }
        // An offline move copies them byte by byte.
        assert_eq!(against(lab, &kvm1, &kvm2, vm, Path3::Offline).await, []);
    });
}

#[test]
fn an_encrypted_disk_moves_byte_by_byte_or_not_at_all() {
    in_lab(async |lab| {
        let encrypted = |guest: &mut FakeGuest| guest.facts.files[0].features = vec![DiskFeature::Encrypted];
        let (kvm1, kvm2, vm) = db(lab, encrypted).await;
        for (how, severity) in [
            (Path3::Storage, Severity::Blocks),
            (Path3::WithDisks, Severity::Blocks),
            (Path3::Offline, Severity::Warns),
        ] {
            let findings = against(lab, &kvm1, &kvm2, vm, how).await;
            let first = &findings[0];
            assert_eq!((first.id, first.severity), (FindingId::DiskEncrypted, severity), "{how:?}: {findings:#?}");
        }
    });
}

#[test]
fn room_is_counted_for_the_whole_chain_and_for_copies_that_are_not_thin() {
    in_lab(async |lab| {
        // The guest sees 8 MiB; the image takes almost nothing, its backing file 4 MiB.
        let (kvm1, _kvm2, vm) = db(lab, |guest| {
            let base = guest.facts.files[0].place.with_file_name("base.raw");
            guest.facts.files[0].below = vec![base];
        })
        .await;
        let disk = fs::File::create(kvm1.on_share("db/disk.raw")).expect("made");
        disk.set_len(8 << 20).expect("sparse");
        fs::write(kvm1.on_share("db/base.raw"), vec![7; 4 << 20]).expect("written");
        let to = format!("{UNC}\\new");
        fs::create_dir_all(kvm1.on_share("new")).expect("made");
        let (qcow2, raw) = (Some(DiskFormat::Qcow2), Some(DiskFormat::Raw));
        for (row, free, format, fits) in [
            ("room for the image, not for its chain", 2, qcow2, false),
            ("room for the chain", 6, qcow2, true),
            ("room for the chain, not for all of the disk", 6, raw, false),
            ("room for all of the disk", 12, raw, true),
        ] {
            lab.file_servers.change(&unc(), |export| export.space.free = ByteCount::mib(free));
            for how in [Path3::Storage, Path3::WithDisks] {
                let findings = against_to(lab, &kvm1, vm, how, &to, format).await;
                let refused = findings.iter().any(|finding| finding.id == FindingId::FileSpace);
                assert_eq!(refused, !fits, "{row}, {how:?}: {findings:#?}");
            }
        }
    });
}

#[test]
fn what_shows_errors_to_the_guest_is_said_once_by_every_way() {
    in_lab(async |lab| {
        fs::write(lab.folder("export").join(SOFT), "").expect("written");
        let (kvm1, _kvm2, vm) = db(lab, |guest| guest.facts.files[0].stops_on_error = false).await;
        fs::create_dir_all(kvm1.on_share("new")).expect("made");
        for how in ALL {
            let to = format!("{UNC}\\new");
            let findings = against_to(lab, &kvm1, vm, how, &to, None).await;
            let count = |id: FindingId| findings.iter().filter(|finding| finding.id == id).count();
            assert_eq!(count(FindingId::DiskUnsafe), 1, "{how:?}: {findings:#?}");
            // Each host that would use the share.
            let hosts = if how == Path3::Storage { 1 } else { 2 };
            assert_eq!(count(FindingId::ShareSoft), hosts, "{how:?}: {findings:#?}");
            assert!(findings.iter().all(|finding| finding.severity == Severity::Warns), "{how:?}: {findings:#?}");
        }
    });
}
