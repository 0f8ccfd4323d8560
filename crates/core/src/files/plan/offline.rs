//! Which files of a VM that is shut off go where.

use super::{Requested, in_folder, is_file, misnamed};
use crate::{
    files::FileMove,
    finding::{Finding, FindingId},
    location::Location,
    power::not_shut_off,
    vm::{FileRole, Oddity, VmFacts, VmFile},
};

/// What moves, and what stands against it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlannedOffline {
    /// In the order of the definition.
    pub files: Vec<FileMove>,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Decides which files of a VM move when it is shut off: those that are named, and those that the destination does not
/// reach. All of them need a place, or the move is refused: nothing is left behind.
pub fn plan_offline(vm: &VmFacts, wanted: &Requested, is_reached: impl Fn(&Location) -> bool) -> PlannedOffline {
    let mut planned = PlannedOffline { files: Vec::new(), findings: whole(vm) };
    for (device, ..) in wanted.named.iter().filter(|(device, ..)| !vm.files.iter().any(|file| file.device == *device)) {
        planned.findings.push(Finding::blocks(
            FindingId::DiskUnknown,
            device,
            format!("VM {} has no disk {device}", vm.name),
            "See its disks with `ferry vm show`",
        ));
    }
    for file in &vm.files {
        let named = wanted.named.iter().find(|(device, ..)| *device == file.device);
        if file.role != FileRole::NotAFile && file.places().all(&is_reached) && named.is_none() {
            continue;
        }
        if let Some(finding) = refusal(vm, file) {
            planned.findings.push(finding);
            continue;
        }
        if let Some((_, _, Some(format))) = named
            && Some(*format) != file.format
        {
            planned.findings.push(Finding::blocks(
                FindingId::FilePlace,
                &file.device,
                format!("Disk {} keeps its format while VM {} is shut off", file.device, vm.name),
                format!(
                    "Leave the format out; change it later with `ferry vm move-storage {}` while the VM runs",
                    vm.name
                ),
            ));
        }
        match named.and_then(|(_, to, _)| to.as_ref()).or(wanted.all.as_ref()) {
            Some(to) => {
                if named.is_some() {
                    planned.findings.extend(file.format.and_then(|format| misnamed(&file.device, to, format)));
                }
                let to = file_in(to, file, &planned.files);
                let (device, role, from, real) =
                    (file.device.clone(), file.role, file.place.clone(), file.real.clone());
                let shareable = file.shareable && role == FileRole::Disk;
                planned.files.push(FileMove { device, role, from, real, to, shareable, kept: false });
            }
            None => planned.findings.push(Finding::blocks(
                FindingId::FilePlace,
                &file.device,
                format!("File {} of VM {} does not lie where the destination reaches it", file.device, vm.name),
                format!("Say where it goes: `--storage PLACE`, or `--disk {}=PLACE`", file.device),
            )),
        }
    }
    planned
}

fn whole(vm: &VmFacts) -> Vec<Finding> {
    let name = &vm.name;
    let mut findings = Vec::new();
    findings.extend(not_shut_off(vm));
    let mut blocks = |id, message: String, fix: String| findings.push(Finding::blocks(id, name, message, fix));
    if vm.snapshots > 0 {
        blocks(
            FindingId::VmSnapshot,
            format!("VM {name} has {} snapshot(s), which do not move with its definition", vm.snapshots),
            format!("Remove them: `virsh snapshot-list {name}`, `virsh snapshot-delete {name}`"),
        );
    }
    if vm.checkpoints > 0 {
        findings.push(checkpoints(vm));
    }
    let mut blocks = |id, message: String, fix: String| findings.push(Finding::blocks(id, name, message, fix));
    if vm.tpm {
        blocks(
            FindingId::VmHostDevice,
            format!("VM {name} has an emulated TPM, whose state lies outside of its files"),
            tpm_by_hand(vm),
        );
    }
    for device in &vm.host_devices {
        blocks(
            FindingId::VmHostDevice,
            format!("VM {name} uses device {device} of its host"),
            "Detach the device from the VM before the move".to_owned(),
        );
    }
    findings
}

/// The finding of checkpoints, with which libvirt removes no definition.
pub(crate) fn checkpoints(vm: &VmFacts) -> Finding {
    let name = &vm.name;
    Finding::blocks(
        FindingId::VmCheckpoint,
        name,
        format!("VM {name} has {} checkpoint(s) of incremental backups, which do not move along", vm.checkpoints),
        format!(
            "Forget them: `virsh checkpoint-list {name}`, then `virsh checkpoint-delete {name} CHECKPOINT --metadata`; the \
             next backup is a full one"
        ),
    )
}

