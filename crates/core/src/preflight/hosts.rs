//! What the two hosts have against a move: whether they answer, and whether the destination can take the VM.

use super::facts::{LiveFacts, Side};
use crate::{
    api::agent::API_VERSION,
    finding::{Action, ByHand, Command, Finding, FindingId, Message},
    memory,
    release::{MOVES_EMULATED_SINCE, Release},
    vm::VmState,
};

/// Whether its agent answers, in a supported version, and the problems that the agent found on its host.
pub(super) fn state(side: &Side<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !side.reachable {
        findings.push(Finding::blocks(
            FindingId::HostUnreachable,
            side.name,
            Message::HostSilent { host: side.name.to_owned() },
            Command::StartAgent { host: side.name.to_owned() },
        ));
    }
    if let Some(facts) = side.facts {
        if !facts.api_versions.contains(&API_VERSION) {
            findings.push(versions_differ(side.name, &facts.api_versions));
        }
        for finding in &facts.findings {
            findings.push(Finding { object: side.name.to_owned(), ..finding.clone() });
        }
    }
    findings
}

/// The finding of a host whose agent speaks none of this server's versions.
pub fn versions_differ(host: &str, versions: &[u32]) -> Finding {
    let (host, versions) = (host.to_owned(), format!("{versions:?}"));
    let message = Message::HostVersions { host: host.clone(), versions, server: API_VERSION };
    Finding::blocks(FindingId::HostVersion, host.clone(), message, ByHand::UpgradeEither { host })
}

/// The finding for a destination in maintenance.
pub(super) fn maintenance(destination: &Side<'_>) -> Option<Finding> {
    let name = destination.name;
    destination.maintenance.then(|| {
        Finding::blocks(
            FindingId::HostMaintenance,
            name,
            Message::HostMaintenance { host: name.to_owned() },
            Action::EndMaintenance { host: name.to_owned() },
        )
    })
}

/// Whether the destination has enough memory, a suitable QEMU, and no other VM of this name.
pub(super) fn room(facts: &LiveFacts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (vm, destination) = (facts.vm, &facts.destination);
    let host_name = || destination.name.to_owned();
    // A VM that is shut off takes memory only when it is started.
    if let Some(host) = destination.facts.filter(|_| vm.state != VmState::ShutOff) {
        findings.extend(memory::findings(vm, destination.name, host, facts.promised, facts.overcommit));
    }
    findings.extend(machine_type(facts));
    findings.extend(emulation(facts));
    for other in destination.vms {
        if other.id == vm.id {
            findings.push(Finding::blocks(
                FindingId::VmUuidTaken,
                &vm.name,
                Message::VmUuidTaken { host: host_name(), uuid: vm.id.to_string(), other: other.name.clone() },
                Command::RemoveLeftover { host: host_name(), vm: other.name.clone() },
            ));
        } else if other.name == vm.name {
            findings.push(Finding::blocks(
                FindingId::VmNameTaken,
                &vm.name,
                Message::VmNameTaken { vm: vm.name.clone(), host: host_name(), uuid: other.id.to_string() },
                Command::RenameVm { vm: vm.name.clone(), host: host_name() },
            ));
        }
    }
    findings
}

/// QEMU knows the machine types of its own release and of earlier ones.
fn machine_type(facts: &LiveFacts<'_>) -> Option<Finding> {
    let (vm, destination) = (facts.vm, &facts.destination);
    let (machine, host) = (vm.machine.as_deref()?, destination.facts?);
    let (needed, has) = (Release::of_machine(machine)?, Release::of(&host.qemu_version)?);
    (needed > has).then(|| {
        Finding::blocks(
            FindingId::VmMachine,
            &vm.name,
            Message::VmMachine {
                vm: vm.name.clone(),
                machine: machine.to_owned(),
                qemu: host.qemu_version.clone(),
                host: destination.name.to_owned(),
            },
            Command::ChooseQemu { vm: vm.name.clone(), needed: needed.to_string() },
        )
    })
}

/// Old releases of QEMU cannot reliably migrate emulated processors.
fn emulation(facts: &LiveFacts<'_>) -> Option<Finding> {
    let (vm, source) = (facts.vm, &facts.source);
    let host = source.facts.filter(|_| vm.emulated)?;
    let forgets = Release::of(&host.qemu_version).is_some_and(|release| release < MOVES_EMULATED_SINCE);
    forgets.then(|| {
        Finding::warns(
            FindingId::HostRelease,
            &vm.name,
            Message::VmEmulated { vm: vm.name.clone(), qemu: host.qemu_version.clone(), host: source.name.to_owned() },
            Action::MoveOfflineOrKvm { since: MOVES_EMULATED_SINCE.to_string() },
        )
    })
}
