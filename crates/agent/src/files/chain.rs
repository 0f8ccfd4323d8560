//! Backing chains: the space that the images of a disk occupy together, and what a copy of them would lose.

use std::path::PathBuf;

use ferry_core::{
    finding::FindingId,
    units::ByteCount,
    vm::{DiskFormat, VmFile},
};
use ferry_drivers::{file, image};

use crate::{AgentError, refusal::refused};

/// The space that the whole chain of a disk occupies; its topmost image occupies `top`. A copy contains all of them.
pub(crate) fn chain_takes(file: &VmFile<PathBuf>, top: ByteCount) -> ByteCount {
    let below = file.below.iter().map(|path| file::allocated(path).unwrap_or_default().0);
    ByteCount(below.fold(top.0, u64::saturating_add))
}

/// Refuses an image that contains snapshots: a copy of what the guest sees would lose them. libvirt may not know of
/// them.
///
/// # Errors
/// `vm.snapshot`; the file system's.
pub(crate) fn holds_no_snapshots(file: &VmFile<PathBuf>, vm_name: &str) -> Result<(), AgentError> {
    // The content of a raw image belongs to the guest, whatever it looks like.
    if file.format == Some(DiskFormat::Raw) {
        return Ok(());
    }
    let fault = |source| AgentError::File { path: file.place.clone(), source };
    let snapshots = image::header(&file.place).map_err(fault)?.unwrap_or_default().snapshots;
    if snapshots == 0 {
        return Ok(());
    }
    let (device, path) = (&file.device, file.place.display());
    Err(refused(
        FindingId::VmSnapshot,
        format!("{vm_name} {device}"),
        format!("The image of disk {device} of VM {vm_name} holds {snapshots} snapshot(s), which a copy would lose"),
        format!(
            "Remove them: those that `virsh snapshot-list {vm_name}` shows with `virsh snapshot-delete`, others while the \
             VM is shut off with `qemu-img snapshot -l {path}` and `qemu-img snapshot -d NAME {path}`"
        ),
    ))
}
