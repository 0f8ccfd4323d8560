//! Incoming files have a different name until they are complete, so that half a disk is never mistaken for a disk.
//!
//! ```text
//! NAME.VM.ferry-part ─▶ filled, compared ─▶ the VM gets it: NAME ─▶ defined
//!         ▲                                      │
//!         └── made anew, from a seed, or as it was left ◀── named back: the VM does not come
//! ```
//! The name identifies the VM, so that the next attempt can start from whatever an earlier one left.

use std::{
    io,
    path::{Path, PathBuf},
};

use ferry_core::{
    api::agent::{DiskArrival, OfflineFile},
    id::VmId,
    units::ByteCount,
    vm::DiskFormat,
};
use ferry_drivers::{
    file,
    hypervisor::{Domains, HostInfo},
    image,
};

use super::{
    journal::{Form, IncomingFile, Task},
    state::Move,
};
use crate::{
    AgentError,
    files::{
        self, incoming,
        new_file::{FileIdentity, IncomingDisk, MadeFile},
        partial::PartialCopies,
    },
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

/// A file as a disk for partial copies: whatever its content, identified by its length.
pub(super) fn as_disk(file: &OfflineFile) -> DiskArrival {
    DiskArrival {
        device: file.file.device.clone(),
        to: file.file.to.clone(),
        format: DiskFormat::Raw,
        virtual_size: file.length,
        allocated: file.allocated,
    }
}

/// Creates every incoming file that does not exist. Blocks.
///
/// # Errors
/// `file.exists` if something else has the name; the file system's.
pub(super) fn make_all(page: &Move, hypervisor: &dyn HostInfo, partials: &PartialCopies) -> Result<(), AgentError> {
    // Held so that no file is created after the created ones were removed.
    let ended = lock(&page.ended);
    if *ended {
        return Err(AgentError::failed(format!("Job {} has ended on this host", page.journal().job)));
    }
    let Task::Destination { request, incoming_files, .. } = page.journal().task else { return Ok(()) };
    let owner = hypervisor.process_owner()?;
    for (file, incoming_file) in request.files.iter().zip(&incoming_files) {
        if let Form::Part(part) = &incoming_file.form {
            make(page, part, partials, (request.vm, file), owner)?;
        }
    }
    Ok(())
}

fn make(
    page: &Move,
    part: &Path,
    partials: &PartialCopies,
    (vm, file): (VmId, &OfflineFile),
    owner: (u32, u32),
) -> Result<(), AgentError> {
    let there = part.symlink_metadata();
    if there.as_ref().is_ok_and(|found| !found.is_file()) {
        return Err(exists(part));
    }
    // Recorded before it is created: a file of this name belongs to this VM, whoever created it.
    note(page, part, |incoming_file| (incoming_file.made, incoming_file.identity) = (true, FileIdentity::default()))?;
    if there.is_err() && partials.take(vm, &as_disk(file), part).is_none() {
        let fault = |source| AgentError::File { path: part.to_owned(), source };
        image::create(part, DiskFormat::Raw, ByteCount(0), owner).map_err(fault)?;
    }
    let identity = FileIdentity::of(part).unwrap_or_default();
    note(page, part, |incoming_file| incoming_file.identity = identity)
}

/// Records the state of the file with this name.
fn note(page: &Move, file: &Path, change: impl Fn(&mut IncomingFile)) -> Result<(), AgentError> {
    page.write(|journal| {
        journal.task.each_incoming(|incoming_file| {
            if incoming_file.file() == file {
                change(incoming_file);
            }
        });
    })
}

/// Renames the received files to their final names. Blocks. May be repeated.
///
/// # Errors
/// `file.exists`, with the existing file untouched; the file system's.
pub(super) fn name_all(page: &Move) -> Result<(), AgentError> {
    // Before the first rename: a missing part then has its final name.
    page.write(|journal| {
        journal.task.each_incoming(|incoming_file| incoming_file.named |= matches!(incoming_file.form, Form::Part(_)));
    })?;
    for incoming_file in page.journal().task.incoming_files() {
        let Form::Part(part) = &incoming_file.form else { continue };
        match file::rename_new(part, &incoming_file.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && incoming_file.path.is_file() => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // A foreign file: it must not later be mistaken for this VM's part.
                page.write(|journal| {
                    journal.task.each_incoming(|other| other.named &= other.path != incoming_file.path);
                })?;
                return Err(exists(&incoming_file.path));
            }
            Err(source) => return Err(AgentError::File { path: incoming_file.path.clone(), source }),
        }
    }
    Ok(())
}

/// Removes the files created for a VM that does not arrive, unless a VM uses them, or keeps them for the next attempt.
/// Blocks. May be repeated.
///
/// # Errors
/// If it is unknown which files are in use, or a file cannot be removed.
pub(super) fn remove_all(page: &Move, hypervisor: &dyn Domains, partials: &PartialCopies) -> Result<(), AgentError> {
    *lock(&page.ended) = true;
    let Task::Destination { request, incoming_files, .. } = page.journal().task else { return Ok(()) };
    if !incoming_files.iter().any(|incoming_file| incoming_file.made || incoming_file.named) {
        return Ok(());
    }
    let used = files::in_use(hypervisor.files_in_use()?)?;
    for incoming_file in incoming_files.iter().filter(|incoming_file| incoming_file.named) {
        let fault = |source| AgentError::File { path: incoming_file.path.clone(), source };
        let Form::Part(part) = &incoming_file.form else { continue };
        if part.symlink_metadata().is_ok() {
            continue;
        }
        match incoming_file.as_named().is_ours(&used) {
            Ok(true) => file::rename_new(&incoming_file.path, part).map_err(fault)?,
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fault(error)),
        }
    }
    page.write(|journal| journal.task.each_incoming(|incoming_file| incoming_file.named = false))?;
    for (file, incoming_file) in
        request.files.iter().zip(&incoming_files).filter(|(_, incoming_file)| incoming_file.made)
    {
        let MadeFile { path, identity, format, .. } = incoming_file.as_it_comes();
        let disk = IncomingDisk {
            device: file.file.device.clone(),
            path: path.to_owned(),
            format,
            virtual_size: file.length,
            made: true,
            identity,
            from_partial: None,
        };
        incoming::remove_one(request.vm, &disk, &used, partials)?;
        // Recorded at once: any later file of that name is not ours.
        note(page, path, |incoming_file| incoming_file.made = false)?;
    }
    Ok(())
}
