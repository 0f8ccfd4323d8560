//! What is left of a VM when its source dies in the hand-over, with libvirt's true recovery.
#![cfg(feature = "lab")]

use std::time::{Duration, Instant};

use ferry_core::{api::server::JobView, migration::Phase};
use ferry_lab::{
    demo::start_ticker,
    ferry::Ferry,
    guest::Ticker,
    host::Host,
    observe::{Observer, judge, now},
    run::{Said, wait_for},
};

const BOOT: Duration = Duration::from_secs(90);
const VERIFY: Duration = Duration::from_secs(120);
const SECONDS_30: Duration = Duration::from_secs(30);
/// A folder that each host has for itself.
const LOCAL: &str = "/var/lib/libvirt/images";
/// The source's carrier keeps the reply to Finish back for so long: the copy is complete, and nobody has said so.
const KEPT_BACK: &str = "drop-finish-reply=1*sleep(10000)";
/// How long libvirt may take to end a move.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

/// Two hosts, and a small guest on the first. Each move's reply to Finish is kept back.
fn with_guest() -> (Observer, Ferry) {
    let mut ferry = Ferry::up_bare(2, &[("FAILPOINTS", KEPT_BACK)]).expect("hosts");
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let ticker = Ticker { memory_mib: 128, pattern_mib: 12, dirty_mib_per_s: 1, ..Ticker::new("ticker", 101) };
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    (observer, ferry)
}

/// Begins a move, and waits until the copy at the destination is complete.
fn move_until_complete(ferry: &Ferry, to: &str, how: &[&str]) -> JobView {
    let job: JobView = ferry.json(&[&["vm", "migrate", "ticker", "--to", to], how].concat()).expect("begun");
    wait_for("its copy is complete", ENDS_WITHIN, || {
        let said = ferry.lab.host(to).virsh(&["domstate", "ticker", "--reason"]).unwrap_or_default();
        (said.starts_with("paused") && !said.contains("migrat") && !said.contains("start")).then_some(())
    })
    .expect("complete");
    job
}

/// Kills every process of a host that matches, as its power does.
fn kill(host: &Host, pattern: &str) {
    wait_for(&format!("{pattern} has ended on {}", host.name), SECONDS_30, || {
        let _ = host.try_run(&["pkill", "-9", "-f", pattern]);
        host.pids(pattern).is_empty().then_some(())
    })
    .expect("ended");
}

#[test]
fn a_vm_runs_again_by_itself_when_its_sources_libvirtd_died_in_the_hand_over() {
    let (observer, ferry) = with_guest();
    let job = move_until_complete(&ferry, "kvm2", &[]);
    kill(ferry.lab.host("kvm1"), "^libvirtd");
    let (begun, since) = (Instant::now(), now());
    ferry.lab.host("kvm1").start_libvirt().expect("started");
    // It stood still before: what was heard then is not of this life.
    wait_for("it is heard again", SECONDS_30, || {
        observer.last("ticker").filter(|heard| heard.at > since && heard.host == "kvm2").map(drop)
    })
    .expect("it runs");
    println!("it was heard from kvm2 {:?} after libvirtd of kvm1 was started", begun.elapsed());
    observer.wait_on("ticker", "kvm2", SECONDS_30).expect("on one host");
    let ended = ferry.wait_job(job.id, "the job ends", ENDS_WITHIN, |job| job.phase.ended()).expect("it ends");
    assert_eq!(ended.phase, Phase::Succeeded, "{ended:#?}");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    let listed = ferry.lab.host("kvm1").virsh(&["list", "--all", "--name"]).expect("listed");
    assert_eq!(listed.trim(), "", "nothing is left at the source");
    judge(&observer.heard("ticker")).expect("never heard from two hosts");
}

#[test]
fn a_vm_that_was_run_by_hand_and_shut_off_is_not_taken_away_when_its_source_comes_back() {
    let (observer, mut ferry) = with_guest();
    for host in &ferry.lab.hosts {
        host.run(&["mkdir", "-p", LOCAL]).expect("a folder");
    }
    let job: JobView = ferry.json(&["vm", "move-storage", "ticker", "--to", LOCAL, "--wait"]).expect("it ends");
    assert_eq!(job.phase, Phase::Succeeded, "{job:#?}");
    let job = move_until_complete(&ferry, "kvm2", &["--storage", LOCAL]);
    // The source loses its power.
    ferry.kill_agent(0).expect("killed");
    for pattern in ["ferry-agent", "^libvirtd", "qemu-system"] {
        kill(ferry.lab.host("kvm1"), pattern);
    }
    ferry
        .wait_job(job.id, "it waits for the source", ENDS_WITHIN, |job| job.summary.contains("does not answer"))
        .expect("it waits");
    ferry.must(&["job", "dismiss", &job.id.to_string()]).expect("dismissed");
    let there = ferry.lab.host("kvm2");
    there.virsh(&["resume", "ticker"]).expect("run by hand");
    let begun = now();
    observer.wait_on("ticker", "kvm2", SECONDS_30).expect("it runs");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    there.virsh(&["destroy", "ticker"]).expect("and shut off");
    let list = there.virsh(&["domblklist", "ticker"]).expect("listed");
    let disk = list.split_whitespace().find(|word| word.starts_with('/')).expect("a disk").to_owned();
    ferry.lab.host("kvm1").start_libvirt().expect("started");
    ferry.start_agent(0, &[]).expect("started");
    wait_for("what the job left is looked at", ENDS_WITHIN, || {
        ferry.server.said().contains("What a dismissed job left is the destination's").then_some(())
    })
    .expect("looked at");
    let there = ferry.lab.host("kvm2");
    assert_eq!(there.virsh(&["list", "--all", "--name"]).expect("listed").trim(), "ticker");
    there.run(&["test", "-f", &disk]).expect("its disk is there");
    let said = ferry.lab.host("kvm1").try_run(&["virsh", "-c", "qemu:///system", "start", "ticker"]).expect("it ends");
    assert!(!Said::ok(&said) && said.err.contains("held by Ferry"), "{said:?}");
    there.virsh(&["start", "ticker"]).expect("it starts where it ran last");
    judge(&observer.heard("ticker").into_iter().filter(|heard| heard.at >= begun).collect::<Vec<_>>())
        .expect("nothing was lost");
}
