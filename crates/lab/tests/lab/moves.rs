//! The whole product on real hosts: command line, server, agents, libvirt, QEMU, Samba.

use std::{fs, time::Duration};

use ferry_core::{
    api::{
        problem::Problem,
        server::{Candidate, JobView, VmView},
    },
    finding::FindingId,
    job::MoveKind,
    migration::Phase,
};
use ferry_lab::{
    demo::{measure, start_ticker},
    ferry::Ferry,
    guest::Ticker,
    observe::{Observer, judge},
    run::wait_for,
    warnings::{HAND_OVER_BREAKS, MOVE_FAILS},
};

const BOOT: Duration = Duration::from_secs(90);
const SECONDS_20: Duration = Duration::from_secs(20);
const VERIFY: Duration = Duration::from_secs(120);

/// A guest that moves in a few seconds.
fn small(name: &str, address: u8) -> Ticker {
    Ticker { memory_mib: 256, pattern_mib: 24, dirty_mib_per_s: 2, ..Ticker::new(name, address) }
}

/// Two hosts with Ferry, and a small guest that runs on the first.
fn with_guest(ticker: &Ticker) -> (Observer, Ferry) {
    let ferry = Ferry::up(2).expect("Ferry on two hosts");
    let observer = Observer::start(&ferry.lab).expect("observers");
    start_ticker(&ferry, ticker, 0).expect("a guest");
    observer.wait_on(&ticker.name, "kvm1", BOOT).expect("it boots");
    (observer, ferry)
}

