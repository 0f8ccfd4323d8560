//! Storage moves: disks of running VMs move to other files of this host.
//!
//! ```text
//! prepare: check, create the new files ─▶ perform: copy all, then pivot one after another ─▶ confirm: remove the old
//!             └────────── abort, release: end the copies, remove the new files that no VM uses ◀──┘
//! ```
//! QEMU copies; this module decides when it starts and when it pivots. A copy continues while the agent restarts, and
//! the restarted agent resumes control of it.

mod check;
mod definition_copy;
mod journal;
mod new_files;
mod old_files;
mod run;

use std::{path::PathBuf, sync::Arc, time::Duration};

use ferry_core::{
    api::agent::{ConfirmRequest, PrepareStorage, Report, Verb},
    error::chain,
    files::{DiskMove, DiskProgress, DiskStage},
    finding::{ByHand, FindingId, Message},
    id::{Generation, JobId},
    location::Location,
    units::ByteCount,
};
use ferry_drivers::hypervisor::Hypervisor;
use tracing::{info, warn};

use self::{
    check::checked,
    journal::{Disk, Intent, Journal, State},
    old_files::keep_definition,
    run::Move,
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
    failpoint::made_to_fail,
    files::{claims::Reserved, host_storage::HostStorage, new_file::Lifecycle},
    refusal::refused,
};

/// Limit of disks of one move: more than any VM has.
const DISKS_MAX: usize = 64;

/// How long libvirt may take to end the copies of a move.
const END_WITHIN: Duration = Duration::from_secs(20);

/// The storage moves.
pub struct StorageMoves {
    folder: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    table: Table<Arc<Move>>,
}

impl StorageMoves {
    /// Reads the journals, and continues open moves.
    ///
    /// # Errors
    /// If its folder cannot be used, or an open move cannot be started.
    pub(crate) fn load(
        config: &Config,
        hypervisor: Arc<dyn Hypervisor>,
        ended: Arc<Ended>,
    ) -> Result<Self, AgentError> {
        let folder = config.storage_dir();
        let mut moves = Vec::new();
        for journal in attempt::journal::read_all::<Journal>(&folder)? {
            let goes_on = match journal.state {
                State::Prepared { intent } => intent != Intent::GoOn,
                State::Copying { .. } | State::Switching { .. } => true,
                State::Moved | State::Confirmed | State::Failed { .. } | State::Aborted => false,
            };
            let found = Move::new(&folder, Arc::clone(&hypervisor), journal);
            found.attempt().span().in_scope(|| info!(goes_on, "Found a storage move again"));
            if goes_on {
                found.start()?;
            }
            moves.push(found);
        }
        Ok(Self { folder, hypervisor, table: Table::new("storage moves", moves, ended) })
    }

    /// Creates the new files. Blocks. Repeating it is safe.
    ///
    /// # Errors
    /// `request.stale`, or what prevents it; nothing is left behind then.
    pub fn prepare(
        &self,
        job: JobId,
        generation: Generation,
        request: PrepareStorage,
        storage: &HostStorage,
    ) -> Result<Report, AgentError> {
        made_to_fail("agent-prepare-storage")?;
        match self.table.admit(Attempt { job, generation, vm: request.vm })? {
            Known::Same(known) => {
                if matches!(known.state(), State::Prepared { .. }) {
                    self.make_all_files(&known)?;
                }
                return Ok(known.report());
            }
            Known::Older(older) => self.forget(&older)?,
            Known::Nothing => {}
        }
        if request.disks.len() > DISKS_MAX {
            return Err(AgentError::failed(format!("No VM has more than {DISKS_MAX} disks")));
        }
        let disks = checked(&*self.hypervisor, &request, storage)?;
        let journal = Journal {
            job,
            generation,
            request,
            disks,
            state: State::Prepared { intent: Intent::GoOn },
            findings: Vec::new(),
        };
        attempt::journal::write(&self.folder, job, &journal)?;
        let prepared = Move::new(&self.folder, Arc::clone(&self.hypervisor), journal);
        self.table.put(Arc::clone(&prepared));
        self.make_all_files(&prepared)?;
        made_to_fail("agent-prepared-storage")?;
        Ok(prepared.report())
    }

    /// Creates the new files that do not exist yet. After an error the move is forgotten; if that fails, it stays known
    /// until it succeeds.
    fn make_all_files(&self, prepared: &Move) -> Result<(), AgentError> {
        let made = new_files::make(&*self.hypervisor, prepared);
        if made.is_err()
            && let Err(error) = self.forget(prepared)
        {
            warn!(error = %chain(&error), "What a storage move made could not be removed yet");
        }
        made
    }

