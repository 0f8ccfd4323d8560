//! Moves of VMs that are shut off, with their files.
//!
//! ```text
//! destination: prepare: listen ─▶ take the definition, files, the definition ─▶ define: name files, the VM is here ─▶ confirm
//! source:      prepare: hold the VM ─▶ perform: send what differs ─▶ confirm: remove definition and old files
//! before define:  abort, release: new files are removed or kept for the next attempt; the VM is at the source and free again
//! ```
//! The VM belongs to the destination once it is defined there. Before that, the only change at the source is that the
//! VM is held; after that, nothing at the destination is ever removed.
//!
//! The definition is sent first, so that the destination can refuse it before a file is created, and again when all
//! files have arrived.

mod check;
mod copy;
mod destination;
mod journal;
mod parts;
mod source;
mod state;

use std::{path::PathBuf, sync::Arc, time::Duration};

use ferry_core::{
    api::agent::{ConfirmRequest, OfflineFile, Report, Stage, Verb},
    finding::{ByHand, FindingId, Message},
    id::{Generation, JobId},
};
use ferry_drivers::hypervisor::{Hypervisor, HypervisorError};
use tracing::info;

pub use self::check::files_of;
use self::{
    journal::{DestinationState, IncomingFile, Journal, SourceState, Task},
    state::Move,
};
use crate::{
    AgentError,
    attempt::{
        self, Attempt,
        ended::Ended,
        participant::{Participant, Pending, not_a_verb},
        table::{Entry as _, Known, Table},
    },
    blocking::blocking,
    config::Config,
    files::{claims::Reserved, partial::PartialCopies},
    hold,
    refusal::refused,
};

/// The offline moves.
pub struct OfflineMoves {
    config: Config,
    folder: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    partials: Arc<PartialCopies>,
    table: Table<Arc<Move>>,
}

impl OfflineMoves {
    /// Reads the journals. Interrupted copies have failed: another attempt sends what differs.
    ///
    /// # Errors
    /// If its folder cannot be used.
    pub(crate) fn load(
        config: &Config,
        hypervisor: Arc<dyn Hypervisor>,
        partials: Arc<PartialCopies>,
        ended: Arc<Ended>,
    ) -> Result<Self, AgentError> {
        let folder = config.offline_dir();
        let mut moves = Vec::new();
        for journal in attempt::journal::read_all::<Journal>(&folder)? {
            let found = Move::new(&folder, journal);
            let stage = found.journal().task.stage();
            found.attempt().span().in_scope(|| info!(?stage, "Found an offline move again"));
            found.write(|journal| {
                if let Some(state @ SourceState::Copying) = journal.source() {
                    let error = "The source's agent was restarted while files were copied".to_owned();
                    *state = SourceState::Failed { error };
                }
            })?;
            moves.push(found);
        }
        Ok(Self {
            config: config.clone(),
            folder,
            hypervisor,
            partials,
            table: Table::new("offline moves", moves, ended),
        })
    }

    /// The known attempt; an older one of the job is reverted. `None`: it is new.
    async fn take_up(&self, asked: Attempt) -> Result<Option<Arc<Move>>, AgentError> {
        match self.table.admit(asked)? {
            Known::Nothing => Ok(None),
            Known::Same(known) => Ok(Some(known)),
            Known::Older(older) => {
                self.forget(&older).await?;
                Ok(None)
            }
        }
    }

    /// Records a new attempt, before anything is changed for it.
    fn put(&self, journal: Journal) -> Result<Arc<Move>, AgentError> {
        attempt::journal::write(&self.folder, journal.job, &journal)?;
        let record = Move::new(&self.folder, journal);
        self.table.put(Arc::clone(&record));
        Ok(record)
    }

    /// Ends the move before the point of no return.
    ///
    /// # Errors
    /// `job.past-pivot` if the VM is defined at the destination; the hypervisor's, if that cannot be determined.
    async fn abort(&self, record: &Move) -> Result<(), AgentError> {
        if self.is_here(record).await? {
            // It was defined by a request whose answer was lost, or that seemed to have failed.
            record.write(|journal| {
                if let Some(state @ DestinationState::Copied { .. }) = journal.destination() {
                    *state = DestinationState::Defined;
                }
            })?;
            let Journal { job, task, .. } = record.journal();
            let message = Message::DefinedThere { vm: task.vm().to_string() };
            return Err(refused(FindingId::JobPastPivot, job, message, ByHand::LetItFinish));
        }
        record.end().await;
        record.write(|journal| match &mut journal.task {
            Task::Source { state: SourceState::Failed { .. }, .. } => {}
            Task::Source { state, .. } => *state = SourceState::Aborted,
            Task::Destination { state, .. } => *state = DestinationState::Aborted,
        })
    }

    /// Whether the move is past the point of no return, as far as this end knows. The journal may be slightly behind,
    /// so the hypervisor is asked if it may have been told to define the VM, which was not here before.
    async fn is_here(&self, record: &Move) -> Result<bool, AgentError> {
        match record.journal().task {
            Task::Source { state, .. } => Ok(matches!(state, SourceState::Confirmed { .. })),
            Task::Destination { request, state, .. } => match state {
                DestinationState::Defined | DestinationState::Confirmed => Ok(true),
                DestinationState::Prepared | DestinationState::Copying => Ok(false),
                DestinationState::Copied { .. } | DestinationState::Aborted => {
                    let hypervisor = Arc::clone(&self.hypervisor);
                    blocking(move || Ok(hypervisor.vm(request.vm)?.is_some())).await
                }
            },
        }
    }

