//! VMs that are shut off move between real hosts, with their files.
#![cfg(feature = "lab")]

use std::time::Duration;

use ferry_core::{
    api::server::{Candidate, JobView},
    finding::FindingId,
    job::JobKind,
    migration::Phase,
    vm::DiskFormat,
};
use ferry_lab::{
    demo::start_ticker,
    ferry::{Agent, Ferry},
    guest::Ticker,
    images::{self, Disk, Place},
    local::FOLDER as LOCAL,
    observe::Observer,
    run::wait_for,
};

const BOOT: Duration = Duration::from_secs(90);
const SECONDS_30: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(120);
const DATA_MIB: u32 = 96;

#[test]
fn a_vm_that_is_shut_off_moves_with_its_files_and_an_interrupted_move_goes_on_where_it_was() {
    let mut ferry = Ferry::up_bare(2, &[]).expect("hosts");
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let with_data = Disk { size_mib: 256, data_mib: DATA_MIB, ..Disk::new(Place::Local, DiskFormat::Raw) };
    let disks = vec![with_data, Disk::new(Place::Local, DiskFormat::Qcow2), Disk::new(Place::Share, DiskFormat::Raw)];
    let ticker = Ticker { memory_mib: 128, pattern_mib: 12, disks, ..Ticker::new("ticker", 101) };
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    let line = ["vm", "migrate", "ticker", "--to", "kvm2", "--storage", LOCAL, "--offline"];

    // Never while it runs.
    let tried: Vec<Candidate> = ferry.json(&[&line[..], &["--dry-run"]].concat()).expect("tried");
    assert_eq!(tried[0].kind, None, "{tried:#?}");
    assert_eq!(tried[0].findings[0].id, FindingId::VmRunning, "{tried:#?}");
    ferry.lab.host("kvm1").virsh(&["destroy", "ticker"]).expect("ended");
    let off = wait_for("it is known to be shut off", SECONDS_30, || {
        let tried: Vec<Candidate> = ferry.json(&[&line[..], &["--dry-run"]].concat()).ok()?;
        tried[0].kind.is_some().then_some(())
    });
    off.expect("it is");
    let files = |host: &str| ferry.lab.host(host).run(&["find", LOCAL, "-type", "f"]).expect("listed");
    let sums = |host: &str| {
        let text =
            ferry.lab.host(host).run(&["sh", "-c", &format!("cd {LOCAL}; find . -type f -exec sha256sum {{}} +")]);
        let mut sums: Vec<String> =
            text.expect("read").lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect();
        sums.sort_unstable();
        sums
    };
    let before = sums("kvm1");
    assert_eq!(before.len(), 2, "{}", files("kvm1"));
    let real = |ferry: &Ferry, host: &str, ending: &str| {
        let list = ferry.lab.host(host).run(&["find", LOCAL, "-name", &format!("*{ending}")]).expect("listed");
        ferry.lab.host(host).file(list.lines().next().expect("a file").trim())
    };
    let held = images::nonzero(&real(&ferry, "kvm1", ".raw"), DiskFormat::Raw).expect("read");

    // The destination's agent dies in the middle. The VM cannot be started meanwhile.
    ferry.lab.hosts[0].set_link_rate(Some("100mbit")).expect("shaped");
    let job: JobView = ferry.json(&line).expect("accepted");
    assert_eq!(job.kind, JobKind::Offline);
    let show = |ferry: &Ferry| -> JobView { ferry.json(&["job", "show", &job.id.to_string()]).expect("known") };
    let middle = wait_for("most of the disk is copied", END, || {
        let view = show(&ferry);
        assert!(!view.phase.ended(), "{view:#?}");
        (view.disks.first()?.copied.0 > u64::from(DATA_MIB / 2) << 20).then_some(())
    });
    middle.expect("it is");
    let veto = ferry.lab.host("kvm1").try_run(&["virsh", "-c", "qemu:///system", "start", "ticker"]).expect("run");
    assert!(!veto.ok() && veto.err.contains("hook"), "{}{}", veto.out, veto.err);
    let host = ferry.lab.host("kvm2");
    for pid in host.pids("ferry-agent run") {
        let _ = host.try_run(&["kill", "-9", &pid.to_string()]).expect("run");
    }
    ferry.agents[1].program.kill();
    ferry.agents[1].program = Agent::run(&ferry.lab, ferry.lab.host("kvm2"), &[]).expect("started again");
    let ended = wait_for("the job ends", END, || Some(show(&ferry)).filter(|job| job.phase.ended())).expect("it ends");
    assert_eq!(ended.phase, Phase::Failed, "{ended:#?}");
    assert!(ended.summary.contains("stays on kvm1, shut off"), "{}", ended.summary);
    assert_eq!(sums("kvm1"), before, "nothing was changed");
    let left = ferry.lab.host("kvm2").run(&["find", LOCAL, "-type", "f", "-not", "-name", "*.ferry-seed"]);
    assert_eq!(left.expect("listed").trim(), "", "only what is kept for the next attempt");

    let _: JobView = ferry.json(&["job", "restart", &job.id.to_string()]).expect("restarted");
    let ended = wait_for("the job ends", END, || Some(show(&ferry)).filter(|job| job.phase.ended())).expect("it ends");
    assert_eq!(ended.phase, Phase::Succeeded, "{ended:#?}");
    let sent = ended.figures.expect("known").disk_wire.0;
    eprintln!("{DATA_MIB} MiB of data; the second attempt sent {sent} bytes");
    assert!(sent <= u64::from(DATA_MIB / 2 + 8) << 20, "{sent} bytes were sent again");
    assert_eq!(sums("kvm2"), before, "the same bytes");
    assert_eq!(files("kvm1").trim(), "", "old files are gone");
    let takes = images::allocated(&real(&ferry, "kvm2", ".raw")).expect("there");
    eprintln!("raw takes {takes} bytes for {held}");
    assert!(takes as f64 <= 1.02 * held as f64 + f64::from(1 << 20), "{takes} bytes for {held}");
    let defined = |host: &str| ferry.lab.host(host).virsh(&["list", "--all", "--name"]).expect("listed");
    assert_eq!((defined("kvm1").trim(), defined("kvm2").trim()), ("", "ticker"));

    let started = ferry.ferry(&["vm", "start", "ticker"]).expect("run");
    assert!(started.ok(), "{}{}", started.out, started.err);
    observer.wait_on("ticker", "kvm2", BOOT).expect("it boots there");
}
