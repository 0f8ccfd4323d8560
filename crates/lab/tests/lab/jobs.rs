//! Jobs on real hosts: several at the same time, and a management channel that is cut after any message.

use std::{
    collections::BTreeMap,
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use ferry_core::{api::server::JobView, migration::Phase};
use ferry_lab::{
    demo::start_ticker,
    ferry::Ferry,
    guest::Ticker,
    observe::{Observer, judge},
    program::Program,
    run::wait_for,
    warnings::{HAND_OVER_BREAKS, MOVE_FAILS},
};

const BOOT: Duration = Duration::from_secs(150);
const SECONDS_30: Duration = Duration::from_secs(30);
const VERIFY: Duration = Duration::from_secs(180);

fn tiny(name: &str, address: u8) -> Ticker {
    Ticker { memory_mib: 128, pattern_mib: 12, dirty_mib_per_s: 1, ..Ticker::new(name, address) }
}

/// When a VM began to arrive at a host, and when it ran there, according to the lines of `virsh event --timestamp`.
fn arrivals(events: &str) -> Vec<(String, String, String)> {
    let mut begun = BTreeMap::new();
    let mut arrivals = Vec::new();
    for line in events.lines().filter(|line| line.contains("event 'lifecycle'")) {
        let Some((at, rest)) = line.split_once(": event 'lifecycle' for domain '") else { continue };
        let Some((vm, what)) = rest.split_once("': ") else { continue };
        if what.starts_with("Started") {
            begun.insert(vm.to_owned(), at.to_owned());
        } else if what.starts_with("Resumed")
            && let Some(from) = begun.remove(vm)
        {
            arrivals.push((vm.to_owned(), from, at.to_owned()));
        }
    }
    arrivals
}

/// The largest number of simultaneous arrivals. Times are strings of one format, so they can be compared.
fn most_at_once(arrivals: &[(String, String, String)]) -> usize {
    arrivals
        .iter()
        .map(|(_, at, _)| arrivals.iter().filter(|(_, from, to)| from <= at && at < to).count())
        .max()
        .unwrap_or(0)
}

#[test]
fn six_vms_move_at_once_with_never_more_than_two_live_moves_on_a_host() {
    let ferry = Ferry::up(2).expect("Ferry on two hosts");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let tickers: Vec<Ticker> = (0..6).map(|number| tiny(&format!("t{number}"), 101 + number)).collect();
    for ticker in &tickers {
        start_ticker(&ferry, ticker, 0).expect("a guest");
    }
    for ticker in &tickers {
        observer.wait_on(&ticker.name, "kvm1", BOOT).expect("it boots");
    }
    let log = ferry.lab.folder.join("events");
    let mut command = ferry.lab.hosts[1].command("virsh");
    command.args(["-c", "qemu:///system", "event", "--all", "--loop", "--timestamp"]).stdin(Stdio::null());
    let events = Program::start("virsh event on kvm2", command, &log).expect("it listens");

    let mut line = vec!["vm", "migrate"];
    line.extend(tickers.iter().map(|ticker| ticker.name.as_str()));
    line.extend(["--to", "kvm2", "--wait"]);
    let job: JobView = ferry.json(&line).expect("they move");
    assert_eq!((job.phase, job.children.len()), (Phase::Succeeded, 6), "{job:#?}");
    let seen = wait_for("libvirt tells of six arrivals", SECONDS_30, || {
        let seen = arrivals(&events.output());
        (seen.len() == 6).then_some(seen)
    });
    let seen = seen.expect("six");
    assert_eq!(most_at_once(&seen), 2, "two at once, and never more: {seen:#?}");
    for ticker in &tickers {
        observer.wait_on(&ticker.name, "kvm2", SECONDS_30).expect("it runs there alone");
        observer.wait_verified(&ticker.name, 1, VERIFY).expect("verified");
        judge(&observer.heard(&ticker.name)).expect("no promise is broken");
    }
}

#[test]
fn wherever_the_management_channel_is_cut_the_vm_runs_once() {
    let file = "/run/ferry-cut";
    let mut ferry = Ferry::up_bare(2, &[("FAILPOINTS", &format!("cut-rpc=return({file})"))]).expect("hosts");
    ferry.warnings.expect_all(MOVE_FAILS);
    ferry.warnings.expect_all(HAND_OVER_BREAKS);
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    start_ticker(&ferry, &tiny("ticker", 101), 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");

    let cuts = |ferry: &Ferry| -> usize {
        let output = ferry.agents.iter().map(|agent| agent.program.output());
        output.map(|output| output.matches("a test cut the channel before").count()).sum()
    };
    let mut outcomes = Vec::new();
    let mut verified = 0;
    // The host that the last job reported; the test waited until the guest was heard only from there.
    let mut at = "kvm1".to_owned();
    for direction in ["call", "reply"] {
        for number in 1..40 {
            for host in &ferry.lab.hosts {
                fs::write(host.path(file), format!("{direction} {number}")).expect("written");
            }
            let from = at.clone();
            let to = if from == "kvm1" { "kvm2" } else { "kvm1" };
            let before = cuts(&ferry);
            let begun = Instant::now();
            let output = ferry.ferry(&["--json", "vm", "migrate", "ticker", "--to", to, "--wait"]).expect("it ends");
            let text = output.out.lines().last().unwrap_or_default();
            let job: JobView = serde_json::from_str(text).unwrap_or_else(|_| panic!("no job: {output:?}"));
            let ended = [Phase::Succeeded, Phase::Failed].contains(&job.phase);
            assert!(ended, "cut before {direction} {number}: {job:#?}");
            let here = if job.phase == Phase::Succeeded { to } else { &from };
            at = here.to_owned();
            observer
                .wait_on("ticker", here, SECONDS_30)
                .unwrap_or_else(|error| panic!("{direction} {number}: {error}"));
            judge(&observer.heard("ticker")).unwrap_or_else(|error| panic!("{direction} {number}: {error}"));
            let was_cut = cuts(&ferry) > before;
            outcomes.push(format!("{direction} {number}: {:?} in {} ms", job.phase, begun.elapsed().as_millis()));
            if !was_cut {
                assert_eq!(job.phase, Phase::Succeeded, "it was not cut and failed: {job:#?}");
                break;
            }
            if number % 5 == 0 {
                verified += 1;
                observer.wait_verified("ticker", verified, VERIFY).expect("verified");
            }
        }
    }
    eprintln!("{outcomes:#?}");
    assert!(outcomes.len() > 20, "a plain run has about 26 messages: {outcomes:#?}");
    for host in &ferry.lab.hosts {
        let listed = host.virsh(&["list", "--all", "--name"]).expect("listed");
        assert_eq!(listed.trim(), if host.name == at { "ticker" } else { "" }, "on {}", host.name);
    }
}
