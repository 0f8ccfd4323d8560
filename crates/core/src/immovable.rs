//! Features of a VM that cannot move to another host: snapshots, checkpoints, host devices, an emulated TPM.

use crate::{
    finding::{Finding, FindingId},
    vm::VmFacts,
};

/// The findings that prevent any move of the VM to another host.
pub fn immovable(vm: &VmFacts) -> Vec<Finding> {
    let name = &vm.name;
    let mut findings = Vec::new();
    findings.extend(snapshots(vm, "do not move with it"));
    if vm.checkpoints > 0 {
        // libvirt refuses to remove a definition that has checkpoints.
        findings.push(Finding::blocks(
            FindingId::VmCheckpoint,
            name,
            format!("VM {name} has {} checkpoint(s) of incremental backups, which do not move along", vm.checkpoints),
            format!(
                "Forget them: `virsh checkpoint-list {name}`, then `virsh checkpoint-delete {name} CHECKPOINT --metadata`; \
                 the next backup is a full one"
            ),
        ));
    }
    for device in &vm.host_devices {
        findings.push(Finding::blocks(
            FindingId::VmHostDevice,
            format!("{name} {device}"),
            format!("VM {name} uses device {device} of its host"),
            "Detach the device from the VM before the move",
        ));
    }
    if vm.tpm {
        // libvirt keeps the TPM's state in a place of its own, away from the VM's other files.
        findings.push(Finding::blocks(
            FindingId::VmHostDevice,
            format!("{name} tpm"),
            format!("VM {name} has an emulated TPM, whose state lies on its host outside of the VM's files"),
            format!(
                "Move it by hand while it is shut off: copy its files and /var/lib/libvirt/swtpm/{} to the other host with \
                 `rsync -aS`, define there what `virsh dumpxml {name} --inactive` says, then \
                 `virsh undefine {name} --keep-nvram --keep-tpm` here",
                vm.id
            ),
        ));
    }
    findings
}

/// The finding about a VM's snapshots; `stand_in_the_way` states the reason.
pub fn snapshots(vm: &VmFacts, stand_in_the_way: &str) -> Option<Finding> {
    let (name, count) = (&vm.name, vm.snapshots);
    (count > 0).then(|| {
        Finding::blocks(
            FindingId::VmSnapshot,
            name,
            format!("VM {name} has {count} snapshot(s), which {stand_in_the_way}"),
            format!("Delete them: `virsh snapshot-list {name}`, then `virsh snapshot-delete {name} SNAPSHOT`"),
        )
    })
}
