//! Moves of a running VM's disks on its host: what goes where, how far each disk is, and what comes next.
//!
//! ```text
//! each disk:  Waiting → Copying → Ready → Moved        every disk is ready before the first is switched over
//! ```
//! Which file a disk uses is asked of the hypervisor, never remembered: so a move that was ended anywhere, also between
//! two disks, is taken up where it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    finding::{Finding, FindingId},
    id::HostId,
    location::Location,
    power::not_running,
    units::ByteCount,
    vm::{DiskFormat, FileRole, NVRAM, Oddity, VmFacts, VmFile, VmState},
};

/// One disk and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskMove {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// The file it uses.
    pub from: Location,
    /// What that is with every link and further mount followed, where it is another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub real: Option<Location>,
    /// The file it is to use; must not be there before.
    pub to: Location,
    /// How the new file is laid out.
    pub format: DiskFormat,
}

impl DiskMove {
    /// Whether a file of a VM is the one that this leaves, by whichever of its names.
    pub fn leaves(&self, file: &VmFile) -> bool {
        let names = [Some(&file.place), file.real.as_ref()];
        names.into_iter().flatten().any(|name| *name == self.from || self.real.as_ref() == Some(name))
    }

    /// Whether a file of a VM is the one that this leaves, or needs it below an overlay, by whichever of its names.
    pub fn leaves_what_is_used(&self, file: &VmFile) -> bool {
        [Some(&self.from), self.real.as_ref()].into_iter().flatten().any(|name| file.uses(name))
    }
}

/// How far a disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskStage {
    /// Nothing was copied yet.
    #[default]
    Waiting,
    /// It is being copied; the VM uses the old file.
    Copying,
    /// The copy is complete and every write goes to both files; the VM uses the old file.
    Ready,
    /// The VM uses the new file.
    Moved,
}

impl DiskStage {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::Ready => "ready",
            Self::Moved => "moved",
        }
    }
}

/// How far a disk is, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskProgress {
    /// The disk's name in the definition.
    pub device: String,
    /// How far it is.
    pub stage: DiskStage,
    /// Bytes of the disk that were looked at. Never goes back.
    pub copied: ByteCount,
    /// Bytes to look at: the virtual size, and what the guest writes meanwhile.
    pub total: ByteCount,
    /// What the old file took on its file system before, as far as that tells.
    pub allocated_before: ByteCount,
    /// What the new file takes, once the disk is moved; zero before.
    pub allocated_after: ByteCount,
}

impl DiskProgress {
    /// Takes how far the hypervisor says it is: `copied` of `total` bytes. True: all there was to look at has been. Of a copy
    /// that has nothing to look at libvirt says "1 of 1", which is no figure of the disk.
    pub fn looked(&mut self, copied: ByteCount, total: ByteCount) -> bool {
        if total.0 > 1 {
            self.total = self.total.max(total);
            self.copied = self.copied.max(copied).min(self.total);
        }
        total.0 > 0 && copied >= total
    }
}

/// What the hypervisor says of one disk now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskNow {
    /// It uses the old file and is not being copied.
    Old,
    /// It uses the old file and is being copied to the new one.
    Copying,
    /// As [`DiskNow::Copying`], and the copy is complete.
    Ready,
    /// It uses the new file.
    New,
    /// It uses the old file and is being copied, but not to the new one.
    CopiedElsewhere,
    /// It uses neither file, or is not there.
    Elsewhere,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Begin to copy the disk of this index.
    Begin(usize),
    /// Look again later.
    Wait,
    /// Switch the disk of this index over to its copy.
    Pivot(usize),
    /// Every disk uses its new file.
    Done,
    /// It cannot go on.
    Fail(String),
}

