//! Offline moves, with the VM's files.

use std::{fs, path::PathBuf, sync::Arc};

use ferry_core::{
    api::server::{JobView, MigrateVm, MoveDisk},
    files::DiskStage,
    finding::FindingId,
    id::VmId,
    job::{JobKind, MoveKind},
    migration::Phase,
    vm::{FileRole, VmFile, VmState},
};
use ferry_drivers::hypervisor::{
    Domains as _, Power as _,
    fake::{FakeGuest, FakeHypervisor, Hold, Point},
};
use ferry_testkit::logs::expects_warning;

use crate::{
    moves::reached,
    support::{Host, Lab, in_lab, refusal, wait_for},
};

/// Larger than the part of an unfinished copy that is discarded.
const DISK_BYTES: usize = 8 << 20;

/// A VM that is shut off, with a disk and UEFI variables on its host and a disk on the share.
async fn shut_off(lab: &Lab) -> (Host, Host, VmId) {
    let (kvm1, kvm2, _) = lab.two_hosts().await;
    let files = [disk(&kvm1), kvm1.on_share("db/vdb.raw"), kvm1.on_host("old/vars.fd")];
    for (number, file) in files.iter().enumerate() {
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        fs::write(file, content(number)).expect("written");
    }
    fs::create_dir_all(kvm2.on_host("new")).expect("made");
    let guest = |guest: &mut FakeGuest| {
        guest.facts.files = FakeGuest::new("db", &files[..2]).facts.files;
        let nvram = VmFile { bypasses_cache: true, ..VmFile::new(FileRole::Nvram, "nvram", files[2].clone()) };
        guest.facts.files.push(nvram);
        guest.facts.autostart = true;
    };
    let vm = lab.define(&kvm1, "db", guest).await;
    lab.wait_for_state("db", VmState::ShutOff).await;
    (kvm1, kvm2, vm)
}

fn content(number: usize) -> Vec<u8> {
    (0..DISK_BYTES).map(|index| (index / 4096 % 7 * (index + number)) as u8).collect()
}

fn disk(kvm1: &Host) -> PathBuf {
    kvm1.on_host("old/vda.raw")
}

fn to_new(kvm2: &Host) -> MigrateVm {
    let storage = Some(kvm2.on_host("new").display().to_string());
    MigrateVm { destination: "kvm2".into(), storage, offline: true, ..MigrateVm::default() }
}

fn assert_at_source(kvm1: &Host, kvm2: &Host, vm: VmId) {
    let facts = kvm1.hypervisor.vm(vm).expect("reachable").expect("there");
    assert!(facts.autostart && facts.state == VmState::ShutOff, "{facts:?}");
    assert_eq!(fs::read(disk(kvm1)).expect("there"), content(0));
    assert!(kvm2.hypervisor.vm(vm).expect("reachable").is_none());
    assert!(!kvm2.on_host("new/vda.raw").exists() && !kvm2.on_host("new/vars.fd").exists(), "under their names");
    assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
}

fn assert_moved(kvm1: &Host, kvm2: &Host, vm: VmId) {
    assert!(kvm1.hypervisor.vm(vm).expect("reachable").is_none(), "its definition is gone");
    let facts = kvm2.hypervisor.vm(vm).expect("reachable").expect("there");
    assert!(facts.autostart && facts.persistent && facts.state == VmState::ShutOff, "{facts:?}");
    let places: Vec<PathBuf> = facts.files.into_iter().map(|file| file.place).collect();
    let expected = [kvm2.on_host("new/vda.raw"), kvm2.on_share("db/vdb.raw"), kvm2.on_host("new/vars.fd")];
    assert_eq!(places, expected);
    for (number, place) in places.iter().enumerate() {
        assert_eq!(fs::read(place).expect("there"), content(number), "{}", place.display());
    }
    assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
}

/// Holds the source's agent after the copy: it reads the definition when it prepares, before it copies, and once more
/// afterwards.
fn after_the_copy(source: &Host) -> Arc<Hold> {
    Arc::new(source.hypervisor.faults().hold_nth(Point::Definition, 3))
}

