//! The new files of a storage move: created under a temporary name and renamed when complete, so that a file at the
//! final path is either foreign or complete. Removed only if no disk can have been pivoted to it.

use std::{collections::BTreeSet, path::PathBuf};

use ferry_core::{
    files::cleanup::{Cleanup, NewFile, new_file},
    finding::{ByHand, Finding, FindingId, Message},
    units::ByteCount,
    vm::{DiskFormat, VmFile, VmState},
};
use ferry_drivers::{
    file,
    hypervisor::{Hypervisor, HypervisorError},
    identity::InUse,
    image,
};

use super::{
    journal::{Disk, Journal, Stage},
    run::Move,
};
use crate::{
    AgentError,
    failpoint::made_to_fail,
    files::{self, new_file::FileIdentity},
    refusal::exists,
};

/// Creates the new files that do not exist yet.
pub(super) fn make(hypervisor: &dyn Hypervisor, prepared: &Move) -> Result<(), AgentError> {
    let owner = hypervisor.process_owner()?;
    let journal = settled(prepared)?;
    let vm = journal.request.vm;
    let facts = hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
    for (index, (disk, wanted)) in journal.disks.iter().zip(&journal.request.disks).enumerate() {
        if facts.files.iter().any(|file| file.place == disk.to) || disk.made {
            continue;
        }
        let size = hypervisor.disk_size(vm, &disk.device)?.virtual_size;
        make_file(prepared, index, wanted.format, size, owner)?;
    }
    Ok(())
}

/// The new files that stay although the move failed, for the administrator.
pub(super) fn that_stay(hypervisor: &dyn Hypervisor, journal: &Journal) -> Result<Vec<Finding>, AgentError> {
    let fates = fates(hypervisor, journal, &used(hypervisor, journal)?)?;
    let told = fates
        .iter()
        .zip(&journal.disks)
        .filter(|(fate, disk)| **fate == Cleanup::KeepAndReport && disk.to.symlink_metadata().is_ok());
    Ok(told.map(|(_, disk)| new_file_stays(&journal.request.vm_name, disk)).collect())
}

/// What to do with each new file, now that no copy is running.
pub(super) fn fates(hypervisor: &dyn Hypervisor, journal: &Journal, used: &InUse) -> Result<Vec<Cleanup>, AgentError> {
    let facts = hypervisor.vm(journal.request.vm)?;
    let runs = facts.filter(|facts| match facts.state {
        VmState::Running | VmState::Paused | VmState::Crashed | VmState::Suspended => true,
        VmState::Incoming | VmState::ShutOff => false,
    });
    let moved = matches!(journal.stage, Stage::Moved | Stage::Confirmed);
    let one = |disk: &Disk| {
        let is_old = |file: &VmFile<PathBuf>| file.device == disk.device && file.place == disk.from;
        let fault = |source| AgentError::File { path: disk.to.clone(), source };
        Ok(new_file(&NewFile {
            made: disk.made,
            in_use: disk.made && used.obstacle(&disk.to).map_err(fault)?.is_some(),
            switch_asked: disk.switch_asked,
            moved,
            old_file_runs: runs.as_ref().is_some_and(|facts| facts.files.iter().any(is_old)),
        }))
    };
    journal.disks.iter().map(one).collect()
}

/// Files that this host's VMs use. Not queried if nothing was created.
pub(super) fn used(hypervisor: &dyn Hypervisor, journal: &Journal) -> Result<InUse, AgentError> {
    match journal.disks.iter().any(|disk| disk.made) {
        true => files::in_use(hypervisor.files_in_use()?),
        false => files::in_use(BTreeSet::new()),
    }
}

/// Creates the new file under a temporary name and renames it, so that a file at the final path is either foreign or
/// complete.
fn make_file(
    prepared: &Move,
    index: usize,
    format: DiskFormat,
    size: ByteCount,
    owner: (u32, u32),
) -> Result<(), AgentError> {
    let journal = prepared.journal();
    let (making, to) = (journal.making(index), &journal.disks[index].to);
    let fault = |source: std::io::Error| {
        let is_there = source.kind() == std::io::ErrorKind::AlreadyExists;
        if is_there { exists(to) } else { AgentError::File { path: to.clone(), source } }
    };
    image::create(&making, format, size, owner).map_err(fault)?;
    made_to_fail("agent-storage-file-made")?;
    let identity = FileIdentity::of(&making).unwrap_or_default();
    prepared.write(|page| (page.disks[index].made, page.disks[index].identity) = (true, identity))?;
    file::rename_new(&making, to).map_err(fault)?;
    made_to_fail("agent-storage-file-named")
}

/// The journal with whether each new file is this attempt's, wherever its creation was interrupted. Files that still
/// have their temporary name are removed.
pub(super) fn settled(known: &Move) -> Result<Journal, AgentError> {
    let journal = known.journal();
    for (index, disk) in journal.disks.iter().enumerate() {
        let making = journal.making(index);
        let fault = |source| AgentError::File { path: making.clone(), source };
        if making.symlink_metadata().is_err() {
            continue;
        }
        // A file renamed by hard link has two names for a moment. Recorded while both are still visible.
        let made = file::is_same(&making, &disk.to).map_err(fault)?;
        known.write(|page| page.disks[index].made = made)?;
        file::remove(&making).map_err(fault)?;
    }
    Ok(known.journal())
}

fn new_file_stays(vm: &str, disk: &Disk) -> Finding {
    let (file, device) = (disk.to.display().to_string(), disk.device.clone());
    let message = Message::NewFileStays { file: file.clone(), device, vm: vm.to_owned() };
    Finding::warns(FindingId::FileKept, file, message, ByHand::LookWhichFile)
}
