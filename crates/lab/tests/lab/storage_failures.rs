//! Moves of disks with a fault on real hosts: the VM keeps running, every disk is intact, and the job reports its
//! state.

use ferry_core::{
    api::server::JobView,
    files::DiskStage,
    migration::Phase,
    vm::DiskFormat::{Qcow2, Raw},
};
use ferry_lab::{
    images::{Disk, Place, holds_data},
    local::FOLDER as LOCAL,
    site::{SHARE, Site, VM},
};

const TOGETHER_KIB: u32 = 4;
/// Enough data that faults happen in the middle of a copy.
const DATA_MIB: u32 = 48;

fn with_data(place: Place) -> Disk {
    Disk { data_mib: DATA_MIB, ..Disk::new(place, Raw) }
}

fn is_copied(job: &JobView, least: u64) -> bool {
    job.disks.first().is_some_and(|disk| disk.stage == DiskStage::Copying && disk.copied.0 >= least)
}

/// Checks that the disk is where it was and unchanged, and that nothing of the move is left.
fn assert_untouched(site: &Site, job: &JobView, old: &str, new: &str) {
    assert_eq!(site.disk("vda").expect("a disk"), old);
    assert!(job.summary.contains("on kvm1 has its old files"), "{}", job.summary);
    assert!(!site.real(new).exists(), "{new} is left");
    site.verify().expect("verified");
    assert!(holds_data(&site.real(old), Raw, DATA_MIB).expect("read"));
}

#[test]
fn a_place_that_gets_full_in_the_middle_fails_the_job_and_not_the_vm() {
    let site = Site::up(vec![with_data(Place::Share)], TOGETHER_KIB, "").expect("a guest");
    site.ferry.warnings.expect("The storage move failed");
    let old = site.disk("vda").expect("a disk");
    // A move that needs too much space is refused, with the full folder in the message.
    site.host().fill(8 << 20).expect("filled");
    let output = site.ferry.ferry(&["vm", "move-storage", VM, "--to", LOCAL, "--dry-run"]).expect("run");
    let text = format!("{}{}", output.out, output.err);
    assert!(text.contains(&format!("MiB are free in {LOCAL}")) && !text.contains("disk.raw."), "{text}");
    site.host().unfill().expect("emptied");

    let job = site.start_move(&["--to", LOCAL, "--bandwidth", "8"]).expect("accepted");
    site.wait_job(job.id, "it is copied", |job| is_copied(job, 8 << 20)).expect("it is");
    site.host().fill(4 << 20).expect("filled");
    let ended = site.wait_ended(job.id).expect("it ends");
    assert_eq!(ended.phase, Phase::Failed, "{ended:#?}");
    eprintln!("{}", ended.summary);
    assert!(ended.summary.contains("disk vda"), "{}", ended.summary);
    assert!(ended.summary.contains("has 0 MiB left") || ended.summary.contains("No space left"), "{}", ended.summary);
    assert_untouched(&site, &ended, &old, &format!("{LOCAL}/disk.raw"));

    // With free space, another attempt succeeds.
    site.host().unfill().expect("emptied");
    let again: JobView = site.ferry.json(&["job", "restart", &job.id.to_string(), "--wait"]).expect("it ends");
    assert_eq!(again.phase, Phase::Succeeded, "{again:#?}");
    assert!(site.disk("vda").expect("a disk").starts_with(LOCAL));
    site.verify().expect("verified");
}

#[test]
fn a_share_that_goes_away_in_the_middle_and_comes_back_loses_nothing() {
    let site = Site::up(vec![with_data(Place::Local)], TOGETHER_KIB, "").expect("a guest");
    site.ferry.warnings.expect_all(&[
        "The storage move failed",
        "What the files of VMs there are could not be seen",
        r#"A request failed title="Could not read or write /run/shares-of-"#,
    ]);
    let old = site.disk("vda").expect("a disk");
    let job = site.start_move(&["--to", SHARE, "--bandwidth", "8"]).expect("accepted");
    site.wait_job(job.id, "it is copied", |job| is_copied(job, 8 << 20)).expect("it is");
    site.ferry.files.stop().expect("stopped");
    // Either the copy fails, or it waits for the share.
    let stands = site.wait_job(job.id, "the copy meets it", |job| {
        job.phase != Phase::Migrating || job.summary.contains("Waits for")
    });
    eprintln!("{}", stands.expect("it does").summary);
    site.ferry.files.start_daemon(&site.ferry.lab).expect("started again");
    let ended = site.wait_ended(job.id).expect("it ends");
    eprintln!("{}", ended.summary);
    if ended.phase == Phase::Failed {
        assert_untouched(&site, &ended, &old, "/run/shares-of-kvm1/share/disk.raw");
    } else {
        assert_eq!(ended.phase, Phase::Succeeded, "{ended:#?}");
        site.verify().expect("verified");
    }
}

#[test]
fn a_cancelled_move_leaves_the_old_file_until_it_is_too_late() {
    let points = "agent-storage-ready=1*sleep(3000);agent-storage-pivot=1*sleep(3000)";
    let site = Site::up(vec![with_data(Place::Local)], TOGETHER_KIB, points).expect("a guest");
    let (old, new) = (site.disk("vda").expect("a disk"), format!("{LOCAL}/disk.qcow2"));
    let requested = format!("vda={LOCAL},format=qcow2");
    let cancel = |job: &JobView| site.ferry.ferry(&["job", "cancel", &job.id.to_string()]).expect("run");

    let job = site.start_move(&["--disk", &requested, "--bandwidth", "8"]).expect("accepted");
    let half = |job: &JobView| job.disks.first().is_some_and(|disk| is_copied(job, disk.total.0 / 2));
    site.wait_job(job.id, "half of it is copied", half).expect("it is");
    assert!(cancel(&job).ok());
    let ended = site.wait_ended(job.id).expect("it ends");
    assert_eq!(ended.phase, Phase::Cancelled, "{ended:#?}");
    assert_untouched(&site, &ended, &old, &new);

    // The copy is complete, and no disk is pivoted yet: the move can still be cancelled.
    let job = site.start_move(&["--disk", &requested]).expect("accepted");
    site.wait_job(job.id, "it is ready", |job| job.disks.first().is_some_and(|disk| disk.stage == DiskStage::Ready))
        .expect("it is");
    assert!(cancel(&job).ok());
    let ended = site.wait_ended(job.id).expect("it ends");
    assert_eq!(ended.phase, Phase::Cancelled, "{ended:#?}");
    assert_untouched(&site, &ended, &old, &new);

    // The disk is being pivoted: it is too late.
    let job = site.start_move(&["--disk", &requested]).expect("accepted");
    site.wait_written(job.id, "switching").expect("it is");
    let output = cancel(&job);
    let ended = site.wait_ended(job.id).expect("it ends");
    assert_eq!(ended.phase, Phase::Succeeded, "{output:?} {ended:#?}");
    assert_eq!(site.disk("vda").expect("a disk"), new);
    assert!(!site.real(&old).exists(), "{old} is left");
    site.verify().expect("verified");
    assert!(holds_data(&site.real(&new), Qcow2, DATA_MIB).expect("read"));
}