async fn held(lab: &Lab, host: &Host, point: Point, how: &MigrateVm) -> (JobView, Arc<Hold>) {
    let hold = Arc::new(host.hypervisor.faults().hold(point));
    let job = lab.client.migrate("db", how).await.expect("accepted");
    reached(&hold).await;
    (job, hold)
}

#[test]
fn a_vm_that_is_shut_off_moves_with_its_files_and_can_be_started() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        let tried = lab.client.try_migrate("db", &to_new(&kvm2)).await.expect("tried");
        assert_eq!(tried.kind, Some(MoveKind::Offline), "{tried:#?}");
        assert!(tried.why.contains("vda, nvram"), "{}", tried.why);
        assert_at_source(&kvm1, &kvm2, vm);

        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        assert_eq!(job.kind, JobKind::Offline);
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert_moved(&kvm1, &kvm2, vm);
        assert!(!disk(&kvm1).exists() && !kvm1.on_host("old/vars.fd").exists(), "old files are gone");
        let disks: Vec<_> = job.disks.iter().map(|disk| (disk.device.as_str(), disk.stage)).collect();
        assert_eq!(disks, [("vda", DiskStage::Moved), ("nvram", DiskStage::Moved)], "{job:#?}");
        let figures = job.figures.expect("known");
        assert!(figures.disk_wire.0 > 0 && figures.allocated_destination.0 > 0, "{figures:?}");
        let record = lab.client.audit(None, None).await.expect("answered").records.pop().expect("it has ended");
        let changes = [
            "VM db moved from kvm1 to kvm2, shut off",
            "file vda of VM db moved with it",
            "file nvram of VM db moved with it",
            "definition of VM db added on kvm2",
            "definition of VM db removed from kvm1",
        ];
        assert_eq!(record.changes.iter().map(ToString::to_string).collect::<Vec<_>>(), changes);
        lab.client.start_vm("db").await.expect("started");
        assert_eq!(kvm2.hypervisor.vm(vm).expect("reachable").expect("there").state, VmState::Running);
    });
}

#[test]
fn a_vm_that_runs_is_never_moved_offline_nor_the_other_way_round() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        let live = MigrateVm { offline: false, ..to_new(&kvm2) };
        assert!(refusal(lab.client.migrate("db", &live).await).1.contains(&FindingId::VmNotRunning));
        type Stop = fn(&FakeHypervisor, VmId);
        let stops: [(VmState, Stop); 4] = [
            (VmState::Running, |_, _| {}),
            (VmState::Paused, FakeHypervisor::pause),
            (VmState::Crashed, FakeHypervisor::panic),
            (VmState::Suspended, FakeHypervisor::suspend),
        ];
        for (state, stop) in stops {
            kvm1.hypervisor.start(vm).expect("started");
            stop(&kvm1.hypervisor, vm);
            lab.wait_for_state("db", state).await;
            assert_eq!(refusal(lab.client.migrate("db", &to_new(&kvm2)).await), (409, vec![FindingId::VmRunning]));
            if state != VmState::Running {
                assert_eq!(refusal(lab.client.start_vm("db").await).0, 409);
                assert_eq!(kvm1.hypervisor.vm(vm).expect("reachable").expect("there").state, state, "left as it is");
            }
            kvm1.hypervisor.destroy(vm).expect("ended");
            lab.wait_for_state("db", VmState::ShutOff).await;
        }
        assert_at_source(&kvm1, &kvm2, vm);

        // The VM is started while the job waits in the queue.
        let hold = lab.client.set_host("kvm1", &none_at_once()).await;
        hold.expect("set");
        let gate = after_the_copy(&kvm1);
        let second = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted").id;
        reached(&gate).await;
        // By now the VM is held: the hook vetoes a start, but the fake does not ask the hook.
        assert!(!kvm1.orphans().is_empty());
        kvm1.hypervisor.start(vm).expect("started past the hook");
        gate.release();
        let job = lab.client.job(second).await.expect("known");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.contains("not shut off"), "{}", job.summary);
        assert!(kvm2.hypervisor.vm(vm).expect("reachable").is_none());
        assert_eq!(kvm1.hypervisor.vm(vm).expect("reachable").expect("there").state, VmState::Running);
        assert!(disk(&kvm1).exists());
    });
}

