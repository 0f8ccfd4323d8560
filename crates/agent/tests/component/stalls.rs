//! VMs that QEMU stopped because their file server was away.

use crate::site::{Job, Site, wait_until};
use ferry_core::vm::VmState;
use ferry_drivers::hypervisor::{Domains as _, Power as _};
use ferry_testkit::logs::expects_warning;

#[tokio::test(flavor = "multi_thread")]
async fn vms_that_a_file_server_stopped_go_on_when_it_is_back_and_no_others() {
    expects_warning(
        "The control connection from the source is gone; a complete copy stays paused here until it is known who has it",
    );
    let site = Site::new().await;
    let host = &site.hosts[0];
    let state = |vm| host.hypervisor.vm(vm).expect("reachable").expect("there").state;
    let [stopped, own, moved, paused] = ["stopped", "own", "moved", "paused"].map(|name| site.run_vm(name, |_| ()));
    let job = Job::new(1, 1, moved, "moved", 0);
    site.prepare(&job).await;
    let has_trouble = |expected: bool| host.agent.shares.watch().borrow()[0].trouble.is_some() == expected;
    site.servers.change(&site.unc, |export| export.is_up = false);
    wait_until("the share is in trouble", || has_trouble(true)).await;
    host.hypervisor.pause(paused);
    host.hypervisor.stall(own, "vdz", false);
    host.hypervisor.stall(moved, "vda", false);
    // Last: what is done for it is not left undone for those above because they were not seen yet.
    host.hypervisor.stall(stopped, "vda", false);
    site.servers.change(&site.unc, |export| export.is_up = true);
    wait_until("it goes on", || state(stopped) == VmState::Running).await;
    assert!(has_trouble(false), "not before its share answers");
    for (vm, why) in [(own, "no disk on the share stopped it"), (moved, "it is moved"), (paused, "somebody paused it")]
    {
        assert_eq!(state(vm), VmState::Paused, "{why}");
    }
    site.undo(&job).await;
    wait_until("it is not moved any more", || state(moved) == VmState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_runs_and_is_taken_for_a_stopped_one_is_seen_to_run_wherever_its_disks_are() {
    let site = Site::new().await;
    let host = &site.hosts[0];
    let facts = |vm| host.hypervisor.vm(vm).expect("reachable").expect("there");
    let vms = [("shared", "vda"), ("own", "vdz")].map(|(name, device)| (site.run_vm(name, |_| ()), device));
    for (vm, device) in vms {
        host.hypervisor.hear_late(vm, device);
        host.hypervisor.resume(vm).expect("as an administrator tries");
        assert_eq!(facts(vm).state, VmState::Paused, "that does not help");
    }
    for (vm, _) in vms {
        wait_until("it is seen to run", || facts(vm).state == VmState::Running).await;
        assert_eq!(facts(vm).stall, None);
    }
}