    /// The space that each copy occupies, if nothing prevents a move. Changes nothing. Blocks.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn check(&self, request: &PrepareStorage, storage: &HostStorage) -> Result<Vec<ByteCount>, AgentError> {
        Ok(checked(&*self.hypervisor, request, storage)?.into_iter().map(|disk| disk.allocated).collect())
    }

    /// Ends the move before the first disk is pivoted. Blocks.
    ///
    /// # Errors
    /// `job.past-pivot`; if libvirt does not end the copies.
    fn abort(&self, known: &Arc<Move>) -> Result<(), AgentError> {
        let job = known.journal().job;
        if known.state().is_early() && !known.end(Intent::End, END_WITHIN)? && known.state().is_early() {
            return Err(AgentError::failed(format!("The storage move of job {job} does not end")));
        }
        made_to_fail("agent-storage-ending")?;
        match known.state() {
            State::Aborted | State::Failed { .. } => {}
            State::Prepared { .. } | State::Copying { .. } => {
                known.abandon_all()?;
                known.write(|journal| journal.state = State::Aborted)?;
            }
            State::Switching { .. } | State::Moved | State::Confirmed => {
                known.go_on()?;
                return Err(refused(FindingId::JobPastPivot, job, Message::DisksSwitching, ByHand::WaitThenMoveBack));
            }
        }
        known.add_findings(new_files::that_stay(&*self.hypervisor, &known.journal())?)
    }

    /// Removes the old files, unless they must stay or are in use. Blocks. Repeating it is safe.
    ///
    /// # Errors
    /// If not every disk has moved; the file system's.
    fn confirm(&self, known: &Move, request: ConfirmRequest) -> Result<(), AgentError> {
        let journal = known.journal();
        let job = journal.job;
        match journal.state {
            State::Confirmed => return Ok(()),
            State::Moved => {}
            State::Prepared { .. }
            | State::Copying { .. }
            | State::Switching { .. }
            | State::Failed { .. }
            | State::Aborted => {
                let stage = journal.state.reported();
                return Err(AgentError::failed(format!("The disks of job {job} are not moved yet: {stage:?}")));
            }
        }
        made_to_fail("agent-storage-confirm")?;
        let facts = self.hypervisor.vm(journal.request.vm)?;
        let definition = match facts {
            Some(_) => Some(self.hypervisor.kept_definition(journal.request.vm)?),
            None => None,
        };
        if !request.keep_source {
            known.add_findings(old_files::remove(
                &*self.hypervisor,
                &journal,
                facts.as_ref(),
                definition.as_deref(),
            )?)?;
        }
        if let Some(definition) = &definition {
            known.add_findings(keep_definition(&journal, facts.as_ref(), definition, request.keep_source))?;
        }
        made_to_fail("agent-storage-removed")?;
        known.write(|journal| journal.state = State::Confirmed)
    }

    /// Forgets the move; files that it created and nobody needs are removed. Blocks.
    ///
    /// # Errors
    /// If its copies cannot be ended or its files cannot be removed.
    fn forget(&self, known: &Move) -> Result<(), AgentError> {
        let job = known.journal().job;
        if !known.end(Intent::Forget, END_WITHIN)? {
            return Err(AgentError::failed(format!("The storage move of job {job} does not end")));
        }
        known.abandon_all()?;
        new_files::remove(&*self.hypervisor, known, |disk| disk.lifecycle != Lifecycle::Planned)?;
        attempt::journal::remove(&self.folder, job)?;
        self.table.remove(job);
        Ok(())
    }
}

impl Participant for StorageMoves {
    fn knows(&self, job: JobId) -> bool {
        self.table.get(job).is_some()
    }

    fn reserved(&self) -> Vec<Reserved> {
        let of_one = |known: &Arc<Move>| -> Vec<Reserved> {
            let (journal, report) = (known.journal(), known.report());
            let takes = journal.state.is_early();
            let disks = journal.disks.iter().zip(&journal.request.disks).zip(&report.disks);
            let coming = disks
                .filter(|((disk, _), progress)| takes && disk.from != disk.to && progress.stage != DiskStage::Moved);
            let one = |((disk, requested), progress): ((&Disk, &DiskMove), &DiskProgress)| match requested.to {
                Location::Local { .. } => Reserved::new(journal.job, &requested.to, &disk.to, disk.allocated),
                Location::Share { .. } => {
                    let DiskProgress { copied, total, .. } = progress;
                    Reserved::copied(journal.job, &requested.to, disk.allocated, *copied, *total)
                }
            };
            coming.map(one).collect()
        };
        self.table.all().iter().flat_map(of_one).collect()
    }

    fn report(self: Arc<Self>, job: JobId, generation: Generation, after: u64, wait: Duration) -> Pending<Report> {
        Box::pin(async move {
            let mut report = self.table.find(job, generation)?.watch();
            let _ = tokio::time::timeout(wait, report.wait_for(|report| report.sequence > after)).await;
            let report = report.borrow().clone();
            Ok(report)
        })
    }

    fn act(self: Arc<Self>, job: JobId, generation: Generation, verb: Verb) -> Pending<Report> {
        Box::pin(blocking(move || {
            let known = self.table.find(job, generation)?;
            match verb {
                Verb::Perform => known.start()?,
                Verb::Abort => self.abort(&known)?,
                Verb::Confirm(request) => self.confirm(&known, request)?,
                Verb::Resume | Verb::Define | Verb::EndCopy => return Err(not_a_verb(job, verb)),
            }
            Ok(known.report())
        }))
    }

    fn release(self: Arc<Self>, job: JobId, generation: Generation) -> Pending<()> {
        Box::pin(blocking(move || {
            if let Ok(known) = self.table.find(job, generation) {
                self.forget(&known)?;
            }
            self.table.end(job, generation)
        }))
    }
}
