//! Live moves in which disks migrate with the VM.

use std::{fs, path::PathBuf, sync::Arc};

use ferry_core::{
    admission::Slot,
    api::{
        agent::{ConfirmRequest, Verb},
        server::{JobView, MigrateMany, MigrateVm, MoveDisk, MoveStorage, SetHost, StepState},
    },
    files::DiskStage,
    finding::FindingId,
    id::{Generation, VmId},
    job::{JobKind, MoveKind},
    migration::{Phase, Step},
    vm::VmState,
};
use ferry_drivers::hypervisor::{
    Domains as _, Power as _,
    fake::{FakeGuest, Hold, Point},
};
use ferry_testkit::logs::expects_warning;

use crate::{
    moves::reached,
    support::{Host, Lab, UNC, in_lab, refusal},
};

/// Two hosts, and a VM on the first of them with one disk on its host and one on the share.
async fn half_shared(lab: &Lab) -> (Host, Host, VmId) {
    let (kvm1, kvm2, _) = lab.two_hosts().await;
    let disks = [old(&kvm1), kvm1.on_share("db/vdb.raw")];
    for (number, disk) in disks.iter().enumerate() {
        fs::create_dir_all(disk.parent().expect("a folder")).expect("made");
        fs::write(disk, content(number)).expect("written");
    }
    fs::create_dir_all(kvm2.on_host("new")).expect("made");
    let guest = |guest: &mut FakeGuest| guest.facts.files = FakeGuest::new("db", &disks).facts.files;
    let vm = lab.run(&kvm1, "db", guest).await;
    lab.wait_for_state("db", VmState::Running).await;
    (kvm1, kvm2, vm)
}

fn content(number: usize) -> Vec<u8> {
    (0..512_usize).flat_map(|index| vec![(index % 3 * (index + number)) as u8; 4096]).collect()
}

fn old(host: &Host) -> PathBuf {
    host.on_host("old/vda.raw")
}

fn new(host: &Host) -> PathBuf {
    host.on_host("new/vda.raw")
}

fn to_new(kvm2: &Host) -> MigrateVm {
    let storage = Some(kvm2.on_host("new").display().to_string());
    MigrateVm { destination: "kvm2".into(), storage, ..MigrateVm::default() }
}

fn in_use(host: &Host, vm: VmId) -> Vec<PathBuf> {
    host.hypervisor.vm(vm).expect("reachable").expect("there").files.into_iter().map(|file| file.place).collect()
}

async fn held(lab: &Lab, host: &Host, point: Point, how: &MigrateVm) -> (JobView, Arc<Hold>) {
    let hold = Arc::new(host.hypervisor.faults().hold(point));
    let job = lab.client.migrate("db", how).await.expect("accepted");
    reached(&hold).await;
    (job, hold)
}

#[test]
fn only_what_the_destination_does_not_reach_moves_along() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = half_shared(lab).await;
        let (status, found) = refusal(lab.migrate("db", "kvm2").await);
        assert_eq!((status, found), (409, vec![FindingId::DiskNotShared]), "nobody said where it goes");
        let tried = lab.client.try_migrate("db", &to_new(&kvm2)).await.expect("tried");
        assert_eq!(tried.kind, Some(MoveKind::LiveVsm), "{tried:#?}");
        assert!(tried.why.contains("vda") && !tried.why.contains("vdb"), "{}", tried.why);
        assert!(!new(&kvm2).exists(), "it was only tried");

        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        assert_eq!(job.kind, JobKind::LiveVsm);
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(in_use(&kvm2, vm), [new(&kvm2), kvm2.on_share("db/vdb.raw")]);
        assert_eq!(fs::read(new(&kvm2)).expect("readable"), content(0));
        assert!(!old(&kvm1).exists(), "the old file is gone");
        assert_eq!(job.disks.len(), 1, "{job:#?}");
        assert_eq!((job.disks[0].device.as_str(), job.disks[0].stage), ("vda", DiskStage::Moved));
        let figures = job.figures.expect("known");
        assert!(figures.allocated_source.0 > 0 && figures.allocated_destination.0 > 0, "{figures:?}");
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));

        // Moves the disk to the share on request; the old file stays.
        let disk = MoveDisk { device: "vda".into(), to: Some(format!("{UNC}\\db")), format: None };
        let back =
            MigrateVm { destination: "kvm1".into(), disks: vec![disk], keep_source: true, ..MigrateVm::default() };
        let job = lab.client.migrate("db", &back).await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(in_use(&kvm1, vm)[0], kvm1.on_share("db/vda.raw"));
        assert!(new(&kvm2).exists(), "it was to be kept");
        // No disk has to migrate any more.
        let job = lab.migrate("db", "kvm2").await.expect("accepted");
        assert_eq!(job.kind, JobKind::Live);
        lab.ends(&job, Phase::Succeeded).await;
    });
}

