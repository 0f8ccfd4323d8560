//! The source of an offline move: holds the VM, sends what differs, and removes its remains once the destination has
//! it.

use std::{path::PathBuf, sync::Arc};

use ferry_core::{
    api::agent::{ConfirmRequest, Report, SendOffline},
    error::chain,
    files::cleanup::{Obstacle, old_file_kept},
    finding::{Action, Command, Finding, FindingId, Fix, Message},
    id::{Generation, JobId},
};
use tracing::{Instrument as _, warn};

use super::{
    OfflineMoves,
    check::{shut_off, stands_alone},
    copy,
    journal::{Journal, SourceState, Task},
    state::Move,
};
use crate::{
    AgentError,
    attempt::{Attempt, table::Entry as _},
    blocking::blocking,
    files::{self, fingerprint::FileFingerprint, host_storage::HostStorage, old_file::remove_unless},
    hold,
    live::translation,
    lock::lock,
    refusal::refused,
};

impl OfflineMoves {
    /// Holds the VM, and makes sure that it is shut off.
    ///
    /// # Errors
    /// `vm.running`, `request.stale`, `host.network`, or what prevents it; nothing is changed then.
    pub async fn prepare_source(
        self: Arc<Self>,
        job: JobId,
        generation: Generation,
        request: SendOffline,
        storage: HostStorage,
    ) -> Result<Report, AgentError> {
        let record = match self.take_up(Attempt { job, generation, vm: request.vm }).await? {
            Some(known) => known,
            None => {
                copy::try_route(&self.config, &request).await?;
                let this = Arc::clone(&self);
                let task = blocking(move || this.source(request, &storage)).await?;
                // Before the first change: an agent that dies in between must know what to revert.
                self.put(Journal { job, generation, task })?
            }
        };
        if record.journal().source() == Some(&mut SourceState::Prepared)
            && let Err(error) = self.hold(&record).await
        {
            if let Err(error) = self.forget(&record).await {
                warn!(error = %chain(&error), "What was changed for an offline move could not be taken back");
            }
            return Err(error);
        }
        Ok(record.report())
    }

    /// Holds the VM at the source: from here on it keeps the state that is found. May be repeated.
    async fn hold(&self, record: &Move) -> Result<(), AgentError> {
        let journal = record.journal();
        let Task::Source { request, autostart, .. } = journal.task else { return Ok(()) };
        let (holds, hypervisor) = (self.config.holds_dir(), Arc::clone(&self.hypervisor));
        blocking(move || {
            hold::ensure(&holds, request.vm, journal.job)?;
            shut_off(&*hypervisor, request.vm)?;
            if autostart {
                hypervisor.set_autostart(request.vm, false)?;
            }
            Ok(())
        })
        .await
    }

    fn source(&self, request: SendOffline, storage: &HostStorage) -> Result<Task, AgentError> {
        let mounts = storage.shares.mounts(request.destination.mounts.iter().map(|mount| mount.share))?;
        let facts = shut_off(&*self.hypervisor, request.vm)?;
        let mut paths = Vec::with_capacity(request.files.len());
        for file in &request.files {
            let device = &file.file.device;
            let path = storage.places.path(&file.file.from);
            let path = path.filter(|path| facts.files.iter().any(|of| of.device == *device && of.place == *path));
            let path = path.ok_or_else(|| {
                refused(
                    FindingId::DiskUnknown,
                    device,
                    Message::FileNotWhereItWas { device: device.clone(), vm: facts.name.clone() },
                    Action::ShowVm,
                )
            })?;
            stands_alone(&path, device)?;
            paths.push(path);
        }
        let absent: Vec<PathBuf> = request.absent.iter().filter_map(|file| storage.places.path(&file.from)).collect();
        let there = &request.destination;
        if paths.len() != there.paths.len() || absent.len() != there.absent.len() {
            return Err(AgentError::failed("The destination tells another number of files"));
        }
        let here = paths.iter().chain(&absent).cloned();
        let moved = here.zip(there.paths.iter().chain(&there.absent).map(PathBuf::from));
        let translate: Vec<_> = moved.chain(translation(&mounts, &there.mounts)).collect();
        // Detects definitions that cannot be translated for the destination before anything is copied.
        self.hypervisor.definition(request.vm, &translate)?;
        Ok(Task::Source { request, paths, translate, autostart: facts.autostart, state: SourceState::Prepared })
    }

    /// Begins to copy, at the source.
    ///
    /// # Errors
    /// If it cannot be recorded.
    pub(super) fn perform(self: &Arc<Self>, record: &Arc<Move>) -> Result<(), AgentError> {
        if record.journal().source() == Some(&mut SourceState::Prepared) {
            record.to_source(SourceState::Copying)?;
            let (this, copied) = (Arc::clone(self), Arc::clone(record));
            let copy = async move {
                let outcome = copy::send_all(&this.config, this.hypervisor.clone(), Arc::clone(&copied)).await;
                let state = match outcome {
                    Ok(fingerprints) => SourceState::Copied { fingerprints },
                    Err(error) => SourceState::Failed { error: chain(&error) },
                };
                if let Err(error) = copied.to_source(state) {
                    warn!(error = %chain(&error), "How the offline move stands could not be written down");
                }
            };
            *lock(&record.task) = Some(tokio::spawn(copy.instrument(record.attempt().span())));
        }
        Ok(())
    }

    /// Removes the source's remains of a VM that the destination has; reports what stays nevertheless. Blocks.
    pub(super) fn leave(
        &self,
        request: &ConfirmRequest,
        of: &SendOffline,
        paths: &[PathBuf],
        fingerprints: &[FileFingerprint],
    ) -> Result<Vec<Finding>, AgentError> {
        // Whoever repeats the request gets the VM's name from its UUID (`told`).
        let mut name = of.vm.to_string();
        if self.hypervisor.vm(of.vm)?.is_some() {
            name = shut_off(&*self.hypervisor, of.vm)?.name;
            self.hypervisor.undefine(of.vm)?;
        }
        let mut findings = Vec::new();
        if request.keep_source {
            return Ok(findings);
        }
        let used = files::in_use(self.hypervisor.files_in_use()?)?;
        for (index, (file, path)) in of.files.iter().zip(paths).enumerate() {
            if !file.file.is_removed() || path.symlink_metadata().is_err() {
                continue;
            }
            let changed = |fingerprint: &FileFingerprint| !fingerprint.is_of(path, &file.file.from);
            let stays = |obstacle: Option<Obstacle>| match obstacle {
                Some(obstacle) => Some((obstacle.why(), Fix::from(obstacle.fix()))),
                None if fingerprints.get(index).is_some_and(changed) => {
                    let fix = Command::FindWriter { file: path.display().to_string() };
                    Some((Message::WrittenSinceCopied, fix.into()))
                }
                None => None,
            };
            if let Some((why, fix)) = remove_unless(path, &used, stays, |_| false)? {
                warn!(file = %path.display(), %why, "An old file stays");
                findings.push(old_file_kept(&name, &file.file.device, path.display(), why, fix));
            }
        }
        Ok(findings)
    }
}
