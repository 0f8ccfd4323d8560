//! Runs VMs again that QEMU stopped because their file server was away.
//!
//! Nothing more than what a share that is mounted `hard` promises: VMs on it wait, and go on by themselves. Whether a VM may
//! is [`ferry_core::stall`]'s to say.

use std::{
    sync::Weak,
    time::{Duration, Instant},
};

use ferry_core::{
    stall::{Tries, may_go_on},
    vm::{VmFacts, VmState},
};
use tracing::{info, warn};

use crate::{Agent, error::chain, migration::carrier::blocking};

/// How often what the host has is looked through.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks after stopped VMs as long as the agent lives.
pub(crate) async fn look_after(agent: Weak<Agent>) {
    let (begun, mut tries) = (Instant::now(), Tries::default());
    while let Some(agent) = agent.upgrade() {
        for vm in stopped(&agent) {
            // A VM that is moved is its carriers' to run.
            if !agent.migrations.moves(vm.id) && tries.due(vm.id, begun.elapsed()) {
                run_again(&agent, &vm).await;
            }
        }
        drop(agent);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The VMs that may go on. Nearly always none: only they are copied.
fn stopped(agent: &Agent) -> Vec<VmFacts> {
    let seen = agent.observer.latest();
    let Some(seen) = seen.as_ref() else { return Vec::new() };
    seen.vms.iter().filter(|vm| may_go_on(vm, &seen.shares)).cloned().collect()
}

async fn run_again(agent: &Agent, vm: &VmFacts) {
    let id = vm.id;
    let resumed = blocking(&agent.hypervisor, move |hypervisor| {
        // Somebody may have paused it on purpose since it was looked at.
        let now = hypervisor.vm(id)?.filter(|facts| facts.state == VmState::Paused && facts.stall.is_some());
        now.map(|_| hypervisor.resume(id)).transpose().map(|done| done.is_some())
    });
    match resumed.await {
        Ok(true) => info!(vm = vm.name, stall = ?vm.stall, "a VM that stood still goes on: its share answers"),
        Ok(false) => {}
        Err(error) => warn!(vm = vm.name, error = %chain(&error), "a VM stands still and could not be run again"),
    }
}