#[test]
fn what_fails_or_is_cancelled_leaves_the_vm_and_its_files_as_they_were() {
    expects_warning("libvirt's migrate call failed");
    expects_warning("The local socket could not be reached");
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = half_shared(lab).await;
        let before = in_use(&kvm1, vm);
        let stays = || {
            assert_eq!(in_use(&kvm1, vm), before);
            assert_eq!(fs::read(old(&kvm1)).expect("there"), content(0));
            assert!(!new(&kvm2).exists(), "the new file is removed");
            assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
        };
        for (host, point) in [
            (&kvm1, Point::MigratedDisk),
            (&kvm1, Point::Pass(1)),
            (&kvm1, Point::Finish),
            (&kvm2, Point::Prepare),
            (&kvm2, Point::TakeOver),
        ] {
            host.hypervisor.faults().fail(point, "no such luck");
            let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
            let job = lab.ends(&job, Phase::Failed).await;
            assert!(job.summary.contains("no such luck"), "{point:?}: {}", job.summary);
            stays();
        }
        let (job, hold) = held(lab, &kvm1, Point::MigratedDisk, &to_new(&kvm2)).await;
        assert!(new(&kvm2).exists());
        let asked = tokio::spawn({
            let (client, job) = (lab.client.clone(), job.id);
            async move { client.cancel_job(job).await }
        });
        crate::support::wait_for("the wish is known", async || {
            let log = lab.client.job(job.id).await.expect("known").log;
            log.iter().any(|line| line.message.contains("asked to cancel"))
        })
        .await;
        hold.release();
        asked.await.expect("no panic").expect("not too late");
        lab.ends(&job, Phase::Cancelled).await;
        stays();
        let again = lab.client.restart_job(job.id).await.expect("restarted");
        lab.ends(&again, Phase::Succeeded).await;
        assert_eq!(in_use(&kvm2, vm)[0], new(&kvm2));
    });
}

#[test]
fn what_a_failed_move_has_copied_is_taken_by_a_retry_at_once() {
    expects_warning("The local socket could not be reached");
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = half_shared(lab).await;
        // More data than can be created in no time.
        let large = [content(0), content(1), content(2), content(3)].concat();
        fs::write(old(&kvm1), &large).expect("written");
        let kept = || {
            let names = fs::read_dir(kvm2.on_host("new")).expect("there").flatten().map(|entry| entry.file_name());
            names.filter(|name| name.to_string_lossy().ends_with(".ferry-seed")).count()
        };
        kvm1.hypervisor.faults().fail(Point::Pass(1), "no such luck");
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        let job = lab.ends(&job, Phase::Failed).await;
        assert!(!new(&kvm2).exists() && kept() == 1);
        lab.client.try_migrate("db", &to_new(&kvm2)).await.expect("tried");
        assert_eq!(kept(), 1, "it was only tried");
        let again = lab.client.restart_job(job.id).await.expect("restarted");
        lab.ends(&again, Phase::Succeeded).await;
        assert_eq!((in_use(&kvm2, vm)[0].clone(), kept()), (new(&kvm2), 0));
        assert!(fs::read(new(&kvm2)).expect("readable") == large);
    });
}

#[test]
fn a_server_that_is_restarted_while_a_disk_moves_along_finishes_the_move() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = half_shared(lab).await;
        let (job, hold) = held(lab, &kvm1, Point::MigratedDisk, &to_new(&kvm2)).await;
        lab.stop_server().await;
        lab.start_server().await;
        hold.release();
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(in_use(&kvm2, vm)[0], new(&kvm2));
        assert!(!old(&kvm1).exists());
        assert!(job.figures.expect("known").allocated_destination.0 > 0);
    });
}

#[test]
fn it_takes_both_slots_of_both_hosts() {
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = half_shared(lab).await;
        let limits = SetHost { live_limit: Some(1), storage_limit: Some(1), ..SetHost::default() };
        lab.client.set_host("kvm2", &limits).await.expect("set");
        let (first, hold) = held(lab, &kvm1, Point::MigratedDisk, &to_new(&kvm2)).await;
        let waits = |job: &JobView| -> Vec<Slot> {
            job.waits.as_ref().map(|wait| wait.places.iter().map(|place| place.slot).collect()).unwrap_or_default()
        };
        let live = lab.migrate("web01", "kvm2").await.expect("accepted");
        assert_eq!(waits(&live), [Slot::Live]);
        hold.release();
        lab.ends(&first, Phase::Succeeded).await;
        lab.ends(&live, Phase::Succeeded).await;
    });
}