fn none_at_once() -> ferry_core::api::server::SetHost {
    ferry_core::api::server::SetHost { storage_limit: Some(1), ..Default::default() }
}

#[test]
fn what_fails_or_is_cancelled_leaves_the_vm_whole_and_the_next_attempt_sends_little() {
    expects_warning(r#"A request failed title="Could not define VM db: no such luck"#);
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        kvm2.hypervisor.faults().fail(Point::Define, "no such luck");
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.contains("no such luck") && job.summary.contains("shut off"), "{}", job.summary);
        assert_at_source(&kvm1, &kvm2, vm);

        let hold = after_the_copy(&kvm1);
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        reached(&hold).await;
        lab.client.cancel_job(job.id).await.expect("not too late");
        hold.release();
        let job = lab.ends(&job, Phase::Cancelled).await;
        assert_at_source(&kvm1, &kvm2, vm);
        // What the previous attempt copied is there.
        let partials = kvm2.config.state_dir.join("seeds");
        assert_eq!(fs::read_dir(&partials).expect("there").count(), 2);
        let again = lab.client.restart_job(job.id).await.expect("restarted");
        let again = lab.ends(&again, Phase::Succeeded).await;
        assert_moved(&kvm1, &kvm2, vm);
        assert_eq!(again.figures.expect("known").disk_wire.0, 0, "all of it was there");
        assert_eq!(fs::read_dir(&partials).expect("there").count(), 0);
    });
}

#[test]
fn a_cancel_after_the_vm_is_defined_at_the_destination_is_refused() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        let (job, hold) = held(lab, &kvm2, Point::SetAutostart, &to_new(&kvm2)).await;
        assert_eq!(refusal(lab.client.cancel_job(job.id).await), (409, vec![FindingId::JobPastPivot]));
        hold.release();
        lab.ends(&job, Phase::Succeeded).await;
        assert_moved(&kvm1, &kvm2, vm);
    });
}

#[test]
fn a_server_or_agent_that_is_restarted_in_between_does_not_lose_the_vm() {
    expects_warning("The host's agent does not answer");
    in_lab(async |lab| {
        let (mut kvm1, kvm2, vm) = shut_off(lab).await;
        let (job, hold) = held(lab, &kvm2, Point::Define, &to_new(&kvm2)).await;
        lab.stop_server().await;
        hold.release();
        lab.start_server().await;
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert_moved(&kvm1, &kvm2, vm);
        assert!(job.figures.expect("known").allocated_destination.0 > 0);

        // Back home; the source's agent ends before the old files are removed.
        fs::create_dir_all(kvm1.on_host("old")).expect("made");
        kvm2.hypervisor.faults().fail(Point::Undefine, "not now");
        let storage = Some(kvm1.on_host("old").display().to_string());
        let back =
            MigrateVm { destination: "kvm1".into(), storage, offline: true, keep_source: true, ..MigrateVm::default() };
        let job = lab.client.migrate("db", &back).await.expect("accepted");
        kvm1.stop().await;
        kvm1.start().await;
        let job = lab.wait_for_job(job.id, |job| job.phase.ended()).await;
        let has = |host: &Host| host.hypervisor.vm(vm).expect("reachable").is_some();
        assert!(has(&kvm1) != has(&kvm2), "one host has it: {}", job.summary);
        if job.phase == Phase::Succeeded {
            assert!(kvm2.on_host("new/vda.raw").exists(), "it was to be kept");
        }
        assert_eq!(
            fs::read(if has(&kvm1) { disk(&kvm1) } else { kvm2.on_host("new/vda.raw") }).expect("there"),
            content(0)
        );
    });
}

