//! Whether both hosts can use the files of a VM that stay where they are, and warnings about all its files.

use super::{facts::LiveFacts, shares::share_reach};
use crate::{
    api::agent::Role,
    finding::{Finding, FindingId},
    location::Location,
    release::{distrusted, trusts},
    vm::{FileRole, NotAFile, VmFile},
};

/// A file that stays must be reachable from both hosts.
pub(super) fn reach(facts: &LiveFacts<'_>, file: &VmFile, findings: &mut Vec<Finding>) {
    let vm = &facts.vm.name;
    let object = format!("{vm} {}", file.device);
    let (source, destination) = (facts.source.name, facts.destination.name);
    for below in &file.below {
        below_reach(facts, file, below, findings);
    }
    match (&file.place, file.role) {
        (_, FileRole::NotAFile) => findings.push(not_a_file(facts, file)),
        (Location::Local { path, .. }, FileRole::Media) => findings.push(Finding::blocks(
            FindingId::VmLocalMedia,
            object,
            format!("Drive {} of VM {vm} holds {path}, which lies on host {source} only", file.device),
            format!("Eject it (`virsh change-media {vm} {} --eject` on {source}) or put it on a share", file.device),
        )),
        (Location::Local { path, .. }, FileRole::Disk | FileRole::Nvram | FileRole::Boot) => {
            findings.push(Finding::blocks(
                FindingId::DiskNotShared,
                object,
                format!("{} of VM {vm} is {path} on host {source}, not on a share", role_and_device(file)),
                match file.role {
                    FileRole::Disk if file.shareable => format!(
                        "Shut down every VM that uses it and move them one after the other, each with the disk to the same \
                         place, `ferry vm migrate {vm} --to {destination} --storage PLACE --offline`; start none before all \
                         have moved. Or put the file on a share that both hosts reach"
                    ),
                    FileRole::Nvram => format!(
                        "Let them move along: `--storage PLACE`, a folder of {destination} \
                         (`ferry host browse {destination}`) or of a share"
                    ),
                    FileRole::Disk if !file.read_only => format!(
                        "Let it move along: `--storage PLACE`, a folder of {destination} (`ferry host browse {destination}`) \
                         or of a share"
                    ),
                    FileRole::Disk | FileRole::Media | FileRole::Boot | FileRole::NotAFile => format!("Put the file on a share that {source} and {destination} both reach (`ferry share list`)"),
                },
            ))
        }
        (Location::Share { share, path }, _) => {
            let what = format!("{} of VM {vm} is {path}", role_and_device(file));
            share_reach(facts, &object, &what, *share, findings);
        }
    }
}

/// A file below a disk that stays must be reachable as well.
fn below_reach(facts: &LiveFacts<'_>, file: &VmFile, below: &Location, findings: &mut Vec<Finding>) {
    let (vm, device) = (&facts.vm.name, &file.device);
    let (object, destination) = (format!("{vm} {device}"), facts.destination.name);
    match below {
        Location::Share { share, path } => {
            let what = format!("{path}, which disk {device} of VM {vm} is an overlay over, is");
            share_reach(facts, &object, &what, *share, findings);
        }
        Location::Local { path, .. } => findings.push(Finding::blocks(
            FindingId::DiskNotShared,
            object,
            format!("Disk {device} of VM {vm} is an overlay over {path} on host {}, not on a share", facts.source.name),
            format!(
                "Let the disk move along as one image: `--disk {device}=PLACE`, a folder of {destination} \
                 (`ferry host browse {destination}`) or of a share, while the VM runs"
            ),
        )),
    }
}

/// A device that is not a file cannot be migrated, and Ferry cannot check that the destination has the same one.
fn not_a_file(facts: &LiveFacts<'_>, file: &VmFile) -> Finding {
    let (vm, device, source) = (&facts.vm.name, &file.device, facts.source.name);
    let path = file.place.path();
    let object = format!("{vm} {device}");
    if file.is_medium() {
        return Finding::blocks(
            FindingId::VmLocalMedia,
            object,
            format!("Drive {device} of VM {vm} holds {path}, which is {}", file.what()),
            format!("Eject it: `virsh change-media {vm} {device} --eject` on {source}"),
        );
    }
    let fix = match &file.kind {
        Some(NotAFile::Nvdimm) => "Detach it before the move, or move the VM by hand while it is shut off".to_owned(),
        Some(NotAFile::Volume) => {
            format!("Start its pool (`virsh pool-list --all` and `virsh pool-start` on {source}), then ask again")
        }
        Some(NotAFile::Filesystem(_)) => {
            format!("Unmount it in the guest and detach it: `virsh detach-device {vm} FILE` on {source}")
        }
        Some(NotAFile::Block | NotAFile::Network(_) | NotAFile::Medium(..) | NotAFile::Other(_)) | None => {
            "Move the disk to a file on a share that both hosts reach".to_owned()
        }
    };
    Finding::blocks(
        FindingId::DiskNotShared,
        object,
        format!("{device} of VM {vm} is {path}, {}, and not a file on a share", file.what()),
        fix,
    )
}

/// An encrypted image can be used only where its secret is known.
pub(super) fn needs_secret(facts: &LiveFacts<'_>, file: &VmFile) -> Finding {
    let destination = facts.destination.name;
    Finding::warns(
        FindingId::DiskEncrypted,
        format!("{} {}", facts.vm.name, file.device),
        format!(
            "Disk {} of VM {} is encrypted: {destination} must know the secret that its <encryption> names",
            file.device, facts.vm.name
        ),
        format!(
            "Define it there with the same UUID: `virsh secret-define` and `virsh secret-set-value` on {destination}"
        ),
    )
}

/// Warns of a disk whose guest sees I/O errors while the file server is down.
pub(super) fn shows_errors(facts: &LiveFacts<'_>, file: &VmFile) -> Option<Finding> {
    let vm = &facts.vm.name;
    let has_server = facts.moves_to(file).unwrap_or(&file.place).share().is_some();
    let shows = file.role == FileRole::Disk && !file.read_only && !file.stops_on_error && has_server;
    shows.then(|| {
        Finding::warns(
            FindingId::DiskUnsafe,
            format!("{vm} {}", file.device),
            format!("Disk {} of VM {vm} shows I/O errors to the guest when the file server is away", file.device),
            "Set error_policy='stop' in the disk's <driver>, so that the VM waits instead",
        )
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

fn role_and_device(file: &VmFile) -> String {
    match file.role {
        FileRole::Disk | FileRole::NotAFile => format!("Disk {}", file.device),
        FileRole::Media => format!("Drive {}", file.device),
        FileRole::Nvram => "The NVRAM".to_owned(),
        FileRole::Boot => format!("The {}", file.device),
    }
}
