//! What the VM itself has against a move.

use super::facts::LiveFacts;
use crate::{
    finding::{Finding, FindingId},
    id::JobId,
    power::stands_still,
    vm::{VmFacts, VmState},
};

/// Why the VM cannot be moved while it runs: it does not run.
pub(super) fn state(facts: &LiveFacts<'_>) -> Option<Finding> {
    let (vm, source) = (facts.vm, facts.source.name);
    match vm.state {
        VmState::ShutOff => Some(Finding::blocks(
            FindingId::VmNotRunning,
            &vm.name,
            format!("VM {} is shut off on {source}", vm.name),
            format!("Start it first: `ferry vm start {}`; or move it as it is with `--offline`", vm.name),
        )),
        VmState::Running | VmState::Paused | VmState::Crashed | VmState::Suspended | VmState::Incoming => {
            stands_still(vm, Some(source))
        }
    }
}

/// The finding for a VM that another job moves.
pub fn busy(vm: &VmFacts, job: JobId) -> Finding {
    busy_by(&vm.name, job)
}

/// As [`busy`], for a VM known by its name.
pub fn busy_by(vm_name: &str, job: JobId) -> Finding {
    Finding::blocks(
        FindingId::VmBusy,
        vm_name,
        format!("Job {job} moves VM {vm_name} now"),
        format!("Wait for it (`ferry job watch {job}`) or cancel it (`ferry job cancel {job}`)"),
    )
}