#[test]
fn what_cannot_move_is_refused_with_the_reason() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        let refused = async |body: MigrateVm| refusal(lab.client.migrate("db", &body).await);
        let nowhere = MigrateVm { storage: None, ..to_new(&kvm2) };
        assert_eq!(refused(nowhere).await, (409, vec![FindingId::FilePlace; 2]), "both local files");
        fs::write(kvm2.on_host("new/vars.fd"), "precious").expect("written");
        assert_eq!(refused(to_new(&kvm2)).await, (409, vec![FindingId::FileExists]));
        assert_eq!(fs::read(kvm2.on_host("new/vars.fd")).expect("there"), b"precious");
        fs::remove_file(kvm2.on_host("new/vars.fd")).expect("removed");
        let outside = MigrateVm { storage: Some("/etc".into()), ..to_new(&kvm2) };
        assert_eq!(refused(outside).await.1, [FindingId::PlaceOutside]);
        let other = MoveDisk { device: "vdz".into(), to: None, format: None };
        assert_eq!(refused(MigrateVm { disks: vec![other], ..to_new(&kvm2) }).await.1, [FindingId::DiskUnknown]);
        let home = MigrateVm { destination: "kvm1".into(), ..to_new(&kvm2) };
        assert_eq!(refused(home).await.1, [FindingId::VmAlreadyThere]);

        // An overlay: the definition of a VM that is shut off does not show it.
        let mut tool = tokio::process::Command::new("qemu-img");
        let base = kvm1.on_host("old/base.raw");
        fs::rename(disk(&kvm1), &base).expect("renamed");
        tool.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&base).arg(disk(&kvm1));
        assert!(tool.status().await.expect("qemu-img is installed").success());
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.contains("overlay"), "{}", job.summary);
        assert!(kvm1.hypervisor.vm(vm).expect("reachable").is_some() && disk(&kvm1).exists());
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}

fn waits(text: &str) -> impl Fn(&JobView) -> bool {
    move |job| job.phase == Phase::Migrating && job.summary.contains("Waits for: ") && job.summary.contains(text)
}

#[test]
fn a_destination_that_does_not_know_is_asked_until_it_does() {
    expects_warning(r#"A request failed title="Could not define VM db: libvirt ends"#);
    expects_warning(r#"A request failed title="Could not read VM"#);
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        // The destination's libvirt restarts while the VM is being defined there.
        let hold = Arc::new(kvm2.hypervisor.faults().hold(Point::Define));
        kvm2.hypervisor.faults().fail(Point::Define, "libvirt ends");
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        reached(&hold).await;
        kvm2.hypervisor.faults().fail_always(Point::Vms, "libvirt is not there");
        hold.release();
        lab.wait_for_job(job.id, waits("It is not known whether VM db is defined on host kvm2")).await;
        assert!(kvm1.hypervisor.vm(vm).expect("reachable").is_some());
        kvm2.hypervisor.faults().clear();
        lab.ends(&job, Phase::Failed).await;
        assert_at_source(&kvm1, &kvm2, vm);
    });
}

#[test]
fn a_vm_whose_definition_was_kept_though_the_answer_was_an_error_is_the_destinations() {
    expects_warning(r#"A request failed title="Could not define VM db: libvirt ends"#);
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        let hold = Arc::new(kvm2.hypervisor.faults().hold(Point::Define));
        kvm2.hypervisor.faults().fail(Point::Define, "libvirt ends");
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        reached(&hold).await;
        let mut guest = FakeGuest::new("db", &[]);
        guest.facts.id = vm;
        let files = [kvm2.on_host("new/vda.raw"), kvm2.on_share("db/vdb.raw")];
        guest.facts.files = FakeGuest::new("db", &files).facts.files;
        let nvram = VmFile { role: FileRole::Nvram, device: "nvram".into(), ..guest.facts.files[0].clone() };
        guest.facts.files.push(VmFile { place: kvm2.on_host("new/vars.fd"), ..nvram });
        kvm2.hypervisor.define(guest).expect("defined");
        hold.release();
        lab.ends(&job, Phase::Succeeded).await;
        assert_moved(&kvm1, &kvm2, vm);
    });
}

