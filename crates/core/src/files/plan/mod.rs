//! Decides which file of a VM goes where: on its own host, with the VM while it runs, or with the VM while it is shut off.

mod offline;

pub use offline::{PlannedOffline, plan_offline};
pub(crate) use offline::{checkpoints, tpm_by_hand};

use super::{Copier, DiskMove, space::thick};
use crate::{
    finding::{Finding, FindingId},
    id::HostId,
    location::Location,
    power::not_running,
    vm::{DiskFormat, FileRole, NVRAM, Oddity, VmFacts, VmFile, VmState},
};

/// What is wanted of the disks of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    /// Where every disk goes that is not named; `None`: they stay.
    pub all: Option<Location>,
    /// Disks by name, with where they go (`None`: as the others) and how they are laid out there (`None`: as now).
    pub named: Vec<(String, Option<Location>, Option<DiskFormat>)>,
}

/// What will be done, and what stands against it or should be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// In the order of the definition.
    pub disks: Vec<DiskMove>,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// Endings by which a path is known to be one of an image, not of a folder.
const ENDINGS: [&str; 3] = [".raw", ".img", ".qcow2"];

/// Whether a path is meant as an image's, not a folder's.
pub fn is_file(path: &str) -> bool {
    ENDINGS.iter().any(|ending| path.ends_with(ending))
}

/// The format that a file's name tells.
pub(crate) fn named_format(place: &Location) -> Option<DiskFormat> {
    let (Location::Share { path, .. } | Location::Local { path, .. }) = place;
    match path.rsplit_once('.')?.1 {
        "raw" => Some(DiskFormat::Raw),
        "qcow2" => Some(DiskFormat::Qcow2),
        _ => None,
    }
}

/// The finding of a file whose name tells another format than it would have.
pub(crate) fn misnamed(device: &str, place: &Location, format: DiskFormat) -> Option<Finding> {
    let told = named_format(place).filter(|told| *told != format)?;
    Some(Finding::blocks(
        FindingId::FilePlace,
        device,
        format!("The new file of disk {device} would be {}, and its name tells {}", format.name(), told.name()),
        format!("Name it .{}, or give a folder", format.name()),
    ))
}

/// Decides which file of a VM goes where on its host. Every file of the VM gets an explicit rule: it moves, or a finding
/// says that it stays and why.
pub fn plan_storage(vm: &VmFacts, wanted: &Requested) -> Planned {
    let mut planned = Planned { disks: Vec::new(), findings: whole(vm) };
    planned.findings.extend(unknown(vm, wanted));
    if vm.tpm && wanted.all.is_some() {
        planned.findings.push(Finding::warns(
            FindingId::VmTpm,
            &vm.name,
            format!("The emulated TPM of VM {} keeps its state where libvirt has it on this host", vm.name),
            "Nothing: the VM finds it there at its next start",
        ));
    }
    for file in &vm.files {
        plan_file(vm, file, wanted, wanted.all.as_ref(), Copier::Hypervisor, &mut planned);
    }
    planned
}

/// Decides which files move along when the VM moves to host `there`: those that are named, and disks and UEFI variables
/// that the destination does not reach, if it is said where they go. What stays has to be reached by both hosts, and the
/// VM has to run, which preflight judges.
pub fn plan_live(vm: &VmFacts, wanted: &Requested, there: HostId, is_reached: impl Fn(&Location) -> bool) -> Planned {
    let mut planned = Planned { disks: Vec::new(), findings: unknown(vm, wanted) };
    // Last, for they may go beside the disks.
    let (nvram, others): (Vec<_>, Vec<_>) = vm.files.iter().partition(|file| file.role == FileRole::Nvram);
    for file in others {
        let is_named = wanted.named.iter().any(|(device, ..)| *device == file.device);
        let must_move = file.role == FileRole::Disk && !file.read_only && !file.places().all(&is_reached);
        if is_named || must_move {
            plan_file(vm, file, wanted, wanted.all.as_ref(), Copier::Carrier, &mut planned);
        }
    }
    for file in nvram {
        plan_nvram(file, wanted, there, is_reached(&file.place), &mut planned);
    }
    planned
}

/// Where libvirt itself puts UEFI variables; each host has this folder.
pub const NVRAM_FOLDER: &str = "/var/lib/libvirt/qemu/nvram";

