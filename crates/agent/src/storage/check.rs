//! What prevents a storage move, and the space that its copies occupy.

use std::path::PathBuf;

use ferry_core::{
    api::agent::PrepareStorage,
    files::{
        DiskMove,
        space::{copy_takes, is_thick},
    },
    finding::{Action, FindingId, Message},
    power::not_running,
    vm::VmFacts,
};
use ferry_drivers::hypervisor::{Hypervisor, HypervisorError};

use super::journal::Disk;
use crate::{
    AgentError,
    files::{
        chain::{chain_takes, holds_no_snapshots},
        host_storage::HostStorage,
        new_file::Lifecycle,
        space::Needs,
    },
    refusal::{exists, refused},
};

/// The disks with their files on this host, if nothing prevents the move. Changes nothing. Blocks.
///
/// # Errors
/// What prevents it.
pub(super) fn checked(
    hypervisor: &dyn Hypervisor,
    request: &PrepareStorage,
    storage: &HostStorage,
) -> Result<Vec<Disk>, AgentError> {
    let vm = request.vm;
    let facts = hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
    if let Some(finding) = not_running(&facts) {
        return Err(AgentError::refused(409, finding));
    }
    let mut disks = Vec::with_capacity(request.disks.len());
    let mut needs = Needs::default();
    for requested in &request.disks {
        let path = |place| storage.path(&requested.device, place);
        let disk = checked_disk(hypervisor, &facts, requested, path(&requested.from)?, path(&requested.to)?)?;
        // A disk that an earlier attempt moved already occupies its space.
        if !facts.files.iter().any(|file| file.device == disk.device && file.place == disk.to) {
            needs.add(storage, &requested.to, disk.allocated)?;
        }
        disks.push(disk);
    }
    needs.are_met(storage)?;
    Ok(disks)
}

fn checked_disk(
    hypervisor: &dyn Hypervisor,
    facts: &VmFacts<PathBuf>,
    requested: &DiskMove,
    from: PathBuf,
    to: PathBuf,
) -> Result<Disk, AgentError> {
    let device = &requested.device;
    let file = facts.files.iter().find(|file| file.device == *device);
    let in_use = file.map(|file| file.place.clone());
    let size = hypervisor.disk_size(facts.id, device)?;
    let chain = file.map_or(size.allocated, |file| chain_takes(file, size.allocated));
    let allocated = copy_takes(size.virtual_size, chain, file.is_some_and(|file| is_thick(file, requested)));
    let disk = Disk {
        device: device.clone(),
        from,
        to,
        lifecycle: Lifecycle::Planned,
        virtual_size: size.virtual_size,
        allocated,
    };
    if in_use.as_ref() == Some(&disk.to) {
        // An earlier attempt moved it.
        return Ok(disk);
    }
    if in_use.as_ref() != Some(&disk.from) {
        return Err(refused(
            FindingId::DiskUnknown,
            device,
            Message::DiskNotUsed {
                device: device.clone(),
                vm: facts.name.clone(),
                file: disk.from.display().to_string(),
            },
            Action::ShowVm,
        ));
    }
    if let Some(file) = file {
        holds_no_snapshots(file, &facts.name)?;
    }
    if disk.to.symlink_metadata().is_ok() {
        return Err(exists(&disk.to));
    }
    Ok(disk)
}
