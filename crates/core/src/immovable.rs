//! Features of a VM that cannot move to another host: snapshots, checkpoints, host devices, an emulated TPM.

use crate::{
    finding::{ByHand, Command, Finding, FindingId, Message},
    vm::{NotAFile, VmFacts, VmFile},
};

/// The findings that prevent any move of the VM to another host.
pub fn immovable(vm: &VmFacts) -> Vec<Finding> {
    let name = &vm.name;
    let mut findings = Vec::new();
    findings.extend(snapshots(vm, |vm, count| Message::VmSnapshots { vm, count }));
    if vm.checkpoints > 0 {
        // libvirt refuses to remove a definition that has checkpoints.
        findings.push(Finding::blocks(
            FindingId::VmCheckpoint,
            name,
            Message::VmCheckpoints { vm: name.clone(), count: vm.checkpoints.into() },
            Command::DeleteCheckpoints { vm: name.clone() },
        ));
    }
    for device in &vm.host_devices {
        findings.push(Finding::blocks(
            FindingId::VmHostDevice,
            format!("{name} {device}"),
            Message::VmHostDevice { vm: name.clone(), device: device.to_string() },
            ByHand::DetachDevice,
        ));
    }
    if vm.tpm {
        // libvirt keeps the TPM's state in a place of its own, away from the VM's other files.
        findings.push(Finding::blocks(
            FindingId::VmHostDevice,
            format!("{name} tpm"),
            Message::VmTpm { vm: name.clone() },
            Command::MoveTpm { vm: name.clone(), uuid: vm.id.to_string() },
        ));
    }
    findings
}

/// The finding about a VM's snapshots; `message` states the reason.
pub fn snapshots(vm: &VmFacts, message: impl Fn(String, u64) -> Message) -> Option<Finding> {
    let (name, count) = (&vm.name, u64::from(vm.snapshots));
    (count > 0).then(|| {
        let fix = Command::DeleteSnapshots { vm: name.clone() };
        Finding::blocks(FindingId::VmSnapshot, name, message(name.clone(), count), fix)
    })
}

/// What a disk or medium is that is no file.
pub fn what<F>(file: &VmFile<F>) -> Message {
    match &file.kind {
        Some(NotAFile::Block) => Message::ABlockDevice,
        Some(NotAFile::Volume) => Message::AVolume,
        Some(kind @ NotAFile::Network(_)) => Message::ANetworkDisk { kind: kind.to_string() },
        Some(NotAFile::Nvdimm) => Message::AMemoryDevice,
        Some(kind @ NotAFile::Filesystem(_)) => Message::AHostFolder { kind: kind.to_string() },
        Some(kind @ (NotAFile::Medium(..) | NotAFile::Other(_))) => Message::OfType { kind: kind.to_string() },
        None => Message::ADeviceOrNetworkDisk,
    }
}
