//! What is left of a VM when its source dies in the hand-over, with libvirt's real recovery.

use std::time::{Duration, Instant};

use ferry_core::{api::server::JobView, migration::Phase};
use ferry_lab::{
    demo::start_ticker,
    ferry::{AGENT_CONFIG, Ferry},
    guest::Ticker,
    host::{Host, libvirt_daemon},
    observe::{Observer, judge, now},
    run::{ProgramOutput, wait_for},
    warnings::{AGENT_DIES, HAND_OVER_BREAKS, MOVE_FAILS},
};

const BOOT: Duration = Duration::from_secs(90);
const VERIFY: Duration = Duration::from_secs(120);
const SECONDS_30: Duration = Duration::from_secs(30);
const A_MINUTE: Duration = Duration::from_secs(60);
/// A folder that is local to each host.
const LOCAL: &str = "/var/lib/libvirt/images";
/// The source's carrier delays the reply to Finish for this long: the copy is complete, but the source does not know
/// it.
const KEPT_BACK: &str = "drop-finish-reply=1*sleep(10000)";
/// After this time, the source's carrier closes libvirt's channel with the call to Finish in it: the destination never
/// receives the call.
const LOST: &str = "lose-finish-call=1*return(5000)";
/// libvirt's state file of a VM, and its mark that all of the VM's memory was sent.
const STATUS: &str = "/run/libvirt/qemu/ticker.xml";
const ALL_SENT: &str = "phase='perform3_done'";
/// How long libvirt may take to end a move.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

/// Two hosts, and a small guest on the first. Each move's reply to Finish is delayed.
fn with_guest() -> (Observer, Ferry) {
    with_guests(2, &[("FAILPOINTS", KEPT_BACK)], &["ticker"])
}

/// Hosts, and small guests: one on each of the first hosts.
fn with_guests(hosts: usize, environment: &[(&str, &str)], names: &[&str]) -> (Observer, Ferry) {
    let mut ferry = Ferry::up_bare(hosts, environment).expect("hosts");
    ferry.warnings.expect_all(AGENT_DIES);
    ferry.warnings.expect_all(MOVE_FAILS);
    ferry.warnings.expect_all(HAND_OVER_BREAKS);
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    for (host, name) in names.iter().enumerate() {
        let small =
            Ticker { memory_mib: 128, pattern_mib: 12, dirty_mib_per_s: 1, ..Ticker::new(name, 101 + host as u8) };
        start_ticker(&ferry, &small, host).expect("a guest");
    }
    for (host, name) in names.iter().enumerate() {
        observer.wait_on(name, &ferry.lab.hosts[host].name, BOOT).expect("it boots");
    }
    (observer, ferry)
}

/// Begins a move, and waits until the copy at the destination is complete.
fn move_until_complete(ferry: &Ferry, to: &str, how: &[&str]) -> JobView {
    let job: JobView = ferry.json(&[&["vm", "migrate", "ticker", "--to", to], how].concat()).expect("begun");
    wait_for("its copy is complete", ENDS_WITHIN, || {
        let output = ferry.lab.host(to).virsh(&["domstate", "ticker", "--reason"]).unwrap_or_default();
        (output.starts_with("paused") && !output.contains("migrat") && !output.contains("start")).then_some(())
    })
    .expect("complete");
    job
}

/// Kills all processes of a host that match, as a power failure does.
fn kill(host: &Host, pattern: &str) {
    wait_for(&format!("{pattern} has ended on {}", host.name), SECONDS_30, || {
        let _ = host.try_run(&["pkill", "-9", "-f", pattern]);
        host.pids(pattern).is_empty().then_some(())
    })
    .expect("ended");
}

/// Simulates a power failure of the first host, without closing its connections.
fn power_off(ferry: &mut Ferry) {
    ferry.lab.host("kvm1").set_link(false).expect("cut off");
    ferry.kill_agent(0).expect("killed");
    // Its mounts must end as well: a remaining mount would hang, and use the VM's files when the host is back.
    for pattern in ["ferry-agent", &format!("^{}", libvirt_daemon()), "qemu-system", "smbnetfs"] {
        kill(ferry.lab.host("kvm1"), pattern);
    }
}

/// Restarts the host; its VMs do not run.
fn power_on(ferry: &mut Ferry) {
    ferry.lab.host("kvm1").set_link(true).expect("joined");
    ferry.lab.host("kvm1").start_libvirt().expect("started");
    ferry.start_agent(0, &[]).expect("started");
}

