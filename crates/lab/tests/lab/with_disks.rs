//! Running VMs move between real hosts without or with partly shared storage: libvirt, QEMU, and a guest that writes
//! all the time.

use std::time::Duration;

use ferry_core::{
    api::server::{Candidate, JobView},
    files::{DiskProgress, DiskStage},
    finding::FindingId,
    job::{JobKind, MoveKind},
    migration::Phase,
    vm::DiskFormat,
};
use ferry_lab::{
    demo::start_ticker,
    ferry::Ferry,
    guest::Ticker,
    images::{self, Disk, Place},
    observe::{Observer, judge, now},
    run::wait_for,
    warnings::{AGENT_DIES, MOVE_FAILS},
};

const BOOT: Duration = Duration::from_secs(90);
const VERIFY: Duration = Duration::from_secs(120);
const SECONDS_30: Duration = Duration::from_secs(30);
/// A folder that is local to each host.
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

/// The file of the guest's disk on a host, according to libvirt.
fn disk_of(ferry: &Ferry, host: &str) -> String {
    let list = ferry.lab.host(host).virsh(&["domblklist", "ticker"]).expect("listed");
    let line = list.lines().find(|line| line.trim_start().starts_with("vda")).expect("a disk");
    line.split_whitespace().nth(1).expect("a path").to_owned()
}

/// The allocated size of a host's file; `None` if it does not exist.
fn takes(ferry: &Ferry, host: &str, path: &str) -> Option<u64> {
    let output = ferry.lab.host(host).try_run(&["stat", "-c", "%b", path]).expect("run");
    output.ok().then(|| output.out.trim().parse::<u64>().expect("a number") * 512)
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
        // The guest writes only a small part of its 64 MiB.
        assert!(took < 8 << 20, "{format} takes {took} bytes");
    }
}

#[test]
fn a_move_whose_destination_dies_while_the_disk_moves_leaves_the_vm_and_takes_back_the_file() {
    let (observer, mut ferry) = with_guest(&[]);
    ferry.warnings.expect_all(AGENT_DIES);
    ferry.warnings.expect_all(MOVE_FAILS);
    let old = disk_of(&ferry, "kvm1");
    // The guest writes 60 sectors a second, and a copy sends 64 KiB for each: at about 4 MiB/s it would hardly finish.
    let line = ["vm", "migrate", "ticker", "--to", "kvm2", "--storage", LOCAL, "--storage-bandwidth", "8"];
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
    assert!(found.fix.to_string().contains("--storage"), "{found:?}");
}

/// Enough data that a fault happens in the middle of a copy.
const DATA_MIB: u32 = 48;

/// Two hosts with Ferry, and a guest on kvm1 with these disks; the agents get `failpoints`.
fn with_disks(disks: Vec<Disk>, writes_per_s: u32, failpoints: &str) -> (Observer, Ferry) {
    let mut ferry = Ferry::up_bare(2, &[("FAILPOINTS", failpoints)]).expect("hosts");
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let ticker = Ticker { memory_mib: 128, pattern_mib: 12, writes_per_s, disks, ..Ticker::new("ticker", 101) };
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    (observer, ferry)
}

/// A move with disks to kvm2 whose copies take several seconds.
/// Moves the VM with its disks, all together at this rate.
fn start_slowly(ferry: &Ferry, mib_per_s: &str) -> JobView {
    let line = ["vm", "migrate", "ticker", "--to", "kvm2", "--storage", LOCAL, "--bandwidth", mib_per_s];
    ferry.json(&line).expect("accepted")
}

fn show(ferry: &Ferry, job: &JobView) -> JobView {
    ferry.json(&["job", "show", &job.id.to_string()]).expect("known")
}

fn wait_job(ferry: &Ferry, job: &JobView, what: &str, is: impl Fn(&JobView) -> bool) -> JobView {
    let seen = wait_for(what, VERIFY, || Some(show(ferry, job)).filter(|job| is(job) || job.phase.ended()));
    let seen = seen.expect(what);
    assert!(is(&seen), "{what}: it ended before: {seen:#?}");
    seen
}

/// Files of disks in the folder of a host, without partial copies.
fn files_on(ferry: &Ferry, host: &str) -> Vec<String> {
    let line = ["find", LOCAL, "-type", "f", "-name", "disk*", "!", "-name", "*.ferry-*"];
    let mut files: Vec<String> = ferry.lab.host(host).run(&line).expect("listed").lines().map(str::to_owned).collect();
    files.sort_unstable();
    files
}

/// Checks that the VM runs where it was, from its old files, and that the destination has none.
fn assert_untouched(ferry: &Ferry, observer: &Observer, old: &[String]) {
    observer.wait_on("ticker", "kvm1", SECONDS_30).expect("it runs on");
    assert_eq!(files_on(ferry, "kvm1"), old);
    assert_eq!(files_on(ferry, "kvm2"), [""; 0]);
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
}

