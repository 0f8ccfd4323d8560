//! Features of VMs from libvirt's other drivers, networks and volumes of storage pools; and libvirt's knowledge of a
//! VM.

use std::{fs, time::Duration};

use ferry_core::{
    api::{
        problem::Problem,
        server::{JobView, VmView},
    },
    finding::FindingId,
    migration::Phase,
    vm::{DiskFormat, FileRole, VmState},
};
use ferry_lab::{
    demo::start_ticker,
    ferry::Ferry,
    guest::{Ticker, of_pool_and_network},
    host::Host,
    images::{Disk, Place},
    observe::{Observer, judge},
    run::wait_for,
};

const BOOT: Duration = Duration::from_secs(90);
const SECONDS_20: Duration = Duration::from_secs(20);
const VERIFY: Duration = Duration::from_secs(120);

/// A guest that moves in a few seconds.
fn small(name: &str, address: u8) -> Ticker {
    Ticker { memory_mib: 256, pattern_mib: 24, dirty_mib_per_s: 2, ..Ticker::new(name, address) }
}

/// Gives a host the network `lan`, which connects its VMs to the host's bridge.
fn add_network(host: &Host) {
    let xml = "<network><name>lan</name><forward mode='bridge'/><bridge name='br0'/></network>";
    fs::write(host.path("/run/lan.xml"), xml).expect("written");
    host.virsh(&["net-define", "/run/lan.xml"]).expect("defined");
    host.virsh(&["net-start", "lan"]).expect("started");
}

#[test]
fn a_vm_of_a_network_and_a_storage_pool_moves_there_and_back() {
    let ferry = Ferry::up(2).expect("Ferry on two hosts");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let (home, away) = (&ferry.lab.hosts[0], &ferry.lab.hosts[1]);
    for host in [home, away] {
        for list in ["net-list", "pool-list", "nwfilter-list", "nodedev-list", "secret-list"] {
            host.virsh(&[list]).unwrap_or_else(|error| panic!("{}: virsh {list}: {error:#}", host.name));
        }
        add_network(host);
    }
    let ticker = small("ticker", 101);
    let mounts = [home, away].map(|host| ferry.mount_of(host).expect("mounted"));
    let [folder, folder_away] = mounts.map(|mount| mount.join("ticker"));
    let definition = ticker.prepare(&ferry.lab, &ferry.files.share, &ferry.mount_of(home).expect("mounted"));
    let definition =
        of_pool_and_network(&definition.expect("prepared"), &folder.join("disk.raw")).expect("its own form");
    fs::write(home.path("/run/ticker.xml"), definition).expect("written");
    let target = folder.display().to_string();
    home.virsh(&["pool-create-as", "vms", "dir", "--target", &target]).expect("a pool");
    home.virsh(&["define", "/run/ticker.xml"]).expect("defined");
    home.virsh(&["start", "ticker"]).expect("started");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");

    let seen: VmView = ferry.json(&["vm", "show", "ticker"]).expect("shown");
    let disk = seen.facts.files.iter().find(|file| file.device == "vda").expect("there");
    assert_eq!((disk.role, &disk.kind), (FileRole::Disk, &None), "a volume is told as its file: {disk:?}");
    assert_eq!(seen.facts.networks, ["lan"]);

    for (destination, folder, host) in [("kvm2", &folder_away, away), ("kvm1", &folder, home)] {
        let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", destination, "--wait"]).expect("it moves");
        assert_eq!(job.phase, Phase::Succeeded, "{job:?}");
        observer.wait_on("ticker", destination, SECONDS_20).expect("it runs there alone");
        let file = folder.join("disk.raw").display().to_string();
        for form in [&["dumpxml", "ticker"][..], &["dumpxml", "ticker", "--inactive"]] {
            let text = host.virsh(form).expect("defined");
            assert!(text.contains(&format!("<source file='{file}'")) && !text.contains("pool='vms'"), "{text}");
            assert!(text.contains("network='lan'"), "{text}");
        }
    }
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
}

/// Removes the settings of `ferry-agent setup` from libvirt's configuration, so that it behaves like an old libvirt.
fn forget_shared_file_systems(host: &Host) {
    let conf = host.folder.join("etc-libvirt/qemu.conf");
    let text = fs::read_to_string(&conf).expect("there");
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("shared_filesystems")).collect();
    assert!(kept.len() < text.lines().count(), "{text}");
    fs::write(&conf, kept.join("\n") + "\n").expect("written");
    host.end_libvirt().expect("it ends");
    host.start_libvirt().expect("it starts");
}

