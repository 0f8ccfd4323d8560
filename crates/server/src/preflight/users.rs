//! Finds other users of a file that moves: VMs of any host, by their running and persistent definitions and all images
//! below their disks.

use std::sync::Arc;

use ferry_core::{
    files::DiskMove,
    finding::{ByHand, Command, Finding, FindingId, Fix, Message},
    id::VmId,
    job_text::JobText,
};

use crate::inventory::Inventory;

/// Why old files of a VM stay: what VMs of any host, asked now, need of them.
pub(crate) async fn needed_by_others_now(inventory: &Arc<Inventory>, vm: VmId, disks: &[DiskMove]) -> Vec<JobText> {
    inventory.refresh_all().await;
    let found = used_by_others(inventory, vm, disks);
    found.into_iter().map(|finding| JobText::OldFilesStay { why: finding.message.into() }).collect()
}

/// The findings about files that another VM of any host needs, as a disk or below an overlay: the move would take them
/// away.
pub(crate) fn used_by_others(inventory: &Inventory, vm: VmId, disks: &[DiskMove]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (host, seen) in inventory.placed() {
        for other in seen.vms().iter().filter(|other| other.id != vm) {
            for disk in disks.iter().filter(|disk| other.files.iter().any(|file| disk.is_needed_by(file))) {
                let is_base = !other.files.iter().any(|file| disk.leaves(file));
                let fix = if is_base { Fix::from(Command::PullBlocks) } else { ByHand::OwnFiles.into() };
                findings.push(Finding::blocks(
                    FindingId::DiskTwice,
                    &disk.device,
                    Message::DiskOfOther {
                        vm: other.name.clone(),
                        host: host.name().to_owned(),
                        device: disk.device.clone(),
                    },
                    fix,
                ));
            }
        }
    }
    findings
}
