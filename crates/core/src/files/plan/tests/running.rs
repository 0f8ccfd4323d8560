//! Files of a running VM.

use super::*;

fn disk(device: &str, path: &str) -> VmFile {
    fixtures::disk(device, local(path))
}

fn vm(files: Vec<VmFile>) -> VmFacts {
    fixtures::vm(3, files)
}

const NOTHING: Planned = Planned { moves: Vec::new(), findings: Vec::new() };

#[test]
fn disks_get_files_of_their_names_and_never_the_same() {
    let vm = vm(vec![disk("vda", "/a/web01.raw"), disk("vdb", "/b/web01.img"), disk("vdc", "/b/data")]);
    let to = |requested: &Requested| -> Vec<Location> {
        plan_storage(&vm, requested).moves.into_iter().map(|disk| disk.to).collect()
    };
    let all = to(&all_to(local("/new/")));
    assert_eq!(all, [local("/new/web01.raw"), local("/new/web01-vdb.raw"), local("/new/data.raw")]);
    let top = to(&all_to(share("")));
    assert_eq!(top, [share("web01.raw"), share("web01-vdb.raw"), share("data.raw")]);
    assert_eq!(to(&all_to(local("/")))[0], local("/web01.raw"));
    let chosen = Requested {
        all: None,
        named: vec![
            ("vdb".into(), Some(share("x/y.img")), None),
            ("vdc".into(), Some(share("x")), Some(DiskFormat::Qcow2)),
        ],
    };
    assert_eq!(to(&chosen), [share("x/y.img"), share("x/data.qcow2")]);
    let mixed = Requested { all: Some(local("/new")), named: vec![("vda".into(), None, Some(DiskFormat::Qcow2))] };
    assert_eq!(to(&mixed)[0], local("/new/web01.qcow2"));
}

