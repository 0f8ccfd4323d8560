//! Storage moves: disks of a running VM move on its host.

use std::{fs, path::PathBuf, sync::Arc};

use ferry_core::{
    admission::Slot,
    api::server::{JobView, MoveDisk, MoveStorage, SetHost},
    files::DiskStage,
    finding::FindingId,
    id::VmId,
    location::Location,
    migration::Phase,
    vm::VmState,
};
use ferry_drivers::hypervisor::{
    Domains as _,
    fake::{FakeGuest, Hold, Point},
};
use ferry_testkit::logs::expects_warning;

use crate::{
    moves::reached,
    support::{Host, Lab, UNC, in_lab, refusal, wait_for},
};

/// The size of a disk in MiB.
const SIZE: usize = 3;

/// Two hosts, and a VM on the first of them with two disks on the share that hold data.
async fn two_disks(lab: &Lab) -> (Host, Host, VmId) {
    let (kvm1, kvm2, _) = lab.two_hosts().await;
    let disks = ["vda", "vdb"].map(|disk| kvm1.on_share(&format!("db/{disk}.raw")));
    fs::create_dir_all(disks[0].parent().expect("a folder")).expect("made");
    for (number, disk) in disks.iter().enumerate() {
        fs::write(disk, content(number)).expect("written");
    }
    let guest = |guest: &mut FakeGuest| guest.facts.files = FakeGuest::new("db", &disks).facts.files;
    let vm = lab.run(&kvm1, "db", guest).await;
    lab.wait_for_state("db", VmState::Running).await;
    fs::create_dir_all(kvm1.on_host("new")).expect("made");
    (kvm1, kvm2, vm)
}

/// The contents of a disk: zeros and numbers.
fn content(number: usize) -> Vec<u8> {
    let block = |index: usize| if index.is_multiple_of(3) { vec![0; 4096] } else { vec![(index + number) as u8; 4096] };
    (0..SIZE << 8).flat_map(block).collect()
}

fn all_to(place: &str) -> MoveStorage {
    MoveStorage { to: Some(place.to_owned()), ..MoveStorage::default() }
}

fn one_to(device: &str, place: &str) -> MoveStorage {
    let disk = MoveDisk { device: device.into(), to: Some(place.to_owned()), format: None };
    MoveStorage { disks: vec![disk], ..MoveStorage::default() }
}

/// The files that a VM uses, according to its hypervisor.
fn in_use(host: &Host, vm: VmId) -> Vec<PathBuf> {
    host.hypervisor.vm(vm).expect("reachable").expect("there").files.into_iter().map(|file| file.place).collect()
}

fn new(host: &Host, name: &str) -> PathBuf {
    host.on_host("new").join(name)
}

fn local(host: &Host) -> String {
    host.on_host("new").display().to_string()
}

/// Starts a move of all disks and holds it at a point.
async fn held(lab: &Lab, host: &Host, point: Point) -> (JobView, Arc<Hold>) {
    let hold = Arc::new(host.hypervisor.faults().hold(point));
    let job = lab.client.move_storage("db", &all_to(&local(host))).await.expect("accepted");
    reached(&hold).await;
    (job, hold)
}