#[test]
fn a_cancel_that_came_too_late_is_found_out_after_a_restart_though_the_destination_is_away() {
    expects_warning("The host's agent does not answer");
    in_lab(async |lab| {
        let (kvm1, mut kvm2, vm) = shut_off(lab).await;
        let (job, hold) = held(lab, &kvm2, Point::Define, &to_new(&kvm2)).await;
        kvm2.stop().await;
        lab.client.cancel_job(job.id).await.expect("nobody knows that it is too late");
        lab.stop_server().await;
        hold.release();
        let journal = kvm2.config.state_dir.join("offline").join(format!("{}.json", job.id));
        let defined = async || fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"defined\""));
        wait_for("the VM is defined though nobody waits for the answer", defined).await;
        lab.start_server().await;
        lab.wait_for_job(job.id, waits("kvm2")).await;
        kvm2.start().await;
        lab.ends(&job, Phase::Succeeded).await;
        assert_moved(&kvm1, &kvm2, vm);
    });
}

#[test]
fn uefi_variables_that_are_not_there_yet_are_named_and_not_copied() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        fs::remove_file(kvm1.on_host("old/vars.fd")).expect("never started");
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        let job = lab.ends(&job, Phase::Succeeded).await;
        let facts = kvm2.hypervisor.vm(vm).expect("reachable").expect("there");
        assert_eq!(facts.files[2].place, kvm2.on_host("new/vars.fd"), "libvirt makes it there");
        assert!(!kvm2.on_host("new/vars.fd").exists());
        assert_eq!(fs::read(kvm2.on_host("new/vda.raw")).expect("there"), content(0));
        assert_eq!(job.disks.len(), 1, "{:?}", job.disks);
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn media_and_what_a_vm_boots_from_are_copied_and_stay_and_read_only_disks_move() {
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        fs::create_dir_all(kvm2.on_host("new")).expect("made");
        let names = ["vda.raw", "vdb.raw", "debian.iso", "vmlinuz"];
        let guest = |guest: &mut FakeGuest| {
            let places = names.map(|name| kvm1.on_host(&format!("old/{name}")));
            guest.facts.files = FakeGuest::new("golden", &places).facts.files;
            let files = &mut guest.facts.files;
            files[1].read_only = true;
            (files[2].role, files[2].device, files[2].read_only) = (FileRole::Media, "sda".into(), true);
            (files[3].role, files[3].device) = (FileRole::Boot, "kernel".into());
        };
        let vm = lab.define(&kvm1, "golden", guest).await;
        for (number, name) in names.iter().enumerate() {
            fs::write(kvm1.on_host(&format!("old/{name}")), content(number)).expect("written");
        }
        let job = lab.client.migrate("golden", &to_new(&kvm2)).await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        let places: Vec<PathBuf> = kvm2
            .hypervisor
            .vm(vm)
            .expect("reachable")
            .expect("there")
            .files
            .into_iter()
            .map(|file| file.place)
            .collect();
        assert_eq!(places, names.map(|name| kvm2.on_host(&format!("new/{name}"))));
        for (number, (name, stays)) in names.iter().zip([false, false, true, true]).enumerate() {
            assert_eq!(fs::read(&places[number]).expect("there"), content(number), "{name}");
            assert_eq!(kvm1.on_host(&format!("old/{name}")).exists(), stays, "{name}");
        }
    });
}

