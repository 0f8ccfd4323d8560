//! Decides which file of a VM goes where. One walk over its files serves every kind of move; the kinds differ in who
//! copies:
//!
//! | move | who copies | what moves unless it is named | what stays or cannot move | |---|---|---|---| | disks of a
//! running VM, on its host | QEMU, from file to file | every file, if a destination is given for all | all but writable
//! disks of this VM alone; UEFI variables | | a running VM with disks | QEMU, through Ferry's carriers | disks and UEFI
//! variables that the destination cannot reach | all but writable disks of this VM alone | | a VM that is shut off |
//! Ferry, byte by byte | all files that the destination cannot reach | devices that are not files; overlays |
//!
//! Both hosts must reach the files that stay; [`crate::preflight`] checks that.

mod copier;
mod names;
mod refusal;
#[cfg(test)]
mod tests;

pub use names::{NVRAM_FOLDER, is_file, is_libvirts_nvram};

use copier::Copier;

use super::{
    DiskMove, FileMove,
    space::{why_arrives_thick, why_copied_thick},
};
use crate::{
    finding::{Action, ByHand, Finding, FindingId, Fix, Message},
    id::HostId,
    immovable::{immovable, snapshots},
    location::Location,
    power::{not_running, not_shut_off},
    vm::{DiskFormat, FileRole, VmFacts, VmFile, VmState},
};

/// What the request says about the files of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    /// The destination of every moving file that is not named; `None`: unnamed files stay.
    pub all: Option<Location>,
    /// Files by device, each with its destination (`None`: as the others) and its new format (`None`: as now).
    pub named: Vec<(String, Option<Location>, Option<DiskFormat>)>,
}

/// What will be done, and what prevents it or should be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned<M = DiskMove> {
    /// The moves, in the order of the definition; UEFI variables of a running VM come last.
    pub moves: Vec<M>,
    /// The findings.
    pub findings: Vec<Finding>,
}

/// Plans a move of a running VM's disks to other files of its host. Every file of the VM either moves, or a finding
/// states that it stays and why.
pub fn plan_storage(vm: &VmFacts, requested: &Requested) -> Planned {
    let mut walk = Walk::new(vm, requested, Copier::Hypervisor, &|_| true);
    walk.findings.extend(not_running(vm));
    walk.findings.extend(snapshots(vm, |vm, count| Message::VmSnapshotsOfFiles { vm, count }));
    if vm.state == VmState::Running && !vm.persistent {
        walk.findings.push(Finding::warns(
            FindingId::FileKept,
            &vm.name,
            Message::VmNotKept { vm: vm.name.clone() },
            ByHand::NameNewFiles,
        ));
    }
    walk.unknown_devices();
    if vm.tpm && requested.all.is_some() {
        walk.findings.push(Finding::warns(
            FindingId::VmTpm,
            &vm.name,
            Message::VmTpmStays { vm: vm.name.clone() },
            ByHand::TpmIsFound,
        ));
    }
    walk.all(&vm.files);
    walk.planned(Moving::disk)
}

/// Plans which files move with a running VM to host `there`: those that are named and, if a destination is given for
/// all, disks and UEFI variables that the destination cannot reach. Preflight judges whether the VM itself can move.
pub fn plan_live(
    vm: &VmFacts,
    requested: &Requested,
    there: HostId,
    is_reached: impl Fn(&Location) -> bool,
) -> Planned {
    let mut walk = Walk::new(vm, requested, Copier::Carrier { there }, &is_reached);
    walk.unknown_devices();
    // UEFI variables come last, because they may go to the folder of the disks.
    let (nvram, others): (Vec<_>, Vec<_>) = vm.files.iter().partition(|file| file.role == FileRole::Nvram);
    walk.all(others);
    walk.all(nvram);
    walk.planned(Moving::disk)
}

/// Plans which files of a VM that is shut off move with it: those that are named, and those that the destination cannot
/// reach. All of them need a destination, or the move is refused: no file is left behind.
pub fn plan_offline(vm: &VmFacts, requested: &Requested, is_reached: impl Fn(&Location) -> bool) -> Planned<FileMove> {
    let mut walk = Walk::new(vm, requested, Copier::Ferry, &is_reached);
    walk.findings.extend(not_shut_off(vm));
    walk.findings.extend(immovable(vm));
    walk.unknown_devices();
    walk.all(&vm.files);
    walk.planned(Moving::file)
}