/// Whether a path is one of UEFI variables where libvirt itself puts them.
pub fn is_libvirts_nvram(path: &str) -> bool {
    let name = path.strip_prefix(NVRAM_FOLDER).and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(|name| !name.is_empty() && name != ".." && !name.contains('/'))
}

/// UEFI variables travel with the guest's memory into a file that is there: where they are named to be, at libvirt's own
/// place as here, or beside the disks.
fn plan_nvram(file: &VmFile, wanted: &Requested, there: HostId, is_reached: bool, planned: &mut Planned) {
    let named = wanted.named.iter().find(|(device, ..)| *device == file.device);
    if named.is_none() && is_reached {
        return;
    }
    let format = file.format.unwrap_or(DiskFormat::Raw);
    if let Some((_, _, Some(other))) = named
        && *other != format
    {
        planned.findings.push(Finding::blocks(
            FindingId::FilePlace,
            NVRAM,
            "UEFI variables keep their format",
            "Leave the format out",
        ));
    }
    let (Location::Share { path, .. } | Location::Local { path, .. }) = &file.place;
    let name = path.rsplit('/').next().unwrap_or(NVRAM);
    let beside = |to: &Location| match to {
        Location::Share { path, .. } | Location::Local { path, .. } if is_file(path) => folder_of(to),
        Location::Share { .. } | Location::Local { .. } => to.clone(),
    };
    let to = match (named.and_then(|(_, to, _)| to.as_ref()), &file.place) {
        (Some(to), _) if named_nvram(to) => to.clone(),
        (Some(to), _) => in_folder(to, name.to_owned()),
        (None, Location::Local { path, .. }) if is_libvirts_nvram(path) => {
            Location::Local { host: there, path: path.clone() }
        }
        (None, _) => match wanted.all.clone().or(planned.disks.first().map(|disk| disk.to.clone())) {
            Some(to) => in_folder(&beside(&to), name.to_owned()),
            None => return,
        },
    };
    let (device, from, real) = (file.device.clone(), file.place.clone(), file.real.clone());
    let disk = DiskMove { device, from, real, to, format };
    planned.disks.push(disk);
}

/// Whether a place is meant as a file of UEFI variables, not a folder.
fn named_nvram(place: &Location) -> bool {
    let (Location::Share { path, .. } | Location::Local { path, .. }) = place;
    is_file(path) || path.ends_with(".fd")
}

/// The folder that holds a file.
fn folder_of(file: &Location) -> Location {
    let up = |path: &str| path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
    match file {
        Location::Share { share, path } => Location::Share { share: *share, path: up(path) },
        Location::Local { host, path } => Location::Local { host: *host, path: format!("{}/", up(path)) },
    }
}

/// What was planned, judged again by what the VM is now, as a job may have waited: the disks that have not moved yet, and
/// what was found of them.
pub fn plan_again(vm: &VmFacts, disks: &[DiskMove]) -> Planned {
    let in_use = |disk: &DiskMove| vm.files.iter().any(|file| file.device == disk.device && file.place == disk.to);
    let left = disks.iter().filter(|disk| !in_use(disk));
    let named = left.map(|disk| (disk.device.clone(), Some(disk.to.clone()), Some(disk.format))).collect();
    plan_storage(vm, &Requested { all: None, named })
}

/// What concerns the whole VM.
fn whole(vm: &VmFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(not_running(vm));
    if vm.snapshots > 0 {
        findings.push(Finding::blocks(
            FindingId::VmSnapshot,
            &vm.name,
            format!("VM {} has {} snapshots, which name its files", vm.name, vm.snapshots),
            format!("Remove them: `virsh snapshot-list {0}`, `virsh snapshot-delete {0}`", vm.name),
        ));
    }
    if vm.state == VmState::Running && !vm.persistent {
        findings.push(Finding::warns(
            FindingId::FileKept,
            &vm.name,
            format!(
                "The host keeps no definition of VM {}: the one that it starts from names its old files, which stay",
                vm.name
            ),
            "Name the new files in that definition, then remove the old ones",
        ));
    }
    findings
}

/// Disks that are named and not there.
fn unknown(vm: &VmFacts, wanted: &Requested) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (device, ..) in &wanted.named {
        if !vm.files.iter().any(|file| file.device == *device) {
            let disks: Vec<&str> = vm.files.iter().map(|file| file.device.as_str()).collect();
            findings.push(Finding::blocks(
                FindingId::DiskUnknown,
                device,
                format!("VM {} has no disk {device}", vm.name),
                format!("Name one of: {}", disks.join(", ")),
            ));
        }
    }
    findings
}

