//! Moves of VMs that are shut off, with their files.
//!
//! ```text
//! destination: prepare: listen ─▶ take the definition, files, the definition ─▶ define: name files, the VM is here ─▶ confirm
//! source:      prepare: hold the VM ─▶ perform: send what differs ─▶ confirm: remove definition and old files
//! before define:  abort, release: new files are removed or kept for the next attempt; the VM is at the source and free again
//! ```
//! Whether the destination has the VM decides whose it is: before it is defined there nothing at the source was changed
//! but that the VM is held against a start; after that nothing at the destination is ever removed.
//!
//! The definition comes first so that what the destination would refuse is refused before a file is made, and once more
//! when all files have come.

mod check;
mod copy;
mod destination;
mod journal;
mod parts;
mod source;
mod state;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use ferry_core::{
    api::agent::{ConfirmRequest, OfflineFile, OfflineReport, OfflineStage, Role},
    finding::{Finding, FindingId},
    id::{Generation, JobId},
};
use ferry_drivers::hypervisor::{Hypervisor, HypervisorError};
use tracing::info;

pub use self::check::files_of;
use self::{
    journal::{Form, IncomingFile, Journal, Task},
    state::Move,
};
use crate::{
    AgentError,
    blocking::blocking,
    config::Config,
    ended::{Asked, Ended},
    files::{claims::Reserved, partial::PartialCopies},
    hold,
    lock::lock,
    records,
    refusal::refused,
};

/// Offline moves that one host takes part in at once: far above what slots allow.
const MOVES_MAX: usize = 64;

/// The offline moves.
pub struct OfflineMoves {
    config: Config,
    folder: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    partials: Arc<PartialCopies>,
    moves: Mutex<BTreeMap<JobId, Arc<Move>>>,
    /// Held by the request that changes a move: one at a time for each.
    turns: Mutex<HashMap<JobId, Arc<tokio::sync::Mutex<()>>>>,
    released: Arc<Ended>,
}

impl OfflineMoves {
    /// Reads the journals. What was being copied has failed: another attempt sends what differs.
    ///
    /// # Errors
    /// When its folder cannot be used.
    pub(crate) fn load(
        config: &Config,
        hypervisor: Arc<dyn Hypervisor>,
        partials: Arc<PartialCopies>,
        released: Arc<Ended>,
    ) -> Result<Self, AgentError> {
        let folder = config.offline_dir();
        records::ensure_private_dir(&folder)?;
        let mut moves = BTreeMap::new();
        for journal in Journal::read_all(&folder)? {
            info!(job = %journal.job, vm = %journal.task.vm(), stage = ?journal.stage, "Found an offline move again");
            let job = journal.job;
            let found = Move::new(&folder, journal);
            if found.journal().task.role() == Role::Source {
                found.write(|page| {
                    if page.stage == OfflineStage::Copying {
                        page.stage = OfflineStage::Failed;
                        page.error = Some("The source's agent was restarted while files were copied".to_owned());
                    }
                })?;
            }
            moves.insert(job, found);
        }
        Ok(Self {
            config: config.clone(),
            folder,
            hypervisor,
            partials,
            moves: Mutex::new(moves),
            turns: Mutex::default(),
            released,
        })
    }