/// Decides what comes next. `disks` are those of the move in order, each with whether its copy was begun by this attempt.
pub fn next(disks: &[(&str, bool, DiskNow)]) -> Next {
    let first = |wanted: DiskNow| disks.iter().position(|(_, _, now)| *now == wanted);
    for (device, begun, now) in disks {
        match (now, begun) {
            (DiskNow::Elsewhere, _) => {
                return Next::Fail(format!("disk {device} uses neither its old nor its new file"));
            }
            (DiskNow::CopiedElsewhere, _) => {
                return Next::Fail(format!("something else copies disk {device} to another file"));
            }
            (DiskNow::Old, true) => return Next::Fail(format!("the copy of disk {device} has ended")),
            (DiskNow::Old, false) | (DiskNow::Copying | DiskNow::Ready | DiskNow::New, _) => {}
        }
    }
    if let Some(index) = first(DiskNow::Old) {
        return Next::Begin(index);
    }
    match (first(DiskNow::Copying), first(DiskNow::Ready)) {
        (Some(_), _) => Next::Wait,
        (None, Some(index)) => Next::Pivot(index),
        (None, None) => Next::Done,
    }
}

/// What becomes of a file at the end of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is removed.
    Goes,
    /// It stays, as it should.
    Stays,
    /// It stays, and somebody should know: it may hold what no other file holds.
    StaysTold,
}

/// What is known of a new file when its move is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// This attempt made it.
    pub made: bool,
    /// A definition of a VM of this host names it.
    pub in_use: bool,
    /// It was asked to switch the disk over to it. From then on it may hold writes that the guest was told are done.
    pub switch_asked: bool,
    /// Every disk of the move was switched over.
    pub moved: bool,
    /// The VM has a process on this host, which neither arrives nor is handed over, and that process uses the old file.
    pub old_file_runs: bool,
}

/// Decides what becomes of a new file when its move is forgotten. That nobody here names it proves nothing once the
/// disk may have been switched over: the VM may run on another host, or have ended without a definition that is kept.
/// Only a process that uses the old file does.
pub fn new_file(file: &NewFile) -> Fate {
    match file {
        NewFile { made: false, .. } | NewFile { in_use: true, .. } => Fate::Stays,
        NewFile { moved: true, .. } => Fate::StaysTold,
        NewFile { switch_asked: true, old_file_runs, .. } if !old_file_runs => Fate::StaysTold,
        NewFile { .. } => Fate::Goes,
    }
}

/// Why a file is not removed, whatever it was to a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A VM names it, or what lies below a disk of one is this file, by this or another name.
    InUse,
    /// It is a symbolic link: without it, what it leads to would stay and nobody would know whose it is.
    Link,
    /// It is a device, a folder or a socket: not ours to remove.
    Irregular,
}

impl Obstacle {
    /// For people, after "stays: ".
    pub fn why(self) -> &'static str {
        match self {
            Self::InUse => "a VM uses it, or a definition names it, perhaps by another name",
            Self::Link => "it is a symbolic link, and Ferry removes neither links nor what they lead to",
            Self::Irregular => "it is no regular file",
        }
    }

    /// What to do.
    pub fn fix(self) -> &'static str {
        match self {
            Self::InUse => "Remove it when no VM and no definition uses it any more",
            Self::Link => "Remove the link and the file that it leads to, when nothing needs them",
            Self::Irregular => "Nothing, if it is a device; else remove it when nothing needs it",
        }
    }
}

/// Tells that the old file of a disk stays.
pub fn old_file_kept(vm: &str, device: &str, file: impl fmt::Display, why: &str, fix: &str) -> Finding {
    let message = format!("The old file {file} of disk {device} of VM {vm} stays: {why}");
    Finding::warns(FindingId::FileKept, file, message, fix)
}

/// What is known of an old file when its disk has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldFile {
    /// Whether the host keeps a definition of the VM; `None`: the host does not know the VM, or it arrives or leaves.
    pub persistent: Option<bool>,
    /// What stands against its removal, whatever it was to the move.
    pub obstacle: Option<Obstacle>,
    /// The VM's process uses the new file, and its kept definition names it.
    pub new_file_is_used: bool,
}