fn plan_file(
    vm: &VmFacts,
    file: &VmFile,
    wanted: &Requested,
    all: Option<&Location>,
    copier: Copier,
    planned: &mut Planned,
) {
    let named = wanted.named.iter().find(|(device, ..)| *device == file.device);
    let Planned { disks, findings } = planned;
    let Some(to) = named.and_then(|(_, to, _)| to.as_ref()).or(all) else {
        if named.is_some() {
            let option = match copier {
                Copier::Hypervisor => "--to",
                Copier::Carrier => "--storage",
            };
            findings.push(Finding::blocks(
                FindingId::FilePlace,
                &file.device,
                format!("It is not said where disk {} shall go", file.device),
                format!("Give `{option} PLACE`, or `--disk {}=PLACE`", file.device),
            ));
        }
        return;
    };
    if let Some(finding) = stays(vm, file, to, named.is_some()).or_else(|| odd(vm, file)) {
        findings.push(finding);
        return;
    }
    let told = named_format(to);
    let format = named.and_then(|(.., format)| *format).or(told).or(file.format).unwrap_or(DiskFormat::Qcow2);
    let to = file_in(to, file, format, disks);
    if to == file.place && file.format.is_some_and(|now| now != format) {
        findings.push(Finding::blocks(
            FindingId::FileExists,
            &file.device,
            format!("Disk {} would get its own file in another format", file.device),
            format!("Give it another file: `--disk {}=PLACE,format={}`", file.device, format.name()),
        ));
        return;
    }
    findings.extend(misnamed(&file.device, &to, format));
    findings.extend(remarks(file, format, &to, copier));
    if vm.files.iter().filter(|other| other.needs(file)).count() > 1 {
        findings.push(Finding::blocks(
            FindingId::DiskTwice,
            &file.device,
            format!("Another disk of VM {} uses the file of disk {}, too", vm.name, file.device),
            "Give each disk a file of its own",
        ));
    }
    let (device, from, real) = (file.device.clone(), file.place.clone(), file.real.clone());
    disks.push(DiskMove { device, from, real, to, format });
}

/// Why a file stays where it is. Who names such a file is refused.
fn stays(vm: &VmFacts, file: &VmFile, to: &Location, named: bool) -> Option<Finding> {
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
        FileRole::Disk => return None,
        FileRole::Media | FileRole::NotAFile if file.is_medium() => (
            FindingId::DiskReadOnly,
            format!("The medium in drive {device} stays where it is"),
            format!("Nothing; or eject it with `virsh change-media {} {device} --eject`", vm.name),
        ),
        FileRole::Nvram => return Some(nvram_stays(vm, file, to, named)),
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
    let finding = if named { Finding::blocks } else { Finding::warns };
    Some(finding(id, device, message, fix))
}

/// libvirt keeps UEFI variables open while the VM runs, and copies disks only.
fn nvram_stays(vm: &VmFacts, file: &VmFile, to: &Location, named: bool) -> Finding {
    let (Location::Share { path: old, .. } | Location::Local { path: old, .. }) = &file.place;
    let new = match to {
        Location::Local { path, .. } if named_nvram(to) => path.clone(),
        Location::Local { path, .. } => {
            format!("{}/{}", path.trim_end_matches('/'), old.rsplit('/').next().unwrap_or(NVRAM))
        }
        Location::Share { .. } => "NEW-FILE".to_owned(),
    };
    let old = match &file.place {
        Location::Local { path, .. } => path,
        Location::Share { .. } => "OLD-FILE",
    };
    let name = &vm.name;
    let finding = if named { Finding::blocks } else { Finding::warns };
    finding(
        FindingId::DiskNvram,
        &file.device,
        format!("The UEFI variables of VM {name} ({}) stay where they are while it runs", path_of(&file.place)),
        format!(
            "Nothing; or move them for its next start: `virsh shutdown {name}`, then `mv {old} {new}`, then write the new \
             path into <nvram> with `virsh edit {name}`, then `ferry vm start {name}`"
        ),
    )
}

