//! Which file goes where, as tables; and, for any VM and request, that no file is forgotten or overwritten.

mod running;
mod shut_off;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{
    finding::{Severity, any_blocks},
    fixtures,
    id::ShareId,
    vm::DiskFeature,
};

const HOST: HostId = HostId(Uuid::from_u128(1));
const SHARE: ShareId = ShareId(Uuid::from_u128(2));
const THERE: HostId = HostId(Uuid::from_u128(4));

fn local(path: &str) -> Location {
    Location::Local { host: HOST, path: path.into() }
}

fn share(path: &str) -> Location {
    Location::Share { share: SHARE, path: path.into() }
}

fn all_to(to: Location) -> Requested {
    Requested { all: Some(to), named: Vec::new() }
}

fn any_file(device: usize) -> impl Strategy<Value = VmFile> {
    let roles = [FileRole::Disk, FileRole::Disk, FileRole::Media, FileRole::Nvram, FileRole::Boot, FileRole::NotAFile];
    let names = ["/a/x.raw", "/b/x.raw", "/b/x.qcow2", "/b/x-vd1.raw", "/a/vd1-x.raw", "/v/x_VARS.fd"];
    let role = prop::sample::select(roles.to_vec());
    (role, prop::sample::select(names.to_vec()), any::<[bool; 4]>()).prop_map(
        move |(role, path, [on_share, shareable, read_only, has_backing])| {
            let place = if on_share { share(path) } else { local(path) };
            VmFile { role, shareable, read_only, has_backing, ..fixtures::disk(&format!("vd{device}"), place) }
        },
    )
}

fn any_request() -> impl Strategy<Value = Requested> {
    let place = || {
        prop::option::of(prop::sample::select(vec![local("/n"), local("/n/x.raw"), local("/n/y.qcow2"), share("d")]))
    };
    let format = prop::option::of(prop::sample::select(vec![DiskFormat::Raw, DiskFormat::Qcow2]));
    let named = prop::collection::vec(((0..4usize).prop_map(|index| format!("vd{index}")), place(), format), 0..3);
    (place(), named).prop_map(|(all, named)| Requested { all, named })
}

proptest! {
    #[test]
    fn a_plan_that_is_not_refused_gives_every_file_that_is_named_a_new_one_of_its_own(
        files in (any_file(0), any_file(1), any_file(2), any_file(3)),
        requested in any_request(),
    ) {
        let vm = fixtures::vm(9, vec![files.0, files.1, files.2, files.3]);
        let shut_off = VmFacts { state: VmState::ShutOff, ..vm.clone() };
        let is_reached = |place: &Location| place.share().is_some();
        let of_disk = |disk: DiskMove| (disk.device, disk.to);
        let of_file = |file: FileMove| (file.device, file.to);
        let storage = plan_storage(&vm, &requested);
        let live = plan_live(&vm, &requested, THERE, is_reached);
        let offline = plan_offline(&shut_off, &requested, is_reached);
        for file in &offline.moves {
            let is_named = requested.named.iter().any(|(device, ..)| *device == file.device);
            prop_assert!(is_named || !is_reached(&file.from), "{file:?} could stay");
        }
        for (findings, moves) in [
            (storage.findings, storage.moves.into_iter().map(of_disk).collect::<Vec<_>>()),
            (live.findings, live.moves.into_iter().map(of_disk).collect()),
            (offline.findings, offline.moves.into_iter().map(of_file).collect()),
        ] {
            if any_blocks(&findings) {
                continue;
            }
            for (device, ..) in &requested.named {
                prop_assert!(moves.iter().any(|(moved, _)| moved == device), "{device} was named");
            }
            for (index, (device, to)) in moves.iter().enumerate() {
                prop_assert!(moves[..index].iter().all(|(other, place)| other != device && place != to), "{moves:?}");
            }
        }
    }
}

#[test]
fn two_files_are_never_given_one_place() {
    let disks = || vec![fixtures::disk("vda", local("/a/x.raw")), fixtures::disk("vdb", local("/b/y.raw"))];
    let (vm, shut_off) = (fixtures::vm(9, disks()), VmFacts { state: VmState::ShutOff, ..fixtures::vm(9, disks()) });
    let one_file = all_to(local("/n/z.raw"));
    for findings in [
        plan_storage(&vm, &one_file).findings,
        plan_live(&vm, &one_file, THERE, |_| false).findings,
        plan_offline(&shut_off, &one_file, |_| false).findings,
    ] {
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((finding.id, finding.severity), (FindingId::DiskTwice, Severity::Blocks));
        assert!(finding.message.to_string().contains("Disks vda and vdb"), "{finding:?}");
    }
    let names = ["/x/web01-vdc.raw", "/a/web01.raw", "/b/web01.raw"];
    let devices = ["vda", "vdb", "vdc"];
    let disks = devices.iter().zip(names).map(|(device, path)| fixtures::disk(device, local(path))).collect();
    let places: Vec<Location> =
        plan_storage(&fixtures::vm(9, disks), &all_to(local("/n"))).moves.into_iter().map(|disk| disk.to).collect();
    assert_eq!(places, ["/n/web01-vdc.raw", "/n/web01.raw", "/n/web01-vdc-vdc.raw"].map(local));
}

#[test]
fn uefi_variables_of_a_vm_that_is_shut_off_go_beside_its_disk_and_into_the_file_that_is_named() {
    let nvram = VmFile { role: FileRole::Nvram, ..fixtures::disk("nvram", local("/v/vars.fd")) };
    let files = vec![fixtures::disk("vda", local("/a/x.raw")), nvram];
    let vm = VmFacts { state: VmState::ShutOff, ..fixtures::vm(9, files) };
    let named = Requested { named: vec![("nvram".into(), Some(local("/m/v.fd")), None)], ..all_to(local("/n/z.raw")) };
    for (requested, to) in [(all_to(local("/n/z.raw")), "/n/vars.fd"), (named, "/m/v.fd")] {
        let planned = plan_offline(&vm, &requested, |_| false);
        assert_eq!(planned.findings, []);
        assert_eq!((&planned.moves[0].to, &planned.moves[1].to), (&local("/n/z.raw"), &local(to)));
    }
}
