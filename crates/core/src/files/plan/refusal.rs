//! Why a file stays where it is, or cannot move.

use super::{copier::Copier, names::is_nvram};
use crate::{
    finding::{Finding, FindingId},
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
    let device = &file.device;
    let (id, message, fix) = match file.role {
        FileRole::Disk if file.shareable => (
            FindingId::DiskShareable,
            format!("Disk {device} of VM {} is shared with other VMs, and cannot be moved while they run", vm.name),
            format!(
                "Shut down every VM that uses it and move them to another host one after the other, each with the disk to the \
                 same place, `ferry vm migrate {} --to HOST --storage PLACE --offline`; start none before all have moved",
                vm.name
            ),
        ),
        FileRole::Disk if file.read_only => (
            FindingId::DiskReadOnly,
            format!("Disk {device} is read only: it stays where it is"),
            "Nothing; or copy the file and change the definition while the VM is shut off".to_owned(),
        ),
        FileRole::Disk | FileRole::Nvram => return None,
        FileRole::Media | FileRole::NotAFile if file.is_medium() => (
            FindingId::DiskReadOnly,
            format!("The medium in drive {device} stays where it is"),
            format!("Nothing; or eject it with `virsh change-media {} {device} --eject`", vm.name),
        ),
        FileRole::Boot => (
            FindingId::DiskReadOnly,
            format!("File {device} that VM {} boots from stays where it is", vm.name),
            "Nothing: it is read at a start only".to_owned(),
        ),
        FileRole::Media | FileRole::NotAFile => (
            FindingId::DiskNotAFile,
            format!("{device} of VM {} is {}, not a file of a disk: it stays where it is", vm.name, file.what()),
            "Nothing; or leave it out: Ferry moves files of disks".to_owned(),
        ),
    };
    let finding = if is_named { Finding::blocks } else { Finding::warns };
    Some(finding(id, device, message, fix))
}

/// libvirt keeps UEFI variables open while the VM runs, and copies only disks.
fn nvram_stays(vm: &VmFacts, file: &VmFile, to: Option<&Location>, is_named: bool) -> Finding {
    let new = match to {
        Some(Location::Local { path, .. }) if is_nvram(path) => path.clone(),
        Some(folder @ Location::Local { .. }) => folder.join(file.place.file_name().unwrap_or(NVRAM)).path().to_owned(),
        Some(Location::Share { .. }) | None => "NEW-FILE".to_owned(),
    };
    let (old, written) = match &file.place {
        Location::Local { path, .. } => (path.as_str(), path.clone()),
        Location::Share { path, .. } => ("OLD-FILE", format!("{path} on its share")),
    };
    let name = &vm.name;
    let finding = if is_named { Finding::blocks } else { Finding::warns };
    finding(
        FindingId::DiskNvram,
        &file.device,
        format!("The UEFI variables of VM {name} ({written}) stay where they are while it runs"),
        format!(
            "Nothing; or move them for its next start: `virsh shutdown {name}`, then `mv {old} {new}`, then write the new \
             path into <nvram> with `virsh edit {name}`, then `ferry vm start {name}`"
        ),
    )
}

/// What a copy of a running VM's disk would lose, or what prevents the copy.
fn not_kept(vm: &VmFacts, file: &VmFile) -> Option<Finding> {
    let (device, name) = (&file.device, &vm.name);
    let (id, message, fix) = match file.features.first()? {
        DiskFeature::Encrypted => (
            FindingId::DiskEncrypted,
            format!("Disk {device} of VM {name} is encrypted, and its copy would be plain"),
            "Move it while the VM is shut off: `ferry vm migrate --offline`, or by hand; or leave it out with `--disk` for \
             the others"
                .to_owned(),
        ),
        DiskFeature::Transient => (
            FindingId::DiskOdd,
            format!("Disk {device} of VM {name} is transient: a copy would keep what is to be forgotten"),
            "Shut the VM down first; or leave the disk out with `--disk` for the others".to_owned(),
        ),
        DiskFeature::Copied => (
            FindingId::DiskBusy,
            format!("Disk {device} of VM {name} is being copied to another file already"),
            format!("Wait until that has ended, or end it with `virsh blockjob {name} {device} --abort`"),
        ),
        DiskFeature::Sliced => (
            FindingId::DiskOdd,
            format!("Disk {device} of VM {name} is a part (<slices>) of its image"),
            "Copy that part into an image of its own while the VM is shut off; or leave it out with `--disk` for the others"
                .to_owned(),
        ),
        DiskFeature::DataFile => (
            FindingId::DiskOdd,
            format!("Disk {device} of VM {name} keeps its data in another file than its image, which would stay behind"),
            "Make one image of both with `qemu-img convert` while the VM is shut off; or leave it out with `--disk` for the \
             others"
                .to_owned(),
        ),
    };
    Some(Finding::blocks(id, device, message, fix))
}

/// What would be incomplete at the destination if only the file were copied.
fn not_whole(vm: &VmFacts, file: &VmFile) -> Option<Finding> {
    let (device, name) = (&file.device, &vm.name);
    let blocks = |id, message: String, fix: &str| Some(Finding::blocks(id, device, message, fix));
    if file.role == FileRole::NotAFile {
        let eject = format!("Eject it with `virsh change-media {name} {device} --eject --config`");
        return blocks(
            FindingId::DiskNotAFile,
            format!("{device} of VM {name} is {}, not a file of a disk", file.what()),
            match file.is_medium() {
                true => &eject,
                false => "Detach it before the move, and attach what the destination has instead",
            },
        );
    }
    if file.has(DiskFeature::DataFile) {
        return blocks(
            FindingId::DiskOdd,
            format!(
                "Disk {device} of VM {name} keeps its data in another file than its image, which would stay behind"
            ),
            "Make one image of both with `qemu-img convert`, and name that in the definition",
        );
    }
    if file.has_backing || !file.below.is_empty() {
        return blocks(
            FindingId::DiskFlattened,
            format!("Disk {device} of VM {name} is an overlay: the files below it would stay behind"),
            "Start the VM and move it live, which copies the whole chain; or flatten the disk with `qemu-img rebase`",
        );
    }
    None
}