fn path_of(place: &Location) -> String {
    match place {
        Location::Local { path, .. } => path.clone(),
        Location::Share { path, .. } => format!("{path} on its share"),
    }
}

/// Why a copy of a disk would not be the same, or cannot be made.
fn odd(vm: &VmFacts, file: &VmFile) -> Option<Finding> {
    let (device, name) = (&file.device, &vm.name);
    let (id, message, fix) = match file.oddities.first()? {
        Oddity::Encrypted => (
            FindingId::DiskEncrypted,
            format!("Disk {device} of VM {name} is encrypted, and its copy would be plain"),
            "Move it while the VM is shut off: `ferry vm migrate --offline`, or by hand; or leave it out with `--disk` for \
             the others"
                .to_owned(),
        ),
        Oddity::Transient => (
            FindingId::DiskOdd,
            format!("Disk {device} of VM {name} is transient: a copy would keep what is to be forgotten"),
            "Shut the VM down first; or leave the disk out with `--disk` for the others".to_owned(),
        ),
        Oddity::Copied => (
            FindingId::DiskBusy,
            format!("Disk {device} of VM {name} is being copied to another file already"),
            format!("Wait until that has ended, or end it with `virsh blockjob {name} {device} --abort`"),
        ),
        Oddity::Sliced => (
            FindingId::DiskOdd,
            format!("Disk {device} of VM {name} is a part (<slices>) of its image"),
            "Copy that part into an image of its own while the VM is shut off; or leave it out with `--disk` for the others"
                .to_owned(),
        ),
        Oddity::DataFile => (
            FindingId::DiskOdd,
            format!("Disk {device} of VM {name} keeps its data in another file than its image, which would stay behind"),
            "Make one image of both with `qemu-img convert` while the VM is shut off; or leave it out with `--disk` for the \
             others"
                .to_owned(),
        ),
    };
    Some(Finding::blocks(id, device, message, fix))
}

/// What should be known of a disk that moves.
fn remarks(file: &VmFile, format: DiskFormat, to: &Location, copier: Copier) -> Vec<Finding> {
    let device = &file.device;
    let mut findings = Vec::new();
    if let Some((why, fix)) = thick(file, format, &file.place, to, copier) {
        findings.push(Finding::warns(
            FindingId::DiskThick,
            device,
            format!("The copy of disk {device} may take its whole virtual size: {why}"),
            fix,
        ));
    }
    if file.has_backing {
        findings.push(Finding::warns(
            FindingId::DiskFlattened,
            device,
            format!(
                "Disk {device} is an overlay: its copy holds the whole chain, and does not need the files below it"
            ),
            "Nothing; or leave it out with `--disk` for the others",
        ));
    }
    // Of one that goes to another host preflight says it.
    if !file.stops_on_error && copier == Copier::Hypervisor {
        findings.push(Finding::warns(
            FindingId::DiskUnsafe,
            device,
            format!("Disk {device} has no error_policy='stop': the guest sees errors when the place fails"),
            "Set error_policy='stop' in the disk's definition",
        ));
    }
    findings
}

/// A file of this name in a folder.
pub(crate) fn in_folder(folder: &Location, name: String) -> Location {
    let (Location::Share { path, .. } | Location::Local { path, .. }) = folder;
    let trimmed = path.trim_end_matches('/');
    let full = if trimmed.is_empty() && !path.starts_with('/') { name } else { format!("{trimmed}/{name}") };
    match folder {
        Location::Share { share, .. } => Location::Share { share: *share, path: full },
        Location::Local { host, .. } => Location::Local { host: *host, path: full },
    }
}

