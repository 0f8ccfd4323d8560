//! Moves of VMs that are shut off, with their files.

use std::{fs, path::PathBuf, sync::Arc};

use ferry_core::{
    api::server::{JobView, MigrateVm, MoveDisk},
    finding::FindingId,
    id::VmId,
    job::{JobKind, MoveKind},
    migration::Phase,
    storage::DiskStage,
    vm::{FileRole, VmFile, VmState},
};
use ferry_drivers::hypervisor::{
    Hypervisor as _,
    fake::{FakeGuest, Hold, Point},
};

use crate::{
    moves::reached,
    support::{Host, Lab, in_lab, refusal, wait_for},
};

/// Larger than what is thrown away when a copy is not finished.
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
        let nvram = VmFile {
            role: FileRole::Nvram,
            device: "nvram".into(),
            place: files[2].clone(),
            format: None,
            unmaps: false,
            detects_zeroes: false,
            ..guest.facts.files[0].clone()
        };
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
    assert_eq!((kvm1.leftovers(), kvm2.leftovers()), (Vec::new(), Vec::new()));
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
    assert_eq!((kvm1.leftovers(), kvm2.leftovers()), (Vec::new(), Vec::new()));
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
        for state in [VmState::Running, VmState::Paused] {
            kvm1.hypervisor.start(vm).expect("started");
            if state == VmState::Paused {
                kvm1.hypervisor.pause(vm);
            }
            lab.wait_for_state("db", state).await;
            assert_eq!(refusal(lab.client.migrate("db", &to_new(&kvm2)).await), (409, vec![FindingId::VmRunning]));
        }
        kvm1.hypervisor.destroy(vm).expect("ended");
        lab.wait_for_state("db", VmState::ShutOff).await;
        assert_at_source(&kvm1, &kvm2, vm);

        // Started while the job waited for its turn.
        let hold = lab.client.set_host("kvm1", &none_at_once()).await;
        hold.expect("set");
        let first = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        let (second, gate) = (first.id, Arc::new(kvm1.hypervisor.faults().hold(Point::Definition)));
        reached(&gate).await;
        // By now it is held: the hook vetoes a start, which the fake does not ask.
        assert!(!kvm1.leftovers().is_empty());
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
    ferry_core::api::server::SetHost { live_limit: None, storage_limit: Some(1) }
}

#[test]
fn what_fails_or_is_cancelled_leaves_the_vm_whole_and_the_next_attempt_sends_little() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = shut_off(lab).await;
        kvm2.hypervisor.faults().fail(Point::Define, "no such luck");
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.contains("no such luck") && job.summary.contains("shut off"), "{}", job.summary);
        assert_at_source(&kvm1, &kvm2, vm);

        let (job, hold) = held(lab, &kvm1, Point::Definition, &to_new(&kvm2)).await;
        lab.client.cancel_job(job.id).await.expect("not too late");
        hold.release();
        let job = lab.ends(&job, Phase::Cancelled).await;
        assert_at_source(&kvm1, &kvm2, vm);
        // What the attempt before had copied was there; its hashes take a moment.
        let seeds = kvm2.config.state_dir.join("seeds");
        wait_for("what was copied is known again", async || {
            fs::read_dir(&seeds)
                .expect("there")
                .flatten()
                .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "index"))
                .count()
                == 2
        })
        .await;
        let again = lab.client.restart_job(job.id).await.expect("restarted");
        let again = lab.ends(&again, Phase::Succeeded).await;
        assert_moved(&kvm1, &kvm2, vm);
        assert_eq!(again.figures.expect("known").disk_wire.0, 0, "all of it was there");
        assert_eq!(fs::read_dir(&seeds).expect("there").count(), 0);
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
    in_lab(async |lab| {
        let (mut kvm1, kvm2, vm) = shut_off(lab).await;
        let (job, hold) = held(lab, &kvm2, Point::Define, &to_new(&kvm2)).await;
        lab.stop_server().await;
        hold.release();
        lab.start_server().await;
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert_moved(&kvm1, &kvm2, vm);
        assert!(job.figures.expect("known").allocated_destination.0 > 0);

        // Home again; the source's agent ends before the old files do.
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

        // An overlay: its definition does not tell while it is shut off.
        let mut tool = tokio::process::Command::new("qemu-img");
        let base = kvm1.on_host("old/base.raw");
        fs::rename(disk(&kvm1), &base).expect("renamed");
        tool.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&base).arg(disk(&kvm1));
        assert!(tool.status().await.expect("qemu-img is installed").success());
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(job.summary.contains("overlay"), "{}", job.summary);
        assert!(kvm1.hypervisor.vm(vm).expect("reachable").is_some() && disk(&kvm1).exists());
        assert_eq!((kvm1.leftovers(), kvm2.leftovers()), (Vec::new(), Vec::new()));
    });
}