/// Plans [`plan_storage`]'s moves again from the VM's present state, because the job may have waited: the disks that
/// have not moved yet, and their findings.
pub fn plan_again(vm: &VmFacts, disks: &[DiskMove]) -> Planned {
    let in_use = |disk: &DiskMove| vm.files.iter().any(|file| file.device == disk.device && file.place == disk.to);
    let left = disks.iter().filter(|disk| !in_use(disk));
    let named = left.map(|disk| (disk.device.clone(), Some(disk.to.clone()), Some(disk.format))).collect();
    plan_storage(vm, &Requested { all: None, named })
}

/// A file that moves.
struct Moving<'a> {
    file: &'a VmFile,
    to: Location,
    /// The format of the new image; `None`: an exact copy of the file's bytes.
    format: Option<DiskFormat>,
}

impl Moving<'_> {
    fn disk(self) -> DiskMove {
        let Self { file, to, format } = self;
        let (device, from, real) = (file.device.clone(), file.place.clone(), file.real.clone());
        DiskMove { device, from, real, to, format: format.or(file.format).unwrap_or(DiskFormat::Raw) }
    }

    fn file(self) -> FileMove {
        let VmFile { device, role, place, real, .. } = self.file.clone();
        let shareable = self.file.shareable && role == FileRole::Disk;
        FileMove { device, role, from: place, real, to: self.to, shareable, kept: false }
    }
}

/// The walk over a VM's files.
struct Walk<'a> {
    vm: &'a VmFacts,
    requested: &'a Requested,
    copier: Copier,
    is_reached: &'a dyn Fn(&Location) -> bool,
    moves: Vec<Moving<'a>>,
    findings: Vec<Finding>,
}

impl<'a> Walk<'a> {
    fn new(
        vm: &'a VmFacts,
        requested: &'a Requested,
        copier: Copier,
        is_reached: &'a dyn Fn(&Location) -> bool,
    ) -> Self {
        Self { vm, requested, copier, is_reached, moves: Vec::new(), findings: Vec::new() }
    }

