//! Disks of running VMs move on real hosts: libvirt, QEMU, Samba, and a guest that writes all the time.

use std::time::Duration;

use ferry_core::{
    api::server::{JobView, StoragePlan},
    files::DiskStage,
    finding::FindingId,
    migration::Phase,
};
use ferry_lab::{
    demo::start_ticker,
    ferry::Ferry,
    guest::Ticker,
    observe::{Observer, judge},
    run::wait_for,
};

const BOOT: Duration = Duration::from_secs(90);
const VERIFY: Duration = Duration::from_secs(120);
const SECONDS_30: Duration = Duration::from_secs(30);
/// A folder that is local to the host.
const LOCAL: &str = "/var/lib/libvirt/images";
const SHARE: &str = "\\\\fs1.ferry.lab\\vms\\";

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
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    ferry.lab.hosts[0].run(&["mkdir", "-p", LOCAL]).expect("a folder");
    (observer, ferry)
}

/// The file of the guest's disk, according to libvirt.
fn disk(ferry: &Ferry) -> String {
    let list = ferry.lab.hosts[0].virsh(&["domblklist", "ticker"]).expect("listed");
    let line = list.lines().find(|line| line.trim_start().starts_with("vda")).expect("a disk");
    line.split_whitespace().nth(1).expect("a path").to_owned()
}

/// The allocated size of the host's file; `None` if it does not exist.
fn takes(ferry: &Ferry, path: &str) -> Option<u64> {
    let output = ferry.lab.hosts[0].try_run(&["stat", "-c", "%b", path]).expect("run");
    output.ok().then(|| output.out.trim().parse::<u64>().expect("a number") * 512)
}

#[test]
fn a_disk_moves_between_the_share_and_the_host_in_both_formats_while_the_guest_writes() {
    let (observer, ferry) = with_guest(&[]);
    let plan: StoragePlan = ferry.json(&["vm", "move-storage", "ticker", "--to", LOCAL, "--dry-run"]).expect("planned");
    assert_eq!(plan.disks.len(), 1, "{plan:#?}");
    let stays: Vec<_> = plan.findings.iter().map(|finding| finding.id).collect();
    assert_eq!(stays.iter().filter(|id| **id == FindingId::DiskReadOnly).count(), 2, "kernel and initrd: {stays:?}");

    let mut verified = 0;
    for (to, format) in [(LOCAL, "raw"), (SHARE, "qcow2"), (LOCAL, "qcow2"), (SHARE, "raw")] {
        let before = disk(&ferry);
        let place = format!("vda={to},format={format}");
        let job: JobView = ferry.json(&["vm", "move-storage", "ticker", "--disk", &place, "--wait"]).expect("it ends");
        assert_eq!(job.phase, Phase::Succeeded, "{job:#?}");
        assert_eq!(job.disks[0].stage, DiskStage::Moved, "{job:#?}");
        let path = disk(&ferry);
        assert!(path.ends_with(&format!("disk.{format}")), "{path}");
        assert_eq!(path.starts_with(LOCAL), to == LOCAL, "{path}");
        assert_eq!(takes(&ferry, &before), None, "{before} is left");
        let kept = ferry.lab.hosts[0].virsh(&["dumpxml", "ticker", "--inactive"]).expect("dumped");
        assert!(kept.contains(&path), "it starts with the new file: {kept}");
        verified += 1;
        observer.wait_verified("ticker", verified, VERIFY).expect("verified");
        judge(&observer.heard("ticker")).expect("no promise is broken");
        if to == LOCAL {
            // The guest writes only a small part of its 64 MiB.
            let took = takes(&ferry, &path).expect("there");
            eprintln!("{format} on the host takes {took} bytes");
            assert!(took < 8 << 20, "{format} takes {took} bytes");
        }
    }
    // Its files are on the share again: it can move to another host.
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--wait"]).expect("it ends");
    assert_eq!(job.phase, Phase::Succeeded, "{job:#?}");
    observer.wait_on("ticker", "kvm2", SECONDS_30).expect("it runs there alone");
    observer.wait_verified("ticker", verified + 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
}

#[test]
fn an_agent_that_dies_while_a_disk_is_copied_goes_on_when_it_is_back() {
    let (observer, mut ferry) = with_guest(&[]);
    let old = disk(&ferry);
    let line = ["vm", "move-storage", "ticker", "--to", LOCAL, "--bandwidth", "4"];
    let job: JobView = ferry.json(&line).expect("accepted");
    let show = |ferry: &Ferry| -> JobView { ferry.json(&["job", "show", &job.id.to_string()]).expect("known") };
    let copying = wait_for("it is copied", SECONDS_30, || {
        let view = show(&ferry);
        view.disks.first().is_some_and(|disk| disk.stage == DiskStage::Copying && disk.copied.0 > 0).then_some(())
    });
    copying.expect("it is copied");
    ferry.kill_agent(0).expect("killed");
    let waits = wait_for("the job says what it waits for", SECONDS_30, || {
        show(&ferry).summary.contains("Waits for: ").then_some(())
    });
    waits.expect("it says so");
    assert_eq!(disk(&ferry), old, "nothing is switched over without an agent");
    ferry.start_agent(0, &[]).expect("started again");
    let ended = wait_for("the job ends", VERIFY, || Some(show(&ferry)).filter(|job| job.phase.ended()));
    let ended = ended.expect("it ends");
    assert_eq!(ended.phase, Phase::Succeeded, "{ended:#?}");
    assert!(disk(&ferry).starts_with(LOCAL));
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
}
