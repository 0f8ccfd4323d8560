//! Incoming files have a different name until they are complete, so that half a disk is never mistaken for a disk.
//!
//! ```text
//! NAME.VM.ferry-part ─▶ filled, compared ─▶ the VM gets it: NAME ─▶ defined
//!         ▲                                      │
//!         └── made anew, from a partial copy, or as it was left ◀── kept: the VM does not come
//! ```
//! The name identifies the VM, so that the next attempt can start from whatever an earlier one left.

use std::{
    io,
    path::{Path, PathBuf},
};

use ferry_core::{files::cleanup::GuestWrites, id::VmId};
use ferry_drivers::{
    file,
    hypervisor::{Domains, HostInfo},
};

use super::{
    journal::{IncomingFile, Task},
    state::Move,
};
use crate::{
    AgentError,
    files::{self, new_file::Lifecycle, partial::PartialCopies},
    lock::lock,
    refusal::exists,
};

/// The extension of the name of an incomplete file.
const ENDING: &str = "ferry-part";

/// The name of a VM's file until it is complete.
pub(super) fn part_of(path: &Path, vm: VmId) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{vm}.{ENDING}"));
    part.into()
}

/// Creates every incoming file that does not exist. Blocks.
///
/// # Errors
/// `file.exists` if something else has the name; the file system's.
pub(super) fn make_all(record: &Move, hypervisor: &dyn HostInfo, partials: &PartialCopies) -> Result<(), AgentError> {
    // Held so that no file is created after the created ones were removed.
    let ended = lock(&record.ended);
    if *ended {
        return Err(AgentError::failed(format!("Job {} has ended on this host", record.journal().job)));
    }
    let Task::Destination { request, incoming_files, .. } = record.journal().task else { return Ok(()) };
    let owner = hypervisor.process_owner()?;
    for (index, (of, incoming_file)) in request.files.iter().zip(&incoming_files).enumerate() {
        if let Some(file) = incoming_file.new_file(of)
            && matches!(file.lifecycle, Lifecycle::Planned | Lifecycle::Making)
        {
            let partial = |file: &_| partials.reuse(request.vm, file);
            file.make(owner, partial, |lifecycle| note(record, index, lifecycle))?;
        }
    }
    Ok(())
}

/// Renames the received files to their final names. Blocks. May be repeated.
///
/// # Errors
/// `file.exists`, with the existing file untouched; the file system's.
pub(super) fn name_all(record: &Move) -> Result<(), AgentError> {
    for (index, incoming_file) in record.journal().task.incoming_files().iter().enumerate() {
        let IncomingFile::Part { path, part, lifecycle } = incoming_file else { continue };
        // Before it is renamed: a missing part then has its final name.
        note(record, index, lifecycle.then(Lifecycle::HandedOver))?;
        match file::rename_new(part, path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_file() => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A foreign file: it must not later be mistaken for this VM's part.
                note(record, index, lifecycle.then(Lifecycle::Complete))?;
                return Err(exists(path));
            }
            Err(source) => return Err(AgentError::File { path: path.clone(), source }),
        }
    }
    Ok(())
}

/// Removes the files created for a VM that does not arrive, unless a VM uses them, or keeps them for the next attempt.
/// Blocks. May be repeated.
///
/// # Errors
/// If it is unknown which files are in use, or a file cannot be removed.
pub(super) fn remove_all(record: &Move, hypervisor: &dyn Domains, partials: &PartialCopies) -> Result<(), AgentError> {
    *lock(&record.ended) = true;
    let Task::Destination { request, incoming_files, .. } = record.journal().task else { return Ok(()) };
    let is_left =
        |file: &IncomingFile| matches!(file, IncomingFile::Part { lifecycle, .. } if *lifecycle != Lifecycle::Planned);
    if !incoming_files.iter().any(is_left) {
        return Ok(());
    }
    let used = files::in_use(hypervisor.files_in_use()?)?;
    for (index, (of, incoming_file)) in request.files.iter().zip(&incoming_files).enumerate() {
        let Some(file) = incoming_file.new_file(of) else { continue };
        let lifecycle = file.remove(&used, GuestWrites::Never, |file| partials.keep(request.vm, file))?;
        note(record, index, lifecycle)?;
    }
    Ok(())
}

/// Records how far a file is.
fn note(record: &Move, index: usize, to: Lifecycle) -> Result<(), AgentError> {
    record.write(|journal| {
        if let Some(IncomingFile::Part { lifecycle, .. }) = journal.incoming(index) {
            *lifecycle = to;
        }
    })
}
