//! Tests that need stock hosts: whole Debian systems, with AppArmor, systemd, and the kernel's SMB and NFS clients.
//!
//! Machines, and guests on them, take a minute and more to boot, so each test checks much. Tests whose names begin with
//! `smoke` belong to every run; `cargo xtask test --stock` runs all.
#![cfg(feature = "lab")]

mod links;
mod networks;
mod shares;

use std::time::Duration;

use ferry_core::{
    api::server::{Candidate, JobView},
    finding::{Finding, FindingId},
    migration::Phase,
};
use ferry_lab::{
    observe::{judge, now},
    run::wait_for,
    samba::{PASSWORD, USER},
    stock::{
        demo,
        image::Release::Trixie,
        machine::Machine,
        site::{MOVE_WITHIN, StockSite, find, packages, small_ticker},
    },
};

/// Rate of the source's link until a test has made its check: a guest's memory would take ten minutes.
const SLOWLY: &str = "tbf rate 1mbit burst 16k latency 400ms";

/// Waits until the guest has verified everything, and judges its heartbeats so far.
fn verified(site: &StockSite, name: &str) {
    site.verify(name).expect("verified");
    judge(&site.observer.heard(name)).expect("nothing was lost");
}

/// Begins a move over a slowed link, calls `work` as soon as memory is sent, restores the link, and waits until the VM
/// is at its destination.
fn move_during(site: &StockSite, name: &str, from: &Machine, to: &Machine, work: impl FnOnce()) -> JobView {
    from.shape(SLOWLY).expect("held back");
    let begun: JobView = site.ferry.json(&["vm", "migrate", name, "--to", &to.name]).expect("accepted");
    let moves = |job: &JobView| {
        job.phase == Phase::Migrating && job.progress.as_ref().is_some_and(|progress| progress.sent.0 > 0)
    };
    site.ferry.wait_job(begun.id, "memory moves", MOVE_WITHIN, moves).expect("it moves");
    work();
    let job = site.ferry.job(begun.id).expect("told");
    assert_eq!(job.phase, Phase::Migrating, "it moves on meanwhile: {job:#?}");
    from.unshape().expect("freed");
    let ended = site.ferry.wait_job(begun.id, "the move ends", MOVE_WITHIN, |job| job.phase.ended());
    let job = ended.expect("it ends");
    assert_eq!(job.phase, Phase::Succeeded, "{job:#?}");
    site.observer.wait_on(name, &to.name, Duration::from_secs(60)).expect("it runs there alone");
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
    site.start_guest(&small_ticker("ticker", 101), 0).expect("a guest");
    assert!(confined(one) && !confined(two), "QEMU is confined where it runs");
    // What an agent reads there so that it gives way to guests.
    one.run("grep '^some avg10=' /sys/fs/cgroup/machine.slice/cpu.pressure").expect("how long guests wait for CPUs");

    move_during(&site, "ticker", one, two, || {
        for machine in [one, two] {
            machine.run("systemctl restart ferry-agent && systemctl is-active ferry-agent").expect("restarted");
        }
    });
    verified(&site, "ticker");
    assert!(confined(two) && !confined(one), "QEMU is confined where it runs");

    // Installs the same version again, as an upgrade does.
    let package = find(&packages().expect("built"), "ferry-agent_").expect("built");
    move_during(&site, "ticker", two, one, || {
        for machine in [one, two] {
            let path = machine.give(&package).expect("given");
            machine.run(&format!("dpkg -i {path} && systemctl is-active ferry-agent")).expect("upgraded");
        }
    });
    verified(&site, "ticker");
    site.nothing_denied().expect("nothing");

    // Removing Ferry keeps the VMs.
    one.run("dpkg --purge ferry-agent").expect("removed");
    site.observer.wait_on("ticker", "stock1", Duration::from_secs(20)).expect("it runs on");
    verified(&site, "ticker");
}

/// Whether the VMs of the machine run under AppArmor profiles of their own.
fn confined(machine: &Machine) -> bool {
    let output = machine.run("cat /proc/$(pgrep -f guest=ticker -o)/attr/current 2>/dev/null || true").expect("asked");
    output.starts_with("libvirt-") && output.contains("enforce")
}

#[test]
fn vms_move_over_smb_over_nfs_with_nothing_shared_and_from_debian_12_to_13() {
    demo::run(true).expect("every move keeps its promises, and nothing is denied");
}

/// One pair of machines for all checks that restore its state, because starting a guest takes three minutes.
#[test]
fn vms_outlive_file_servers_cross_long_links_and_move_with_their_network_and_pool() {
    let site = StockSite::up(&[Trixie, Trixie]).expect("two stock hosts");
    shares::vms_outlive_their_file_servers_and_ferry_says_what_is_wrong_with_them(&site);
    links::vms_move_over_long_links(&site);
    networks::a_vm_of_a_network_and_a_storage_pool_moves_there_and_back(&site);
    site.nothing_denied().expect("nothing");
}

