//! Running VMs move between real hosts that share nothing, or not all: libvirt, QEMU, and a guest that writes the whole
//! time.
#![cfg(feature = "lab")]

use std::time::Duration;

use ferry_core::{
    api::server::{Candidate, JobView},
    finding::FindingId,
    job::{JobKind, MoveKind},
    migration::Phase,
    storage::DiskStage,
    vm::DiskFormat,
};
use ferry_lab::{
    demo::start_ticker,
    ferry::Ferry,
    guest::Ticker,
    images::{self, Disk, Place},
    observe::{Observer, judge},
    run::wait_for,
};

const BOOT: Duration = Duration::from_secs(90);
const VERIFY: Duration = Duration::from_secs(120);
const SECONDS_30: Duration = Duration::from_secs(30);
/// A folder that each host has for itself.
const LOCAL: &str = "/var/lib/libvirt/images";

/// A guest that runs on kvm1 from a disk that only kvm1 has.
fn with_guest(environment: &[(&str, &str)]) -> (Observer, Ferry) {
    let mut ferry = Ferry::up_bare(2, environment).expect("hosts");
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let ticker = Ticker {
        memory_mib: 128,
        pattern_mib: 12,
        dirty_mib_per_s: 1,
        writes_per_s: 200,
        ..Ticker::new("ticker", 101)
    };
    for host in &ferry.lab.hosts {
        host.run(&["mkdir", "-p", LOCAL]).expect("a folder");
    }
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    let job: JobView = ferry.json(&["vm", "move-storage", "ticker", "--to", LOCAL, "--wait"]).expect("it ends");
    assert_eq!(job.phase, Phase::Succeeded, "{job:#?}");
    (observer, ferry)
}

/// The file of the guest's disk on a host, as libvirt says.
fn disk_of(ferry: &Ferry, host: &str) -> String {
    let list = ferry.lab.host(host).virsh(&["domblklist", "ticker"]).expect("listed");
    let line = list.lines().find(|line| line.trim_start().starts_with("vda")).expect("a disk");
    line.split_whitespace().nth(1).expect("a path").to_owned()
}

/// Bytes that a file of a host takes; `None` if it is not there.
fn takes(ferry: &Ferry, host: &str, path: &str) -> Option<u64> {
    let said = ferry.lab.host(host).try_run(&["stat", "-c", "%b", path]).expect("run");
    said.ok().then(|| said.out.trim().parse::<u64>().expect("a number") * 512)
}

#[test]
fn a_disk_moves_along_between_hosts_in_both_formats_while_the_guest_writes() {
    let (observer, ferry) = with_guest(&[]);
    let tried: Vec<Candidate> =
        ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--storage", LOCAL, "--dry-run"]).expect("tried");
    assert_eq!(tried[0].kind, Some(MoveKind::LiveVsm), "{tried:#?}");
    let mut verified = 0;
    for (from, to, format) in [("kvm1", "kvm2", "raw"), ("kvm2", "kvm1", "qcow2"), ("kvm1", "kvm2", "raw")] {
        let before = disk_of(&ferry, from);
        let place = format!("vda={LOCAL},format={format}");
        let line = ["vm", "migrate", "ticker", "--to", to, "--disk", &place, "--wait"];
        let job: JobView = ferry.json(&line).expect("it ends");
        assert_eq!((job.phase, job.kind), (Phase::Succeeded, JobKind::LiveVsm), "{job:#?}");
        assert_eq!(job.disks[0].stage, DiskStage::Moved, "{job:#?}");
        observer.wait_on("ticker", to, SECONDS_30).expect("it runs there alone");
        let path = disk_of(&ferry, to);
        assert!(path.starts_with(LOCAL) && path.ends_with(&format!("disk.{format}")), "{path}");
        assert_eq!(takes(&ferry, from, &before), None, "{before} is left on {from}");
        let kept = ferry.lab.host(to).virsh(&["dumpxml", "ticker", "--inactive"]).expect("dumped");
        assert!(kept.contains(&path), "it starts with the new file: {kept}");
        verified += 1;
        observer.wait_verified("ticker", verified, VERIFY).expect("verified");
        judge(&observer.heard("ticker")).expect("no promise is broken");
        let took = takes(&ferry, to, &path).expect("there");
        let figures = job.figures.expect("known");
        eprintln!("{format}: takes {took} bytes, downtime {} ms, {figures:?}", figures.downtime_ms);
        // The guest writes few of its 64 MiB.
        assert!(took < 8 << 20, "{format} takes {took} bytes");
    }
}