#[test]
fn disks_move_to_the_host_and_one_comes_back() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = two_disks(lab).await;
        let before = in_use(&kvm1, vm);
        let plan = lab.client.try_move_storage("db", &all_to(&local(&kvm1))).await.expect("planned");
        assert_eq!((plan.disks.len(), plan.findings.len()), (2, 0), "{plan:#?}");
        assert!(plan.disks.iter().all(|disk| disk.allocated.is_some_and(|bytes| bytes.0 > 0)), "{plan:#?}");
        assert!(!new(&kvm1, "vda.raw").exists(), "it was only tried");

        let job = lab.client.move_storage("db", &all_to(&local(&kvm1))).await.expect("accepted");
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert!(job.summary.contains("db on kvm1 has its disks"), "{}", job.summary);
        assert!(job.disks.iter().all(|disk| disk.stage == DiskStage::Moved && disk.copied == disk.total), "{job:#?}");
        let record = lab.client.audit(None, None).await.expect("answered").records.pop().expect("it has ended");
        let moved = |disk: &str| {
            let new = new(&kvm1, &format!("{disk}.raw"));
            format!("disk {disk} of VM db on kvm1 moved from db/{disk}.raw on share vms to {}", new.display())
        };
        let changes: Vec<_> = record.changes.iter().map(ToString::to_string).collect();
        assert_eq!(changes, [moved("vda"), moved("vdb")]);
        let figures = job.figures.expect("known");
        assert!(figures.allocated_source.0 > 0 && figures.allocated_destination.0 > 0, "{figures:?}");
        assert_eq!(in_use(&kvm1, vm), [new(&kvm1, "vda.raw"), new(&kvm1, "vdb.raw")]);
        for number in [0, 1] {
            assert_eq!(fs::read(&in_use(&kvm1, vm)[number]).expect("readable"), content(number));
            assert!(!before[number].exists(), "the old file is gone");
        }
        let beside = fs::read_to_string(new(&kvm1, "db.xml")).expect("the definition is kept beside the disks");
        assert!(beside.contains(&vm.to_string()) && beside.contains("new/vda.raw"), "{beside}");
        let seen = lab.client.vm("db").await.expect("known").facts;
        assert!(matches!(&seen.files[0].place, Location::Local { .. }), "the job's end shows it: {seen:?}");

        let locations = lab.client.host("kvm1").await.expect("known").storage_locations;
        assert_eq!(locations.len(), 0, "{locations:?}");
        let back = MoveStorage { keep_source: true, add_default: true, ..one_to("vdb", &format!("{UNC}\\db")) };
        let job = lab.client.move_storage("db", &back).await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(in_use(&kvm1, vm), [new(&kvm1, "vda.raw"), before[1].clone()]);
        assert_eq!(fs::read(&before[1]).expect("readable"), content(1));
        let locations = lab.client.host("kvm1").await.expect("known").storage_locations;
        assert_eq!(locations[0].path, format!("{UNC}\\db"), "{locations:?}");
        assert!(new(&kvm1, "vdb.raw").exists(), "it was to be kept");
        assert_eq!(kvm1.orphans(), Vec::<String>::new());
    });
}

#[test]
fn until_the_first_disk_is_switched_over_everything_is_taken_back() {
    expects_warning("The storage move failed");
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = two_disks(lab).await;
        let before = in_use(&kvm1, vm);
        let stays = |kvm1: &Host| {
            assert_eq!(in_use(kvm1, vm), before);
            assert_eq!(fs::read_dir(kvm1.on_host("new")).expect("there").count(), 0, "no new file is left");
        };

        let (job, hold) = held(lab, &kvm1, Point::CopyPart).await;
        let summary = lab.client.job(job.id).await.expect("known").summary;
        assert!(summary.contains("are copied"), "{summary}");
        let asked = tokio::spawn({
            let (client, job) = (lab.client.clone(), job.id);
            async move { client.cancel_job(job).await }
        });
        wait_for("the wish is known", async || {
            let log = lab.client.job(job.id).await.expect("known").log;
            log.iter().any(|line| line.message.contains("asked to cancel"))
        })
        .await;
        hold.release();
        asked.await.expect("no panic").expect("not too late");
        let job = lab.ends(&job, Phase::Cancelled).await;
        assert!(job.summary.contains("has its old files"), "{}", job.summary);
        stays(&kvm1);

        for (point, reason) in [(Point::CopyDisk, "no such node"), (Point::CopyPart, "the copy of disk")] {
            kvm1.hypervisor.faults().fail(point, reason);
            let job = lab.client.move_storage("db", &all_to(&local(&kvm1))).await.expect("accepted");
            let job = lab.ends(&job, Phase::Failed).await;
            assert!(job.summary.contains(reason) && job.summary.contains("`ferry job restart"), "{}", job.summary);
            stays(&kvm1);
            let again = lab.client.restart_job(job.id).await.expect("restarted");
            let again = lab.ends(&again, Phase::Succeeded).await;
            assert_eq!(again.attempt, 2);
            let home = lab.client.move_storage("db", &all_to(&format!("{UNC}\\db"))).await.expect("accepted");
            lab.ends(&home, Phase::Succeeded).await;
        }
        stays(&kvm1);
    });
}