/// The findings against the guest's move to the other machine.
fn against(site: &StockSite) -> Vec<Finding> {
    let tried: Vec<Candidate> =
        site.ferry.json(&["vm", "migrate", "ticker", "--to", "stock2", "--dry-run"]).expect("tried");
    let [candidate] = &tried[..] else { panic!("one host was named: {tried:#?}") };
    candidate.findings.clone()
}

/// Default time limit for a finding to appear after its cause, or to disappear.
const FOUND_WITHIN: Duration = Duration::from_secs(60);

/// Waits until this is the only finding against the move, or until there is none of its kind.
fn wait_for_finding(site: &StockSite, id: FindingId, expected: bool, within: Duration) -> Option<Finding> {
    let seen = wait_for(&format!("{id} is {expected}"), within, || {
        let found = against(site).into_iter().find(|finding| finding.id == id);
        (found.is_some() == expected).then_some(found)
    });
    seen.unwrap_or_else(|error| panic!("what stands against a move follows the hosts: {error:#}: {:#?}", against(site)))
}

#[test]
fn what_keeps_a_vm_from_moving_is_said_beforehand_and_its_fix_works_and_nfs_is_kept() {
    let site = StockSite::up(&[Trixie, Trixie]).expect("two stock hosts");
    what_keeps_a_vm_from_moving_is_said(&site);
    site.nothing_denied().expect("nothing");
    shares::nfs_is_kept_by_the_kernels_own_server_and_client(&site.machines[0]);
}

fn what_keeps_a_vm_from_moving_is_said(site: &StockSite) {
    let [one, two] = &site.machines[..] else { panic!("two were asked for") };
    // With mount.cifs's default options.
    let mount = |machine: &Machine, options: &str| {
        machine
            .run(&format!(
                "mkdir -p /srv/ferry/own; printf 'username={USER}\npassword={PASSWORD}\n' >/root/smb; mount -t cifs -o \
                 vers=3.1.1,hard{options},credentials=/root/smb,uid=libvirt-qemu,gid=libvirt-qemu,file_mode=0660,dir_mode=0770 \
                 //fs1.ferry.lab/vms /srv/ferry/own"
            ))
            .expect("mounted");
    };
    mount(one, "");
    mount(two, "");
    site.ferry.must(&["share", "add", "vms", &site.ferry.files.unc()]).expect("added");
    for name in ["stock1", "stock2"] {
        site.ferry.must(&["share", "attach", "vms", "--host", name, "--at", "/srv/ferry/own"]).expect("adopted");
    }
    let output = site.ferry.server.output();
    assert!(output.contains("QEMU's locks do not work on a share"), "the trial of the locks saw it as well: {output}");
    site.start_guest(&small_ticker("ticker", 101), 0).expect("a guest");
    let locks: Vec<Finding> = against(site).into_iter().filter(|found| found.id == FindingId::ShareLocks).collect();
    assert_eq!(locks.len(), 2, "each host's mount: {locks:#?}");
    assert!(locks.iter().all(|finding| finding.fix.to_string().contains("-o nobrl")), "{locks:#?}");
    // The steps of the finding's fix, verbatim: stop the VM, unmount, mount again with `nobrl` besides.
    one.run("virsh -q destroy ticker && umount /srv/ferry/own").expect("stopped and unmounted");
    two.run("umount /srv/ferry/own").expect("unmounted");
    mount(one, ",nobrl");
    mount(two, ",nobrl");
    // Its counter starts again.
    let begun = now();
    site.start_guest(&small_ticker("ticker", 101), 0).expect("started");
    assert_eq!(wait_for_finding(site, FindingId::ShareLocks, false, FOUND_WITHIN), None);

    // The rule is removed, as by an administrator who cleans up: Ferry reports it, refuses moves, and its fix repairs
    // it.
    two.run("rm /etc/apparmor.d/abstractions/libvirt-qemu.d/ferry").expect("removed");
    let missing = wait_for_finding(site, FindingId::HostConfinement, true, FOUND_WITHIN).expect("found");
    let fix = missing.fix.to_string().split('`').nth(1).expect("the command to run").to_owned();
    two.run(&fix).expect("the fix works");
    assert_eq!(wait_for_finding(site, FindingId::HostConfinement, false, FOUND_WITHIN), None);
    site.migrate("ticker", "stock2", &[]).expect("it moves");
    site.verify("ticker").expect("verified");
    let heard = site.observer.heard("ticker");
    judge(&heard.into_iter().filter(|heard| heard.at >= begun).collect::<Vec<_>>()).expect("nothing was lost");
}
