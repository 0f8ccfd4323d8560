//! The destination of an offline move: listens, receives the definition and the files, and defines the VM.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ferry_core::{
    api::agent::{OfflineReady, ReceiveOffline},
    id::{Generation, JobId},
};
use ferry_drivers::hypervisor::{
    HypervisorError,
    rpc::definition::{DefinitionPolicy, check_definition},
};
use tracing::{Instrument as _, info};

use super::{
    OfflineMoves, copy,
    journal::{DestinationState, IncomingFile, Journal, Task},
    parts,
    state::Move,
};
use crate::{
    AgentError,
    attempt::{Attempt, table::Entry as _},
    blocking::blocking,
    files::host_storage::HostStorage,
    hold,
    lock::lock,
    peers,
};

impl OfflineMoves {
    /// Listens for the files. None is created before this host has accepted the definition.
    ///
    /// # Errors
    /// `request.stale`, or what prevents it; nothing is left behind then.
    pub async fn prepare_destination(
        self: Arc<Self>,
        job: JobId,
        generation: Generation,
        request: ReceiveOffline,
        storage: HostStorage,
    ) -> Result<OfflineReady, AgentError> {
        let mounts = storage.shares.mounts(request.shares.iter().copied())?;
        let record = match self.take_up(Attempt { job, generation, vm: request.vm }).await? {
            Some(known) => known,
            None => {
                let (this, requested) = (Arc::clone(&self), request.clone());
                let checked = move || this.checked(requested.vm, &requested.files, &requested.absent, &storage);
                let (incoming_files, absent) = blocking(checked).await?;
                let mounted = mounts.iter().map(|mount| PathBuf::from(&mount.path));
                let files = incoming_files.iter().map(|file| file.path().to_owned()).chain(absent.iter().cloned());
                let roots = mounted.chain(files).collect();
                let (request, state) = (request.clone(), DestinationState::Prepared);
                let task = Task::Destination { request, incoming_files, absent, roots, state };
                self.put(Journal { job, generation, task })?
            }
        };
        let Task::Destination { incoming_files, absent, request: requested, .. } = record.journal().task else {
            return Err(AgentError::failed(format!("This host is the source of job {job}")));
        };
        if !record.is_busy() {
            let ReceiveOffline { source_pin, session, secret, route, .. } = request;
            let acceptor = peers::listen(&self.config, source_pin, session, secret, route).await?;
            *lock(&record.address) = Some(acceptor.address().to_string());
            let receiving = copy::receive_all(acceptor, Arc::clone(&self), Arc::clone(&record));
            *lock(&record.task) = Some(tokio::spawn(receiving.instrument(record.attempt().span())));
        }
        let address = lock(&record.address).clone().unwrap_or_default();
        let shown = |path: &Path| path.display().to_string();
        let is_adopted = |file: &IncomingFile| matches!(file, IncomingFile::Adopted { .. });
        let adopted = requested.files.iter().zip(&incoming_files).filter(|(_, file)| is_adopted(file));
        Ok(OfflineReady {
            address,
            mounts,
            paths: incoming_files.iter().map(|file| shown(file.path())).collect(),
            absent: absent.iter().map(|path| shown(path)).collect(),
            adopted: adopted.map(|(file, _)| file.file.device.clone()).collect(),
        })
    }

    /// Accepts a received definition if this host would keep it, and creates the files that do not exist yet. Blocks.
    pub(super) fn receive_definition(&self, record: &Move, text: String) -> Result<(), AgentError> {
        let Task::Destination { request, roots, .. } = record.journal().task else { return Ok(()) };
        check_definition(&text, &policy(&request, roots)).map_err(|error| {
            AgentError::Hypervisor(HypervisorError::Definition { vm: request.vm, reason: error.to_string() })
        })?;
        parts::make_all(record, &*self.hypervisor, &self.partials)?;
        record.write(|journal| {
            // The first definition comes before the files.
            let is_last = journal.task.incoming_files().iter().all(IncomingFile::has_arrived);
            if let Some(state) = journal.destination().filter(|state| is_last && state.is_open()) {
                *state = DestinationState::Copied { definition: text };
            }
        })
    }

    /// Defines the VM at the destination: the point of no return. May be repeated.
    ///
    /// # Errors
    /// Why it could not be defined; [`Self::abort`] then determines which host has the VM.
    pub(super) async fn define(&self, record: &Arc<Move>) -> Result<(), AgentError> {
        let journal = record.journal();
        let job = journal.job;
        let stage = journal.task.stage();
        let not_yet = || Err(AgentError::failed(format!("Job {job} is not copied to this host yet: {stage:?}")));
        let Task::Destination { request, roots, state, .. } = journal.task else { return not_yet() };
        let definition = match state {
            DestinationState::Copied { definition } => definition,
            DestinationState::Defined | DestinationState::Confirmed => return Ok(()),
            DestinationState::Prepared | DestinationState::Copying | DestinationState::Aborted => return not_yet(),
        };
        let vm = request.vm;
        let (hypervisor, naming) = (Arc::clone(&self.hypervisor), Arc::clone(record));
        blocking(move || {
            parts::name_all(&naming)?;
            Ok(hypervisor.define(&definition, &policy(&request, roots))?)
        })
        .await?;
        // The VM may return: a hold of an earlier move away is over.
        hold::release(&self.config.holds_dir(), vm)?;
        record.to_destination(DestinationState::Defined)?;
        record.end().await;
        info!("The VM is defined here");
        Ok(())
    }
}

/// What a received definition may request of this host.
fn policy(request: &ReceiveOffline, roots: Vec<PathBuf>) -> DefinitionPolicy {
    DefinitionPolicy { vm: request.vm, name: request.vm_name.clone(), roots }
}