#[test]
fn an_old_libvirt_moves_a_vm_on_ferrys_word_alone() {
    let mut ferry = Ferry::up_bare(2, &[("FAILPOINTS", "libvirt-version=return(9.0.0)")]).expect("hosts");
    // It is started again.
    ferry.warnings.expect("libvirt does not answer");
    ferry.lab.hosts.iter().for_each(forget_shared_file_systems);
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let ticker = small("ticker", 101);
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    let mount = ferry.mount_of(&ferry.lab.hosts[0]).expect("mounted");
    for destination in ["kvm2", "kvm1"] {
        let job: JobView = ferry.json(&["vm", "migrate", "ticker", "--to", destination, "--wait"]).expect("it moves");
        assert_eq!(job.phase, Phase::Succeeded, "{job:?}");
        observer.wait_on("ticker", destination, SECONDS_20).expect("it runs there alone");
    }
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");

    // If writes may be only in the source's page cache, Ferry does not vouch.
    let cached = small("cached", 102);
    let definition = cached.prepare(&ferry.lab, &ferry.files.share, &mount).expect("prepared");
    let home = &ferry.lab.hosts[0];
    fs::write(home.path("/run/cached.xml"), definition.replace(" cache='none'", "")).expect("written");
    home.virsh(&["define", "/run/cached.xml"]).expect("defined");
    home.virsh(&["start", "cached"]).expect("started");
    observer.wait_on("cached", "kvm1", BOOT).expect("it boots");
    let output = ferry.ferry(&["--json", "vm", "migrate", "cached", "--to", "kvm2", "--wait"]).expect("it ends");
    let problem: Problem = serde_json::from_str(output.out.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let blocking: Vec<_> = problem.findings.iter().map(|finding| (finding.id, finding.object.as_str())).collect();
    assert!(blocking.contains(&(FindingId::HostRelease, "cached vda")), "{problem:?}");
    observer.wait_on("cached", "kvm1", SECONDS_20).expect("it runs where it was");
}

/// QEMU reports disk errors once a second at most.
const ERRORS_REPORTED: Duration = Duration::from_secs(1);
/// A busy machine may need more than that for the steps between two errors.
const ATTEMPTS: u32 = 5;
const STOPPED_BY_AN_ERROR: &str = "paused (I/O error)";

/// Starts a guest whose disk has no space, makes it fail twice within a second, and resumes it with free space. Returns
/// whether libvirt then takes it for stopped although it is heard.
fn is_reported_late(host: &Host, ticker: &Ticker, observer: &Observer) -> bool {
    let state =
        || host.virsh(&["domstate", "--reason", "ticker"]).map(|output| output.trim().to_owned()).unwrap_or_default();
    host.fill(64 << 10).expect("it is full");
    host.virsh(&["start", "ticker"]).expect("started");
    wait_for("it finds no room", BOOT, || (state() == STOPPED_BY_AN_ERROR).then_some(())).expect("it stops");
    host.virsh(&["resume", "ticker"]).expect("it runs");
    // libvirt learns that it stopped, but not why.
    wait_for("it finds none again", ERRORS_REPORTED, || state().starts_with("paused").then_some(()))
        .expect("it stops again");
    host.unfill().expect("there is room");
    host.virsh(&["resume", "ticker"]).expect("it runs");
    let late = wait_for("libvirt hears late", ERRORS_REPORTED * 2, || {
        (state() == STOPPED_BY_AN_ERROR && observer.runs_on("ticker") == [host.name.as_str()]).then_some(())
    });
    if late.is_err() {
        host.virsh(&["destroy", "ticker"]).expect("ended");
        host.run(&["rm", "-rf", "/var/lib/libvirt/images/ticker"]).expect("removed");
        ticker.make_local_disks(host).expect("made anew");
    }
    late.is_ok()
}

#[test]
fn a_vm_that_runs_and_of_whose_disks_error_libvirt_hears_late_is_seen_to_run() {
    let ferry = Ferry::up(2).expect("Ferry on two hosts");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let home = &ferry.lab.hosts[0];
    let ticker = Ticker { disks: vec![Disk::new(Place::Local, DiskFormat::Raw)], ..small("ticker", 101) };
    ticker.make_local_disks(home).expect("a disk");
    let mount = ferry.mount_of(home).expect("mounted");
    let definition = ticker.prepare(&ferry.lab, &ferry.files.share, &mount).expect("prepared");
    fs::write(home.path("/run/ticker.xml"), definition).expect("written");
    home.virsh(&["define", "/run/ticker.xml"]).expect("defined");
    assert!((0..ATTEMPTS).any(|_| is_reported_late(home, &ticker, &observer)), "libvirt never took it for stopped");

    let shown = || ferry.json::<VmView>(&["vm", "show", "ticker"]).expect("shown").facts.state;
    wait_for("it is seen to run", SECONDS_20, || (shown() == VmState::Running).then_some(())).expect("it is");
    assert_eq!(home.virsh(&["domstate", "ticker"]).expect("told").trim(), "running");

    // For that, the agent stops the VM for a moment. An agent that dies at that moment leaves it stopped.
    home.virsh(&["qemu-monitor-command", "ticker", r#"{"execute":"stop"}"#]).expect("stopped");
    let silent = || observer.runs_on("ticker").is_empty().then_some(());
    wait_for("it stands still", SECONDS_20, silent).expect("it does");
    observer.wait_on("ticker", "kvm1", SECONDS_20).expect("it runs again");
    observer.wait_verified("ticker", 1, VERIFY).expect("verified");
    judge(&observer.heard("ticker")).expect("no promise is broken");
}
