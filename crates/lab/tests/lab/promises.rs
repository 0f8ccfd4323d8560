//! Promises of the lab itself: broken promises are detected, nothing is left behind, and libvirt behaves like the fake.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use ferry_core::{api::server::JobView, migration::Phase};
use ferry_lab::{
    demo::{Sabotage, measure, start_ticker},
    ferry::Ferry,
    guest::Ticker,
    lab::Lab,
    local,
    observe::{Observer, judge},
    program::Programs,
    run::{run_within, wait_for},
};

const BOOT: Duration = Duration::from_secs(90);
const VERIFY: Duration = Duration::from_secs(120);
const SECONDS_20: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);

fn small(name: &str, address: u8) -> Ticker {
    Ticker { memory_mib: 192, pattern_mib: 16, dirty_mib_per_s: 2, ..Ticker::new(name, address) }
}

#[test]
fn whatever_is_broken_on_purpose_is_found() {
    let ferry = Ferry::up(2).expect("Ferry on two hosts");
    ferry.warnings.expect("The VM runs on several hosts at once");
    let observer = Observer::start(&ferry.lab).expect("observers");
    for (sabotage, address, word) in
        [(Sabotage::Page, 101, "page"), (Sabotage::Sector, 102, "sector"), (Sabotage::Split, 103, "split")]
    {
        let ticker = small(word, address);
        start_ticker(&ferry, &ticker, 0).expect("a guest");
        observer.wait_on(&ticker.name, "kvm1", BOOT).expect("it boots");
        let error = measure(&ferry, &observer, &ticker, "kvm2", &[], Some(sabotage)).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
        for host in &ferry.lab.hosts {
            let _ = host.virsh(&["destroy", &ticker.name]);
        }
    }
}

#[test]
fn a_move_goes_on_while_its_agents_are_killed_and_restarted() {
    let ticker = small("ticker", 101);
    let mut ferry = Ferry::up(2).expect("Ferry on two hosts");
    let observer = Observer::start(&ferry.lab).expect("observers");
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    observer.wait_verified("ticker", 0, VERIFY).expect("verified");
    // So slow that the move outlasts both restarts.
    ferry.lab.hosts[0].set_link_rate(Some("20mbit")).expect("shaped");
    let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", "kvm2"]).expect("accepted");
    let id = job.id.to_string();
    let shown = |ferry: &Ferry| ferry.json::<JobView>(&["job", "show", &id]);
    wait_for("memory is on its way", MINUTE, || {
        shown(&ferry).ok()?.progress.filter(|progress| progress.sent.0 > 1 << 20)
    })
    .expect("it moves");
    for index in 0..2 {
        ferry.kill_agent(index).expect("killed");
        ferry.start_agent(index, &[]).expect("the agent starts again");
    }
    assert_eq!(shown(&ferry).expect("known").phase, Phase::Migrating, "the move was to outlive the restarts");
    ferry.lab.hosts[0].set_link_rate(None).expect("unshaped");
    let ended = wait_for("the job ends", Duration::from_secs(120), || {
        shown(&ferry).ok().filter(|job| job.ended_at_ms.is_some())
    })
    .expect("it ends");
    assert_eq!(ended.phase, Phase::Succeeded, "{ended:?}");
    observer.wait_on("ticker", "kvm2", SECONDS_20).expect("it runs there alone");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
}

#[test]
fn nothing_is_left_behind_when_the_owner_is_killed() {
    let programs = Programs::find().expect("built").folder;
    let mut owner = Command::new(programs.join("ferry-lab"))
        .arg("demo")
        .env("FERRY_LAB_PROGRAMS", &programs)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let folder = wait_for("the lab has a file server and hosts", MINUTE, || {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", owner.id())).ok()?;
        let lines =
            children.split_whitespace().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok());
        let folder = lines
            .filter_map(|line| line.split_once("\0guard\0").map(|(_, rest)| PathBuf::from(rest.trim_end_matches('\0'))))
            .next()?;
        (folder.join("hosts.json").exists() && folder.join("samba-fs1/state/smbd.pid").exists()).then_some(folder)
    })
    .expect("it is built");
    let id = folder.to_string_lossy().rsplit_once('-').expect("an id").1.to_owned();
    assert!(!processes_of(&folder).is_empty(), "what is to be ended runs");
    owner.kill().expect("killed");
    owner.wait().expect("reaped");
    wait_for("all of it is gone", MINUTE, || {
        let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let left = namespaces.filter(|entry| entry.file_name().to_string_lossy().contains(&id)).count();
        (left == 0 && processes_of(&folder).is_empty() && !folder.exists()).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", processes_of(&folder)));
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    assert!(!mounts.contains(&*folder.to_string_lossy()), "{mounts}");
    assert_eq!(local::attached(&folder), Vec::<PathBuf>::new(), "loop devices are given back");
}

/// The command lines of processes that contain a lab's folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    let name = folder.to_string_lossy();
    lines.filter(|line| line.contains(&*name)).map(|line| line.replace('\0', " ")).collect()
}

#[test]
fn libvirt_passes_the_hypervisor_suite() {
    let lab = Lab::up(2).expect("a lab");
    // The suite uses the same disk names on both hosts.
    let common = lab.folder.join("srv/ferry/conformance");
    fs::create_dir_all(&common).expect("made");
    let srv = lab.folder.join("srv").display().to_string();
    for host in &lab.hosts {
        host.run(&["mount", "--bind", &srv, "/srv"]).expect("mounted");
        let conf = host.folder.join("etc-libvirt/qemu.conf");
        let text = fs::read_to_string(&conf).expect("there");
        fs::write(conf, format!("{text}shared_filesystems = [\"/srv\"]\n")).expect("written");
        host.start_libvirt().expect("it starts");
    }
    let root = |index: usize| format!("/proc/{}/root", lab.hosts[index].init);
    let mut suite = Command::new(suite_program());
    suite
        .args(["libvirt_passes_the_suite", "--ignored", "--nocapture"])
        .env("FERRY_CONFORMANCE_SOURCE", root(0))
        .env("FERRY_CONFORMANCE_DESTINATION", root(1));
    let output = run_within(suite, Duration::from_secs(560)).expect("it ends");
    assert!(output.ok() && output.out.contains("1 passed"), "{}{}", output.out, output.err);
}

/// The newest build of the drivers' suite.
fn suite_program() -> PathBuf {
    let programs = Programs::find().expect("built");
    let built = fs::read_dir(programs.folder.join("deps")).expect("a folder").flatten();
    let suites = built.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("hypervisor_conformance-") && !name.contains('.')
    });
    let newest = suites.max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok());
    newest.expect("the drivers' suite is built by `cargo xtask test`").path()
}
