//! Whether both hosts can use the files of a VM that stay where they are, and warnings about all its files.

use super::{facts::LiveFacts, shares::share_reach};
use crate::{
    api::agent::Role,
    finding::{Action, ByHand, Command, Finding, FindingId, Fix, Message},
    immovable::what,
    location::Location,
    release::{distrusted, trusts},
    vm::{FileRole, NotAFile, VmFile},
};

/// A file that stays must be reachable from both hosts.
pub(super) fn reach(facts: &LiveFacts<'_>, file: &VmFile, findings: &mut Vec<Finding>) {
    let object = format!("{} {}", facts.vm.name, file.device);
    let (vm, device) = (facts.vm.name.clone(), file.device.clone());
    let (source, destination) = (facts.source.name.to_owned(), facts.destination.name.to_owned());
    for below in &file.below {
        below_reach(facts, file, below, findings);
    }
    match (&file.place, file.role) {
        (_, FileRole::NotAFile) => findings.push(not_a_file(facts, file)),
        (Location::Local { path, .. }, FileRole::Media) => {
            let path = path.clone();
            let message = Message::MediumOnHost { device: device.clone(), vm: vm.clone(), path, host: source.clone() };
            let fix = Command::EjectOrShare { vm, device, host: source };
            findings.push(Finding::blocks(FindingId::VmLocalMedia, object, message, fix));
        }
        (Location::Local { path, .. }, FileRole::Disk | FileRole::Nvram | FileRole::Boot) => {
            let message = Message::FileNotShared {
                file: role_and_device(file).into(),
                vm: vm.clone(),
                path: path.clone(),
                host: source.clone(),
            };
            let fix = match file.role {
                FileRole::Disk if file.shareable => Action::MoveOfflineOrShare { vm, host: destination },
                FileRole::Nvram => Action::MigrateNvram { host: destination },
                FileRole::Disk if !file.read_only => Action::MigrateDisk { host: destination },
                FileRole::Disk | FileRole::Boot | FileRole::Media | FileRole::NotAFile => {
                    Action::PutOnShare { source, destination }
                }
            };
            findings.push(Finding::blocks(FindingId::DiskNotShared, object, message, fix));
        }
        (Location::Share { share, path }, _) => {
            let what = Message::FileOfVmIs { file: role_and_device(file).into(), vm, path: path.clone() };
            share_reach(facts, &object, &what, *share, findings);
        }
    }
}

/// A file below a disk that stays must be reachable as well.
fn below_reach(facts: &LiveFacts<'_>, file: &VmFile, below: &Location, findings: &mut Vec<Finding>) {
    let (vm, device) = (facts.vm.name.clone(), file.device.clone());
    let object = format!("{vm} {device}");
    match below {
        Location::Share { share, path } => {
            let what = Message::BelowOfVmIs { device, vm, path: path.clone() };
            share_reach(facts, &object, &what, *share, findings);
        }
        Location::Local { path, .. } => {
            let (path, host) = (path.clone(), facts.source.name.to_owned());
            let message = Message::BelowNotShared { device: device.clone(), vm, path, host };
            let fix = Action::MigrateChain { device, host: facts.destination.name.to_owned() };
            findings.push(Finding::blocks(FindingId::DiskNotShared, object, message, fix));
        }
    }
}

/// A device that is not a file cannot be migrated, and Ferry cannot check that the destination has the same one.
fn not_a_file(facts: &LiveFacts<'_>, file: &VmFile) -> Finding {
    let (vm, device, host) = (facts.vm.name.clone(), file.device.clone(), facts.source.name.to_owned());
    let (path, what) = (file.place.path().to_owned(), what(file).into());
    let object = format!("{vm} {device}");
    if file.is_medium() {
        let message = Message::MediumIs { device: device.clone(), vm: vm.clone(), path, what };
        return Finding::blocks(FindingId::VmLocalMedia, object, message, Command::EjectOn { vm, device, host });
    }
    let message = Message::DiskIsNoFile { device, vm: vm.clone(), path, what };
    let fix: Fix = match &file.kind {
        Some(NotAFile::Nvdimm) => ByHand::DetachMemory.into(),
        Some(NotAFile::Volume) => Command::StartPool { host }.into(),
        Some(NotAFile::Filesystem(_)) => Command::DetachFolder { vm, host }.into(),
        Some(NotAFile::Block | NotAFile::Network(_) | NotAFile::Medium(..) | NotAFile::Other(_)) | None => {
            ByHand::MoveDiskToShare.into()
        }
    };
    Finding::blocks(FindingId::DiskNotShared, object, message, fix)
}

/// An encrypted image can be used only where its secret is known.
pub(super) fn needs_secret(facts: &LiveFacts<'_>, file: &VmFile) -> Finding {
    let (vm, device, host) = (facts.vm.name.clone(), file.device.clone(), facts.destination.name.to_owned());
    let object = format!("{vm} {device}");
    let message = Message::DiskNeedsSecret { device, vm, host: host.clone() };
    Finding::warns(FindingId::DiskEncrypted, object, message, Command::DefineSecret { host })
}

/// Warns of a disk whose guest sees I/O errors while the file server is down.
pub(super) fn shows_errors(facts: &LiveFacts<'_>, file: &VmFile) -> Option<Finding> {
    let (vm, device) = (facts.vm.name.clone(), file.device.clone());
    let has_server = facts.moves_to(file).unwrap_or(&file.place).share().is_some();
    let shows = file.role == FileRole::Disk && !file.read_only && !file.stops_on_error && has_server;
    shows.then(|| {
        let object = format!("{vm} {device}");
        Finding::warns(FindingId::DiskUnsafe, object, Message::DiskShowsErrors { device, vm }, ByHand::SetErrorPolicy)
    })
}

/// Both hosts' libvirt must treat files that stay on shares as shared, or must not need to. Files that a host cannot
/// reach are reported elsewhere.
pub(super) fn trusted(facts: &LiveFacts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (side, role) in [(&facts.source, Role::Source), (&facts.destination, Role::Destination)] {
        let Some(version) = side.facts.map(|host| host.libvirt_version.as_str()) else { continue };
        let stay = facts.files_that_stay();
        let files: Vec<_> =
            stay.filter_map(|file| Some((file, side.usable(&file.place)?.file_system.as_ref()))).collect();
        for (found, (file, on)) in trusts(version, role, &files).into_iter().zip(&files) {
            findings.extend(distrusted(found, (side.name, version), (&facts.vm.name, file), *on));
        }
    }
    findings
}

fn role_and_device(file: &VmFile) -> Message {
    let device = file.device.clone();
    match file.role {
        FileRole::Disk | FileRole::NotAFile => Message::ADisk { device },
        FileRole::Media => Message::ADrive { device },
        FileRole::Nvram => Message::TheNvram,
        FileRole::Boot => Message::TheFile { device },
    }
}
