//! What the VM itself has against a move.

use super::facts::LiveFacts;
use crate::{
    finding::{Action, Finding, FindingId, Message},
    id::JobId,
    power::paused_finding,
    vm::{VmFacts, VmState},
};

/// Why the VM cannot be moved while it runs: it does not run.
pub(super) fn state(facts: &LiveFacts<'_>) -> Option<Finding> {
    let (vm, source) = (facts.vm, facts.source.name);
    match vm.state {
        VmState::ShutOff => Some(Finding::blocks(
            FindingId::VmNotRunning,
            &vm.name,
            Message::VmShutOffOn { vm: vm.name.clone(), host: source.to_owned() },
            Action::StartVm { vm: vm.name.clone() },
        )),
        VmState::Running | VmState::Paused | VmState::Crashed | VmState::Suspended | VmState::Incoming => {
            paused_finding(vm, Some(source))
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
        Message::VmBusy { vm: vm_name.to_owned(), job },
        Action::WaitOrCancel { job },
    )
}
