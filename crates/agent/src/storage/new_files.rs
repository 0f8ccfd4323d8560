//! The new files of a move of disks: made under a name of the move's own and renamed when whole, so that a file at the final
//! path is either foreign or complete. Removed only if no disk can have been switched over to it.

use std::{collections::BTreeSet, path::PathBuf};

use ferry_core::{
    files::cleanup::{Cleanup, NewFile, new_file},
    finding::{Finding, FindingId},
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

/// Makes those of the new files that are not made yet.
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

/// The new files that stay though the move did not end well, for whoever looks after them.
pub(super) fn that_stay(hypervisor: &dyn Hypervisor, journal: &Journal) -> Result<Vec<Finding>, AgentError> {
    let fates = fates(hypervisor, journal, &used(hypervisor, journal)?)?;
    let told = fates
        .iter()
        .zip(&journal.disks)
        .filter(|(fate, disk)| **fate == Cleanup::KeepAndReport && disk.to.symlink_metadata().is_ok());
    Ok(told.map(|(_, disk)| new_file_stays(&journal.request.vm_name, disk)).collect())
}

/// What becomes of each new file, now that no copy goes on.
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

/// Files that VMs of this host use. Not asked when nothing was made.
pub(super) fn used(hypervisor: &dyn Hypervisor, journal: &Journal) -> Result<InUse, AgentError> {
    match journal.disks.iter().any(|disk| disk.made) {
        true => files::in_use(hypervisor.files_in_use()?),
        false => files::in_use(BTreeSet::new()),
    }
}

/// Makes the file of a disk: under a name of the move's own first, so that a file of this name is somebody's or whole.
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

/// The journal with whether each new file is this attempt's, wherever the making of it was interrupted. What has another
/// name still is removed.
pub(super) fn settled(known: &Move) -> Result<Journal, AgentError> {
    let journal = known.journal();
    for (index, disk) in journal.disks.iter().enumerate() {
        let making = journal.making(index);
        let fault = |source| AgentError::File { path: making.clone(), source };
        if making.symlink_metadata().is_err() {
            continue;
        }
        // Two names for a moment, where a file is named by a link. Written down while there is still something to see.
        let made = file::is_same(&making, &disk.to).map_err(fault)?;
        known.write(|page| page.disks[index].made = made)?;
        file::remove(&making).map_err(fault)?;
    }
    Ok(known.journal())
}

fn new_file_stays(vm: &str, disk: &Disk) -> Finding {
    let file = disk.to.display();
    Finding::warns(
        FindingId::FileKept,
        file,
        format!(
            "The new file {} of disk {} of VM {vm} stays: the disk may have been switched over to it, and the VM does not \
             run on this host with the old one",
            disk.to.display(),
            disk.device
        ),
        "Look where the VM is and which file it uses, or was using when it ended; remove the other",
    )
}