    /// Source: removes definition and old files. Destination: sets autostart. Only for a VM that is defined at the
    /// destination. May be repeated.
    ///
    /// # Errors
    /// The hypervisor's, the file system's; `vm.running` if the VM runs at the source nevertheless; `vm.unknown` if the
    /// destination no longer has it.
    async fn confirm(self: Arc<Self>, record: &Move, request: ConfirmRequest) -> Result<(), AgentError> {
        let Journal { job, task, .. } = record.journal();
        let stage = task.stage();
        match task {
            Task::Source { request: of, paths, state: SourceState::Copied { fingerprints }, .. } => {
                let findings = blocking(move || self.leave(&request, &of, &paths, &fingerprints)).await?;
                record.to_source(SourceState::Confirmed { findings })
            }
            Task::Destination { request: of, state: DestinationState::Defined, .. } => {
                blocking(move || {
                    self.hypervisor.vm(of.vm)?.ok_or(HypervisorError::NoVm(of.vm))?;
                    if request.autostart {
                        self.hypervisor.set_autostart(of.vm, true)?;
                    }
                    Ok(())
                })
                .await?;
                record.to_destination(DestinationState::Confirmed)
            }
            Task::Source { .. } | Task::Destination { .. } if stage == Stage::Confirmed => Ok(()),
            Task::Source { .. } | Task::Destination { .. } => {
                Err(AgentError::failed(format!("Job {job} cannot be confirmed here yet: {stage:?}")))
            }
        }
    }

    /// Forgets the move. Source: the VM is released, if it is still there. Destination: files of a VM that did not
    /// arrive are removed, or kept for the next attempt.
    ///
    /// # Errors
    /// If something cannot be reverted.
    async fn forget(&self, record: &Arc<Move>) -> Result<(), AgentError> {
        record.end().await;
        let Journal { job, task, .. } = record.journal();
        let vm = task.vm();
        match task {
            Task::Source { autostart, state, .. } => {
                if autostart && !matches!(state, SourceState::Confirmed { .. }) {
                    let hypervisor = Arc::clone(&self.hypervisor);
                    blocking(move || match hypervisor.set_autostart(vm, true) {
                        Ok(()) | Err(HypervisorError::NoVm(_)) => Ok(()),
                        Err(error) => Err(error.into()),
                    })
                    .await?;
                }
                hold::release(&self.config.holds_dir(), vm)?;
            }
            Task::Destination { .. } if !self.is_here(record).await? => {
                let (hypervisor, partials, left) =
                    (Arc::clone(&self.hypervisor), Arc::clone(&self.partials), Arc::clone(record));
                blocking(move || parts::remove_all(&left, &*hypervisor, &partials)).await?;
            }
            Task::Destination { .. } => {}
        }
        attempt::journal::remove(&self.folder, job)?;
        self.table.remove(job);
        Ok(())
    }
}

impl Participant for OfflineMoves {
    fn knows(&self, job: JobId) -> bool {
        self.table.get(job).is_some()
    }

    fn reserved(&self) -> Vec<Reserved> {
        let mut reserved = Vec::new();
        for known in self.table.all() {
            let Journal { job, task, .. } = known.journal();
            if let Task::Destination {
                request,
                incoming_files,
                state: DestinationState::Prepared | DestinationState::Copying,
                ..
            } = &task
            {
                let files = request.files.iter().zip(incoming_files);
                let one = |(of, file): (&OfflineFile, &IncomingFile)| {
                    let path = file.new_file(of)?.path.to_owned();
                    Some(Reserved::new(job, &of.file.to, &path, of.allocated))
                };
                reserved.extend(files.filter_map(one));
            }
        }
        reserved
    }

    fn report(self: Arc<Self>, job: JobId, generation: Generation, after: u64, wait: Duration) -> Pending<Report> {
        Box::pin(async move {
            let record = self.table.find(job, generation)?;
            let mut known = record.known.subscribe();
            let _ = tokio::time::timeout(wait, known.wait_for(|known| known.sequence > after)).await;
            Ok(record.report())
        })
    }

    fn act(self: Arc<Self>, job: JobId, generation: Generation, verb: Verb) -> Pending<Report> {
        Box::pin(async move {
            let record = self.table.find(job, generation)?;
            match verb {
                Verb::Perform => self.perform(&record)?,
                Verb::Define => self.define(&record).await?,
                Verb::Abort => self.abort(&record).await?,
                Verb::Confirm(request) => self.confirm(&record, request).await?,
                Verb::Resume | Verb::EndCopy => return Err(not_a_verb(job, verb)),
            }
            Ok(record.report())
        })
    }

    fn release(self: Arc<Self>, job: JobId, generation: Generation) -> Pending<()> {
        Box::pin(async move {
            if let Ok(known) = self.table.find(job, generation) {
                self.forget(&known).await?;
            }
            self.table.end(job, generation)
        })
    }
}