/// The file that a disk gets in a folder, or the file that was named. Two disks never get the same.
fn file_in(to: &Location, file: &VmFile, format: DiskFormat, others: &[DiskMove]) -> Location {
    let (Location::Share { path, .. } | Location::Local { path, .. }) = to;
    if is_file(path) {
        return to.clone();
    }
    let (Location::Share { path: old, .. } | Location::Local { path: old, .. }) = &file.place;
    let name = old.rsplit('/').next().unwrap_or(&file.device);
    let stem = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
    let plain = in_folder(to, format!("{stem}.{}", format.name()));
    if others.iter().any(|other| other.to == plain) {
        return in_folder(to, format!("{stem}-{}.{}", file.device, format.name()));
    }
    plain
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        finding::Severity,
        fixtures,
        id::{HostId, ShareId},
    };

    const HOST: HostId = HostId(Uuid::from_u128(1));
    const SHARE: ShareId = ShareId(Uuid::from_u128(2));

    fn local(path: &str) -> Location {
        Location::Local { host: HOST, path: path.into() }
    }

    fn share(path: &str) -> Location {
        Location::Share { share: SHARE, path: path.into() }
    }

    fn disk(device: &str, path: &str) -> VmFile {
        fixtures::disk(device, local(path))
    }

    fn vm(files: Vec<VmFile>) -> VmFacts {
        fixtures::vm(3, files)
    }

    const THERE: HostId = HostId(Uuid::from_u128(4));

    fn all_to(to: Location) -> Requested {
        Requested { all: Some(to), named: Vec::new() }
    }

    #[test]
    fn disks_get_files_of_their_names_and_never_the_same() {
        let vm = vm(vec![disk("vda", "/a/web01.raw"), disk("vdb", "/b/web01.img"), disk("vdc", "/b/data")]);
        let to = |wanted: &Requested| -> Vec<Location> {
            plan_storage(&vm, wanted).disks.into_iter().map(|disk| disk.to).collect()
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
        let no_file = |kind: &str| VmFile { role: FileRole::NotAFile, kind: Some(kind.into()), ..plain() };
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
            assert_eq!(whole.disks.len(), usize::from(moves), "{file:?}");
            let ids: Vec<_> = whole.findings.iter().map(|finding| (finding.id, finding.severity)).collect();
            assert_eq!(ids, found.map(|id| (id, Severity::Warns)).into_iter().collect::<Vec<_>>(), "{file:?}");
            // Who names a file that stays is refused.
            let named = Requested { all: None, named: vec![("vda".into(), Some(local("/new")), None)] };
            let blocked = plan_storage(&vm, &named).findings.iter().any(|finding| finding.severity == Severity::Blocks);
            assert_eq!(blocked, !moves, "{file:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let two = || vm(vec![disk("vda", "/a/x.raw"), disk("vdb", "/a/x.raw")]);
        let named =
            |device: &str, to: Option<Location>| Requested { all: None, named: vec![(device.into(), to, None)] };
        for (vm, wanted, id) in [
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
            let findings = plan_storage(&vm, &wanted).findings;
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
            (
                "read only",
                VmFile { read_only: true, ..plain() },
                to_local(),
                false,
                Some((DiskReadOnly, Severity::Blocks)),
            ),
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
            (
                "overlay",
                VmFile { has_backing: true, ..plain() },
                to_local(),
                true,
                Some((DiskFlattened, Severity::Warns)),
            ),
            ("thick", plain(), Some(share("d")), true, Some((DiskThick, Severity::Warns))),
            ("no discard", VmFile { unmaps: false, detects_zeroes: false, ..plain() }, to_local(), true, None),
            // Preflight says it.
            ("shows errors", VmFile { stops_on_error: false, ..plain() }, to_local(), true, None),
        ];
        for (row, file, to, moves, found) in rows {
            let vm = vm(vec![file]);
            let wanted = Requested { all: None, named: vec![("vda".into(), to.clone(), None)] };
            let named = plan_live(&vm, &wanted, THERE, |_| true);
            assert_eq!(named.disks.len(), usize::from(moves), "{row}");
            let ids: Vec<_> = named.findings.iter().map(|finding| (finding.id, finding.severity)).collect();
            assert_eq!(ids, found.into_iter().collect::<Vec<_>>(), "{row}");
            // What is not named and reached stays without a word.
            let all = Requested { all: to, named: Vec::new() };
            assert_eq!(plan_live(&vm, &all, THERE, |_| true), Planned::default(), "{row}");
        }
        let twice = vm(vec![disk("vda", "/a/x.raw"), disk("vdb", "/a/x.raw")]);
        let ids: Vec<_> = plan_live(&twice, &all_to(local("/n")), THERE, |_| false)
            .findings
            .iter()
            .map(|finding| finding.id)
            .collect();
        assert_eq!(ids, [DiskTwice, DiskTwice]);
        // A base that the destination does not reach is a reason, too.
        let overlay = VmFile { place: share("x.qcow2"), below: vec![local("/base.raw")], ..plain() };
        let planned =
            plan_live(&vm(vec![overlay]), &all_to(local("/n")), THERE, |place| matches!(place, Location::Share { .. }));
        assert_eq!(planned.disks.len(), 1);
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
        let to = |files: Vec<VmFile>, wanted: &Requested| {
            let planned = plan_live(&vm(files), wanted, THERE, |place| matches!(place, Location::Share { .. }));
            assert_eq!(planned.findings, [], "{wanted:?}");
            planned.disks.into_iter().find(|disk| disk.device == "nvram").map(|disk| disk.to)
        };
        let own = "/var/lib/libvirt/qemu/nvram/web01_VARS.fd";
        let named = |place: Location| Requested { all: None, named: vec![("nvram".into(), Some(place), None)] };
        let disks = Requested { all: None, named: vec![("vda".into(), Some(there("/n/x.raw")), None)] };
        for (row, files, wanted, expected) in [
            ("libvirt's", vec![nvram(local(own))], Requested::default(), Some(there(own))),
            ("libvirt's, disks elsewhere", vec![nvram(local(own))], all_to(there("/n")), Some(there(own))),
            ("its own", vec![nvram(local("/v/vars.fd"))], all_to(there("/n")), Some(there("/n/vars.fd"))),
            (
                "beside a disk",
                vec![nvram(local("/v/vars.fd")), disk("vda", "/a/x.raw")],
                disks,
                Some(there("/n/vars.fd")),
            ),
            ("nowhere", vec![nvram(local("/v/vars.fd"))], Requested::default(), None),
            ("reached", vec![nvram(share("vars.fd"))], all_to(there("/n")), None),
            ("named, a folder", vec![nvram(local(own))], named(there("/m")), Some(there("/m/web01_VARS.fd"))),
            ("named, a file", vec![nvram(share("vars.fd"))], named(there("/m/v.fd")), Some(there("/m/v.fd"))),
        ] {
            assert_eq!(to(files, &wanted), expected, "{row}");
        }
        assert!(
            !is_libvirts_nvram("/var/lib/libvirt/qemu/nvram/../x")
                && !is_libvirts_nvram("/var/lib/libvirt/qemu/nvram/a/b")
        );
        assert!(!is_libvirts_nvram("/var/lib/libvirt/qemu/nvram2/x") && !is_libvirts_nvram(NVRAM_FOLDER));
    }

    #[test]
    fn what_a_copy_would_not_keep_is_refused_whether_it_is_named_or_not() {
        for (oddity, id, word) in [
            (Oddity::Encrypted, FindingId::DiskEncrypted, "--offline"),
            (Oddity::Transient, FindingId::DiskOdd, "transient"),
            (Oddity::Copied, FindingId::DiskBusy, "virsh blockjob web01 vda --abort"),
            (Oddity::Sliced, FindingId::DiskOdd, "<slices>"),
            (Oddity::DataFile, FindingId::DiskOdd, "qemu-img convert"),
        ] {
            let vm = vm(vec![VmFile { oddities: vec![oddity], ..disk("vda", "/a/x.raw") }]);
            for planned in
                [plan_storage(&vm, &all_to(local("/n"))), plan_live(&vm, &all_to(local("/n")), THERE, |_| false)]
            {
                assert_eq!(planned.disks, [], "{oddity:?}");
                let [finding] = &planned.findings[..] else { panic!("{oddity:?}: {planned:?}") };
                assert_eq!((finding.id, finding.severity), (id, Severity::Blocks), "{oddity:?}");
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
        assert!(findings[1].message.contains("/v/vars.fd"), "{findings:?}");
        for step in ["virsh shutdown web01", "mv /v/vars.fd /new/vars.fd", "virsh edit web01", "ferry vm start web01"] {
            assert!(findings[1].fix.contains(step), "{step}: {findings:?}");
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
        assert_eq!((planned.disks[0].format, planned.findings), (DiskFormat::Qcow2, Vec::new()));
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
        assert_eq!(plan_again(&now, &disks), Planned { disks: vec![disks[1].clone()], findings: Vec::new() });
        let mut changed = VmFacts { snapshots: 1, ..now };
        changed.files[1].shareable = true;
        let found: Vec<FindingId> = plan_again(&changed, &disks).findings.iter().map(|finding| finding.id).collect();
        assert_eq!(found, [FindingId::VmSnapshot, FindingId::DiskShareable]);
    }
}
