//! Disks of a running VM move between all places and formats on real hosts, one or several at a time, and stay thin.

use std::time::{Duration, Instant};

use ferry_core::{
    api::server::JobView,
    files::DiskStage,
    migration::Phase,
    vm::DiskFormat::{Qcow2, Raw},
};
use ferry_lab::{
    images::{Disk, Place, allocated, holds_data, nonzero},
    local::FOLDER as LOCAL,
    site::{SHARE, Site, VM},
};

/// Distance of sectors that distributes them over a disk of 64 MiB.
const ALL_OVER_KIB: u32 = 512;
/// Adjacent sectors.
const TOGETHER_KIB: u32 = 4;

fn succeeded(site: &Site, job: &JobView) -> JobView {
    let ended = site.wait_ended(job.id).expect("it ends");
    assert_eq!(ended.phase, Phase::Succeeded, "{ended:#?}");
    assert!(ended.disks.iter().all(|disk| disk.stage == DiskStage::Moved), "{ended:#?}");
    ended
}

#[test]
fn a_disk_goes_from_every_place_and_format_to_every_other() {
    let site = Site::up(vec![Disk::new(Place::Local, Raw)], ALL_OVER_KIB, "").expect("a guest");
    let nodes = [(LOCAL, Raw), (LOCAL, Qcow2), (SHARE, Raw), (SHARE, Qcow2)];
    // A walk that covers every ordered pair once.
    let walk = [0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3, 0];
    let mut pairs: Vec<(usize, usize)> = walk.windows(2).map(|pair| (pair[0], pair[1])).collect();
    let mut written = 0;
    for (from, to) in &pairs {
        let (place, format) = nodes[*to];
        let before = site.disk("vda").expect("a disk");
        let requested = format!("vda={place},format={}", format.name());
        let owner = |path: &str| site.host().run(&["stat", "-c", "%u:%g", path]).expect("there");
        let owned = owner(&before);
        let (begun, writes) = (Instant::now(), site.writes().expect("heard"));
        succeeded(&site, &site.start_move(&["--disk", &requested]).expect("accepted"));
        let wrote = site.writes().expect("heard") - writes;
        written += wrote;
        let path = site.disk("vda").expect("a disk");
        assert!(path.ends_with(&format!("disk.{}", format.name())), "{path}");
        assert_eq!(path.starts_with(LOCAL), place == LOCAL, "{path}");
        // A file server may set owners of its own.
        let on_host = before.starts_with(LOCAL) && place == LOCAL;
        assert!(!on_host || owner(&path) == owned, "{path} belongs to {}, {before} belonged to {owned}", owner(&path));
        assert!(!site.real(&before).exists(), "{before} is left");
        site.verify().unwrap_or_else(|error| panic!("{:?} to {:?}: {error}", nodes[*from], nodes[*to]));
        eprintln!(
            "{:?} to {:?} in {} ms, {wrote} sectors written meanwhile",
            nodes[*from],
            nodes[*to],
            begun.elapsed().as_millis()
        );
    }
    // On a busy machine, a single move may end between two writes.
    assert!(written >= 100, "the guest wrote {written} sectors during the moves");
    pairs.sort_unstable();
    pairs.dedup();
    assert_eq!(pairs.len(), 12, "every ordered pair was taken");
}

#[test]
fn a_vm_with_three_disks_moves_whole_and_then_one_disk_alone() {
    let disks = vec![
        Disk::new(Place::Share, Raw),
        Disk::new(Place::Share, Qcow2),
        Disk { data_mib: 40, ..Disk::new(Place::Share, Raw) },
    ];
    let site = Site::up(disks, TOGETHER_KIB, "").expect("a guest");
    let devices = ["vda", "vdb", "vdc"];
    let files = || devices.map(|device| site.disk(device).expect("a disk"));
    let before = files();
    let job = site.start_move(&["--to", LOCAL, "--bandwidth", "16"]).expect("accepted");
    // Each has its own progress: vdc is still being copied when disks with little data are ready.
    let under_way = site.wait_job(job.id, "three disks are copied", |job| {
        job.disks.len() == 3
            && job.disks.iter().all(|disk| disk.copied.0 > 0)
            && job.disks[2].stage == DiskStage::Copying
    });
    let under_way = under_way.expect("each is seen");
    assert!(under_way.disks.iter().map(|disk| &*disk.device).eq(devices), "{under_way:#?}");
    assert!(under_way.disks[2].copied < under_way.disks[2].total, "{under_way:#?}");
    let ended = succeeded(&site, &job);
    for disk in &ended.disks {
        assert_eq!(disk.copied, disk.total, "{ended:#?}");
        assert!(disk.allocated_after.0 > 0, "{ended:#?}");
    }
    let whole = files();
    assert!(whole.iter().all(|file| file.starts_with(LOCAL)), "{whole:?}");
    assert!(!before.iter().any(|file| site.real(file).exists()), "{before:?} are removed");
    site.verify().expect("verified");

    let job = succeeded(&site, &site.start_move(&["--disk", &format!("vdb={SHARE}")]).expect("accepted"));
    assert!(job.disks.iter().map(|disk| &*disk.device).eq(["vdb"]), "{job:#?}");
    let alone = files();
    assert_eq!((&alone[0], &alone[2]), (&whole[0], &whole[2]), "the others stay");
    assert!(!alone[1].starts_with(LOCAL) && !site.real(&whole[1]).exists(), "{alone:?}");
    site.verify().expect("verified");
    assert!(holds_data(&site.real(&alone[2]), Raw, 40).expect("read"), "what was in it before is in it");
}

#[test]
fn sixty_four_gibibytes_with_little_in_them_stay_thin_and_move_within_three_minutes() {
    let large = Disk { size_mib: 64 << 10, data_mib: 200, ..Disk::new(Place::Share, Qcow2) };
    let site = Site::up(vec![Disk::new(Place::Share, Raw), large, large], TOGETHER_KIB, "").expect("a guest");
    let (raw, qcow2) = (format!("vdb={LOCAL},format=raw"), format!("vdc={LOCAL},format=qcow2"));
    let begun = Instant::now();
    succeeded(&site, &site.start_move(&["--disk", &raw, "--disk", &qcow2]).expect("accepted"));
    let took = begun.elapsed();
    eprintln!("two disks of 64 GiB with 200 MiB each moved in {} ms", took.as_millis());
    assert!(took < Duration::from_secs(180), "{took:?}");
    site.verify().expect("verified");
    let files = ["vdb", "vdc"].map(|device| site.real(&site.disk(device).expect("a disk")));
    // The guest writes no more, so that the counts are final.
    site.host().virsh(&["destroy", VM]).expect("ended");
    for (file, format) in [(&files[0], Raw), (&files[1], Qcow2)] {
        let (takes, holds) = (allocated(file).expect("there"), nonzero(file, format).expect("read"));
        eprintln!("{} takes {takes} bytes for {holds}", format.name());
        assert!((200 << 20..202 << 20).contains(&holds), "{} holds {holds} bytes", format.name());
        assert!(takes as f64 <= 1.02 * holds as f64 + f64::from(1 << 20), "{} takes {takes}", format.name());
        assert!(holds_data(file, format, 200).expect("read"), "{} lost data", format.name());
    }
}