    fn moves(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<Move>>> {
        lock(&self.moves)
    }

    fn known(&self, job: JobId, generation: Generation) -> Result<Arc<Move>, AgentError> {
        let known = self.moves().get(&job).cloned();
        known.filter(|known| known.journal().generation == generation).ok_or_else(|| {
            let message = format!("The host's agent knows no offline move of job {job}, attempt {generation}");
            let fix = "Look at the job with `ferry job show`; restart it if it has failed";
            AgentError::refused(404, Finding::blocks(FindingId::JobUnknown, job, message, fix))
        })
    }

    /// Runs a request that changes a move: alone for its job, and to its end, whether or not whoever asked still waits. What
    /// a request that nobody waits for does late would else come in the midst of the one after it.
    async fn in_turn<T: Send + 'static>(
        &self,
        job: JobId,
        request: impl Future<Output = Result<T, AgentError>> + Send + 'static,
    ) -> Result<T, AgentError> {
        let turn = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(job).or_default())
        };
        let done = tokio::spawn(async move {
            let _turn = turn.lock_owned().await;
            request.await
        });
        done.await.unwrap_or_else(|error| Err(AgentError::Carrier(error.to_string())))
    }

    /// Room that files which come will still take.
    pub(crate) fn reserved(&self) -> Vec<Reserved> {
        let journals: Vec<Journal> = self.moves().values().map(|known| known.journal()).collect();
        let mut reserved = Vec::new();
        for Journal { job, task, stage, .. } in journals {
            if let Task::Destination { request, incoming_files, .. } = task
                && matches!(stage, OfflineStage::Prepared | OfflineStage::Copying)
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

    /// What is known of the attempt; an older one of the job is taken back. `None`: it is new.
    async fn take_up(&self, asked: Asked) -> Result<Option<Arc<Move>>, AgentError> {
        let (known, generation) = (self.moves().get(&asked.job).cloned(), asked.generation);
        let newest = known.as_ref().map(|known| known.journal());
        self.released.admit(asked, newest.map(|newest| (newest.generation, newest.task.vm())))?;
        match known {
            Some(known) if known.journal().generation == generation => Ok(Some(known)),
            Some(older) => {
                self.forget(&older).await?;
                Ok(None)
            }
            None if self.moves().len() >= MOVES_MAX => {
                Err(AgentError::Carrier(format!("This host takes part in {MOVES_MAX} offline moves already")))
            }
            None => Ok(None),
        }
    }

    /// Writes an attempt down that is new. Nothing was changed for it before.
    fn put(&self, journal: Journal) -> Result<Arc<Move>, AgentError> {
        journal.write(&self.folder)?;
        let job = journal.job;
        let page = Move::new(&self.folder, journal);
        self.moves().insert(job, Arc::clone(&page));
        Ok(page)
    }

    /// How it stands, as soon as that is newer than `after`, or after `wait`.
    ///
    /// # Errors
    /// When the attempt is not known.
    pub async fn report(
        &self,
        job: JobId,
        generation: Generation,
        after: u64,
        wait: std::time::Duration,
    ) -> Result<OfflineReport, AgentError> {
        let page = self.known(job, generation)?;
        let mut known = page.known.subscribe();
        let _ = tokio::time::timeout(wait, known.wait_for(|known| known.sequence > after)).await;
        Ok(page.report())
    }

    /// Ends it before the point of no return.
    ///
    /// # Errors
    /// `job.past-pivot` when the VM is defined at the destination; the hypervisor's, when nobody knows.
    pub async fn abort(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<OfflineReport, AgentError> {
        let this = Arc::clone(self);
        self.in_turn(job, async move { this.end_unless_here(job, generation).await }).await
    }

    async fn end_unless_here(&self, job: JobId, generation: Generation) -> Result<OfflineReport, AgentError> {
        let page = self.known(job, generation)?;
        if self.is_here(&page).await? {
            // It was defined by a request whose answer was lost, or that was taken for failed.
            page.write(|journal| {
                if journal.stage == OfflineStage::Copied {
                    journal.stage = OfflineStage::Defined;
                }
            })?;
            let vm = page.journal().task.vm();
            let message = format!("VM {vm} is defined at the destination; the move can no longer be cancelled");
            let fix = "Let it finish, then move the VM back";
            return Err(refused(FindingId::JobPastPivot, job, message, fix));
        }
        page.end().await;
        page.write(|journal| {
            if journal.stage != OfflineStage::Failed {
                journal.stage = OfflineStage::Aborted;
            }
        })?;
        Ok(page.report())
    }

    /// Whether it is past the point of no return, as far as this end knows. What is written down may be a moment old, so
    /// the hypervisor is asked when it may have been told to define the VM, which was not here before.
    async fn is_here(&self, page: &Move) -> Result<bool, AgentError> {
        let journal = page.journal();
        match journal.stage {
            OfflineStage::Defined | OfflineStage::Confirmed => return Ok(true),
            OfflineStage::Prepared | OfflineStage::Copying => return Ok(false),
            OfflineStage::Copied | OfflineStage::Failed | OfflineStage::Aborted => {}
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
    /// The hypervisor's, the file system's; `vm.running` if the VM runs at the source in spite of everything; `vm.unknown`
    /// if the destination does not have it any more.
    pub async fn confirm(
        self: &Arc<Self>,
        job: JobId,
        generation: Generation,
        request: ConfirmRequest,
    ) -> Result<OfflineReport, AgentError> {
        let this = Arc::clone(self);
        self.in_turn(job, async move { this.make_final(job, generation, request).await }).await
    }

    async fn make_final(
        self: Arc<Self>,
        job: JobId,
        generation: Generation,
        request: ConfirmRequest,
    ) -> Result<OfflineReport, AgentError> {
        let page = self.known(job, generation)?;
        let journal = page.journal();
        if journal.stage == OfflineStage::Confirmed {
            return Ok(page.report());
        }
        let expected = match journal.task.role() {
            Role::Source => OfflineStage::Copied,
            Role::Destination => OfflineStage::Defined,
        };
        if journal.stage != expected {
            let stage = journal.stage;
            return Err(AgentError::Carrier(format!("Job {job} cannot be confirmed here yet: {stage:?}")));
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
            journal.stage = OfflineStage::Confirmed;
            journal.remarks = remarks;
        })?;
        Ok(page.report())
    }

    /// Forgets it. Source: the VM is free again, if it is still there. Destination: files of a VM that did not come are
    /// removed, or kept for the next attempt. Ok if it is not known.
    ///
    /// # Errors
    /// When something cannot be taken back.
    pub async fn release(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<(), AgentError> {
        let this = Arc::clone(self);
        self.in_turn(job, async move {
            if let Ok(known) = this.known(job, generation) {
                this.forget(&known).await?;
            }
            this.released.remember(job, generation)
        })
        .await
    }

    async fn forget(&self, page: &Arc<Move>) -> Result<(), AgentError> {
        page.end().await;
        let journal = page.journal();
        let vm = journal.task.vm();
        match journal.task {
            Task::Source { autostart, .. } => {
                if autostart && journal.stage != OfflineStage::Confirmed {
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
        page.journal().remove(&self.folder)?;
        self.moves().remove(&journal.job);
        Ok(())
    }
}
