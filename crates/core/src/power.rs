//! What a VM's power state has against a request.

use crate::{
    finding::{Action, Command, Finding, FindingId, Fix, Message, Phrase},
    vm::{Stall, VmFacts, VmState},
};

/// Why a VM with a process does not run, and what to do about it; `None` if it runs, or has no process. `host` is where
/// it is; pass `None` if the reader is on that host.
pub fn paused_finding<F>(vm: &VmFacts<F>, host: Option<&str>) -> Option<Finding> {
    let on = || -> Phrase { host.map_or(Message::Empty, |host| Message::OnHost { host: host.to_owned() }).into() };
    let name = || vm.name.clone();
    let (id, message, fix): (_, _, Fix) = match vm.state {
        VmState::Running | VmState::ShutOff => return None,
        VmState::Paused => {
            let (message, fix) = paused(vm, &on);
            (FindingId::VmPaused, message, fix.into())
        }
        VmState::Crashed => (
            FindingId::VmCrashed,
            Message::VmCrashed { vm: name(), on: on() },
            Command::DestroyAndStart { vm: name(), on: on() }.into(),
        ),
        VmState::Suspended => (
            FindingId::VmSuspended,
            Message::VmSuspended { vm: name(), on: on() },
            Command::Wake { vm: name(), on: on() }.into(),
        ),
        VmState::Incoming => {
            (FindingId::VmBusy, Message::VmIncoming { vm: name(), on: on() }, Action::WaitForMove.into())
        }
    };
    Some(Finding::blocks(id, &vm.name, message, fix))
}

fn paused<F>(vm: &VmFacts<F>, on: &impl Fn() -> Phrase) -> (Message, Command) {
    let name = || vm.name.clone();
    match &vm.stall {
        None => (Message::VmPaused { vm: name(), on: on() }, Command::Resume { vm: name(), on: on() }),
        Some(Stall { devices, full: true }) => (
            Message::VmHasNoRoom { vm: name(), on: on(), disks: devices.iter().collect() },
            Command::MakeRoomAndResume { vm: name(), on: on() },
        ),
        Some(Stall { devices, full: false }) => (
            Message::VmHasNoStorage { vm: name(), on: on(), disks: devices.iter().collect() },
            Command::MendStorageAndResume { vm: name(), on: on() },
        ),
    }
}

/// The finding that a VM cannot be copied from while it runs, because it does not run. `None` if it runs.
pub fn not_running<F>(vm: &VmFacts<F>) -> Option<Finding> {
    let shut_off = || {
        let name = || vm.name.clone();
        let message = Message::VmShutOff { vm: name() };
        Finding::blocks(FindingId::VmNotRunning, &vm.name, message, Action::StartVmOrOffline { vm: name() })
    };
    paused_finding(vm, None).or_else(|| (vm.state == VmState::ShutOff).then(shut_off))
}

/// The finding that a VM cannot be moved offline, because it has a process. `None` if it is shut off.
pub fn not_shut_off<F>(vm: &VmFacts<F>) -> Option<Finding> {
    let name = vm.name.clone();
    let (message, fix) = match vm.state {
        VmState::ShutOff => return None,
        VmState::Running => (Message::VmRuns { vm: name }, Action::RunOffline.into()),
        VmState::Paused | VmState::Crashed | VmState::Suspended | VmState::Incoming => {
            let Finding { message, fix, .. } = paused_finding(vm, None)?;
            (Message::VmNotShutOff { vm: name, state: message.into() }, fix)
        }
    };
    Some(Finding::blocks(FindingId::VmRunning, &vm.name, message, fix))
}
