//! What happens to the old files, and to the definition kept beside disks, when every disk has moved.

use std::path::{Path, PathBuf};

use ferry_core::{
    files::cleanup::{OldFile, OldFileStays, old_file, old_file_kept},
    finding::{ByHand, Command, Finding, FindingId, Fix, Message},
    vm::{VmFacts, VmFile, VmState},
};
use ferry_drivers::hypervisor::{Hypervisor, files_of};

use super::{
    definition_copy,
    journal::{Disk, Journal},
};
use crate::{
    AgentError,
    files::{self, old_file::remove_unless},
};

/// Removes the old files that are no longer needed. Returns which stay, and why.
pub(super) fn remove(
    hypervisor: &dyn Hypervisor,
    journal: &Journal,
    facts: Option<&VmFacts<PathBuf>>,
    definition: Option<&str>,
) -> Result<Vec<Finding>, AgentError> {
    let whole = facts.filter(|facts| facts.state != VmState::Incoming);
    // A definition that cannot be read names no new file.
    let next = definition.and_then(|text| files_of(text).ok()).unwrap_or_default();
    let used = files::in_use(hypervisor.files_in_use()?)?;
    let mut findings = Vec::new();
    for disk in journal.disks.iter().filter(|disk| disk.from != disk.to) {
        let is_new = |file: &VmFile<PathBuf>| file.device == disk.device && file.place == disk.to;
        let stays = |obstacle| {
            old_file(&OldFile {
                persistent: whole.map(|facts| facts.persistent),
                obstacle,
                new_file_is_used: whole.is_some_and(|facts| facts.files.iter().any(is_new)) && next.iter().any(is_new),
            })
        };
        let kept = remove_unless(&disk.from, &used, stays, |_| false)?;
        findings.extend(kept.map(|why| old_file_stays(&journal.request.vm_name, disk, why)));
    }
    Ok(findings)
}

/// Keeps the definition beside the new disks, and moves or updates copies elsewhere. Failures here do not affect the
/// move of the disks.
pub(super) fn keep_definition(
    journal: &Journal,
    facts: Option<&VmFacts<PathBuf>>,
    definition: &str,
    keep_source: bool,
) -> Vec<Finding> {
    let (vm, name) = (journal.request.vm, &journal.request.vm_name);
    let mut findings = Vec::new();
    let mut failed = |folder: &Path, why: Message| {
        let (vm, file) = (name.clone(), folder.display().to_string());
        findings.push(Finding::warns(
            FindingId::DefinitionNotKept,
            folder.display(),
            Message::DefinitionNotKept { vm: vm.clone(), file, why: why.into() },
            Command::SeeToDefinition { vm },
        ));
    };
    let mut kept = None;
    if journal.request.whole
        && let Some(disk) = journal.disks.first()
    {
        match definition_copy::keep(vm, name, definition, &disk.to) {
            Ok(Some(path)) => kept = Some(path),
            Ok(None) => failed(&disk.to, Message::OtherFileThere),
            Err(error) => failed(&disk.to, Message::Verbatim { text: error.to_string() }),
        }
    }
    let is_used =
        |folder: Option<&Path>| facts.is_some_and(|facts| facts.files.iter().any(|file| file.place.parent() == folder));
    for disk in &journal.disks {
        let done = match journal.request.whole {
            true if keep_source => Ok(()),
            true => definition_copy::remove(vm, name, &disk.from, kept.as_deref()),
            // Only some disks moved: a definition beside the last disk of a folder moves with it.
            false if keep_source || is_used(disk.from.parent()) => {
                definition_copy::refresh(vm, name, definition, &disk.from)
            }
            false => definition_copy::follow(vm, name, definition, &disk.from, &disk.to),
        };
        if let Err(error) = done {
            failed(&disk.from, Message::Verbatim { text: error.to_string() });
        }
    }
    // The definition beside the remaining disks names those that moved.
    let used = facts.map(|facts| facts.files.iter().map(|file| &file.place)).into_iter().flatten();
    for disk in used.filter(|_| !journal.request.whole) {
        if let Err(error) = definition_copy::refresh(vm, name, definition, disk) {
            failed(disk, Message::Verbatim { text: error.to_string() });
        }
    }
    findings
}

fn old_file_stays(vm: &str, disk: &Disk, why: OldFileStays) -> Finding {
    let file = disk.from.display();
    let (why, fix): (_, Fix) = match why {
        OldFileStays::NotHere => (Message::OldFileVmElsewhere, ByHand::LookWhereVmIs.into()),
        OldFileStays::Transient => (Message::OldFileStartsFrom, ByHand::NameNewFile.into()),
        OldFileStays::Stands(obstacle) => (obstacle.why(), obstacle.fix().into()),
        OldFileStays::NewFileUnused => (Message::NewFileUnused, Command::NameNewFileWithEdit.into()),
    };
    old_file_kept(vm, &disk.device, file, why, fix)
}