#[test]
fn what_cannot_move_along_is_refused_with_the_reason_and_nothing_is_made() {
    in_lab(async |lab| {
        let (kvm1, kvm2, _) = half_shared(lab).await;
        let named = |device: &str, to: Option<String>| MigrateVm {
            destination: "kvm2".into(),
            disks: vec![MoveDisk { device: device.into(), to, format: None }],
            ..MigrateVm::default()
        };
        fs::write(new(&kvm2), "precious").expect("written");
        let outside = MigrateVm { storage: Some("/etc".into()), ..to_new(&kvm2) };
        let missing = MigrateVm { storage: Some(kvm2.on_host("none").display().to_string()), ..to_new(&kvm2) };
        for (body, id) in [
            (to_new(&kvm2), FindingId::FileExists),
            (outside, FindingId::PlaceOutside),
            (missing, FindingId::PlaceMissing),
            (named("vda", None), FindingId::FilePlace),
            (named("vdz", Some(kvm2.on_host("new").display().to_string())), FindingId::DiskUnknown),
        ] {
            let (status, found) = refusal(lab.client.migrate("db", &body).await);
            assert!(found.contains(&id), "{body:?}: {found:?}");
            assert!((400..500).contains(&status), "{status}: {body:?}");
        }
        assert_eq!(fs::read(new(&kvm2)).expect("there"), b"precious");
        let many = MigrateMany { vms: vec!["db".into(), "web01".into()], how: named("vda", None) };
        assert_eq!(refusal(lab.client.migrate_many(&many).await).0, 400);
        fs::remove_file(new(&kvm2)).expect("there");

        // A shared disk that is only on the host cannot follow.
        let disk = kvm1.on_host("old/quorum.raw");
        fs::write(&disk, content(0)).expect("written");
        let guest = |guest: &mut FakeGuest| {
            guest.facts.files = FakeGuest::new("cluster", &[disk]).facts.files;
            guest.facts.files[0].shareable = true;
        };
        lab.run(&kvm1, "cluster", guest).await;
        lab.wait_for_state("cluster", VmState::Running).await;
        let (_, found) = refusal(lab.client.migrate("cluster", &to_new(&kvm2)).await);
        assert!(found.contains(&FindingId::DiskShareable) && found.contains(&FindingId::DiskNotShared), "{found:?}");
        assert_eq!(fs::read_dir(kvm2.on_host("new")).expect("there").count(), 0, "nothing was made");
    });
}

#[test]
fn several_vms_take_their_disks_along_in_one_request() {
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = half_shared(lab).await;
        let many = MigrateMany { vms: vec!["db".into(), "web01".into()], how: to_new(&kvm2) };
        let parent = lab.client.migrate_many(&many).await.expect("accepted");
        let parent = lab.ends(&parent, Phase::Succeeded).await;
        assert_eq!(parent.children.len(), 2);
        assert_eq!(in_use(&kvm2, vm)[0], new(&kvm2));
        assert!(!old(&kvm1).exists());
    });
}

