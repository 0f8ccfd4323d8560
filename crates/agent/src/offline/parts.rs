//! Files that come, under another name until they are whole: nobody takes half a disk for a disk.
//!
//! ```text
//! NAME.VM.ferry-part ─▶ filled, compared ─▶ the VM gets it: NAME ─▶ defined
//!         ▲                                      │
//!         └── made anew, from a seed, or as it was left ◀── named back: the VM does not come
//! ```
//! The name says whose it is, so that whatever was left of it, by whatever attempt, is a beginning for the next.

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

/// What is appended to the name of a file that is not whole.
const ENDING: &str = "ferry-part";

/// What a file of a VM is called until it is whole.
pub(super) fn part_of(path: &Path, vm: VmId) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{vm}.{ENDING}"));
    part.into()
}

/// A file as partial copies know it: whatever it holds, by its length.
pub(super) fn as_disk(file: &OfflineFile) -> DiskArrival {
    DiskArrival {
        device: file.file.device.clone(),
        to: file.file.to.clone(),
        format: DiskFormat::Raw,
        virtual_size: file.length,
        allocated: file.allocated,
    }
}

/// Makes every file that comes, if it is not there. Blocks.
///
/// # Errors
/// `file.exists` if something else has the name; the file system's.
pub(super) fn make_all(page: &Move, hypervisor: &dyn HostInfo, partials: &PartialCopies) -> Result<(), AgentError> {
    // Held so that no file is made after those that were made are removed.
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
    // Before it is made: of this name, it is this VM's, whoever made it.
    note(page, part, |incoming_file| (incoming_file.made, incoming_file.identity) = (true, FileIdentity::default()))?;
    if there.is_err() && partials.take(vm, &as_disk(file), part).is_none() {
        let fault = |source| AgentError::File { path: part.to_owned(), source };
        image::create(part, DiskFormat::Raw, ByteCount(0), owner).map_err(fault)?;
    }
    let identity = FileIdentity::of(part).unwrap_or_default();
    note(page, part, |incoming_file| incoming_file.identity = identity)
}

/// Writes down how it stands with the file of this name.
fn note(page: &Move, file: &Path, change: impl Fn(&mut IncomingFile)) -> Result<(), AgentError> {
    page.write(|journal| {
        journal.task.each_incoming(|incoming_file| {
            if incoming_file.file() == file {
                change(incoming_file);
            }
        });
    })
}

/// Gives the files that have come their own names. Blocks. May be repeated.
///
/// # Errors
/// `file.exists`, with what is there untouched; the file system's.
pub(super) fn name_all(page: &Move) -> Result<(), AgentError> {
    // Before the first: a part that is gone has its own name then.
    page.write(|journal| {
        journal.task.each_incoming(|incoming_file| incoming_file.named |= matches!(incoming_file.form, Form::Part(_)));
    })?;
    for incoming_file in page.journal().task.incoming_files() {
        let Form::Part(part) = &incoming_file.form else { continue };
        match file::rename_new(part, &incoming_file.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && incoming_file.path.is_file() => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Somebody else's: it must not be taken for this one's part later.
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

/// Removes what was made for a VM that does not come and no VM uses, or keeps it for the next attempt. Blocks. May be repeated.
///
/// # Errors
/// When it is not known what is in use, or a file cannot be removed.
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
        // Written down at once: whatever has its name afterwards is not ours.
        note(page, path, |incoming_file| incoming_file.made = false)?;
    }
    Ok(())
}
