//! What the two hosts have against a move: whether they answer, and whether the destination can take the VM.

use super::facts::{LiveFacts, Side};
use crate::{
    api::agent::API_VERSION,
    finding::{Finding, FindingId},
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
            format!("The agent on host {} does not answer", side.name),
            format!(
                "Check that the host is up and `ferry-agent run` is running on it; see `ferry host show {}`",
                side.name
            ),
        ));
    }
    if let Some(facts) = side.facts {
        if !facts.api_versions.contains(&API_VERSION) {
            findings.push(Finding::blocks(
                FindingId::HostVersion,
                side.name,
                format!(
                    "The agent on {} speaks versions {:?} of the agent API, this server version {API_VERSION}",
                    side.name, facts.api_versions
                ),
                format!("Upgrade ferry-agent on {}, or the server if it is the older", side.name),
            ));
        }
        for finding in &facts.findings {
            findings.push(Finding { object: side.name.to_owned(), ..finding.clone() });
        }
    }
    findings
}

/// The finding for a destination in maintenance.
pub(super) fn maintenance(destination: &Side<'_>) -> Option<Finding> {
    let name = destination.name;
    destination.maintenance.then(|| {
        Finding::blocks(
            FindingId::HostMaintenance,
            name,
            format!("Host {name} is in maintenance: nothing is placed there"),
            format!("Choose another host, or end the maintenance: `ferry host resume {name}`"),
        )
    })
}

/// Whether the destination has enough memory, a suitable QEMU, and no other VM of this name.
pub(super) fn room(facts: &LiveFacts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (vm, destination) = (facts.vm, &facts.destination);
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
                format!("Host {} already has a VM with UUID {}, named {}", destination.name, vm.id, other.name),
                format!(
                    "If it is a leftover, remove it on {}: `virsh undefine {}`; otherwise give one of them another UUID",
                    destination.name, other.name
                ),
            ));
        } else if other.name == vm.name {
            findings.push(Finding::blocks(
                FindingId::VmNameTaken,
                &vm.name,
                format!("Host {} already has another VM named {} (UUID {})", destination.name, vm.name, other.id),
                format!("Rename one of them: `virsh domrename {} NEW-NAME` on {}", vm.name, destination.name),
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
            format!(
                "VM {} has machine type {machine}, and QEMU {} on {} is older than that",
                vm.name, host.qemu_version, destination.name
            ),
            format!(
                "Choose a host with QEMU {needed} or later; or, while the VM is shut off, set an earlier machine type \
                 (`virsh edit {}`): guests may see other devices then",
                vm.name
            ),
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
            format!(
                "QEMU {} on {} emulates the processors of VM {}, and forgets some of the pages that it changes during a live \
                 move: the guest may crash at its destination",
                host.qemu_version, source.name, vm.name
            ),
            format!(
                "Shut the VM down and move it with `--offline`; or run it by KVM, or by QEMU {MOVES_EMULATED_SINCE} or later"
            ),
        )
    })
}