#[cfg(feature = "failpoints")]
#[test]
fn source_files_stay_until_the_destination_has_said_that_the_vm_is_there_with_its_own() {
    expects_warning("The host's agent does not answer");
    expects_warning("The job is stuck; it is tried on");
    in_lab(async |lab| {
        let (kvm1, mut kvm2, vm) = half_shared(lab).await;
        fail::cfg("saga-intent-Confirm", "pause").expect("a failpoint");
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        let begun = |job: &JobView| {
            let mut steps = job.steps.iter();
            steps.any(|step| step.step == Step::Confirm && step.state == StepState::Running)
        };
        lab.wait_for_job(job.id, begun).await;
        kvm2.stop().await;
        fail::remove("saga-intent-Confirm");
        let stuck = lab.wait_for_job(job.id, |job| job.phase == Phase::Stuck).await;
        assert!(stuck.summary.contains("kvm2"), "{}", stuck.summary);
        assert_eq!(fs::read(old(&kvm1)).expect("it stays"), content(0));
        assert!(kvm1.hypervisor.vm(vm).expect("reachable").is_some(), "and so does the definition");
        // The host is back, but its file is not.
        let aside = kvm2.on_host("new/aside.raw");
        fs::rename(new(&kvm2), &aside).expect("there");
        kvm2.start().await;
        let request = ConfirmRequest { autostart: false, keep_source: false };
        let asked = kvm2.agent().act(job.id, Generation(job.accepted_at_ms), Verb::Confirm(request)).await;
        assert!(asked.expect_err("refused").to_string().contains("vda.raw is not there"));
        assert!(old(&kvm1).exists());
        fs::rename(&aside, new(&kvm2)).expect("there");
        lab.ends(&job, Phase::Succeeded).await;
        assert!(!old(&kvm1).exists());
        assert_eq!(in_use(&kvm2, vm)[0], new(&kvm2));
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn a_vm_that_dies_between_hand_over_and_resume_is_the_destinations_with_its_disks() {
    expects_warning("The VM could not be resumed; it is tried until it runs");
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = half_shared(lab).await;
        let (job, hold) = held(lab, &kvm2, Point::Resume, &to_new(&kvm2)).await;
        kvm2.hypervisor.destroy(vm).expect("its process dies");
        hold.release();
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(in_use(&kvm2, vm)[0], new(&kvm2));
        assert_eq!(fs::read(new(&kvm2)).expect("there"), content(0));
        assert!(!old(&kvm1).exists() && kvm1.hypervisor.vm(vm).expect("reachable").is_none());
        assert_eq!((kvm1.orphans(), kvm2.orphans()), (Vec::new(), Vec::new()));
        lab.client.start_vm("db").await.expect("it is started where it is");
    });
}

#[test]
fn a_restarted_move_does_not_trust_what_was_planned_of_files_that_are_others_by_now() {
    expects_warning("libvirt's migrate call failed");
    in_lab(async |lab| {
        let (kvm1, kvm2, vm) = half_shared(lab).await;
        kvm2.hypervisor.faults().fail(Point::Prepare, "no such luck");
        let job = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        lab.ends(&job, Phase::Failed).await;
        let disk = MoveDisk { device: "vda".into(), to: Some(kvm1.on_host("").display().to_string()), format: None };
        let elsewhere = MoveStorage { disks: vec![disk], ..MoveStorage::default() };
        let moved = lab.client.move_storage("db", &elsewhere).await.expect("accepted");
        lab.ends(&moved, Phase::Succeeded).await;
        fs::create_dir_all(old(&kvm1).parent().expect("a folder")).expect("made");
        fs::write(old(&kvm1), "another's").expect("written");
        let again = lab.client.restart_job(job.id).await.expect("restarted");
        let failed = lab.wait_for_job(again.id, |job| job.phase == Phase::Failed && job.attempt == 2).await;
        assert!(failed.summary.contains("another file now"), "{}", failed.summary);
        assert!(failed.findings.iter().any(|finding| finding.id == FindingId::DiskMovedMeanwhile), "{failed:#?}");
        assert_eq!(fs::read(old(&kvm1)).expect("untouched"), b"another's");
        assert_eq!(in_use(&kvm1, vm)[0], kvm1.on_host("vda.raw"));
    });
}

#[test]
fn what_a_dismissed_move_left_goes_when_its_hosts_answer_also_after_a_restart_of_the_server() {
    expects_warning("The host's agent does not answer");
    expects_warning("The job was dismissed");
    expects_warning("libvirt's migrate call failed");
    expects_warning("The local socket could not be reached");
    expects_warning("The job is stuck; it is tried on");
    in_lab(async |lab| {
        let (mut kvm1, mut kvm2, vm) = half_shared(lab).await;
        let nothing_is_left = async |lab: &Lab, kvm1: &Host, kvm2: &Host| {
            let is_clean = async || !new(kvm2).exists() && kvm1.orphans().is_empty() && kvm2.orphans().is_empty();
            crate::support::wait_for("nothing is left", is_clean).await;
            assert_eq!(lab.running_on(vm), crate::moves::only("kvm1"));
            assert_eq!(fs::read(old(kvm1)).expect("there"), content(0));
        };
        // The source is away, and it is unknown which host has the VM.
        let (job, hold) = held(lab, &kvm1, Point::MigratedDisk, &to_new(&kvm2)).await;
        kvm1.stop().await;
        kvm1.hypervisor.faults().fail(Point::Pass(1), "no such luck");
        hold.release();
        let waits =
            |job: &JobView| job.phase == Phase::Migrating && job.summary.contains("not known yet which host has it");
        lab.wait_for_job(job.id, waits).await;
        let dismissed = lab.client.dismiss_job(job.id).await.expect("dismissed");
        assert_eq!(dismissed.phase, Phase::Failed);
        assert!(new(&kvm2).exists(), "nothing is guessed");
        kvm1.start().await;
        nothing_is_left(lab, &kvm1, &kvm2).await;

        // The destination is away, and the server is restarted before it is back.
        let (job, hold) = held(lab, &kvm1, Point::MigratedDisk, &to_new(&kvm2)).await;
        kvm2.stop().await;
        kvm1.hypervisor.faults().fail(Point::Pass(1), "no such luck");
        hold.release();
        lab.wait_for_job(job.id, |job| job.phase == Phase::Stuck).await;
        assert_eq!(lab.client.dismiss_job(job.id).await.expect("dismissed").phase, Phase::Failed);
        assert!(new(&kvm2).exists());
        lab.stop_server().await;
        lab.start_server().await;
        kvm2.start().await;
        nothing_is_left(lab, &kvm1, &kvm2).await;
        let again = lab.client.migrate("db", &to_new(&kvm2)).await.expect("accepted");
        lab.ends(&again, Phase::Succeeded).await;
    });
}
