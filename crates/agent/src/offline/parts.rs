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
use ferry_drivers::{hypervisor::Hypervisor, image};
use tracing::warn;

use super::{
    Move, as_disk,
    journal::{Form, Task},
};
use crate::{
    AgentError,
    migration::{
        arrivals::{self, exists},
        mark::Mark,
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
    for (index, (file, arrival)) in request.files.iter().zip(&arrivals).enumerate() {
        if let Form::Part(part) = &arrival.form {
            make(page, index, part, seeds, (request.vm, file), owner)?;
        }
    }
    Ok(())
}

fn make(
    page: &Move,
    index: usize,
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
    let mut at = 0;
    page.write(|journal| {
        journal.task.each_arrival(|arrival| {
            arrival.made |= at == index;
            at += 1;
        });
    })?;
    if there.is_ok() || seeds.take(vm, &as_disk(file), part).is_some() {
        return Ok(());
    }
    image::create(part, DiskFormat::Raw, ByteCount(0), owner)
        .map_err(|source| AgentError::File { path: part.to_owned(), source })
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
        match image::rename_new(part, &arrival.path) {
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
    if arrivals.iter().any(|arrival| arrival.named) {
        let used = hypervisor.files_in_use()?;
        for arrival in arrivals.iter().filter(|arrival| arrival.named) {
            let Form::Part(part) = &arrival.form else { continue };
            if used.contains(&arrival.path) {
                warn!(file = %arrival.path.display(), "a new file stays: a VM uses it");
            } else if !part.exists() && arrival.path.is_file() {
                let renamed = image::rename_new(&arrival.path, part);
                renamed.map_err(|source| AgentError::File { path: arrival.path.clone(), source })?;
            }
        }
        page.write(|journal| journal.task.each_arrival(|arrival| arrival.named = false))?;
    }
    let one = |(file, arrival): (&OfflineFile, &super::journal::Arrival)| arrivals::Arrival {
        device: file.file.device.clone(),
        path: arrival.file().to_owned(),
        format: DiskFormat::Raw,
        virtual_size: file.length,
        made: arrival.made,
        mark: Mark::default(),
        sown: None,
    };
    let left: Vec<_> = request.files.iter().zip(&arrivals).map(one).collect();
    arrivals::remove(request.vm, &left, hypervisor, seeds)
}
