//! Why a file stays where it is, or cannot move.

use super::{copier::Copier, names::is_nvram};
use crate::{
    finding::{Action, ByHand, Command, Finding, FindingId, Fix, Message},
    immovable::what,
    location::Location,
    vm::{DiskFeature, FileRole, NVRAM, VmFacts, VmFile},
};

/// Why a file does not move to `to`. For a named file that can stay this is an error, otherwise a remark.
pub(super) fn refusal(
    vm: &VmFacts,
    file: &VmFile,
    copier: Copier,
    to: Option<&Location>,
    is_named: bool,
) -> Option<Finding> {
    match (copier, file.role) {
        (Copier::Hypervisor, FileRole::Nvram) => Some(nvram_stays(vm, file, to, is_named)),
        // They travel with the guest's memory.
        (Copier::Carrier { .. }, FileRole::Nvram) => None,
        (Copier::Hypervisor | Copier::Carrier { .. }, _) => stays(vm, file, is_named).or_else(|| not_kept(vm, file)),
        (Copier::Ferry, _) => not_whole(vm, file),
    }
}

/// Files that stay while the VM runs, whether it stays on its host or moves to another.
fn stays(vm: &VmFacts, file: &VmFile, is_named: bool) -> Option<Finding> {
    let (device, vm) = (file.device.clone(), vm.name.clone());
    let (id, message, fix): (_, _, Fix) = match file.role {
        FileRole::Disk if file.shareable => (
            FindingId::DiskShareable,
            Message::DiskSharedRunning { device, vm: vm.clone() },
            Action::MoveOffline { vm }.into(),
        ),
        FileRole::Disk if file.read_only => {
            (FindingId::DiskReadOnly, Message::DiskReadOnly { device }, ByHand::NothingOrCopyFile.into())
        }
        FileRole::Disk | FileRole::Nvram => return None,
        FileRole::Media | FileRole::NotAFile if file.is_medium() => (
            FindingId::DiskReadOnly,
            Message::MediumStays { device: device.clone() },
            Command::NothingOrEject { vm, device }.into(),
        ),
        FileRole::Boot => (FindingId::DiskReadOnly, Message::BootFileStays { device, vm }, ByHand::ReadAtStart.into()),
        FileRole::Media | FileRole::NotAFile => (
            FindingId::DiskNotAFile,
            Message::NotAFileStays { device, vm, what: what(file).into() },
            ByHand::NothingOrLeaveOutFile.into(),
        ),
    };
    let finding = if is_named { Finding::blocks } else { Finding::warns };
    Some(finding(id, &file.device, message, fix))
}

/// libvirt keeps UEFI variables open while the VM runs, and copies only disks.
fn nvram_stays(vm: &VmFacts, file: &VmFile, to: Option<&Location>, is_named: bool) -> Finding {
    let new = match to {
        Some(Location::Local { path, .. }) if is_nvram(path) => path.clone(),
        Some(folder @ Location::Local { .. }) => folder.join(file.place.file_name().unwrap_or(NVRAM)).path().to_owned(),
        Some(Location::Share { .. }) | None => "NEW-FILE".to_owned(),
    };
    let name = || vm.name.clone();
    let (old, message) = match &file.place {
        Location::Local { path, .. } => (path.clone(), Message::NvramStays { vm: name(), path: path.clone() }),
        Location::Share { path, .. } => {
            ("OLD-FILE".to_owned(), Message::NvramStaysOnShare { vm: name(), path: path.clone() })
        }
    };
    let finding = if is_named { Finding::blocks } else { Finding::warns };
    finding(FindingId::DiskNvram, &file.device, message, Command::MoveNvramByHand { vm: name(), old, new })
}

/// What a copy of a running VM's disk would lose, or what prevents the copy.
fn not_kept(vm: &VmFacts, file: &VmFile) -> Option<Finding> {
    let (device, vm) = (file.device.clone(), vm.name.clone());
    let (id, message, fix): (_, _, Fix) = match file.features.first()? {
        DiskFeature::Encrypted => {
            (FindingId::DiskEncrypted, Message::DiskEncrypted { device, vm }, Action::MoveOfflineOrLeaveOut.into())
        }
        DiskFeature::Transient => {
            (FindingId::DiskOdd, Message::DiskTransient { device, vm }, ByHand::ShutDownOrLeaveOut.into())
        }
        DiskFeature::Copied => (
            FindingId::DiskBusy,
            Message::DiskCopied { device: device.clone(), vm: vm.clone() },
            Command::EndCopy { vm, device }.into(),
        ),
        DiskFeature::Sliced => (FindingId::DiskOdd, Message::DiskSliced { device, vm }, ByHand::CopyPart.into()),
        DiskFeature::DataFile => {
            (FindingId::DiskOdd, Message::DiskDataFile { device, vm }, Command::JoinDataFileOrLeaveOut.into())
        }
    };
    Some(Finding::blocks(id, &file.device, message, fix))
}

/// What would be incomplete at the destination if only the file were copied.
fn not_whole(vm: &VmFacts, file: &VmFile) -> Option<Finding> {
    let (device, vm) = (file.device.clone(), vm.name.clone());
    let (id, message, fix): (_, _, Fix) = if file.role == FileRole::NotAFile {
        let message = Message::NotAFile { device: device.clone(), vm: vm.clone(), what: what(file).into() };
        let fix = match file.is_medium() {
            true => Command::EjectKept { vm, device }.into(),
            false => ByHand::DetachDisk.into(),
        };
        (FindingId::DiskNotAFile, message, fix)
    } else if file.has(DiskFeature::DataFile) {
        (FindingId::DiskOdd, Message::DiskDataFile { device, vm }, Command::JoinDataFile.into())
    } else if file.has_backing || !file.below.is_empty() {
        (FindingId::DiskFlattened, Message::DiskOverlay { device, vm }, Action::MoveLive.into())
    } else {
        return None;
    };
    Some(Finding::blocks(id, &file.device, message, fix))
}