#[test]
fn every_file_moves_or_is_told_to_stay() {
    use FindingId::{DiskFlattened, DiskNotAFile, DiskNvram, DiskReadOnly, DiskShareable, DiskThick, DiskUnsafe};
    let plain = || disk("vda", "/a/x.raw");
    let no_file = |kind: &str| VmFile { role: FileRole::NotAFile, kind: Some(kind.to_owned().into()), ..plain() };
    for (file, moves, found) in [
        (plain(), true, None),
        (VmFile { shareable: true, ..plain() }, false, Some(DiskShareable)),
        (VmFile { read_only: true, ..plain() }, false, Some(DiskReadOnly)),
        (VmFile { role: FileRole::Media, read_only: true, ..plain() }, false, Some(DiskReadOnly)),
        (VmFile { role: FileRole::Nvram, ..plain() }, false, Some(DiskNvram)),
        (VmFile { role: FileRole::Boot, ..plain() }, false, Some(DiskReadOnly)),
        (VmFile { role: FileRole::NotAFile, ..plain() }, false, Some(DiskNotAFile)),
        (no_file("block"), false, Some(DiskNotAFile)),
        (no_file("network rbd"), false, Some(DiskNotAFile)),
        (no_file("network iscsi"), false, Some(DiskNotAFile)),
        (no_file("network nbd"), false, Some(DiskNotAFile)),
        (no_file("nvdimm"), false, Some(DiskNotAFile)),
        (no_file("filesystem virtiofs"), false, Some(DiskNotAFile)),
        (no_file("cdrom block"), false, Some(DiskReadOnly)),
        (VmFile { has_backing: true, ..plain() }, true, Some(DiskFlattened)),
        (VmFile { unmaps: false, ..plain() }, true, Some(DiskThick)),
        (VmFile { detects_zeroes: false, ..plain() }, true, None),
        (VmFile { place: share("x.raw"), detects_zeroes: false, ..plain() }, true, Some(DiskThick)),
        (VmFile { place: share("x.raw"), ..plain() }, true, None),
        (VmFile { stops_on_error: false, ..plain() }, true, Some(DiskUnsafe)),
    ] {
        let vm = vm(vec![file.clone()]);
        let whole = plan_storage(&vm, &all_to(local("/new")));
        assert_eq!(whole.moves.len(), usize::from(moves), "{file:?}");
        let ids: Vec<_> = whole.findings.iter().map(|finding| (finding.id, finding.severity)).collect();
        assert_eq!(ids, found.map(|id| (id, Severity::Warns)).into_iter().collect::<Vec<_>>(), "{file:?}");
        // Naming a file that stays is refused.
        let named = Requested { all: None, named: vec![("vda".into(), Some(local("/new")), None)] };
        let blocked = plan_storage(&vm, &named).findings.iter().any(|finding| finding.severity == Severity::Blocks);
        assert_eq!(blocked, !moves, "{file:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let two = || vm(vec![disk("vda", "/a/x.raw"), disk("vdb", "/a/x.raw")]);
    let named = |device: &str, to: Option<Location>| Requested { all: None, named: vec![(device.into(), to, None)] };
    for (vm, requested, id) in [
        (VmFacts { state: VmState::ShutOff, ..two() }, named("vda", Some(local("/n"))), FindingId::VmNotRunning),
        (VmFacts { state: VmState::Crashed, ..two() }, named("vda", Some(local("/n"))), FindingId::VmCrashed),
        (VmFacts { state: VmState::Suspended, ..two() }, named("vda", Some(local("/n"))), FindingId::VmSuspended),
        (VmFacts { snapshots: 2, ..two() }, named("vda", Some(local("/n"))), FindingId::VmSnapshot),
        (two(), named("vdz", Some(local("/n"))), FindingId::DiskUnknown),
        (two(), named("vda", None), FindingId::FilePlace),
        (two(), named("vda", Some(local("/n"))), FindingId::DiskTwice),
        (
            two(),
            Requested { all: None, named: vec![("vda".into(), Some(local("/a/x.raw")), Some(DiskFormat::Qcow2))] },
            FindingId::FileExists,
        ),
    ] {
        let findings = plan_storage(&vm, &requested).findings;
        let blocks: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Blocks).collect();
        assert!(blocks.iter().any(|finding| finding.id == id), "{id}: {findings:?}");
    }
}

#[test]
fn every_file_moves_along_or_is_told_why_not() {
    use FindingId::{DiskFlattened, DiskNotAFile, DiskReadOnly, DiskShareable, DiskThick, DiskTwice};
    let plain = || disk("vda", "/a/x.raw");
    let to_local = || Some(local("/new"));
    let rows = [
        ("plain", plain(), to_local(), true, None),
        ("read only", VmFile { read_only: true, ..plain() }, to_local(), false, Some((DiskReadOnly, Severity::Blocks))),
        (
            "not a file",
            VmFile { role: FileRole::NotAFile, ..plain() },
            to_local(),
            false,
            Some((DiskNotAFile, Severity::Blocks)),
        ),
        (
            "shareable",
            VmFile { shareable: true, ..plain() },
            to_local(),
            false,
            Some((DiskShareable, Severity::Blocks)),
        ),
        ("overlay", VmFile { has_backing: true, ..plain() }, to_local(), true, Some((DiskFlattened, Severity::Warns))),
        ("thick", plain(), Some(share("d")), true, Some((DiskThick, Severity::Warns))),
        ("no discard", VmFile { unmaps: false, detects_zeroes: false, ..plain() }, to_local(), true, None),
        // Preflight reports it.
        ("shows errors", VmFile { stops_on_error: false, ..plain() }, to_local(), true, None),
    ];
    for (row, file, to, moves, found) in rows {
        let vm = vm(vec![file]);
        let requested = Requested { all: None, named: vec![("vda".into(), to.clone(), None)] };
        let named = plan_live(&vm, &requested, THERE, |_| true);
        assert_eq!(named.moves.len(), usize::from(moves), "{row}");
        let ids: Vec<_> = named.findings.iter().map(|finding| (finding.id, finding.severity)).collect();
        assert_eq!(ids, found.into_iter().collect::<Vec<_>>(), "{row}");
        // Files that are not named and are reached stay without a finding.
        let all = Requested { all: to, named: Vec::new() };
        assert_eq!(plan_live(&vm, &all, THERE, |_| true), NOTHING, "{row}");
    }
    let twice = vm(vec![disk("vda", "/a/x.raw"), disk("vdb", "/a/x.raw")]);
    let ids: Vec<_> =
        plan_live(&twice, &all_to(local("/n")), THERE, |_| false).findings.iter().map(|finding| finding.id).collect();
    assert_eq!(ids, [DiskTwice, DiskTwice]);
    // A base that the destination cannot reach is a reason as well.
    let overlay = VmFile { place: share("x.qcow2"), below: vec![local("/base.raw")], ..plain() };
    let planned =
        plan_live(&vm(vec![overlay]), &all_to(local("/n")), THERE, |place| matches!(place, Location::Share { .. }));
    assert_eq!(planned.moves.len(), 1);
}

#[test]
fn uefi_variables_go_where_libvirt_has_them_or_beside_the_disks() {
    let nvram = |place: Location| VmFile {
        role: FileRole::Nvram,
        device: "nvram".into(),
        format: None,
        place,
        ..disk("vda", "")
    };
    let there = |path: &str| Location::Local { host: THERE, path: path.into() };
    let to = |files: Vec<VmFile>, requested: &Requested| {
        let planned = plan_live(&vm(files), requested, THERE, |place| matches!(place, Location::Share { .. }));
        assert_eq!(planned.findings, [], "{requested:?}");
        planned.moves.into_iter().find(|disk| disk.device == "nvram").map(|disk| disk.to)
    };
    let own = "/var/lib/libvirt/qemu/nvram/web01_VARS.fd";
    let named = |place: Location| Requested { all: None, named: vec![("nvram".into(), Some(place), None)] };
    let disks = Requested { all: None, named: vec![("vda".into(), Some(there("/n/x.raw")), None)] };
    for (row, files, requested, expected) in [
        ("libvirt's", vec![nvram(local(own))], Requested::default(), Some(there(own))),
        ("libvirt's, disks elsewhere", vec![nvram(local(own))], all_to(there("/n")), Some(there(own))),
        ("its own", vec![nvram(local("/v/vars.fd"))], all_to(there("/n")), Some(there("/n/vars.fd"))),
        ("beside a disk", vec![nvram(local("/v/vars.fd")), disk("vda", "/a/x.raw")], disks, Some(there("/n/vars.fd"))),
        ("nowhere", vec![nvram(local("/v/vars.fd"))], Requested::default(), None),
        ("reached", vec![nvram(share("vars.fd"))], all_to(there("/n")), None),
        ("named, a folder", vec![nvram(local(own))], named(there("/m")), Some(there("/m/web01_VARS.fd"))),
        ("named, a file", vec![nvram(share("vars.fd"))], named(there("/m/v.fd")), Some(there("/m/v.fd"))),
    ] {
        assert_eq!(to(files, &requested), expected, "{row}");
    }
    assert!(
        !is_libvirts_nvram("/var/lib/libvirt/qemu/nvram/../x") && !is_libvirts_nvram("/var/lib/libvirt/qemu/nvram/a/b")
    );
    assert!(!is_libvirts_nvram("/var/lib/libvirt/qemu/nvram2/x") && !is_libvirts_nvram(NVRAM_FOLDER));
}

#[test]
fn what_a_copy_would_not_keep_is_refused_whether_it_is_named_or_not() {
    for (feature, id, word) in [
        (DiskFeature::Encrypted, FindingId::DiskEncrypted, "--offline"),
        (DiskFeature::Transient, FindingId::DiskOdd, "transient"),
        (DiskFeature::Copied, FindingId::DiskBusy, "virsh blockjob web01 vda --abort"),
        (DiskFeature::Sliced, FindingId::DiskOdd, "<slices>"),
        (DiskFeature::DataFile, FindingId::DiskOdd, "qemu-img convert"),
    ] {
        let vm = vm(vec![VmFile { features: vec![feature], ..disk("vda", "/a/x.raw") }]);
        for planned in [plan_storage(&vm, &all_to(local("/n"))), plan_live(&vm, &all_to(local("/n")), THERE, |_| false)]
        {
            assert_eq!(planned.moves, [], "{feature:?}");
            let [finding] = &planned.findings[..] else { panic!("{feature:?}: {planned:?}") };
            assert_eq!((finding.id, finding.severity), (id, Severity::Blocks), "{feature:?}");
            assert!(format!("{}{}", finding.message, finding.fix).contains(word), "{finding:?}");
        }
    }
}

#[test]
fn what_stays_on_one_host_says_what_to_do() {
    let nvram = VmFile { role: FileRole::Nvram, device: "nvram".into(), ..disk("vda", "/v/vars.fd") };
    let vm = VmFacts { tpm: true, ..vm(vec![nvram]) };
    let findings = plan_storage(&vm, &all_to(local("/new/"))).findings;
    let ids: Vec<_> = findings.iter().map(|finding| (finding.id, finding.severity)).collect();
    assert_eq!(ids, [(FindingId::VmTpm, Severity::Warns), (FindingId::DiskNvram, Severity::Warns)]);
    assert!(findings[1].message.to_string().contains("/v/vars.fd"), "{findings:?}");
    for step in ["virsh shutdown web01", "mv /v/vars.fd /new/vars.fd", "virsh edit web01", "ferry vm start web01"] {
        assert!(findings[1].fix.to_string().contains(step), "{step}: {findings:?}");
    }
}

#[test]
fn a_file_below_another_disk_is_not_taken_away() {
    let overlay = VmFile { has_backing: true, below: vec![local("/a/base.raw")], ..disk("vdb", "/a/x.qcow2") };
    let vm = vm(vec![disk("vda", "/a/base.raw"), overlay]);
    let named = Requested { all: None, named: vec![("vda".into(), Some(local("/n")), None)] };
    assert_eq!(plan_storage(&vm, &named).findings[0].id, FindingId::DiskTwice);
    assert_eq!(plan_live(&vm, &named, THERE, |_| true).findings[0].id, FindingId::DiskTwice);
}

#[test]
fn a_files_name_tells_its_format() {
    let vm = vm(vec![disk("vda", "/a/x.raw")]);
    let named = |to: &str, format| Requested { all: None, named: vec![("vda".into(), Some(local(to)), format)] };
    let planned = plan_storage(&vm, &named("/n/y.qcow2", None));
    assert_eq!((planned.moves[0].format, planned.findings), (DiskFormat::Qcow2, Vec::new()));
    let against = plan_storage(&vm, &named("/n/y.qcow2", Some(DiskFormat::Raw))).findings;
    assert_eq!((against[0].id, against[0].severity), (FindingId::FilePlace, Severity::Blocks));
    assert_eq!(plan_storage(&vm, &named("/n/y.img", Some(DiskFormat::Qcow2))).findings, []);
}

#[test]
fn raw_on_a_share_is_said_to_be_thick_and_qcow2_is_not() {
    let vm = vm(vec![disk("vda", "/a/x.raw")]);
    assert_eq!(plan_storage(&vm, &all_to(share("d"))).findings[0].id, FindingId::DiskThick);
    let thin = Requested { all: Some(share("d")), named: vec![("vda".into(), None, Some(DiskFormat::Qcow2))] };
    assert_eq!(plan_storage(&vm, &thin).findings, []);
}

#[test]
fn what_was_planned_is_judged_again_by_what_the_vm_is_now() {
    let now = vm(vec![disk("vda", "/new/x.raw"), disk("vdb", "/b/y.raw")]);
    let moved = |device: &str, from: &str, to: &str| DiskMove {
        device: device.into(),
        from: local(from),
        real: None,
        to: local(to),
        format: DiskFormat::Raw,
    };
    let disks = [moved("vda", "/a/x.raw", "/new/x.raw"), moved("vdb", "/b/y.raw", "/new/y.raw")];
    assert_eq!(plan_again(&now, &disks), Planned { moves: vec![disks[1].clone()], findings: Vec::new() });
    let mut changed = VmFacts { snapshots: 1, ..now };
    changed.files[1].shareable = true;
    let found: Vec<FindingId> = plan_again(&changed, &disks).findings.iter().map(|finding| finding.id).collect();
    assert_eq!(found, [FindingId::VmSnapshot, FindingId::DiskShareable]);
}