    fn planned<M>(self, made: impl Fn(Moving<'a>) -> M) -> Planned<M> {
        Planned { moves: self.moves.into_iter().map(made).collect(), findings: self.findings }
    }

    /// Refuses named devices that do not exist.
    fn unknown_devices(&mut self) {
        let Self { vm, requested, .. } = *self;
        for (device, ..) in &requested.named {
            if !vm.files.iter().any(|file| file.device == *device) {
                let message = Message::DiskUnknown { vm: vm.name.clone(), device: device.clone() };
                let fix = ByHand::NameOneOf { devices: vm.files.iter().map(|file| &file.device).collect() };
                self.findings.push(Finding::blocks(FindingId::DiskUnknown, device, message, fix));
            }
        }
    }

    fn all(&mut self, files: impl IntoIterator<Item = &'a VmFile>) {
        for file in files {
            self.judge(file);
        }
    }

    fn judge(&mut self, file: &'a VmFile) {
        let named = self.requested.named.iter().find(|(device, ..)| *device == file.device);
        let (is_named, named_format) = (named.is_some(), named.and_then(|(.., format)| *format));
        if !is_named && !self.copier.moves_unnamed(file, self.is_reached) {
            return;
        }
        let to = named.and_then(|(_, to, _)| to.clone()).or_else(|| self.place_of_unnamed(file));
        // No destination is requested for it: it stays, if a running VM can leave it behind.
        if to.is_none() && !is_named && self.copier != Copier::Ferry {
            return;
        }
        if let Some(finding) = refusal::refusal(self.vm, file, self.copier, to.as_ref(), is_named) {
            self.findings.push(finding);
            return;
        }
        let Some(to) = to else {
            self.findings.push(self.no_place(file, is_named));
            return;
        };
        let format = self.format(file, &to, named_format);
        let new_file = self.new_file(file, &to, format);
        if new_file == file.place
            && let Some((format, _)) = format.zip(file.format).filter(|(new, now)| new != now)
        {
            self.findings.push(own_file_in_another_format(&file.device, format));
            return;
        }
        self.findings.extend(format.or(file.format).and_then(|format| names::misnamed(&file.device, &to, format)));
        let to = new_file;
        self.remarks(file, format, &to);
        self.uses_twice(file, &to);
        self.moves.push(Moving { file, to, format });
    }

    /// The destination of a file without one of its own. UEFI variables of a running VM go to libvirt's own folder if
    /// they lie there now, otherwise to the folder of the disks.
    fn place_of_unnamed(&self, file: &VmFile) -> Option<Location> {
        let all = self.requested.all.as_ref();
        let same_folder = |to: &Location| if is_file(to.path()) { to.parent() } else { to.clone() };
        match (self.copier, file.role, &file.place) {
            (Copier::Carrier { there }, FileRole::Nvram, Location::Local { path, .. }) if is_libvirts_nvram(path) => {
                Some(Location::Local { host: there, path: NVRAM_FOLDER.to_owned() })
            }
            (Copier::Carrier { .. }, FileRole::Nvram, _) => {
                all.or_else(|| self.moves.first().map(|disk| &disk.to)).map(same_folder)
            }
            (Copier::Ferry, FileRole::Nvram, _) => all.map(same_folder),
            _ => all.cloned(),
        }
    }

    fn no_place(&self, file: &VmFile, is_named: bool) -> Finding {
        let device = file.device.clone();
        let message = match is_named {
            true => Message::DiskNoPlace { device: device.clone() },
            false => Message::FileNotReached { device: device.clone(), vm: self.vm.name.clone() },
        };
        let fix = Action::GivePlace { option: self.copier.option().to_owned(), device };
        Finding::blocks(FindingId::FilePlace, &file.device, message, fix)
    }

    /// The format of the new image: the requested one, the one implied by the new file's name, or the present one.
    /// `None`: the bytes are copied unchanged.
    fn format(&mut self, file: &VmFile, to: &Location, named: Option<DiskFormat>) -> Option<DiskFormat> {
        let is_nvram = file.role == FileRole::Nvram;
        if self.copier != Copier::Ferry && !is_nvram {
            return named.or(names::format_of(to)).or(file.format).or(Some(DiskFormat::Qcow2));
        }
        let now = if is_nvram { file.format.or(Some(DiskFormat::Raw)) } else { file.format };
        if named.is_some() && named != now {
            let (device, vm) = (file.device.clone(), self.vm.name.clone());
            let (message, fix): (_, Fix) = match is_nvram {
                true => (Message::NvramKeepsFormat, ByHand::LeaveFormatOut.into()),
                false => (Message::DiskKeepsFormat { device, vm: vm.clone() }, Action::ChangeFormatLater { vm }.into()),
            };
            self.findings.push(Finding::blocks(FindingId::FilePlace, &file.device, message, fix));
        }
        None
    }

    /// The file that was named, or a new name in the given folder that no other file of the move has.
    fn new_file(&self, file: &VmFile, to: &Location, format: Option<DiskFormat>) -> Location {
        if is_file(to.path()) || (file.role == FileRole::Nvram && names::is_nvram(to.path())) {
            return to.clone();
        }
        names::in_folder(to, file, format, |place| self.moves.iter().any(|other| other.to == *place))
    }

    /// Adds findings about a disk that is copied while the VM runs.
    fn remarks(&mut self, file: &VmFile, format: Option<DiskFormat>, to: &Location) {
        let device = &file.device;
        let Some(format) = format else { return };
        let thick = match self.copier {
            Copier::Hypervisor => why_copied_thick(file, format, &file.place, to),
            Copier::Carrier { .. } | Copier::Ferry => why_arrives_thick(device, format, to),
        };
        if let Some((why, fix)) = thick {
            self.findings.push(Finding::warns(
                FindingId::DiskThick,
                device,
                Message::DiskThick { device: device.clone(), why: why.into() },
                fix,
            ));
        }
        if file.has_backing {
            self.findings.push(Finding::warns(
                FindingId::DiskFlattened,
                device,
                Message::DiskFlattened { device: device.clone() },
                ByHand::NothingOrLeaveOut,
            ));
        }
        // For a move to another host, preflight reports it.
        if !file.stops_on_error && self.copier == Copier::Hypervisor {
            self.findings.push(Finding::warns(
                FindingId::DiskUnsafe,
                device,
                Message::DiskErrorPolicy { device: device.clone() },
                ByHand::SetErrorPolicyInDefinition,
            ));
        }
    }

    /// Refuses a file that several disks use, and a new file that several disks would use.
    fn uses_twice(&mut self, file: &VmFile, to: &Location) {
        let (name, device) = (self.vm.name.clone(), &file.device);
        let mut twice = |message, fix: ByHand| {
            self.findings.push(Finding::blocks(FindingId::DiskTwice, device, message, fix));
        };
        if self.vm.files.iter().filter(|other| other.needs(file)).count() > 1 {
            twice(Message::DiskUsedTwice { device: device.clone(), vm: name.clone() }, ByHand::OwnFilesForDisks);
        }
        if let Some(other) = self.moves.iter().find(|other| other.to == *to) {
            let one = other.file.device.clone();
            twice(Message::DisksSameFile { one, other: device.clone(), vm: name }, ByHand::NameFileForEach);
        }
    }
}

fn own_file_in_another_format(device: &str, format: DiskFormat) -> Finding {
    let message = Message::DiskOwnFile { device: device.to_owned() };
    let fix = Action::GiveOtherFile { device: device.to_owned(), format: format.name().to_owned() };
    Finding::blocks(FindingId::FileExists, device, message, fix)
}