#[test]
fn a_source_without_power_keeps_no_memory_and_no_slots_of_the_destination() {
    let (observer, mut ferry) = with_guests(3, &[], &["ticker", "other"]);
    ferry.warnings.expect("The job was dismissed");
    ferry.must(&["host", "set", "kvm2", "--live-limit", "1"]).expect("set");
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--bandwidth", "1"]).expect("begun");
    let moves = |job: &JobView| job.progress.as_ref().is_some_and(|progress| progress.sent.0 > 0);
    ferry.wait_job(job.id, "memory moves", ENDS_WITHIN, moves).expect("it moves");
    let other: JobView = ferry.json(&["vm", "migrate", "other", "--to", "kvm3"]).expect("accepted");
    assert_eq!(ferry.job(other.id).expect("told").phase, Phase::Queued, "kvm2 has one slot");
    power_off(&mut ferry);
    let begun = Instant::now();
    wait_for("the copy that is not complete has ended", A_MINUTE, || {
        ferry.lab.host("kvm2").pids("guest=ticker").is_empty().then_some(())
    })
    .expect("its memory is given back");
    let freed = begun.elapsed();
    let begins = |job: &JobView| job.phase != Phase::Queued;
    ferry.wait_job(other.id, "another move of kvm2 begins", A_MINUTE, begins).expect("its slot is given back");
    assert!(begun.elapsed() < A_MINUTE, "{:?}", begun.elapsed());
    println!("memory was given back after {freed:?}, slots after {:?}", begun.elapsed());
    let ended = ferry.wait_job(other.id, "it ends", ENDS_WITHIN, |job| job.phase.ended()).expect("it ends");
    assert_eq!(ended.phase, Phase::Succeeded, "{ended:#?}");
    assert!(!ferry.job(job.id).expect("told").phase.ended(), "it is not known what the source has of its VM");
    power_on(&mut ferry);
    let ended = ferry.wait_job(job.id, "it is taken back", ENDS_WITHIN, |job| job.phase.ended()).expect("it ends");
    assert_eq!(ended.phase, Phase::Failed, "{ended:#?}");
    // The command in the job's summary, verbatim.
    let fix = ended.summary.split('`').nth(1).unwrap_or_else(|| panic!("what to do: {ended:#?}"));
    let words: Vec<&str> = fix.split(' ').skip(1).collect();
    // The host mounts its share meanwhile.
    wait_for("it starts", SECONDS_30, || ferry.must(&words).ok().map(drop)).expect("started");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it runs at the source");
}

