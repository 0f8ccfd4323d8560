//! Backing chains: the space that the images of a disk occupy together, and what a copy of them would lose.

use std::path::PathBuf;

use ferry_core::{
    finding::{Command, FindingId, Message},
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
    let (device, vm, path) = (&file.device, vm_name.to_owned(), file.place.display().to_string());
    Err(refused(
        FindingId::VmSnapshot,
        format!("{vm_name} {device}"),
        Message::ImageHoldsSnapshots { device: device.clone(), vm: vm.clone(), count: snapshots.into() },
        Command::RemoveSnapshotsOfImage { vm, file: path },
    ))
}