#[test]
fn between_two_disks_the_move_can_only_go_on_and_another_attempt_moves_what_is_left() {
    expects_warning("The storage move failed");
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = two_disks(lab).await;
        let (job, hold) = held(lab, &kvm1, Point::PivotedDisk).await;
        let asked = tokio::spawn({
            let (client, job) = (lab.client.clone(), job.id);
            async move { client.cancel_job(job).await }
        });
        wait_for("the wish is known", async || {
            let log = lab.client.job(job.id).await.expect("known").log;
            log.iter().any(|line| line.message.contains("asked to cancel"))
        })
        .await;
        hold.release();
        assert_eq!(refusal(asked.await.expect("no panic")), (409, vec![FindingId::JobPastPivot]));
        lab.ends(&job, Phase::Succeeded).await;
        let home = lab.client.move_storage("db", &all_to(&format!("{UNC}\\db"))).await.expect("accepted");
        lab.ends(&home, Phase::Succeeded).await;

        let before = in_use(&kvm1, vm);
        let (job, hold) = held(lab, &kvm1, Point::PivotedDisk).await;
        kvm1.hypervisor.faults().cut(Point::CopyPart);
        hold.release();
        let failed = lab.ends(&job, Phase::Failed).await;
        assert!(failed.summary.contains("some disks moved and others not"), "{}", failed.summary);
        assert!(failed.summary.contains("vda moved, vdb not"), "{}", failed.summary);
        let stages: Vec<_> = failed.disks.iter().map(|disk| disk.stage).collect();
        assert_eq!((stages[0], stages[1] == DiskStage::Moved), (DiskStage::Moved, false));
        assert_eq!(in_use(&kvm1, vm), [new(&kvm1, "vda.raw"), before[1].clone()]);
        assert!(before[0].exists() && before[1].exists(), "old files go when all are moved");
        assert!(!new(&kvm1, "vdb.raw").exists(), "a file that nobody uses is not left");

        let again = lab.client.restart_job(job.id).await.expect("restarted");
        lab.ends(&again, Phase::Succeeded).await;
        assert_eq!(in_use(&kvm1, vm), [new(&kvm1, "vda.raw"), new(&kvm1, "vdb.raw")]);
        assert!(!before[0].exists() && !before[1].exists(), "both old files are gone");
        assert_eq!(fs::read(new(&kvm1, "vda.raw")).expect("readable"), content(0));
    });
}

#[test]
fn a_server_that_is_restarted_finishes_the_move() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = two_disks(lab).await;
        let (job, hold) = held(lab, &kvm1, Point::CopyPart).await;
        lab.stop_server().await;
        lab.start_server().await;
        hold.release();
        lab.ends(&job, Phase::Succeeded).await;
        assert_eq!(in_use(&kvm1, vm), [new(&kvm1, "vda.raw"), new(&kvm1, "vdb.raw")]);
    });
}

#[test]
fn storage_moves_have_slots_of_their_own() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = two_disks(lab).await;
        lab.run(&kvm1, "mail", |_| {}).await;
        lab.client.set_host("kvm1", &SetHost { storage_limit: Some(1), ..SetHost::default() }).await.expect("set");
        let (first, hold) = held(lab, &kvm1, Point::CopyPart).await;
        let second = lab.client.move_storage("mail", &all_to(&local(&kvm1))).await.expect("accepted");
        let waits = second.waits.clone().expect("it says for what");
        assert_eq!((waits.places[0].slot, waits.places[0].jobs.clone()), (Slot::Storage, vec![first.id]));
        // A live move does not wait for the storage move.
        let live = lab.migrate("web01", "kvm2").await.expect("accepted");
        lab.ends(&live, Phase::Succeeded).await;
        assert_eq!(refusal(lab.migrate("db", "kvm2").await).1, [FindingId::VmBusy]);
        hold.release();
        lab.ends(&first, Phase::Succeeded).await;
        lab.ends(&second, Phase::Succeeded).await;
    });
}

