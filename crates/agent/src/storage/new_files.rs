//! The new files of a storage move: removed only if no disk can have been pivoted to them.

use std::path::PathBuf;

use ferry_core::{
    files::cleanup::{Cleanup, GuestWrites},
    finding::{ByHand, Finding, FindingId, Message},
    vm::{VmFile, VmState},
};
use ferry_drivers::hypervisor::{Hypervisor, HypervisorError};

use super::{
    journal::{Disk, Journal, State},
    run::Move,
};
use crate::{
    AgentError,
    failpoint::made_to_fail,
    files::{self, new_file::Lifecycle},
};

/// Creates the new files that do not exist yet.
pub(super) fn make(hypervisor: &dyn Hypervisor, prepared: &Move) -> Result<(), AgentError> {
    let owner = hypervisor.process_owner()?;
    let vm = prepared.journal().request.vm;
    let facts = hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
    // An agent died while it made these.
    remove(hypervisor, prepared, |disk| disk.lifecycle == Lifecycle::Making)?;
    for (index, disk) in prepared.journal().disks.iter().enumerate() {
        if disk.lifecycle != Lifecycle::Planned || facts.files.iter().any(|file| file.place == disk.to) {
            continue;
        }
        let size = hypervisor.disk_size(vm, &disk.device)?.virtual_size;
        prepared.write(|journal| journal.disks[index].virtual_size = size)?;
        let record = |lifecycle| prepared.write(|journal| journal.disks[index].lifecycle = lifecycle);
        prepared.journal().new_file(index).make(owner, |_| None, record)?;
        made_to_fail("agent-storage-file-made")?;
    }
    Ok(())
}

/// Removes those of the new files that nobody needs.
pub(super) fn remove(hypervisor: &dyn Hypervisor, known: &Move, which: fn(&Disk) -> bool) -> Result<(), AgentError> {
    let journal = known.journal();
    if !journal.disks.iter().any(which) {
        return Ok(());
    }
    let used = files::in_use(hypervisor.files_in_use()?)?;
    for (index, guest_writes) in guest_writes(hypervisor, &journal)?.into_iter().enumerate() {
        if which(&journal.disks[index]) {
            let lifecycle = journal.new_file(index).remove(&used, guest_writes, |_| false)?;
            known.write(|journal| journal.disks[index].lifecycle = lifecycle)?;
            made_to_fail("agent-storage-new-file-removed")?;
        }
    }
    Ok(())
}

/// The new files that stay although the move failed, for the administrator.
pub(super) fn that_stay(hypervisor: &dyn Hypervisor, journal: &Journal) -> Result<Vec<Finding>, AgentError> {
    let used = files::in_use(hypervisor.files_in_use()?)?;
    let mut findings = Vec::new();
    for (index, guest_writes) in guest_writes(hypervisor, journal)?.into_iter().enumerate() {
        let (file, disk) = (journal.new_file(index), &journal.disks[index]);
        if file.cleanup(&used, guest_writes)? == Cleanup::KeepAndReport && disk.to.symlink_metadata().is_ok() {
            findings.push(new_file_stays(&journal.request.vm_name, disk));
        }
    }
    Ok(findings)
}

/// What the guest may have written to each new file, now that no copy is running.
fn guest_writes(hypervisor: &dyn Hypervisor, journal: &Journal) -> Result<Vec<GuestWrites>, AgentError> {
    let facts = hypervisor.vm(journal.request.vm)?;
    let runs = facts.filter(|facts| match facts.state {
        VmState::Running | VmState::Paused | VmState::Crashed | VmState::Suspended => true,
        VmState::Incoming | VmState::ShutOff => false,
    });
    let one = |disk: &Disk| {
        let is_old = |file: &VmFile<PathBuf>| file.device == disk.device && file.place == disk.from;
        let old_file_runs = runs.as_ref().is_some_and(|facts| facts.files.iter().any(is_old));
        match (&journal.state, disk.lifecycle) {
            (State::Moved | State::Confirmed, _) => GuestWrites::Surely,
            (_, Lifecycle::HandedOver(_)) => GuestWrites::Perhaps { old_file_runs },
            (_, Lifecycle::Planned | Lifecycle::Making | Lifecycle::Made { .. } | Lifecycle::Complete(_)) => {
                GuestWrites::Never
            }
        }
    };
    Ok(journal.disks.iter().map(one).collect())
}

fn new_file_stays(vm: &str, disk: &Disk) -> Finding {
    let (file, device) = (disk.to.display().to_string(), disk.device.clone());
    let message = Message::NewFileStays { file: file.clone(), device, vm: vm.to_owned() };
    Finding::warns(FindingId::FileKept, file, message, ByHand::LookWhichFile)
}