#[test]
fn a_vm_goes_on_by_itself_when_its_file_server_is_back() {
    let (observer, ferry) = with_guest(&small("ticker", 101));
    ferry.warnings.expect(r#"A request failed title="Could not read or write /run/shares-of-"#);
    ferry.files.stop().expect("stopped");
    // QEMU stops it. Until its agent has noticed that the share is down, it may resume the VM for a moment.
    let is_paused = || {
        let tried: Vec<Candidate> = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--dry-run"]).ok()?;
        let found = tried[0].findings.iter().find(|finding| finding.id == FindingId::VmPaused)?;
        found.message.to_string().contains("vda could not be read or written").then_some(())
    };
    wait_for("it is said why the VM stands still", VERIFY, is_paused).expect("QEMU stops it");
    wait_for("the share is known to be away", SECONDS_20, || {
        let tried: Vec<Candidate> = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--dry-run"]).ok()?;
        tried[0].findings.iter().any(|finding| finding.id == FindingId::ShareUnreachable).then_some(())
    })
    .expect("both hosts see it");
    is_paused().expect("it stays so");
    ferry.files.start_daemon(&ferry.lab).expect("it serves again");
    observer.wait_verified("ticker", 1, VERIFY).expect("nobody had to run it again");
    judge(&observer.heard("ticker")).expect("nothing was lost");
}

#[test]
fn a_vm_moves_there_and_back_ten_times() {
    let ticker = small("ticker", 101);
    let (observer, mut ferry) = with_guest(&ticker);
    ferry.warnings.check();
    ferry.lab.hosts[0].virsh(&["autostart", "ticker"]).expect("set");
    for round in 0..10 {
        for destination in ["kvm2", "kvm1"] {
            let job: JobView = ferry
                .json(&["vm", "migrate", "ticker", "--to", destination, "--wait"])
                .unwrap_or_else(|error| panic!("round {round} to {destination}: {error:#}"));
            assert_eq!(job.phase, Phase::Succeeded, "{job:?}");
            observer.wait_on("ticker", destination, SECONDS_20).expect("it runs there alone");
        }
    }
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
    // Definition and autostart came back, and nothing is left on the other host.
    let (home, away) = (&ferry.lab.hosts[0], &ferry.lab.hosts[1]);
    assert!(home.virsh(&["dominfo", "ticker"]).expect("known").contains("enable"), "autostart followed the VM");
    assert_eq!(away.virsh(&["list", "--all", "--name"]).expect("listed").trim(), "");
    assert!(home.path("/run/ferry/m").read_dir().expect("a folder").next().is_none(), "no session is left");
    assert!(home.path("/run/ferry-agent/holds").read_dir().expect("a folder").next().is_none(), "no hold is left");
}

#[test]
fn what_is_measured_of_a_move_is_seen_from_outside_too() {
    let ticker = small("ticker", 101);
    let (observer, ferry) = with_guest(&ticker);
    observer.wait_verified("ticker", 0, VERIFY).expect("verified");
    let measured = measure(&ferry, &observer, &ticker, "kvm2", &[], None).expect("every promise is kept");
    assert!(measured.pages_verified > 6_000 && measured.sectors_verified > 100, "{measured:?}");
    assert!(measured.wire_bytes > 24 << 20, "the pattern alone is 24 MiB: {measured:?}");
    // Heartbeats come every 10 ms; Ferry's downtime equals the guest's silence, within several heartbeats on a busy
    // machine.
    assert!(measured.guest_gap_ms + 20 >= measured.downtime_ms, "{measured:?}");
}

#[test]
fn a_lost_finish_reply_fails_the_job_and_the_vm_stays_and_is_held_meanwhile() {
    let ticker = small("ticker", 101);
    let mut ferry = Ferry::up_bare(2, &[("FAILPOINTS", "drop-finish-reply=1*return")]).expect("hosts");
    ferry.warnings.expect_all(MOVE_FAILS);
    ferry.warnings.expect_all(HAND_OVER_BREAKS);
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    let output = ferry.ferry(&["--json", "vm", "migrate", "ticker", "--to", "kvm2", "--wait"]).expect("it ends");
    assert_eq!(output.code, Some(1), "{output:?}");
    let job: JobView = serde_json::from_str(output.out.lines().last().unwrap_or_default()).expect("the job");
    assert_eq!(job.phase, Phase::Failed, "{job:?}");
    assert!(job.summary.contains("kvm1"), "it says where the VM is: {}", job.summary);
    observer.wait_on("ticker", "kvm1", SECONDS_20).expect("it goes on at the source");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("never heard from two hosts");
    let away = &ferry.lab.hosts[1];
    assert_eq!(away.virsh(&["list", "--all", "--name"]).expect("listed").trim(), "", "nothing is left there");
}

#[test]
fn a_vm_whose_disk_something_else_has_at_the_destination_runs_on_at_the_source() {
    let ticker = small("ticker", 101);
    let (observer, ferry) = with_guest(&ticker);
    ferry.warnings.expect_all(MOVE_FAILS);
    ferry.warnings.expect("The VM is not taken over; the source keeps it");
    let away = &ferry.lab.hosts[1];
    let taken = ferry.take_disk(away, "ticker").expect("locked");
    let output = ferry.ferry(&["--json", "vm", "migrate", "ticker", "--to", "kvm2", "--wait"]).expect("it ends");
    assert_eq!(output.code, Some(1), "{output:?}");
    let job: JobView = serde_json::from_str(output.out.lines().last().unwrap_or_default()).expect("the job");
    assert_eq!(job.phase, Phase::Failed, "{job:?}");
    for words in ["vda", &taken.path, "Failed to get", "lock", "fuser -v", "the VM runs at the source"] {
        assert!(job.summary.contains(words), "{words}: {}", job.summary);
    }
    observer.wait_on("ticker", "kvm1", SECONDS_20).expect("it goes on at the source");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    assert_eq!(away.virsh(&["list", "--all", "--name"]).expect("listed").trim(), "", "nothing is left there");
    taken.give_back().expect("ended");
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--wait"]).expect("it moves");
    assert_eq!(job.phase, Phase::Succeeded, "{job:?}");
    observer.wait_on("ticker", "kvm2", SECONDS_20).expect("it runs there");
    judge(&observer.heard("ticker")).expect("never heard from two hosts");
    // If all is well, Ferry does not query QEMU past libvirt.
    let info = away.virsh(&["dominfo", "ticker"]).expect("known");
    assert!(!info.contains("tainted"), "{info}");
}

#[test]
fn a_held_vm_cannot_be_started_by_anyone() {
    let ticker = small("ticker", 101);
    let (_observer, ferry) = with_guest(&ticker);
    let host = &ferry.lab.hosts[0];
    host.virsh(&["destroy", "ticker"]).expect("stopped");
    let hold = host.path("/run/ferry-agent/holds").join(ticker.uuid.to_string());
    fs::write(&hold, "job 7 moves it").expect("held");
    let output = host.try_run(&["virsh", "-c", "qemu:///system", "start", "ticker"]).expect("it runs");
    assert!(!output.ok() && output.err.contains("job 7"), "{output:?}");
    fs::remove_file(hold).expect("let go");
    host.virsh(&["start", "ticker"]).expect("it starts");
}

/// A row of bad input: the command, the resulting finding, and words that it must contain.
type Row<'a> = (&'a [&'a str], FindingId, &'a [&'a str]);

fn refused(ferry: &Ferry, (line, id, words): &Row<'_>) {
    let mut all = vec!["--json"];
    all.extend(*line);
    let output = ferry.ferry(&all).expect("it ends");
    assert!(!output.ok(), "{line:?} was taken: {output:?}");
    let text = output.out.lines().last().unwrap_or_default();
    let problem: Problem = serde_json::from_str(text).unwrap_or_else(|_| panic!("{line:?}: no problem in {output:?}"));
    let finding = problem
        .findings
        .iter()
        .find(|finding| finding.id == *id)
        .unwrap_or_else(|| panic!("{line:?}: no {id} in {problem:?}"));
    let text = format!("{} {} {}", finding.object, finding.message, finding.fix);
    for word in *words {
        assert!(text.contains(word), "{line:?}: {word:?} is not in {text}");
    }
}

#[test]
fn bad_input_on_real_hosts_gets_a_clear_error_and_changes_nothing() {
    let ticker = small("ticker", 101);
    let (observer, ferry) = with_guest(&ticker);
    let old = ferry
        .lab
        .file_server("old", "10.77.0.252", "server min protocol = NT1\nserver max protocol = SMB2_10\n")
        .expect("an old file server");
    ferry.must(&["share", "add", "old", &old.unc()]).expect("added");
    let (good, bad) = (ferry.password_file(ferry_lab::samba::PASSWORD).expect("a file"), ferry.lab.folder.join("bad"));
    fs::write(&bad, "wrong").expect("written");
    let bad = bad.display().to_string();
    let (address, token) = (ferry.agents[0].address.clone(), ferry.agents[0].token.clone());
    let strange = format!("ferry1.{}.{}", "a".repeat(64), "b".repeat(64));
    let rows: &[Row<'_>] = &[
        (&["vm", "migrate", "nope", "--to", "kvm2"], FindingId::VmUnknown, &["nope"]),
        (&["vm", "migrate", "ticker", "--to", "kvm1"], FindingId::VmAlreadyThere, &["ticker", "kvm1"]),
        (&["vm", "migrate", "ticker", "--to", "kvm9"], FindingId::HostUnknown, &["kvm9"]),
        (
            &["host", "add", "10.77.0.9:7421", "--name", "kvm9", "--token", &strange],
            FindingId::HostUnreachable,
            &["10.77.0.9"],
        ),
        (&["host", "add", &address, "--name", "again", "--token", &token], FindingId::HostTwice, &["kvm1"]),
        (&["share", "add", "short", "\\\\fs1\\vms"], FindingId::ShareNotQualified, &["fs1"]),
        (&["share", "add", "vms2", &ferry.files.unc()], FindingId::ShareTwice, &["vms"]),
        (
            &["share", "attach", "old", "--host", "kvm1", "--user", "root", "--password-file", &good],
            FindingId::ShareDialect,
            &["old.ferry.lab"],
        ),
        (
            &["share", "attach", "vms", "--host", "kvm1", "--user", "root", "--password-file", &bad],
            FindingId::SharePassword,
            &["fs1.ferry.lab", "root"],
        ),
    ];
    for row in rows {
        refused(&ferry, row);
    }
    let candidates: Vec<Candidate> = ferry.json(&["vm", "hosts", "ticker"]).expect("listed");
    let kinds: Vec<_> = candidates.iter().map(|candidate| (candidate.host.as_str(), candidate.kind)).collect();
    assert!(kinds.contains(&("kvm2", Some(MoveKind::Live))) && kinds.contains(&("kvm1", None)), "{kinds:?}");
    // Nothing was changed by it: the VM is where it was, and can move.
    let vms: Vec<VmView> = ferry.json(&["vm", "list"]).expect("listed");
    assert_eq!(vms.iter().map(|vm| vm.host.as_str()).collect::<Vec<_>>(), ["kvm1"]);
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2", "--wait"]).expect("it moves");
    assert_eq!(job.phase, Phase::Succeeded);
    observer.wait_on("ticker", "kvm2", SECONDS_20).expect("it runs there");
}