#[test]
fn what_cannot_work_is_refused_with_the_reason_and_nothing_is_made() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, vm) = two_disks(lab).await;
        let before = in_use(&kvm1, vm);
        let to = local(&kvm1);
        fs::write(new(&kvm1, "vda.raw"), "precious").expect("written");
        std::os::unix::fs::symlink("/etc", kvm1.on_host("out")).expect("linked");
        let out = one_to("vda", &kvm1.on_host("out").display().to_string());
        assert_eq!(refusal(lab.client.move_storage("db", &out).await).1, [FindingId::PlaceOutside]);
        for (vm, body, id) in [
            ("db", one_to("vdz", &to), FindingId::DiskUnknown),
            ("db", one_to("vda", &to), FindingId::FileExists),
            ("db", one_to("vda", &format!("{to}/no-folder")), FindingId::PlaceMissing),
            ("db", one_to("vda", "/etc"), FindingId::PlaceOutside),
            ("db", one_to("vda", "relative/path"), FindingId::PlaceForm),
            ("db", one_to("vda", &format!("{to}/../x")), FindingId::PlaceForm),
            ("db", one_to("vda", "\\\\fs1\\vms"), FindingId::ShareNotQualified),
            ("db", one_to("vda", "\\\\fs9.ferry.lab\\vms"), FindingId::ShareUnknown),
            ("db", MoveStorage::default(), FindingId::DiskUnknown),
            ("nobody", all_to(&to), FindingId::VmUnknown),
        ] {
            let (status, found) = refusal(lab.client.move_storage(vm, &body).await);
            assert_eq!(found, [id], "{body:?}");
            assert!((400..500).contains(&status), "{status}: {body:?}");
        }
        assert_eq!(fs::read(new(&kvm1, "vda.raw")).expect("there"), b"precious");
        lab.client.shutdown_vm("db").await.expect("asked");
        wait_for("it is off", async || lab.client.vm("db").await.is_ok_and(|vm| vm.facts.state == VmState::ShutOff))
            .await;
        assert_eq!(refusal(lab.client.move_storage("db", &one_to("vdb", &to)).await).1, [FindingId::VmNotRunning]);
        assert_eq!(in_use(&kvm1, vm), before);
        assert_eq!(fs::read_dir(kvm1.on_host("new")).expect("there").count(), 1);
    });
}

#[test]
fn a_job_says_which_files_stay_and_why() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = two_disks(lab).await;
        lab.run(&kvm1, "temp", |guest| guest.facts.persistent = false).await;
        lab.wait_for_state("temp", VmState::Running).await;
        let old = kvm1.on_share("temp/disk.raw");
        let job = lab.client.move_storage("temp", &all_to(&local(&kvm1))).await.expect("accepted");
        let job = lab.ends(&job, Phase::Succeeded).await;
        let message = format!("The old file {UNC}\\temp\\disk.raw of disk vda of VM temp stays");
        let finding = job.findings.iter().find(|finding| finding.message.to_string().contains(&message));
        assert_eq!(finding.map(|finding| finding.id), Some(FindingId::FileKept), "{job:#?}");
        assert!(job.log.iter().any(|line| line.message.contains(&message)), "{:#?}", job.log);
        let mount = old.ancestors().nth(2).expect("the share's").display().to_string();
        assert!(
            !serde_json::to_string(&job).expect("JSON").contains(&mount),
            "where the share is mounted is nobody's to read"
        );
        assert!(old.exists() && new(&kvm1, "disk.raw").exists());
    });
}

#[test]
fn what_stands_against_a_job_that_waited_is_found_when_it_begins() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = two_disks(lab).await;
        lab.run(&kvm1, "mail", |_| {}).await;
        lab.wait_for_state("mail", VmState::Running).await;
        lab.client.set_host("kvm1", &SetHost { storage_limit: Some(1), ..SetHost::default() }).await.expect("set");
        let (first, hold) = held(lab, &kvm1, Point::CopyPart).await;
        let second = lab.client.move_storage("mail", &all_to(&local(&kvm1))).await.expect("accepted");
        let disk = kvm1.on_share("mail/disk.raw");
        lab.define(&kvm1, "thief", |guest| guest.facts.files[0].place = disk.clone()).await;
        hold.release();
        lab.ends(&first, Phase::Succeeded).await;
        let second = lab.ends(&second, Phase::Failed).await;
        assert!(second.summary.contains("thief"), "{}", second.summary);
        assert!(second.findings.iter().any(|finding| finding.id == FindingId::DiskTwice), "{second:#?}");
        assert!(disk.exists() && !new(&kvm1, "disk.raw").exists());
    });
}