#[test]
fn vms_that_share_a_disk_move_one_after_the_other_and_share_it_again() {
    expects_warning("What the source sent could not be taken");
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = lab.two_hosts().await;
        fs::create_dir_all(kvm2.on_host("new")).expect("made");
        let shared = kvm1.on_host("old/quorum.raw");
        let own = |name: &str| kvm1.on_host(&format!("old/{name}.raw"));
        let guest = |name: &str, guest: &mut FakeGuest| {
            guest.facts.files = FakeGuest::new(name, &[own(name), shared.clone()]).facts.files;
            guest.facts.files[1].shareable = true;
        };
        let one = lab.define(&kvm1, "one", |new| guest("one", new)).await;
        let two = lab.define(&kvm1, "two", |new| guest("two", new)).await;
        for (number, file) in [own("one"), own("two"), shared.clone()].iter().enumerate() {
            fs::write(file, content(number)).expect("written");
        }

        // Not while one of the VMs may write.
        lab.client.start_vm("two").await.expect("started");
        lab.wait_for_state("two", VmState::Running).await;
        assert_eq!(refusal(lab.client.migrate("one", &to_new(&kvm2)).await), (409, vec![FindingId::DiskShareable]));
        kvm1.hypervisor.destroy(two).expect("ended");
        lab.wait_for_state("two", VmState::ShutOff).await;

        let job = lab.client.migrate("one", &to_new(&kvm2)).await.expect("accepted");
        let found: Vec<_> = job.findings.iter().filter(|finding| finding.id == FindingId::DiskShareable).collect();
        assert!(found.len() == 1 && found[0].message.to_string().contains("VM two on kvm1"), "{:?}", job.findings);
        lab.ends(&job, Phase::Succeeded).await;
        assert!(shared.exists() && !own("one").exists(), "the other still needs it");

        // The file that came with the first VM has been written to since: only an administrator may choose.
        let there = kvm2.on_host("new/quorum.raw");
        fs::write(&there, content(9)).expect("written");
        let job = lab.client.migrate("two", &to_new(&kvm2)).await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.contains("differs from disk vdb"), "{}", job.summary);
        assert!(fs::read(&there).expect("there") == content(9) && fs::read(&shared).expect("there") == content(2));
        assert!(kvm1.hypervisor.vm(two).expect("reachable").is_some());
        assert!(!kvm2.on_host("new/two.raw").exists());

        fs::copy(&shared, &there).expect("as the finding says");
        let job = lab.client.migrate("two", &to_new(&kvm2)).await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        assert!(!shared.exists() && !own("two").exists(), "nobody needs it any more");
        for (vm, number) in [(one, 0), (two, 1)] {
            let files = kvm2.hypervisor.vm(vm).expect("reachable").expect("there").files;
            assert_eq!(fs::read(&files[0].place).expect("there"), content(number));
            assert!(files[1].place == there && files[1].shareable);
        }
        assert_eq!(fs::read(&there).expect("there"), content(2));
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn a_vm_that_was_moved_on_at_once_is_left_alone_and_one_that_is_lost_keeps_what_the_source_has() {
    expects_warning("The job is stuck; it is tried on");
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        let kvm3 = lab.host("kvm3").await;
        lab.add(&kvm3).await.expect("added");
        let (job, hold) = held(lab, &kvm2, Point::SetAutostart, &to_new(&kvm2)).await;
        kvm2.hypervisor.undefine(vm).expect("by hand");
        hold.release();
        let stuck = lab.wait_for_job(job.id, |job| job.phase == Phase::Stuck).await;
        assert!(stuck.summary.contains("virsh dumpxml"), "{}", stuck.summary);
        assert!(kvm1.hypervisor.vm(vm).expect("reachable").is_some() && disk(&kvm1).exists());
        assert!(!kvm1.orphans().is_empty(), "it is held");

        let mut guest = FakeGuest::new("db", &[]);
        guest.facts.id = vm;
        kvm3.hypervisor.define(guest).expect("defined");
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert!(job.log.iter().any(|line| line.message.contains("host kvm3 has it")), "{:#?}", job.log);
        assert!(kvm1.hypervisor.vm(vm).expect("reachable").is_none() && !disk(&kvm1).exists());
    });
}