/// Why an old file stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldFileStays {
    /// The VM is not on this host, or not whole: where it starts from next is not known.
    NotHere,
    /// The VM's definition is not this host's: it still names the old file.
    Transient,
    /// Whatever it was to the move, it is not to be removed.
    Stands(Obstacle),
    /// The definition by which the VM starts next does not name the new file.
    NewFileUnused,
}

/// Decides whether an old file stays, and why; `None`: it goes.
pub fn old_file(file: &OldFile) -> Option<OldFileStays> {
    match (file.persistent, file) {
        (None, _) => Some(OldFileStays::NotHere),
        (Some(false), _) => Some(OldFileStays::Transient),
        (Some(true), OldFile { obstacle: Some(obstacle), .. }) => Some(OldFileStays::Stands(*obstacle)),
        (Some(true), OldFile { new_file_is_used: false, .. }) => Some(OldFileStays::NewFileUnused),
        (Some(true), OldFile { .. }) => None,
    }
}

/// What each of several copies may read per second so that all together stay below the cap.
pub fn share_of_cap(cap_bytes_per_s: u64, copies: usize) -> u64 {
    (cap_bytes_per_s / copies.max(1) as u64).max(1)
}

/// Bytes that must be free for a copy of `allocated`: 5 % more than it takes, and a mebibyte for what describes it.
pub fn space_needed(allocated: ByteCount) -> ByteCount {
    ByteCount(allocated.0.saturating_add(allocated.0 / 20).saturating_add(1 << 20))
}

/// What a copy of a disk may take, as far as is known: what the disk's file and those below it take, at most what the
/// guest sees; all of that where the copy may not be thin.
pub fn copy_takes(virtual_size: ByteCount, chain: ByteCount, is_thick: bool) -> ByteCount {
    if is_thick { virtual_size } else { chain.min(virtual_size) }
}

/// Whether a copy that the hypervisor makes from file to file may not be thin.
pub fn is_thick<F>(file: &VmFile<F>, disk: &DiskMove) -> bool {
    thick(file, disk.format, &disk.from, &disk.to, Copier::Hypervisor).is_some()
}

/// Whether the file of a disk that comes from another host may not be thin.
pub fn arrives_thick(format: DiskFormat, to: &Location) -> bool {
    format == DiskFormat::Raw && matches!(to, Location::Share { .. })
}

