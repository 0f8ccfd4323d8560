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

use ferry_core::{api::agent::OfflineFile, id::VmId, units::ByteCount, vm::DiskFormat};
use ferry_drivers::{file, hypervisor::Hypervisor, image};

use super::{
    Move, as_disk,
    journal::{Arrival, Form, Task},
};
use crate::{
    AgentError, files,
    migration::{
        arrivals::{self, exists},
        mark::{Made, Mark},
        seeds::Seeds,
    },
};

/// What is appended to the name of a file that is not whole.
const ENDING: &str = "ferry-part";

/// What a file of a VM is called until it is whole.
pub(super) fn part_of(path: &Path, vm: VmId) -> PathBuf {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{vm}.{ENDING}"));
    part.into()
}

/// Makes every file that comes, if it is not there. Blocks.
///
/// # Errors
/// `file.exists` if something else has the name; the file system's.
pub(super) fn make_all(page: &Move, hypervisor: &dyn Hypervisor, seeds: &Seeds) -> Result<(), AgentError> {
    // Held so that no file is made after those that were made are removed.
    let ended = page.ended.lock().expect("nobody panics while holding it");
    if *ended {
        return Err(AgentError::Carrier(format!("Job {} has ended on this host", page.journal().job)));
    }
    let Task::Destination { request, arrivals, .. } = page.journal().task else { return Ok(()) };
    let owner = hypervisor.process_owner()?;
    for (file, arrival) in request.files.iter().zip(&arrivals) {
        if let Form::Part(part) = &arrival.form {
            make(page, part, seeds, (request.vm, file), owner)?;
        }
    }
    Ok(())
}

fn make(
    page: &Move,
    part: &Path,
    seeds: &Seeds,
    (vm, file): (VmId, &OfflineFile),
    owner: (u32, u32),
) -> Result<(), AgentError> {
    let there = part.symlink_metadata();
    if there.as_ref().is_ok_and(|found| !found.is_file()) {
        return Err(exists(part));
    }
    // Before it is made: of this name, it is this VM's, whoever made it.
    note(page, part, |arrival| (arrival.made, arrival.mark) = (true, Mark::default()))?;
    if there.is_err() && seeds.take(vm, &as_disk(file), part).is_none() {
        let fault = |source| AgentError::File { path: part.to_owned(), source };
        image::create(part, DiskFormat::Raw, ByteCount(0), owner).map_err(fault)?;
    }
    let mark = Mark::of(part).unwrap_or_default();
    note(page, part, |arrival| arrival.mark = mark)
}

/// Writes down how it stands with the file of this name.
fn note(page: &Move, file: &Path, change: impl Fn(&mut Arrival)) -> Result<(), AgentError> {
    page.write(|journal| {
        journal.task.each_arrival(|arrival| {
            if arrival.file() == file {
                change(arrival);
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
        journal.task.each_arrival(|arrival| arrival.named |= matches!(arrival.form, Form::Part(_)));
    })?;
    for arrival in page.journal().task.arrivals() {
        let Form::Part(part) = &arrival.form else { continue };
        match file::rename_new(part, &arrival.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && arrival.path.is_file() => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Somebody else's: it must not be taken for this one's part later.
                page.write(|journal| {
                    journal.task.each_arrival(|other| other.named &= other.path != arrival.path);
                })?;
                return Err(exists(&arrival.path));
            }
            Err(source) => return Err(AgentError::File { path: arrival.path.clone(), source }),
        }
    }
    Ok(())
}

/// Removes what was made for a VM that does not come and no VM uses, or keeps it as seeds. Blocks. May be repeated.
///
/// # Errors
/// When it is not known what is in use, or a file cannot be removed.
pub(super) fn remove_all(page: &Move, hypervisor: &dyn Hypervisor, seeds: &Seeds) -> Result<(), AgentError> {
    *page.ended.lock().expect("nobody panics while holding it") = true;
    let Task::Destination { request, arrivals, .. } = page.journal().task else { return Ok(()) };
    if !arrivals.iter().any(|arrival| arrival.made || arrival.named) {
        return Ok(());
    }
    let used = files::in_use(hypervisor.files_in_use()?)?;
    for arrival in arrivals.iter().filter(|arrival| arrival.named) {
        let fault = |source| AgentError::File { path: arrival.path.clone(), source };
        let Form::Part(part) = &arrival.form else { continue };
        if part.symlink_metadata().is_ok() {
            continue;
        }
        match arrival.named_file().is_ours(&used) {
            Ok(true) => file::rename_new(&arrival.path, part).map_err(fault)?,
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fault(error)),
        }
    }
    page.write(|journal| journal.task.each_arrival(|arrival| arrival.named = false))?;
    for (file, arrival) in request.files.iter().zip(&arrivals).filter(|(_, arrival)| arrival.made) {
        let Made { path, mark, format, .. } = arrival.made_file();
        let disk = arrivals::Arrival {
            device: file.file.device.clone(),
            path: path.to_owned(),
            format,
            virtual_size: file.length,
            made: true,
            mark,
            sown: None,
        };
        arrivals::remove_one(request.vm, &disk, &used, seeds)?;
        // Written down at once: whatever has its name afterwards is not ours.
        note(page, path, |arrival| arrival.made = false)?;
    }
    Ok(())
}