#[test]
fn a_vm_runs_again_by_itself_when_its_sources_libvirtd_died_in_the_hand_over() {
    let (observer, ferry) = with_guest();
    let job = move_until_complete(&ferry, "kvm2", &[]);
    kill(ferry.lab.host("kvm1"), &format!("^{}", libvirt_daemon()));
    let (begun, since) = (Instant::now(), now());
    ferry.lab.host("kvm1").start_libvirt().expect("started");
    // It was paused before: earlier heartbeats do not count.
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
fn a_vm_runs_again_by_itself_when_its_sources_libvirtd_died_before_finish() {
    let (observer, ferry) = with_guests(2, &[("FAILPOINTS", LOST)], &["ticker"]);
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2"]).expect("begun");
    let status = ferry.lab.host("kvm1").path(STATUS);
    wait_for("all of its memory was sent", ENDS_WITHIN, || {
        std::fs::read_to_string(&status).unwrap_or_default().contains(ALL_SENT).then_some(())
    })
    .expect("sent");
    kill(ferry.lab.host("kvm1"), &format!("^{}", libvirt_daemon()));
    let kept = std::fs::read_to_string(&status).expect("written down");
    assert!(kept.contains(ALL_SENT), "it died before it heard of Finish: {kept}");
    let since = now();
    ferry.lab.host("kvm1").start_libvirt().expect("started");
    let begun = Instant::now();
    wait_for("it is heard again", SECONDS_30, || {
        observer.last("ticker").filter(|heard| heard.at > since && heard.host == "kvm1").map(drop)
    })
    .expect("it runs");
    println!("it was heard from kvm1 {:?} after libvirtd of kvm1 was back", begun.elapsed());
    let ended = ferry.wait_job(job.id, "the job ends", ENDS_WITHIN, |job| job.phase.ended()).expect("it ends");
    assert_eq!(ended.phase, Phase::Failed, "{ended:#?}");
    assert!(ended.summary.contains("stays on kvm1"), "{}", ended.summary);
    observer.wait_on("ticker", "kvm1", SECONDS_30).expect("on one host");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    let listed = ferry.lab.host("kvm2").virsh(&["list", "--all", "--name"]).expect("listed");
    assert_eq!(listed.trim(), "", "nothing is left at the destination");
    judge(&observer.heard("ticker")).expect("never heard from two hosts");
}

#[test]
fn a_vm_runs_again_by_itself_when_its_sources_carrier_was_killed_in_the_hand_over() {
    let (observer, ferry) = with_guest();
    let job = move_until_complete(&ferry, "kvm2", &[]);
    let source = ferry.lab.host("kvm1");
    // libvirt cannot resume the source's copy, as if QEMU's locks were visible between hosts.
    let taken = ferry.take_disk(source, "ticker").expect("locked");
    kill(source, "ferry-agent carry");
    wait_for("libvirt has tried in vain", ENDS_WITHIN, || {
        let output = source.virsh(&["domstate", "ticker", "--reason"]).unwrap_or_default();
        output.contains("api error").then_some(())
    })
    .expect("it stands still");
    let ended = ferry.wait_job(job.id, "the job ends", ENDS_WITHIN, |job| job.phase.ended()).expect("it ends");
    assert_eq!(ended.phase, Phase::Failed, "{ended:#?}");
    let listed = ferry.lab.host("kvm2").virsh(&["list", "--all", "--name"]).expect("listed");
    assert_eq!(listed.trim(), "", "nothing is left at the destination");
    let since = now();
    taken.give_back().expect("ended");
    wait_for("it is heard again", SECONDS_30, || {
        observer.last("ticker").filter(|heard| heard.at > since && heard.host == "kvm1").map(drop)
    })
    .expect("it runs");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("never heard from two hosts");
}

#[test]
fn a_vm_that_was_moved_on_by_hand_to_a_host_that_nobody_knows_is_not_the_sources() {
    let (observer, mut ferry) = with_guest();
    ferry.warnings.expect("The job was dismissed");
    let job = move_until_complete(&ferry, "kvm2", &[]);
    power_off(&mut ferry);
    let remembers = |job: &JobView| job.log.iter().any(|line| line.message.contains("All of the VM is on kvm2"));
    ferry.wait_job(job.id, "the copy is remembered", ENDS_WITHIN, remembers).expect("seen");
    let there = ferry.lab.host("kvm2");
    there.virsh(&["resume", "ticker"]).expect("run by hand");
    observer.wait_on("ticker", "kvm2", SECONDS_30).expect("it runs");
    // The state that a move from kvm2 to a host outside of the inventory leaves: no process and no definition.
    there.virsh(&["destroy", "ticker"]).expect("it is gone");
    there.virsh(&["undefine", "ticker", "--nvram"]).expect("all of it");
    power_on(&mut ferry);
    let waits = |job: &JobView| job.summary.contains("moved on or removed there by hand");
    let seen = ferry.wait_job(job.id, "nobody has it", ENDS_WITHIN, waits).expect("it says so");
    assert_eq!(seen.phase, Phase::Migrating, "{seen:#?}");
    let starts =
        || ferry.lab.host("kvm1").try_run(&["virsh", "-c", "qemu:///system", "start", "ticker"]).expect("ends");
    assert!(starts().err.contains("held by Ferry"), "{:?}", starts());
    // No host has it: the command in the job's summary, verbatim.
    let fix = seen.summary.split('`').find(|words| words.starts_with("ferry-agent holds release")).expect("what to do");
    let program = ferry.lab.program("ferry-agent").display().to_string();
    let words = fix.split(' ').skip(1).chain(["--config", AGENT_CONFIG]);
    let command: Vec<&str> = [program.as_str()].into_iter().chain(words).collect();
    ferry.must(&["job", "dismiss", &job.id.to_string()]).expect("dismissed");
    ferry.lab.host("kvm1").run(&command).expect("released");
    // The administrator has declared that the source has it. The host mounts its share meanwhile.
    wait_for("it starts", SECONDS_30, || ProgramOutput::ok(&starts()).then_some(()))
        .unwrap_or_else(|_| panic!("{:?}", starts()));
    observer.wait_on("ticker", "kvm1", BOOT).expect("it runs at the source");
}

#[test]
fn a_vm_that_was_run_by_hand_and_shut_off_is_not_taken_away_when_its_source_comes_back() {
    let (observer, mut ferry) = with_guest();
    ferry.warnings.expect("The job was dismissed");
    for host in &ferry.lab.hosts {
        host.run(&["mkdir", "-p", LOCAL]).expect("a folder");
    }
    let job: JobView = ferry.json(&["vm", "move-storage", "ticker", "--to", LOCAL, "--wait"]).expect("it ends");
    assert_eq!(job.phase, Phase::Succeeded, "{job:#?}");
    let job = move_until_complete(&ferry, "kvm2", &["--storage", LOCAL]);
    power_off(&mut ferry);
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
    power_on(&mut ferry);
    wait_for("what the job left is looked at", ENDS_WITHIN, || {
        ferry.server.output().contains("What a dismissed job left is the destination's").then_some(())
    })
    .expect("looked at");
    let there = ferry.lab.host("kvm2");
    assert_eq!(there.virsh(&["list", "--all", "--name"]).expect("listed").trim(), "ticker");
    there.run(&["test", "-f", &disk]).expect("its disk is there");
    let output =
        ferry.lab.host("kvm1").try_run(&["virsh", "-c", "qemu:///system", "start", "ticker"]).expect("it ends");
    assert!(!ProgramOutput::ok(&output) && output.err.contains("held by Ferry"), "{output:?}");
    there.virsh(&["start", "ticker"]).expect("it starts where it ran last");
    judge(&observer.heard("ticker").into_iter().filter(|heard| heard.at >= begun).collect::<Vec<_>>())
        .expect("nothing was lost");
}