/// What is wanted of the disks of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
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
pub fn plan(vm: &VmFacts, wanted: &Wanted) -> Planned {
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
pub fn plan_along(vm: &VmFacts, wanted: &Wanted, there: HostId, is_reached: impl Fn(&Location) -> bool) -> Planned {
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
fn plan_nvram(file: &VmFile, wanted: &Wanted, there: HostId, is_reached: bool, planned: &mut Planned) {
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

/// Who copies a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copier {
    /// QEMU, from file to file, by the settings of the disk.
    Hypervisor,
    /// QEMU through Ferry's carriers, which keep holes whatever the settings.
    Carrier,
}

/// What was planned, judged again by what the VM is now, as a job may have waited: the disks that have not moved yet, and
/// what was found of them.
pub fn plan_again(vm: &VmFacts, disks: &[DiskMove]) -> Planned {
    let in_use = |disk: &DiskMove| vm.files.iter().any(|file| file.device == disk.device && file.place == disk.to);
    let left = disks.iter().filter(|disk| !in_use(disk));
    let named = left.map(|disk| (disk.device.clone(), Some(disk.to.clone()), Some(disk.format))).collect();
    plan(vm, &Wanted { all: None, named })
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
fn unknown(vm: &VmFacts, wanted: &Wanted) -> Vec<Finding> {
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
    wanted: &Wanted,
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

/// Why a copy may not be thin, and what helps. All seen with QEMU 10.0, which copies by the settings of the disk.
fn thick<F>(
    file: &VmFile<F>,
    format: DiskFormat,
    from: &Location,
    to: &Location,
    copier: Copier,
) -> Option<(&'static str, String)> {
    let qcow2 = format!("Choose qcow2: `--disk {}=PLACE,format=qcow2`", file.device);
    let set = |what: &str| format!("Set {what} for the disk while the VM is shut off");
    match (from, format, to) {
        _ if arrives_thick(format, to) => Some(("a raw file on a share may not keep its holes", qcow2)),
        _ if copier == Copier::Carrier => None,
        // The holes of a file on a share are not known: they are read as zeros.
        (Location::Share { .. }, ..) if !file.detects_zeroes => {
            Some(("its definition does not say detect_zeroes='unmap'", set("discard='unmap' detect_zeroes='unmap'")))
        }
        (_, DiskFormat::Raw, _) if !file.unmaps => Some(("its definition does not say discard='unmap'", qcow2)),
        _ => None,
    }
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
    use proptest::prelude::*;
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

    fn all_to(to: Location) -> Wanted {
        Wanted { all: Some(to), named: Vec::new() }
    }

    #[test]
    fn disks_get_files_of_their_names_and_never_the_same() {
        let vm = vm(vec![disk("vda", "/a/web01.raw"), disk("vdb", "/b/web01.img"), disk("vdc", "/b/data")]);
        let to =
            |wanted: &Wanted| -> Vec<Location> { plan(&vm, wanted).disks.into_iter().map(|disk| disk.to).collect() };
        let all = to(&all_to(local("/new/")));
        assert_eq!(all, [local("/new/web01.raw"), local("/new/web01-vdb.raw"), local("/new/data.raw")]);
        let top = to(&all_to(share("")));
        assert_eq!(top, [share("web01.raw"), share("web01-vdb.raw"), share("data.raw")]);
        assert_eq!(to(&all_to(local("/")))[0], local("/web01.raw"));
        let chosen = Wanted {
            all: None,
            named: vec![
                ("vdb".into(), Some(share("x/y.img")), None),
                ("vdc".into(), Some(share("x")), Some(DiskFormat::Qcow2)),
            ],
        };
        assert_eq!(to(&chosen), [share("x/y.img"), share("x/data.qcow2")]);
        let mixed = Wanted { all: Some(local("/new")), named: vec![("vda".into(), None, Some(DiskFormat::Qcow2))] };
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
            let whole = plan(&vm, &all_to(local("/new")));
            assert_eq!(whole.disks.len(), usize::from(moves), "{file:?}");
            let ids: Vec<_> = whole.findings.iter().map(|finding| (finding.id, finding.severity)).collect();
            assert_eq!(ids, found.map(|id| (id, Severity::Warns)).into_iter().collect::<Vec<_>>(), "{file:?}");
            // Who names a file that stays is refused.
            let named = Wanted { all: None, named: vec![("vda".into(), Some(local("/new")), None)] };
            let blocked = plan(&vm, &named).findings.iter().any(|finding| finding.severity == Severity::Blocks);
            assert_eq!(blocked, !moves, "{file:?}");
        }
    }

    #[test]
    fn how_far_a_disk_is_never_goes_back_and_is_told_in_bytes_of_the_disk() {
        let mut disk = DiskProgress::default();
        for (copied, total, all, expected) in [
            (0, 0, false, (0, 0)),
            (1, 1, true, (0, 0)),
            (10, 100, false, (10, 100)),
            (5, 100, false, (10, 100)),
            (110, 120, false, (110, 120)),
            (100, 100, true, (110, 120)),
            (1, 1, true, (110, 120)),
            (120, 120, true, (120, 120)),
        ] {
            assert_eq!(disk.looked(ByteCount(copied), ByteCount(total)), all, "{copied} of {total}");
            assert_eq!((disk.copied.0, disk.total.0), expected, "{copied} of {total}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let two = || vm(vec![disk("vda", "/a/x.raw"), disk("vdb", "/a/x.raw")]);
        let named = |device: &str, to: Option<Location>| Wanted { all: None, named: vec![(device.into(), to, None)] };
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
                Wanted { all: None, named: vec![("vda".into(), Some(local("/a/x.raw")), Some(DiskFormat::Qcow2))] },
                FindingId::FileExists,
            ),
        ] {
            let findings = plan(&vm, &wanted).findings;
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
            let wanted = Wanted { all: None, named: vec![("vda".into(), to.clone(), None)] };
            let named = plan_along(&vm, &wanted, THERE, |_| true);
            assert_eq!(named.disks.len(), usize::from(moves), "{row}");
            let ids: Vec<_> = named.findings.iter().map(|finding| (finding.id, finding.severity)).collect();
            assert_eq!(ids, found.into_iter().collect::<Vec<_>>(), "{row}");
            // What is not named and reached stays without a word.
            let all = Wanted { all: to, named: Vec::new() };
            assert_eq!(plan_along(&vm, &all, THERE, |_| true), Planned::default(), "{row}");
        }
        let twice = vm(vec![disk("vda", "/a/x.raw"), disk("vdb", "/a/x.raw")]);
        let ids: Vec<_> = plan_along(&twice, &all_to(local("/n")), THERE, |_| false)
            .findings
            .iter()
            .map(|finding| finding.id)
            .collect();
        assert_eq!(ids, [DiskTwice, DiskTwice]);
        // A base that the destination does not reach is a reason, too.
        let overlay = VmFile { place: share("x.qcow2"), below: vec![local("/base.raw")], ..plain() };
        let planned = plan_along(&vm(vec![overlay]), &all_to(local("/n")), THERE, |place| {
            matches!(place, Location::Share { .. })
        });
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
        let to = |files: Vec<VmFile>, wanted: &Wanted| {
            let planned = plan_along(&vm(files), wanted, THERE, |place| matches!(place, Location::Share { .. }));
            assert_eq!(planned.findings, [], "{wanted:?}");
            planned.disks.into_iter().find(|disk| disk.device == "nvram").map(|disk| disk.to)
        };
        let own = "/var/lib/libvirt/qemu/nvram/web01_VARS.fd";
        let named = |place: Location| Wanted { all: None, named: vec![("nvram".into(), Some(place), None)] };
        let disks = Wanted { all: None, named: vec![("vda".into(), Some(there("/n/x.raw")), None)] };
        for (row, files, wanted, expected) in [
            ("libvirt's", vec![nvram(local(own))], Wanted::default(), Some(there(own))),
            ("libvirt's, disks elsewhere", vec![nvram(local(own))], all_to(there("/n")), Some(there(own))),
            ("its own", vec![nvram(local("/v/vars.fd"))], all_to(there("/n")), Some(there("/n/vars.fd"))),
            (
                "beside a disk",
                vec![nvram(local("/v/vars.fd")), disk("vda", "/a/x.raw")],
                disks,
                Some(there("/n/vars.fd")),
            ),
            ("nowhere", vec![nvram(local("/v/vars.fd"))], Wanted::default(), None),
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
            for planned in [plan(&vm, &all_to(local("/n"))), plan_along(&vm, &all_to(local("/n")), THERE, |_| false)] {
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
        let findings = plan(&vm, &all_to(local("/new/"))).findings;
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
        let named = Wanted { all: None, named: vec![("vda".into(), Some(local("/n")), None)] };
        assert_eq!(plan(&vm, &named).findings[0].id, FindingId::DiskTwice);
        assert_eq!(plan_along(&vm, &named, THERE, |_| true).findings[0].id, FindingId::DiskTwice);
    }

    #[test]
    fn a_files_name_tells_its_format() {
        let vm = vm(vec![disk("vda", "/a/x.raw")]);
        let named = |to: &str, format| Wanted { all: None, named: vec![("vda".into(), Some(local(to)), format)] };
        let planned = plan(&vm, &named("/n/y.qcow2", None));
        assert_eq!((planned.disks[0].format, planned.findings), (DiskFormat::Qcow2, Vec::new()));
        let against = plan(&vm, &named("/n/y.qcow2", Some(DiskFormat::Raw))).findings;
        assert_eq!((against[0].id, against[0].severity), (FindingId::FilePlace, Severity::Blocks));
        assert_eq!(plan(&vm, &named("/n/y.img", Some(DiskFormat::Qcow2))).findings, []);
    }

    #[test]
    fn a_copy_takes_its_chain_and_all_of_the_disk_where_it_is_thick() {
        let mib = ByteCount::mib;
        for (row, chain, thick, takes) in [
            ("thin", 10, false, 10),
            ("a chain that holds more than the disk", 130, false, 100),
            ("thick", 10, true, 100),
        ] {
            assert_eq!(copy_takes(mib(100), mib(chain), thick), mib(takes), "{row}");
        }
        let to = |to: Location| DiskMove {
            device: "vda".into(),
            from: local("/a/x.raw"),
            real: None,
            to,
            format: DiskFormat::Raw,
        };
        assert!(is_thick(&disk("vda", "/a/x.raw"), &to(share("x.raw"))));
        assert!(!is_thick(&disk("vda", "/a/x.raw"), &to(local("/n/x.raw"))));
        assert!(arrives_thick(DiskFormat::Raw, &share("x")) && !arrives_thick(DiskFormat::Qcow2, &share("x")));
    }

    #[test]
    fn raw_on_a_share_is_said_to_be_thick_and_qcow2_is_not() {
        let vm = vm(vec![disk("vda", "/a/x.raw")]);
        assert_eq!(plan(&vm, &all_to(share("d"))).findings[0].id, FindingId::DiskThick);
        let thin = Wanted { all: Some(share("d")), named: vec![("vda".into(), None, Some(DiskFormat::Qcow2))] };
        assert_eq!(plan(&vm, &thin).findings, []);
    }

    #[test]
    fn every_disk_is_ready_before_the_first_is_switched_over() {
        use DiskNow::{CopiedElsewhere, Copying, Elsewhere, New, Old, Ready};
        let fails = |text: &str| Next::Fail(text.to_owned());
        for (disks, expected) in [
            (vec![(false, Old)], Next::Begin(0)),
            (vec![(true, Copying), (false, Old)], Next::Begin(1)),
            (vec![(true, Copying), (true, Copying)], Next::Wait),
            (vec![(true, Ready), (true, Copying)], Next::Wait),
            (vec![(true, Ready), (true, Ready)], Next::Pivot(0)),
            (vec![(true, New), (true, Ready)], Next::Pivot(1)),
            (vec![(true, New), (true, New)], Next::Done),
            // Taken up again: one was moved by an earlier attempt.
            (vec![(false, New), (false, Old)], Next::Begin(1)),
            (vec![(false, New), (true, Copying)], Next::Wait),
            (vec![(true, Ready), (true, Old)], fails("the copy of disk vdb has ended")),
            (vec![(true, New), (true, Old)], fails("the copy of disk vdb has ended")),
            (vec![(true, Ready), (true, CopiedElsewhere)], fails("something else copies disk vdb to another file")),
            (vec![(true, Elsewhere)], fails("disk vda uses neither its old nor its new file")),
        ] {
            let named: Vec<_> =
                ["vda", "vdb"].into_iter().zip(&disks).map(|(device, (begun, now))| (device, *begun, *now)).collect();
            assert_eq!(next(&named), expected, "{disks:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_switched_over_while_a_disk_is_not_ready(states in prop::collection::vec((any::<bool>(), 0..6u8), 1..6)) {
            let now = |number| match number {
                0 => DiskNow::Old,
                1 => DiskNow::Copying,
                2 => DiskNow::Ready,
                3 => DiskNow::New,
                4 => DiskNow::CopiedElsewhere,
                _ => DiskNow::Elsewhere,
            };
            let disks: Vec<_> = states.iter().map(|(begun, number)| ("vda", *begun, now(*number))).collect();
            let all = |wanted: &[DiskNow]| disks.iter().all(|(_, _, now)| wanted.contains(now));
            match next(&disks) {
                Next::Pivot(index) => {
                    prop_assert!(all(&[DiskNow::Ready, DiskNow::New]));
                    prop_assert_eq!(disks[index].2, DiskNow::Ready);
                }
                Next::Done => prop_assert!(all(&[DiskNow::New])),
                Next::Begin(index) => prop_assert_eq!((disks[index].1, disks[index].2), (false, DiskNow::Old)),
                Next::Wait => prop_assert!(all(&[DiskNow::Copying, DiskNow::Ready, DiskNow::New])),
                Next::Fail(_) => prop_assert!(!all(&[DiskNow::Copying, DiskNow::Ready, DiskNow::New])),
            }
        }
    }

    #[test]
    fn a_new_file_goes_only_while_it_cannot_hold_what_no_other_holds() {
        use Fate::{Goes, Stays, StaysTold};
        let fresh = NewFile { made: true, in_use: false, switch_asked: false, moved: false, old_file_runs: false };
        let asked = NewFile { switch_asked: true, ..fresh };
        for (row, file, fate) in [
            ("a copy that was begun", fresh, Goes),
            ("of another attempt", NewFile { made: false, ..fresh }, Stays),
            ("named by a definition", NewFile { in_use: true, ..fresh }, Stays),
            ("the VM went away after the switch-over was asked for", asked, StaysTold),
            ("it was asked for and did not happen", NewFile { old_file_runs: true, ..asked }, Goes),
            ("it happened", NewFile { in_use: true, ..asked }, Stays),
            ("all moved", NewFile { moved: true, in_use: true, ..asked }, Stays),
            ("all moved, and the VM went away", NewFile { moved: true, ..asked }, StaysTold),
            (
                "all moved, and the VM came back with the old",
                NewFile { moved: true, old_file_runs: true, ..asked },
                StaysTold,
            ),
            ("a journal that says little", NewFile { moved: true, ..fresh }, StaysTold),
        ] {
            assert_eq!(new_file(&file), fate, "{row}");
        }
    }

    #[test]
    fn an_old_file_goes_only_when_every_definition_uses_the_new_one() {
        use OldFileStays::{NewFileUnused, NotHere, Stands, Transient};
        let moved = OldFile { persistent: Some(true), obstacle: None, new_file_is_used: true };
        for (file, stays) in [
            (moved, None),
            (OldFile { persistent: None, ..moved }, Some(NotHere)),
            (OldFile { persistent: Some(false), ..moved }, Some(Transient)),
            (OldFile { obstacle: Some(Obstacle::InUse), ..moved }, Some(Stands(Obstacle::InUse))),
            (OldFile { obstacle: Some(Obstacle::Link), ..moved }, Some(Stands(Obstacle::Link))),
            (OldFile { obstacle: Some(Obstacle::Irregular), ..moved }, Some(Stands(Obstacle::Irregular))),
            (OldFile { new_file_is_used: false, ..moved }, Some(NewFileUnused)),
        ] {
            assert_eq!(old_file(&file), stays, "{file:?}");
        }
    }

    #[test]
    fn a_cap_is_shared_by_the_copies_that_go_on_at_once() {
        assert_eq!([share_of_cap(90, 3), share_of_cap(90, 0), share_of_cap(1, 2)], [30, 90, 1]);
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

    #[test]
    fn a_copy_needs_a_little_more_than_it_takes() {
        assert_eq!(space_needed(ByteCount(0)), ByteCount::mib(1));
        assert_eq!(space_needed(ByteCount::mib(100)), ByteCount::mib(106));
        assert_eq!(space_needed(ByteCount(u64::MAX)), ByteCount(u64::MAX));
    }
}