#[test]
fn a_move_whose_destination_dies_while_the_disk_moves_leaves_the_vm_and_takes_back_the_file() {
    let (observer, mut ferry) = with_guest(&[]);
    let old = disk_of(&ferry, "kvm1");
    let line = ["vm", "migrate", "ticker", "--to", "kvm2", "--storage", LOCAL, "--bandwidth", "4"];
    let job: JobView = ferry.json(&line).expect("accepted");
    let show = |ferry: &Ferry| -> JobView { ferry.json(&["job", "show", &job.id.to_string()]).expect("known") };
    let moving = wait_for("the disk moves", SECONDS_30, || {
        show(&ferry).disks.first().is_some_and(|disk| disk.copied.0 > 0).then_some(())
    });
    moving.expect("the disk moves");
    let host = ferry.lab.host("kvm2");
    for pid in host.pids("ferry-agent") {
        let _ = host.try_run(&["kill", "-9", &pid.to_string()]).expect("run");
    }
    ferry.agents[1].program.kill();
    let program = ferry_lab::ferry::Agent::run(&ferry.lab, ferry.lab.host("kvm2"), &[]).expect("started again");
    ferry.agents[1].program = program;
    let ended = wait_for("the job ends", VERIFY, || Some(show(&ferry)).filter(|job| job.phase.ended()));
    let ended = ended.expect("it ends");
    assert_eq!(ended.phase, Phase::Failed, "{ended:#?}");
    assert!(ended.summary.contains("kvm1"), "it says where the VM is: {}", ended.summary);
    assert_eq!(disk_of(&ferry, "kvm1"), old);
    let left = ferry.lab.host("kvm2").run(&["find", LOCAL, "-type", "f"]).expect("listed");
    assert_eq!(left.trim(), "", "nothing is left at the destination");
    observer.wait_on("ticker", "kvm1", SECONDS_30).expect("it runs on");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    let again: JobView = ferry.json(&["job", "restart", &job.id.to_string()]).expect("restarted");
    let ended = wait_for("the job ends", VERIFY, || {
        let view: JobView = ferry.json(&["job", "show", &again.id.to_string()]).ok()?;
        Some(view).filter(|job| job.phase.ended())
    });
    assert_eq!(ended.expect("it ends").phase, Phase::Succeeded);
    observer.wait_on("ticker", "kvm2", SECONDS_30).expect("it runs there alone");
    observer.wait_verified("ticker", 2, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
}

#[test]
fn without_a_place_the_refusal_says_how_to_move_the_disk_along() {
    let (_observer, ferry) = with_guest(&[]);
    let tried: Vec<Candidate> = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--dry-run"]).expect("tried");
    assert_eq!(tried[0].kind, None, "{tried:#?}");
    let found = tried[0].findings.iter().find(|finding| finding.id == FindingId::DiskNotShared).expect("found");
    assert!(found.fix.contains("--storage"), "{found:?}");
}

#[test]
fn what_a_cancelled_move_has_copied_is_not_sent_again() {
    const DATA_MIB: u32 = 96;
    let mut ferry = Ferry::up_bare(2, &[]).expect("hosts");
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let disk = Disk { size_mib: 256, data_mib: DATA_MIB, ..Disk::new(Place::Local, DiskFormat::Raw) };
    let ticker =
        Ticker { memory_mib: 128, pattern_mib: 12, writes_per_s: 200, disks: vec![disk], ..Ticker::new("ticker", 101) };
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    let line = ["vm", "migrate", "ticker", "--to", "kvm2", "--storage", LOCAL, "--bandwidth", "24"];
    let job: JobView = ferry.json(&line).expect("accepted");
    let show = || -> JobView { ferry.json(&["job", "show", &job.id.to_string()]).expect("known") };
    let copied = |view: &JobView| {
        let disk = view.disks.first()?;
        // Data lie at the front of the disk; holes behind them are looked at in no time.
        (disk.copied.0 > (u64::from(DATA_MIB) * 8 / 10) << 20).then_some(())
    };
    wait_for("most of the disk is copied", SECONDS_30, || copied(&show())).expect("most of the disk is copied");
    let _: JobView = ferry.json(&["job", "cancel", &job.id.to_string()]).expect("not too late");
    let ended = wait_for("the job ends", VERIFY, || Some(show()).filter(|job| job.phase.ended())).expect("it ends");
    assert_eq!(ended.phase, Phase::Cancelled, "{ended:#?}");
    observer.wait_on("ticker", "kvm1", SECONDS_30).expect("it runs on");
    let seeds = || ferry.lab.host("kvm2").run(&["find", LOCAL, "-name", "*.ferry-seed"]).expect("listed");
    assert_eq!(seeds().lines().count(), 1, "the copy is kept: {}", seeds());
    let indexed = wait_for("what it holds is known", SECONDS_30, || {
        let host = ferry.lab.host("kvm2");
        let found = host.run(&["find", "/run/ferry-agent/seeds", "-name", "*.index"]).ok()?;
        (found.lines().count() == 1).then_some(())
    });
    indexed.expect("what it holds is known");
    let line = ["vm", "migrate", "ticker", "--to", "kvm2", "--storage", LOCAL, "--wait"];
    let again: JobView = ferry.json(&line).expect("it ends");
    assert_eq!(again.phase, Phase::Succeeded, "{again:#?}");
    let sent = again.figures.expect("known").disk_wire.0;
    eprintln!("{DATA_MIB} MiB of data; the retry sent {sent} bytes of the disk");
    assert!(sent <= (u64::from(DATA_MIB) << 20) * 3 / 10, "{sent} bytes were sent again");
    observer.wait_on("ticker", "kvm2", SECONDS_30).expect("it runs there alone");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
    let path = ferry.lab.host("kvm2").file(&disk_of(&ferry, "kvm2"));
    assert!(images::holds_data(&path, DiskFormat::Raw, DATA_MIB).expect("read"), "all data are there");
    assert_eq!(seeds(), "", "nothing is left");
}
