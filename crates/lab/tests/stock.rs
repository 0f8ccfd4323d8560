//! What only stock hosts can show: whole Debian systems, with AppArmor, systemd, and the kernel's SMB and NFS clients.
//!
//! Machines boot for a minute and more, so each test shows much. Names that begin with `smoke` are part of every run;
//! `cargo xtask test --stock` runs all.
#![cfg(feature = "lab")]

use std::time::Duration;

use ferry_core::{api::server::JobView, migration::Phase};
use ferry_lab::{
    observe::judge,
    stock::{
        image::Release::Trixie,
        site::{MOVE_WITHIN, StockSite, VERIFY_WITHIN, find, packages, small_ticker},
    },
};

/// Slow enough for a move to last until an agent has been restarted. MiB/s.
const SLOWLY: [&str; 2] = ["--bandwidth", "2"];

/// Waits until the guest has verified all it has, and judges what was heard of it so far.
fn verified(site: &StockSite, name: &str) {
    site.observer.wait_verified(name, 1, VERIFY_WITHIN).expect("verified");
    judge(&site.observer.heard(name)).expect("nothing was lost");
}

/// Begins a move that is slow, does something as soon as memory moves, and waits until the VM is at its destination.
fn move_during(site: &StockSite, name: &str, to: &str, work: impl FnOnce()) -> JobView {
    let mut words = vec!["vm", "migrate", name, "--to", to];
    words.extend(SLOWLY);
    let begun: JobView = site.ferry.json(&words).expect("accepted");
    let moves = |job: &JobView| {
        job.phase == Phase::Migrating && job.progress.as_ref().is_some_and(|progress| progress.sent.0 > 0)
    };
    site.ferry.wait_job(begun.id, "memory moves", MOVE_WITHIN, moves).expect("it moves");
    work();
    let job = site.ferry.job(begun.id).expect("told");
    assert_eq!(job.phase, Phase::Migrating, "the move was over too early to show anything: {job:#?}");
    let ended = site.ferry.wait_job(begun.id, "the move ends", MOVE_WITHIN, |job| job.phase.ended());
    let job = ended.expect("it ends");
    assert_eq!(job.phase, Phase::Succeeded, "{job:#?}");
    site.observer.wait_on(name, to, Duration::from_secs(60)).expect("it runs there alone");
    job
}

#[test]
fn smoke_a_vm_moves_there_and_back_while_agents_are_restarted_and_upgraded() {
    let site = StockSite::up(&[Trixie, Trixie]).expect("two stock hosts");
    let [one, two] = &site.machines[..] else { panic!("two were asked for") };
    site.add_smb_share("vms").expect("mounted");
    for machine in [one, two] {
        let mount = machine.run("findmnt -n -t cifs -o OPTIONS").expect("the kernel's client mounted it");
        for option in ["nobrl", "hard"] {
            assert!(mount.trim().split(',').any(|found| found == option), "{}: {mount}", machine.name);
        }
    }
    site.start_tickers(&[(&small_ticker("ticker", 101), 0)]).expect("a guest");
    assert!(confined(one) && !confined(two), "QEMU is confined where it runs");

    move_during(&site, "ticker", "stock2", || {
        for machine in [one, two] {
            machine.run("systemctl restart ferry-agent && systemctl is-active ferry-agent").expect("restarted");
        }
    });
    verified(&site, "ticker");
    assert!(confined(two) && !confined(one), "QEMU is confined where it runs");

    // The same version again: what an upgrade does to a host.
    let package = find(&packages().expect("built"), "ferry-agent_").expect("built");
    move_during(&site, "ticker", "stock1", || {
        for machine in [one, two] {
            let path = machine.give(&package).expect("given");
            machine.run(&format!("dpkg -i {path} && systemctl is-active ferry-agent")).expect("upgraded");
        }
    });
    verified(&site, "ticker");
    site.nothing_denied().expect("nothing");

    // Whoever does not want Ferry any more keeps the VMs.
    one.run("dpkg --purge ferry-agent").expect("removed");
    site.observer.wait_on("ticker", "stock1", Duration::from_secs(20)).expect("it runs on");
    verified(&site, "ticker");
}

/// Whether a VM of the machine runs under a profile of its own.
fn confined(machine: &ferry_lab::stock::machine::Machine) -> bool {
    let said = machine.run("cat /proc/$(pgrep -f guest=ticker -o)/attr/current 2>/dev/null || true").expect("asked");
    said.starts_with("libvirt-") && said.contains("enforce")
}