#[test]
fn two_disks_move_along_whatever_was_cancelled_or_got_full_before() {
    // QEMU sends 64 KiB for each of 200 writes a second: at less than 12.5 MiB/s the copies would never be in sync.
    const ABOVE_WRITES: &str = "32";
    let data = |format| Disk { data_mib: DATA_MIB, ..Disk::new(Place::Local, format) };
    let disks = vec![data(DiskFormat::Raw), data(DiskFormat::Qcow2)];
    let (observer, ferry) = with_disks(disks, 200, "before-resume=sleep(3000)");
    ferry.warnings.expect_all(MOVE_FAILS);
    let old = files_on(&ferry, "kvm1");
    assert_eq!(old.len(), 2, "{old:?}");
    let cancel = |job: &JobView| ferry.ferry(&["job", "cancel", &job.id.to_string()]).expect("run");
    let all = |job: &JobView, is: &dyn Fn(&DiskProgress) -> bool| job.disks.len() == 2 && job.disks.iter().all(is);

    // Half of the data is copied.
    let job = start_slowly(&ferry, ABOVE_WRITES);
    wait_job(&ferry, &job, "half of each is copied", |job| all(job, &|disk| disk.copied.0 >= (20 << 20)));
    assert!(cancel(&job).ok());
    assert_eq!(wait_job(&ferry, &job, "it ends", |job| job.phase.ended()).phase, Phase::Cancelled);
    assert_untouched(&ferry, &observer, &old);

    // The disks are copied, and memory is being sent.
    let job = start_slowly(&ferry, ABOVE_WRITES);
    wait_job(&ferry, &job, "both are in sync", |job| all(job, &|disk| disk.stage == DiskStage::Ready));
    assert!(cancel(&job).ok());
    assert_eq!(wait_job(&ferry, &job, "it ends", |job| job.phase.ended()).phase, Phase::Cancelled);
    assert_untouched(&ferry, &observer, &old);

    // The destination's disk becomes full.
    let kvm2 = ferry.lab.host("kvm2");
    kvm2.run(&["find", LOCAL, "-name", "*.ferry-*", "-delete"]).expect("nothing is kept");
    let job = start_slowly(&ferry, "8");
    wait_job(&ferry, &job, "something is copied", |job| all(job, &|disk| disk.copied.0 > (4 << 20)));
    kvm2.fill(2 << 20).expect("filled");
    let ended = wait_job(&ferry, &job, "it ends", |job| job.phase.ended());
    assert_eq!(ended.phase, Phase::Failed, "{ended:#?}");
    eprintln!("{}", ended.summary);
    assert!(ended.summary.contains("stays on kvm1"), "{}", ended.summary);
    kvm2.unfill().expect("emptied");
    assert_untouched(&ferry, &observer, &old);

    // Another attempt moves it, and keeps its old files as requested.
    let line = ["vm", "migrate", "ticker", "--to", "kvm2", "--storage", LOCAL, "--keep-source", "--wait"];
    let moved: JobView = ferry.json(&line).expect("it ends");
    assert_eq!(moved.phase, Phase::Succeeded, "{moved:#?}");
    observer.wait_on("ticker", "kvm2", SECONDS_30).expect("it runs there alone");
    assert_eq!(files_on(&ferry, "kvm1"), old, "they were to be kept");
    assert_eq!(files_on(&ferry, "kvm2").len(), 2);
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    for path in files_on(&ferry, "kvm2") {
        let format = if path.ends_with(".raw") { DiskFormat::Raw } else { DiskFormat::Qcow2 };
        let file = kvm2.file(&path);
        assert!(images::holds_data(&file, format, DATA_MIB).expect("read"), "{path} lost data");
    }

    // Back: the VM is handed over, and the move is cancelled just before the VM is resumed.
    for file in &old {
        ferry.lab.host("kvm1").run(&["rm", file]).expect("removed by hand");
    }
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm1", "--storage", LOCAL]).expect("accepted");
    let silent = wait_for("it stands still", VERIFY, || {
        let last = observer.last("ticker")?;
        (now().saturating_sub(last.at) > Duration::from_millis(1500)).then_some(())
    });
    silent.expect("it stands still");
    let output = cancel(&job);
    let ended = wait_job(&ferry, &job, "it ends", |job| job.phase.ended());
    assert_eq!(ended.phase, Phase::Succeeded, "{output:?} {ended:#?}");
    assert!(!output.ok(), "it was too late: {output:?}");
    observer.wait_on("ticker", "kvm1", SECONDS_30).expect("it runs there alone");
    assert_eq!((files_on(&ferry, "kvm1").len(), files_on(&ferry, "kvm2").len()), (2, 0));
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
}

