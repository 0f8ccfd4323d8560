//! What a VM's power state has against a request.

use crate::{
    finding::{Finding, FindingId},
    vm::{Stall, VmFacts, VmState},
};

/// Why a VM with a process does not run, and what to do about it; `None` if it runs, or has no process. `host` is where
/// it is; pass `None` if the reader is on that host.
pub fn stands_still<F>(vm: &VmFacts<F>, host: Option<&str>) -> Option<Finding> {
    let name = &vm.name;
    let on = host.map(|host| format!(" on {host}")).unwrap_or_default();
    let (id, message, fix) = match vm.state {
        VmState::Running | VmState::ShutOff => return None,
        VmState::Paused => return Some(paused(vm, &on)),
        VmState::Crashed => (
            FindingId::VmCrashed,
            format!("The guest of VM {name} crashed{on}, and its process is kept as its definition asks"),
            format!(
                "Keep what is left of it, if that is wanted (`virsh dump {name} FILE`{on}); then \
                 `virsh destroy {name}`{on}, and start it anew with `ferry vm start {name}`"
            ),
        ),
        VmState::Suspended => (
            FindingId::VmSuspended,
            format!("The guest of VM {name} suspended itself to memory{on}"),
            format!("Wake it first: `virsh dompmwakeup {name}`{on}"),
        ),
        VmState::Incoming => (
            FindingId::VmBusy,
            format!("VM {name} is the receiving end of a move{on}"),
            "Wait for that move to end; `ferry job list` shows it".to_owned(),
        ),
    };
    Some(Finding::blocks(id, name, message, fix))
}

fn paused<F>(vm: &VmFacts<F>, on: &str) -> Finding {
    let name = &vm.name;
    let (message, fix) = match &vm.stall {
        None => (
            format!("VM {name} is paused{on}"),
            format!("Find out why (`virsh domstate --reason {name}`{on}), then `virsh resume {name}`"),
        ),
        Some(Stall { devices, full: true }) => (
            format!("VM {name} stands still{on}: there is no room for what it writes to {}", devices.join(", ")),
            format!(
                "Make room where its disk lies. On a share that tells its free space the VM is then run again by itself; \
                 else `virsh resume {name}`{on}"
            ),
        ),
        Some(Stall { devices, full: false }) => (
            format!("VM {name} stands still{on}: {} could not be read or written", devices.join(", ")),
            format!(
                "See that its storage answers. Where that is a share, the VM is run again by itself; else \
                 `virsh resume {name}`{on}"
            ),
        ),
    };
    Finding::blocks(FindingId::VmPaused, name, message, fix)
}

/// The finding that a VM cannot be copied from while it runs, because it does not run. `None` if it runs.
pub fn not_running<F>(vm: &VmFacts<F>) -> Option<Finding> {
    let shut_off = || {
        Finding::blocks(
            FindingId::VmNotRunning,
            &vm.name,
            format!("VM {} is shut off", vm.name),
            format!("Start it with `ferry vm start {}`, or move its files to another host with `--offline`", vm.name),
        )
    };
    stands_still(vm, None).or_else(|| (vm.state == VmState::ShutOff).then(shut_off))
}

/// The finding that a VM cannot be moved offline, because it has a process. `None` if it is shut off.
pub fn not_shut_off<F>(vm: &VmFacts<F>) -> Option<Finding> {
    let name = &vm.name;
    let (message, fix) = match vm.state {
        VmState::ShutOff => return None,
        VmState::Running => (
            format!("VM {name} is not shut off: an offline move is never made of a VM that runs"),
            "Leave `--offline` out to move it while it runs, or shut it down first".to_owned(),
        ),
        VmState::Paused | VmState::Crashed | VmState::Suspended | VmState::Incoming => {
            let Finding { message, fix, .. } = stands_still(vm, None)?;
            (format!("VM {name} is not shut off, and only such a VM moves offline: {message}"), fix)
        }
    };
    Some(Finding::blocks(FindingId::VmRunning, name, message, fix))
}