/// How a VM with an emulated TPM gets to another host: libvirt keeps the TPM's state beside no other file of the VM.
pub(crate) fn tpm_by_hand(vm: &VmFacts) -> String {
    let name = &vm.name;
    format!(
        "Move it by hand while it is shut off: copy its files and /var/lib/libvirt/swtpm/{} to the other host with \
         `rsync -aS`, define there what `virsh dumpxml {name} --inactive` says, then \
         `virsh undefine {name} --keep-nvram --keep-tpm` here",
        vm.id
    )
}

/// Why a file cannot move.
fn refusal(vm: &VmFacts, file: &VmFile) -> Option<Finding> {
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
    if file.is(Oddity::DataFile) {
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
    if vm.files.iter().filter(|other| other.needs(file)).count() > 1 {
        return blocks(
            FindingId::DiskTwice,
            format!("Another disk of VM {name} uses the file of disk {device}, too"),
            "Give each disk a file of its own",
        );
    }
    None
}

/// The same name in a folder, or the file that was named. Two files never get the same.
fn file_in(to: &Location, file: &VmFile, others: &[FileMove]) -> Location {
    let (Location::Share { path, .. } | Location::Local { path, .. }) = to;
    if is_file(path) {
        return to.clone();
    }
    let (Location::Share { path: old, .. } | Location::Local { path: old, .. }) = &file.place;
    let name = old.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(&file.device);
    let plain = in_folder(to, name.to_owned());
    match others.iter().any(|other| other.to == plain) {
        true => in_folder(to, format!("{}-{name}", file.device)),
        false => plain,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        files::{OtherUser, shared_with},
        finding::Severity,
        fixtures,
        id::{HostId, ShareId},
        vm::{DiskFormat, VmState},
    };

    fn local(path: &str) -> Location {
        Location::Local { host: HostId(Uuid::from_u128(1)), path: path.into() }
    }

    fn file(role: FileRole, device: &str, path: &str) -> VmFile {
        VmFile { role, ..fixtures::disk(device, local(path)) }
    }

    fn vm() -> VmFacts {
        let files = vec![
            file(FileRole::Disk, "vda", "/a/disk.raw"),
            file(FileRole::Disk, "vdb", "/b/disk.raw"),
            file(FileRole::Media, "sda", "/iso/debian.iso"),
            file(FileRole::Nvram, "nvram", "/a/vars.fd"),
        ];
        VmFacts { state: VmState::ShutOff, ..fixtures::vm(9, files) }
    }

    fn to(path: &str) -> Requested {
        Requested { all: Some(local(path)), named: Vec::new() }
    }

    #[test]
    fn every_file_that_is_not_reached_moves_under_a_name_of_its_own() {
        let planned = plan_offline(&vm(), &to("/n"), |_| false);
        assert_eq!(planned.findings, []);
        let places: Vec<_> = planned.files.iter().map(|file| (file.device.as_str(), file.to.clone())).collect();
        let names =
            [("vda", "/n/disk.raw"), ("vdb", "/n/vdb-disk.raw"), ("sda", "/n/debian.iso"), ("nvram", "/n/vars.fd")];
        assert_eq!(places, names.map(|(device, path)| (device, local(path))));
        let removed: Vec<_> = planned.files.iter().filter(|file| file.is_removed()).map(|file| &*file.device).collect();
        assert_eq!(removed, ["vda", "vdb", "nvram"]);

        let reached = plan_offline(&vm(), &to("/n"), |place| *place == local("/iso/debian.iso"));
        assert_eq!(reached.files.len(), 3);
        let none = plan_offline(&vm(), &Requested::default(), |_| true);
        assert_eq!(none, PlannedOffline::default());
    }

    #[test]
    fn a_named_file_goes_where_it_is_named() {
        let share = Location::Share { share: ShareId(Uuid::from_u128(2)), path: "x/y.raw".into() };
        let wanted = Requested { all: None, named: vec![("vdb".into(), Some(share.clone()), None)] };
        let planned = plan_offline(&vm(), &wanted, |_| true);
        assert_eq!(planned.files.iter().map(|file| (&*file.device, &file.to)).collect::<Vec<_>>(), [("vdb", &share)]);
    }

    #[test]
    fn a_disk_that_is_meant_to_be_shared_is_kept_for_the_other_vm_and_no_other_file_is() {
        let mut vm = vm();
        vm.files[1].shareable = true;
        let planned = plan_offline(&vm, &to("/n"), |_| false).files;
        assert_eq!(planned.iter().map(|file| file.shareable).collect::<Vec<_>>(), [false, true, false, false]);
        let other = |is_shut_off| OtherUser { vm: "web02", host: "kvm1", is_shut_off };
        for (row, file, is_shut_off, id, severity) in [
            ("a disk of its own", &planned[0], true, FindingId::DiskTwice, Severity::Blocks),
            ("UEFI variables", &planned[3], true, FindingId::DiskTwice, Severity::Blocks),
            ("shared with one that runs", &planned[1], false, FindingId::DiskShareable, Severity::Blocks),
            ("shared with one that is shut off", &planned[1], true, FindingId::DiskShareable, Severity::Warns),
        ] {
            let found = shared_with("web01", file, other(is_shut_off), "kvm2");
            assert_eq!((found.id, found.severity), (id, severity), "{row}");
            assert!(found.message.contains("VM web02 on kvm1"), "{row}: {found:?}");
        }
        assert!(planned[1].is_removed() && !FileMove { kept: true, ..planned[1].clone() }.is_removed());
    }

    #[test]
    fn what_cannot_move_is_refused() {
        type Spoil = fn(&mut VmFacts, &mut Requested);
        let rows: [(&str, Spoil, FindingId); 19] = [
            ("running", |vm, _| vm.state = VmState::Running, FindingId::VmRunning),
            ("paused", |vm, _| vm.state = VmState::Paused, FindingId::VmRunning),
            ("crashed", |vm, _| vm.state = VmState::Crashed, FindingId::VmRunning),
            ("suspended", |vm, _| vm.state = VmState::Suspended, FindingId::VmRunning),
            ("incoming", |vm, _| vm.state = VmState::Incoming, FindingId::VmRunning),
            ("snapshots", |vm, _| vm.snapshots = 1, FindingId::VmSnapshot),
            ("checkpoints", |vm, _| vm.checkpoints = 1, FindingId::VmCheckpoint),
            ("tpm", |vm, _| vm.tpm = true, FindingId::VmHostDevice),
            ("host device", |vm, _| vm.host_devices.push("pci 1".into()), FindingId::VmHostDevice),
            ("block device", |vm, _| vm.files[1].role = FileRole::NotAFile, FindingId::DiskNotAFile),
            (
                "network disk",
                |vm, _| {
                    vm.files[1].role = FileRole::NotAFile;
                    vm.files[1].kind = Some("network iscsi".into());
                },
                FindingId::DiskNotAFile,
            ),
            (
                "drive with a block device",
                |vm, _| {
                    vm.files[2].role = FileRole::NotAFile;
                    vm.files[2].kind = Some("cdrom block".into());
                },
                FindingId::DiskNotAFile,
            ),
            ("overlay", |vm, _| vm.files[1].has_backing = true, FindingId::DiskFlattened),
            ("overlay by its header", |vm, _| vm.files[1].below = vec![local("/b/base.raw")], FindingId::DiskFlattened),
            ("data file", |vm, _| vm.files[1].oddities = vec![Oddity::DataFile], FindingId::DiskOdd),
            (
                "a name of another format",
                |_, wanted| wanted.named.push(("vda".into(), Some(local("/n/x.qcow2")), None)),
                FindingId::FilePlace,
            ),
            ("twice", |vm, _| vm.files[1].place = vm.files[0].place.clone(), FindingId::DiskTwice),
            ("no place", |_, wanted| wanted.all = None, FindingId::FilePlace),
            (
                "another format",
                |_, wanted| wanted.named.push(("vda".into(), None, Some(DiskFormat::Qcow2))),
                FindingId::FilePlace,
            ),
        ];
        for (row, spoil, id) in rows {
            let (mut vm, mut wanted) = (vm(), to("/n"));
            spoil(&mut vm, &mut wanted);
            let planned = plan_offline(&vm, &wanted, |_| false);
            assert!(crate::finding::any_blocks(&planned.findings), "{row}");
            assert!(planned.findings.iter().all(|finding| finding.id == id), "{row}: {:?}", planned.findings);
        }
        let mut vm_with_overlay = vm();
        vm_with_overlay.files[1].below = vec![local("/a/disk.raw")];
        let named = Requested { all: None, named: vec![("vda".into(), Some(local("/n")), None)] };
        assert_eq!(plan_offline(&vm_with_overlay, &named, |_| true).findings[0].id, FindingId::DiskTwice);
        let unknown = Requested { named: vec![("vdz".into(), None, None)], ..to("/n") };
        assert_eq!(plan_offline(&vm(), &unknown, |_| false).findings[0].id, FindingId::DiskUnknown);
    }
}
