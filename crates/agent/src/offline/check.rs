//! What prevents an offline move: at the destination, the locations, the space and the definition; at the source, a
//! running VM, and images that depend on other files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ferry_core::{
    api::agent::{CheckOffline, FileSize, OfflineFile, Stage},
    files::FileMove,
    finding::{Action, ByHand, FindingId, Message},
    id::VmId,
    power::not_shut_off,
    units::ByteCount,
    vm::{FileRole, VmFacts},
};
use ferry_drivers::{
    file,
    hypervisor::{Domains, HypervisorError},
    image,
};

use super::{OfflineMoves, journal::IncomingFile, parts, state::Move};
use crate::{
    AgentError,
    files::{host_storage::HostStorage, new_file::Lifecycle, space::Needs},
    refusal::{exists, refused, uuid_taken},
};

/// Limit of files of one VM: more than any has.
const FILES_MAX: usize = 64;

impl OfflineMoves {
    /// Checks that the files can be received. Changes nothing. Blocks.
    ///
    /// # Errors
    /// What prevents it.
    pub fn check(&self, request: &CheckOffline, storage: &HostStorage) -> Result<(), AgentError> {
        self.checked(request.vm, &request.files, &request.absent, storage).map(drop)
    }

    /// Where the files will be, including those that do not exist at the source either.
    pub(super) fn checked(
        &self,
        vm: VmId,
        requested: &[OfflineFile],
        absent: &[FileMove],
        storage: &HostStorage,
    ) -> Result<(Vec<IncomingFile>, Vec<PathBuf>), AgentError> {
        if requested.len() + absent.len() > FILES_MAX {
            return Err(AgentError::failed(format!("No VM has more than {FILES_MAX} files")));
        }
        if let Some(facts) = self.hypervisor.vm(vm)? {
            return Err(uuid_taken(vm, &facts.name));
        }
        let mut needs = Needs::default();
        let mut incoming_files: Vec<IncomingFile> = Vec::with_capacity(requested.len());
        for file in requested {
            let path = storage.path(&file.file.device, &file.file.to)?;
            let incoming_file = self.incoming(vm, file, &path)?;
            let remaining = match incoming_file.new_file(file) {
                None => ByteCount(0),
                Some(new_file) => {
                    let part = file::allocated(new_file.path).unwrap_or_default();
                    let held = self.partials.allocated(vm, &new_file).max(part);
                    ByteCount(file.allocated.0.saturating_sub(held.0))
                }
            };
            needs.add(storage, &file.file.to, remaining)?;
            if incoming_files.iter().any(|other| other.path() == path) {
                return Err(exists(&path));
            }
            incoming_files.push(incoming_file);
        }
        let mut missing = Vec::with_capacity(absent.len());
        for file in absent {
            let path = storage.path(&file.device, &file.to)?;
            needs.add(storage, &file.to, ByteCount(0))?;
            if path.symlink_metadata().is_ok() || incoming_files.iter().any(|other| other.path() == path) {
                return Err(exists(&path));
            }
            missing.push(path);
        }
        needs.are_met(storage)?;
        Ok((incoming_files, missing))
    }

    /// How the file is received. Existing files are never overwritten; a shared disk may have arrived earlier with
    /// another VM.
    fn incoming(&self, vm: VmId, file: &OfflineFile, path: &Path) -> Result<IncomingFile, AgentError> {
        let of_another = |record: &Arc<Move>| {
            let task = record.journal().task;
            let goes_on = !matches!(task.stage(), Stage::Delivered | Stage::Confirmed);
            goes_on && task.vm() != vm && task.incoming_files().iter().any(|other| other.path() == path)
        };
        let coming = self.table.all().iter().find(|record| of_another(record)).map(|record| record.journal().job);
        if let Some(job) = coming {
            return Err(refused(
                FindingId::FileExists,
                path.display(),
                Message::FileComes { job, file: path.display().to_string() },
                ByHand::WaitForJob,
            ));
        }
        match path.symlink_metadata() {
            Err(_) => {
                let (path, part) = (path.to_owned(), parts::part_of(path, vm));
                Ok(IncomingFile::Part { path, part, lifecycle: Lifecycle::Planned })
            }
            Ok(found) if file.file.shareable && found.is_file() => match found.len() == file.length.0 {
                true => Ok(IncomingFile::Adopted { path: path.to_owned(), compared: false }),
                false => Err(differs(&file.file.device, path)),
            },
            Ok(_) => Err(exists(path)),
        }
    }
}

/// Sizes of files of a VM that is shut off: all, or the named ones. UEFI variables of a VM that was never started do
/// not exist yet, and are left out. Blocks.
///
/// # Errors
/// `vm.running`; a file that does not exist.
pub fn files_of(hypervisor: &dyn Domains, vm: VmId, only: Option<&[&str]>) -> Result<Vec<FileSize>, AgentError> {
    let facts = shut_off(hypervisor, vm)?;
    let mut sizes = Vec::new();
    for file in facts.files.iter().filter(|file| file.role != FileRole::NotAFile) {
        if only.is_some_and(|only| !only.contains(&file.device.as_str())) {
            continue;
        }
        let fault = |source| AgentError::File { path: file.place.clone(), source };
        let found = match file.place.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.role == FileRole::Nvram => continue,
            found => found.map_err(fault)?,
        };
        let length = ByteCount(found.len());
        let allocated = file::allocated(&file.place).map_err(fault)?;
        sizes.push(FileSize { device: file.device.clone(), length, allocated: ByteCount(allocated.0.min(length.0)) });
    }
    Ok(sizes)
}

pub(super) fn shut_off(hypervisor: &dyn Domains, vm: VmId) -> Result<VmFacts<PathBuf>, AgentError> {
    let facts = hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
    match not_shut_off(&facts) {
        None => Ok(facts),
        Some(finding) => Err(AgentError::refused(409, finding)),
    }
}

/// Refuses an image that depends on other files: the definition of a VM that is shut off does not show that.
pub(super) fn stands_alone(path: &Path, device: &str) -> Result<(), AgentError> {
    match image::header(path) {
        Ok(None) => return Ok(()),
        Ok(Some(header)) if header.backing.is_none() && header.data_file.is_none() => return Ok(()),
        Ok(Some(_)) => {}
        // It names its backing file in a format that no program reads.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {}
        Err(source) => return Err(AgentError::File { path: path.to_owned(), source }),
    }
    Err(refused(
        FindingId::DiskFlattened,
        device,
        Message::DiskNotAlone { device: device.to_owned() },
        Action::MoveLive,
    ))
}

/// The error for a shared disk that arrived with another VM and has changed since.
pub(super) fn differs(device: &str, path: &Path) -> AgentError {
    refused(
        FindingId::FileExists,
        path.display(),
        Message::FileDiffers { file: path.display().to_string(), device: device.to_owned() },
        ByHand::DecideWhichCounts,
    )
}
