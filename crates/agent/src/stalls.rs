//! Resumes VMs that QEMU paused because their file server was away.
//!
//! This gives what a share mounted `hard` promises: VMs on it wait, and continue by themselves. [`ferry_core::stall`]
//! decides whether a VM may continue. A VM that runs but is reported as paused is corrected ([`Power::see_running`]):
//! nothing else would do so, and every move of it would be refused.
//!
//! [`Power::see_running`]: ferry_drivers::hypervisor::Power::see_running

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use ferry_core::{
    error::chain,
    id::VmId,
    stall::{Tries, may_go_on},
    vm::{VmFacts, VmState},
};
use ferry_drivers::hypervisor::Hypervisor;
use tracing::{info, warn};

use crate::{blocking::call, observer::Observer};

/// How often the host's state is searched for such VMs.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// The host whose paused VMs are handled.
pub(crate) trait Host: Send + Sync {
    /// The hypervisor.
    fn hypervisor(&self) -> &Arc<dyn Hypervisor>;
    /// What the host has.
    fn observer(&self) -> &Observer;
    /// Whether a VM is being moved: then its carriers control it.
    fn moves(&self, vm: VmId) -> bool;
}

/// Handles paused VMs as long as the agent exists.
pub(crate) async fn watch(agent: Weak<impl Host>) {
    let (begun, mut polls, mut tries) = (Instant::now(), Tries::default(), Tries::default());
    while let Some(agent) = agent.upgrade() {
        for (vm, may_go_on) in stopped(&*agent) {
            if agent.moves(vm.id) || polls.due(vm.id, begun.elapsed()) && see_running(&*agent, &vm).await {
                continue;
            }
            if may_go_on && tries.due(vm.id, begun.elapsed()) {
                run_again(&*agent, &vm).await;
            }
        }
        drop(agent);
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// The VMs that a disk error paused, with whether they may continue. Usually none, so only these are copied.
fn stopped(agent: &impl Host) -> Vec<(VmFacts, bool)> {
    let seen = agent.observer().latest();
    let Some(seen) = seen.as_ref() else { return Vec::new() };
    let stopped = seen.vms.iter().filter(|vm| vm.state == VmState::Paused && vm.stall.is_some());
    stopped.map(|vm| (vm.clone(), may_go_on(vm, &seen.shares))).collect()
}

/// Whether it runs.
async fn see_running(agent: &impl Host, vm: &VmFacts) -> bool {
    let id = vm.id;
    match call(agent.hypervisor(), move |hypervisor| hypervisor.see_running(id)).await {
        Ok(true) => {
            info!(vm = vm.name, "A VM that was taken for one that a disk's error had stopped runs");
            true
        }
        Ok(false) => false,
        Err(error) => {
            warn!(vm = vm.name, error = %chain(&error), "A VM stands still, and it is not known whether it does");
            false
        }
    }
}

async fn run_again(agent: &impl Host, vm: &VmFacts) {
    let id = vm.id;
    let resumed = call(agent.hypervisor(), move |hypervisor| {
        // It may have been paused on purpose since the last poll.
        let now = hypervisor.vm(id)?.filter(|facts| facts.state == VmState::Paused && facts.stall.is_some());
        now.map(|_| hypervisor.resume(id)).transpose().map(|done| done.is_some())
    });
    match resumed.await {
        Ok(true) => info!(vm = vm.name, stall = ?vm.stall, "A VM that stood still goes on: its share answers"),
        Ok(false) => {}
        Err(error) => warn!(vm = vm.name, error = %chain(&error), "A VM stands still and could not be run again"),
    }
}