#[test]
fn uefi_variables_move_along_with_their_running_vm() {
    let mut ferry = Ferry::up_bare(2, &[]).expect("hosts");
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let ticker = Ticker { memory_mib: 192, pattern_mib: 12, uefi: true, ..Ticker::new("ticker", 101) };
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    let of = |host: &str| ferry.lab.host(host).file(&ticker.uefi_variables());
    let before = std::fs::read(of("kvm1")).expect("libvirt made it");
    assert_ne!(before, std::fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd").expect("installed"), "the firmware wrote some");

    for (from, to, verified) in [("kvm1", "kvm2", 1), ("kvm2", "kvm1", 2)] {
        let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", to, "--wait"]).expect("it ends");
        assert_eq!(job.phase, Phase::Succeeded, "{job:#?}");
        observer.wait_on("ticker", to, SECONDS_30).expect("it runs there alone");
        let arrived = wait_for("QEMU has written them", SECONDS_30, || {
            std::fs::read(of(to)).ok().filter(|found| *found == before).map(drop)
        });
        arrived.expect("they are there as they were");
        assert!(!of(from).exists(), "they are left on {from}");
        observer.wait_verified("ticker", verified, VERIFY).expect("verified");
        judge(&observer.heard("ticker")).expect("no promise is broken");
    }

    // It starts with them where it is.
    ferry.lab.host("kvm1").virsh(&["destroy", "ticker"]).expect("ended");
    wait_for("Ferry knows", SECONDS_30, || ferry.must(&["vm", "start", "ticker"]).ok()).expect("started");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots again");
}

#[test]
fn what_a_cancelled_move_has_copied_and_what_a_vm_left_is_not_sent_again() {
    const DATA_MIB: u32 = 96;
    let disk = Disk { size_mib: 256, data_mib: DATA_MIB, ..Disk::new(Place::Local, DiskFormat::Raw) };
    // QEMU sends 64 KiB for each sector that the guest writes meanwhile, none of which belongs to the partial copy.
    let (observer, ferry) = with_disks(vec![disk], 30, "");
    ferry.warnings.expect_all(MOVE_FAILS);
    let job = start_slowly(&ferry, "8");
    // The data are at the front of the disk; the holes behind them are examined almost instantly.
    let least = (u64::from(DATA_MIB) * 8 / 10) << 20;
    wait_job(&ferry, &job, "most of the disk is copied", |job| {
        job.disks.first().is_some_and(|disk| disk.copied.0 > least)
    });
    let _: JobView = ferry.json(&["job", "cancel", &job.id.to_string()]).expect("not too late");
    let ended = wait_job(&ferry, &job, "it ends", |job| job.phase.ended());
    assert_eq!(ended.phase, Phase::Cancelled, "{ended:#?}");
    observer.wait_on("ticker", "kvm1", SECONDS_30).expect("it runs on");
    let kept = || ferry.lab.host("kvm2").run(&["find", LOCAL, "-name", "*.ferry-*"]).expect("listed");
    assert_eq!(kept().lines().count(), 1, "the copy is kept: {}", kept());
    // At once, as an administrator would do.
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
    let (takes, holds) =
        (images::allocated(&path).expect("there"), images::nonzero(&path, DiskFormat::Raw).expect("read"));
    assert!(takes as f64 <= 1.02 * holds as f64 + f64::from(1 << 20), "{takes} bytes are taken for {holds}");
    assert_eq!(kept(), "", "nothing is left");

    // It returns within the hour: the file that it left is there, under another name.
    let left = || ferry.lab.host("kvm1").run(&["find", LOCAL, "-name", "*.ferry-*"]).expect("listed");
    assert_eq!(left().lines().count(), 1, "{}", left());
    let line = ["vm", "migrate", "ticker", "--to", "kvm1", "--storage", LOCAL, "--wait"];
    let home: JobView = ferry.json(&line).expect("it ends");
    assert_eq!(home.phase, Phase::Succeeded, "{home:#?}");
    let figures = home.figures.expect("known");
    let (sent, held) = (figures.disk_wire.0, figures.carried.expect("told").disks.held);
    eprintln!("its return sent {sent} bytes of the disk; {held} were there");
    assert!(sent <= (u64::from(DATA_MIB) << 20) * 3 / 10, "{sent} bytes were sent again");
    assert!(held >= (u64::from(DATA_MIB) << 20) * 7 / 10, "{held} bytes were there already");
    observer.wait_on("ticker", "kvm1", SECONDS_30).expect("it runs there alone");
    observer.wait_verified("ticker", 2, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
    let path = ferry.lab.host("kvm1").file(&disk_of(&ferry, "kvm1"));
    assert!(images::holds_data(&path, DiskFormat::Raw, DATA_MIB).expect("read"), "all data are there");
    assert_eq!(left(), "", "nothing is left");
}
