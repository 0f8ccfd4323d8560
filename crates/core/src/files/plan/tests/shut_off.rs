//! Files of a VM that is shut off.

use super::*;
use crate::{
    files::{OtherUser, shared_with},
    vm::{Drive, NotAFile},
};

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

#[test]
fn every_file_that_is_not_reached_moves_under_a_name_of_its_own() {
    let planned = plan_offline(&vm(), &all_to(local("/n")), |_| false);
    assert_eq!(planned.findings, []);
    let places: Vec<_> = planned.moves.iter().map(|file| (file.device.as_str(), file.to.clone())).collect();
    let names = [("vda", "/n/disk.raw"), ("vdb", "/n/vdb-disk.raw"), ("sda", "/n/debian.iso"), ("nvram", "/n/vars.fd")];
    assert_eq!(places, names.map(|(device, path)| (device, local(path))));
    let removed: Vec<_> = planned.moves.iter().filter(|file| file.is_removed()).map(|file| &*file.device).collect();
    assert_eq!(removed, ["vda", "vdb", "nvram"]);

    let reached = plan_offline(&vm(), &all_to(local("/n")), |place| *place == local("/iso/debian.iso"));
    assert_eq!(reached.moves.len(), 3);
    let none = plan_offline(&vm(), &Requested::default(), |_| true);
    assert_eq!(none, Planned { moves: Vec::new(), findings: Vec::new() });
}

#[test]
fn a_named_file_goes_where_it_is_named() {
    let share = share("x/y.raw");
    let requested = Requested { all: None, named: vec![("vdb".into(), Some(share.clone()), None)] };
    let planned = plan_offline(&vm(), &requested, |_| true);
    assert_eq!(planned.moves.iter().map(|file| (&*file.device, &file.to)).collect::<Vec<_>>(), [("vdb", &share)]);
}

#[test]
fn a_disk_that_is_meant_to_be_shared_is_kept_for_the_other_vm_and_no_other_file_is() {
    let mut vm = vm();
    vm.files[1].shareable = true;
    let planned = plan_offline(&vm, &all_to(local("/n")), |_| false).moves;
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
        assert!(found.message.to_string().contains("VM web02 on kvm1"), "{row}: {found:?}");
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
                vm.files[1].kind = Some(NotAFile::Network(Some("iscsi".into())));
            },
            FindingId::DiskNotAFile,
        ),
        (
            "drive with a block device",
            |vm, _| {
                vm.files[2].role = FileRole::NotAFile;
                vm.files[2].kind = Some(NotAFile::Medium(Drive::CdRom, "block".into()));
            },
            FindingId::DiskNotAFile,
        ),
        ("overlay", |vm, _| vm.files[1].has_backing = true, FindingId::DiskFlattened),
        ("overlay by its header", |vm, _| vm.files[1].below = vec![local("/b/base.raw")], FindingId::DiskFlattened),
        ("data file", |vm, _| vm.files[1].features = vec![DiskFeature::DataFile], FindingId::DiskOdd),
        (
            "a name of another format",
            |_, requested| requested.named.push(("vda".into(), Some(local("/n/x.qcow2")), None)),
            FindingId::FilePlace,
        ),
        ("twice", |vm, _| vm.files[1].place = vm.files[0].place.clone(), FindingId::DiskTwice),
        ("no place", |_, requested| requested.all = None, FindingId::FilePlace),
        (
            "another format",
            |_, requested| requested.named.push(("vda".into(), None, Some(DiskFormat::Qcow2))),
            FindingId::FilePlace,
        ),
    ];
    for (row, spoil, id) in rows {
        let (mut vm, mut requested) = (vm(), all_to(local("/n")));
        spoil(&mut vm, &mut requested);
        let planned = plan_offline(&vm, &requested, |_| false);
        assert!(crate::finding::any_blocks(&planned.findings), "{row}");
        assert!(planned.findings.iter().all(|finding| finding.id == id), "{row}: {:?}", planned.findings);
    }
    let mut vm_with_overlay = vm();
    vm_with_overlay.files[1].below = vec![local("/a/disk.raw")];
    let named = Requested { all: None, named: vec![("vda".into(), Some(local("/n")), None)] };
    assert_eq!(plan_offline(&vm_with_overlay, &named, |_| true).findings[0].id, FindingId::DiskTwice);
    let unknown = Requested { named: vec![("vdz".into(), None, None)], ..all_to(local("/n")) };
    assert_eq!(plan_offline(&vm(), &unknown, |_| false).findings[0].id, FindingId::DiskUnknown);
}
