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
    api::agent::{ConfirmRequest, OfflineFile, Report, Role, Verb},
    finding::{ByHand, FindingId, Message},
    id::{Generation, JobId},
};
use ferry_drivers::hypervisor::{Hypervisor, HypervisorError};
use tracing::info;

pub use self::check::files_of;
use self::{
    journal::{Form, IncomingFile, Journal, Stage, Task},
    state::Move,
};
use crate::{
    AgentError,
    attempt::{
        self, Attempt,
        ended::Ended,
        participant::{Participant, Pending, not_a_verb},
        table::{Known, Table},
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
            info!(job = %journal.job, vm = %journal.task.vm(), stage = ?journal.stage, "Found an offline move again");
            let found = Move::new(&folder, journal);
            if found.journal().task.role() == Role::Source {
                found.write(|page| {
                    if page.stage == Stage::Copying {
                        page.stage = Stage::Failed;
                        page.error = Some("The source's agent was restarted while files were copied".to_owned());
                    }
                })?;
            }
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
        let page = Move::new(&self.folder, journal);
        self.table.put(Arc::clone(&page));
        Ok(page)
    }

    /// Ends the move before the point of no return.
    ///
    /// # Errors
    /// `job.past-pivot` if the VM is defined at the destination; the hypervisor's, if that cannot be determined.
    async fn abort(&self, page: &Move) -> Result<(), AgentError> {
        if self.is_here(page).await? {
            // It was defined by a request whose answer was lost, or that seemed to have failed.
            page.write(|journal| {
                if journal.stage == Stage::Copied {
                    journal.stage = Stage::Defined;
                }
            })?;
            let journal = page.journal();
            let (vm, job) = (journal.task.vm(), journal.job);
            let message = Message::DefinedThere { vm: vm.to_string() };
            return Err(refused(FindingId::JobPastPivot, job, message, ByHand::LetItFinish));
        }
        page.end().await;
        page.write(|journal| {
            if journal.stage != Stage::Failed {
                journal.stage = Stage::Aborted;
            }
        })
    }

    /// Whether the move is past the point of no return, as far as this end knows. The journal may be slightly behind,
    /// so the hypervisor is asked if it may have been told to define the VM, which was not here before.
    async fn is_here(&self, page: &Move) -> Result<bool, AgentError> {
        let journal = page.journal();
        match journal.stage {
            Stage::Defined | Stage::Confirmed => return Ok(true),
            Stage::Prepared | Stage::Copying => return Ok(false),
            Stage::Copied | Stage::Failed | Stage::Aborted => {}
        }
        if journal.task.role() == Role::Source {
            return Ok(false);
        }
        let (hypervisor, vm) = (Arc::clone(&self.hypervisor), journal.task.vm());
        blocking(move || Ok(hypervisor.vm(vm)?.is_some())).await
    }

    /// Source: removes definition and old files. Destination: sets autostart. Only for a VM that is defined at the
    /// destination. May be repeated.
    ///
    /// # Errors
    /// The hypervisor's, the file system's; `vm.running` if the VM runs at the source nevertheless; `vm.unknown` if the
    /// destination no longer has it.
    async fn confirm(self: Arc<Self>, page: &Move, request: ConfirmRequest) -> Result<(), AgentError> {
        let journal = page.journal();
        if journal.stage == Stage::Confirmed {
            return Ok(());
        }
        let expected = match journal.task.role() {
            Role::Source => Stage::Copied,
            Role::Destination => Stage::Defined,
        };
        if journal.stage != expected {
            let Journal { job, stage, .. } = journal;
            return Err(AgentError::failed(format!("Job {job} cannot be confirmed here yet: {stage:?}")));
        }
        let remarks = blocking(move || match &journal.task {
            Task::Destination { request: of, .. } => {
                self.hypervisor.vm(of.vm)?.ok_or(HypervisorError::NoVm(of.vm))?;
                if request.autostart {
                    self.hypervisor.set_autostart(of.vm, true)?;
                }
                Ok(Vec::new())
            }
            Task::Source { request: of, paths, fingerprints, .. } => self.leave(&request, of, paths, fingerprints),
        })
        .await?;
        page.write(|journal| {
            journal.stage = Stage::Confirmed;
            journal.remarks = remarks;
        })
    }

    /// Forgets the move. Source: the VM is released, if it is still there. Destination: files of a VM that did not
    /// arrive are removed, or kept for the next attempt.
    ///
    /// # Errors
    /// If something cannot be reverted.
    async fn forget(&self, page: &Arc<Move>) -> Result<(), AgentError> {
        page.end().await;
        let journal = page.journal();
        let vm = journal.task.vm();
        match journal.task {
            Task::Source { autostart, .. } => {
                if autostart && journal.stage != Stage::Confirmed {
                    let hypervisor = Arc::clone(&self.hypervisor);
                    blocking(move || match hypervisor.set_autostart(vm, true) {
                        Ok(()) | Err(HypervisorError::NoVm(_)) => Ok(()),
                        Err(error) => Err(error.into()),
                    })
                    .await?;
                }
                hold::release(&self.config.holds_dir(), vm)?;
            }
            Task::Destination { .. } if !self.is_here(page).await? => {
                let (hypervisor, partials, left) =
                    (Arc::clone(&self.hypervisor), Arc::clone(&self.partials), Arc::clone(page));
                blocking(move || parts::remove_all(&left, &*hypervisor, &partials)).await?;
            }
            Task::Destination { .. } => {}
        }
        attempt::journal::remove(&self.folder, journal.job)?;
        self.table.remove(journal.job);
        Ok(())
    }
}

impl Participant for OfflineMoves {
    fn knows(&self, job: JobId) -> bool {
        self.table.get(job).is_some()
    }

    fn reserved(&self) -> Vec<Reserved> {
        let journals: Vec<Journal> = self.table.all().iter().map(|known| known.journal()).collect();
        let mut reserved = Vec::new();
        for Journal { job, task, stage, .. } in journals {
            if let Task::Destination { request, incoming_files, .. } = task
                && matches!(stage, Stage::Prepared | Stage::Copying)
            {
                let files = request
                    .files
                    .iter()
                    .zip(&incoming_files)
                    .filter(|(_, incoming_file)| incoming_file.form != Form::Adopted);
                let one = |(file, incoming_file): (&OfflineFile, &IncomingFile)| {
                    Reserved::new(job, &file.file.to, incoming_file.file(), file.allocated)
                };
                reserved.extend(files.map(one));
            }
        }
        reserved
    }

    fn report(self: Arc<Self>, job: JobId, generation: Generation, after: u64, wait: Duration) -> Pending<Report> {
        Box::pin(async move {
            let page = self.table.find(job, generation)?;
            let mut known = page.known.subscribe();
            let _ = tokio::time::timeout(wait, known.wait_for(|known| known.sequence > after)).await;
            Ok(page.report())
        })
    }

    fn act(self: Arc<Self>, job: JobId, generation: Generation, verb: Verb) -> Pending<Report> {
        Box::pin(async move {
            let page = self.table.find(job, generation)?;
            match verb {
                Verb::Perform => self.perform(&page)?,
                Verb::Define => self.define(&page).await?,
                Verb::Abort => self.abort(&page).await?,
                Verb::Confirm(request) => self.confirm(&page, request).await?,
                Verb::Resume | Verb::EndCopy => return Err(not_a_verb(job, verb)),
            }
            Ok(page.report())
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
