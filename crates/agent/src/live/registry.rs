//! The live moves that this host takes part in, and what both ends need: journals, carriers, and one request at a time.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use ferry_core::{
    api::agent::{IncomingDisk, Report, Role, ShareMount, Verb},
    error::chain,
    id::{Generation, JobId, SessionId, VmId},
};
use ferry_drivers::hypervisor::Hypervisor;
use tokio::sync::OnceCell;
use tracing::{Instrument as _, info, warn};

use super::{
    carried::Totals,
    carrier::control::{self, Answer, Ask},
    journal::{CarrierState, Journal, State, Task},
    launch::{self, Launcher, make_socket_dir},
};
use crate::{
    AgentError,
    attempt::{
        Attempt,
        ended::Ended,
        journal,
        locks::JobLocks,
        participant::{Participant, Pending, not_a_verb},
        table::{Entry as _, Known, Table},
    },
    blocking::{Probes, call},
    config::Config,
    files::{claims::Reserved, incoming::IncomingImage, partial::PartialCopies},
    records,
};

/// The migrations.
pub struct Registry {
    pub(super) config: Config,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) launcher: Launcher,
    /// The user and group that QEMU runs as. Asked once: libvirt examines every emulator to answer.
    pub(super) process_owner: OnceCell<(u32, u32)>,
    pub(super) table: Table<Journal>,
    pub(super) partials: Arc<PartialCopies>,
    pub(super) probes: Probes,
    pub(crate) carried: Totals,
}

pub(super) type Reported = Result<Report, AgentError>;

impl Registry {
    /// Reads the journals.
    ///
    /// # Errors
    /// If its folders cannot be used.
    pub(crate) fn load(
        config: &Config,
        hypervisor: Arc<dyn Hypervisor>,
        launcher: Launcher,
        partials: Arc<PartialCopies>,
        ended: Arc<Ended>,
    ) -> Result<Self, AgentError> {
        records::ensure_private_dir(&config.holds_dir())?;
        for (dir, mode) in [(&config.run_dir, 0o711), (&config.sessions_dir(), 0o711), (&config.controls_dir(), 0o700)]
        {
            let fault = |source| AgentError::File { path: dir.clone(), source };
            fs::create_dir_all(dir).map_err(fault)?;
            // QEMU passes through to its session's folder, whose name no other user can list.
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(fault)?;
        }
        let journals: Vec<Journal> = journal::read_all(&config.journal_dir())?;
        Ok(Self {
            config: config.clone(),
            hypervisor,
            launcher,
            process_owner: OnceCell::new(),
            table: Table::new("migrations", journals, ended),
            partials,
            probes: Probes::default(),
            carried: Totals::default(),
        })
    }

    /// The number of known migrations by this host's role.
    pub(crate) fn count_by_role(&self) -> BTreeMap<&'static str, u32> {
        let mut counts = BTreeMap::new();
        for journal in self.table.all() {
            let role = match journal.task {
                Task::Source { .. } => "source",
                Task::Destination { .. } => "destination",
            };
            *counts.entry(role).or_default() += 1;
        }
        counts
    }

    /// Whether a VM is being moved from or to this host.
    pub(crate) fn moves(&self, vm: VmId) -> bool {
        self.table.all().iter().any(|journal| journal.task.vm() == vm)
    }

    /// Recovers the migrations after a restart: logs which carriers still run, and runs a VM that was handed over to a
    /// carrier that died before running it. Requests may arrive meanwhile: each migration is recovered under its lock,
    /// in its state at that time.
    pub async fn find_again(&self, locks: &JobLocks) {
        for Journal { job, .. } in self.table.all() {
            let Ok(_lock) = locks.lock(job).await else { continue };
            let Some(journal) = self.table.get(job) else { continue };
            self.find_one_again(&journal).instrument(journal.attempt().span()).await;
        }
        // Cached before the first move needs it; if libvirt does not answer now, it is asked again then.
        let _ = self.process_owner().await;
    }

    async fn find_one_again(&self, journal: &Journal) {
        let alive = self.ask(journal, Ask::Report { after: 0, wait_ms: 0 }).await.is_some();
        info!(role = ?journal.task.role(), alive, "Found a migration again");
        let state = self.carrier_state(journal).unwrap_or_default();
        let handed_over =
            (state.finish_delivered || journal.state.is_here()) && !state.resumed && !journal.state.is_aborted();
        if !alive
            && handed_over
            && journal.task.role() == Role::Destination
            && let Err(error) = self.resume_without_carrier(journal).await
        {
            warn!(error = %chain(&error), "A VM that was handed over could not be resumed");
        }
    }

    /// The journal of this attempt, if it is known; an older attempt that was never released is undone first.
    pub(super) async fn take_up(&self, asked: Attempt) -> Result<Option<Journal>, AgentError> {
        let known = match self.table.admit(asked)? {
            Known::Nothing => return Ok(None),
            Known::Same(known) => return Ok(Some(known)),
            Known::Older(older) => older,
        };
        let known = if known.state.is_confirmed() { known } else { self.undo(known).await? };
        if known.task.role() == Role::Source {
            self.release_source(&known).await?;
        }
        self.forget(&known).await?;
        Ok(None)
    }

    pub(super) fn journal(
        &self,
        job: JobId,
        generation: Generation,
        task: Task,
        session: SessionId,
        socket_dir: PathBuf,
        autostart: bool,
    ) -> Journal {
        let end = match task.role() {
            Role::Source => "source",
            Role::Destination => "destination",
        };
        let control = self.config.controls_dir().join(format!("{}.{end}", session.0.simple()));
        Journal { job, generation, task, socket_dir, control, autostart, state: State::Open }
    }

    /// Writes the journal, starts the carrier, and waits until it is ready. After an error the caller must forget it.
    pub(super) async fn begin(&self, journal: &Journal) -> Result<Answer, AgentError> {
        make_socket_dir(&journal.socket_dir, self.process_owner().await?.0)?;
        self.put(journal)?;
        self.carried.begin(journal.job);
        launch::launch(&self.launcher, &self.config, &self.hypervisor, journal).await
    }

    pub(super) async fn process_owner(&self) -> Result<(u32, u32), AgentError> {
        let ask = || call(&self.hypervisor, |hypervisor| hypervisor.process_owner());
        Ok(*self.process_owner.get_or_try_init(ask).await?)
    }

    /// Sends a request to the carrier; `None` if it is not running.
    pub(super) async fn ask(&self, journal: &Journal, ask: Ask) -> Option<Answer> {
        let answer = control::ask(&journal.control, ask).await.ok()?;
        match &answer {
            Answer::Report { carried, .. } => self.carried.add(journal.job, journal.task.role(), **carried),
            Answer::Refused { .. } => {}
        }
        Some(answer)
    }

    /// Where shares are mounted on the destinations of this host's moves.
    pub(crate) fn mounts_elsewhere(&self) -> Vec<ShareMount> {
        let mounts = self.table.all().into_iter().filter_map(|journal| match journal.task {
            Task::Source { request, .. } => Some(request.destination.mounts),
            Task::Destination { .. } => None,
        });
        mounts.flatten().collect()
    }

    /// The names of incoming VMs.
    pub(crate) fn names(&self) -> Vec<(VmId, String)> {
        let names = self.table.all().into_iter().filter_map(|journal| match journal.task {
            Task::Source { .. } => None,
            Task::Destination { request, .. } => Some((request.vm, request.vm_name)),
        });
        names.collect()
    }

    pub(super) fn put(&self, journal: &Journal) -> Result<(), AgentError> {
        journal::write(&self.config.journal_dir(), journal.job, journal)?;
        self.table.put(journal.clone());
        Ok(())
    }

    pub(super) fn carrier_state(&self, journal: &Journal) -> Result<CarrierState, AgentError> {
        Journal::carrier_state(&self.config.journal_dir(), journal.job)
    }
}

impl Participant for Registry {
    fn knows(&self, job: JobId) -> bool {
        self.table.get(job).is_some()
    }

    fn reserved(&self) -> Vec<Reserved> {
        let journals = self.table.all();
        let mut reserved = Vec::new();
        for journal in journals.iter().filter(|journal| matches!(journal.state, State::Open | State::Ending)) {
            if let Task::Destination { request, incoming_disks, .. } = &journal.task {
                let files = request.disks.iter().zip(incoming_disks);
                let one = |(disk, incoming_disk): (&IncomingDisk, &IncomingImage)| {
                    Reserved::new(journal.job, &disk.to, &incoming_disk.path, disk.allocated)
                };
                reserved.extend(files.map(one));
            }
        }
        reserved
    }

    fn report(self: Arc<Self>, job: JobId, generation: Generation, after: u64, wait: Duration) -> Pending<Report> {
        Box::pin(async move {
            let journal = self.table.find(job, generation)?;
            self.report_of(&journal, after, wait).await
        })
    }

    fn act(self: Arc<Self>, job: JobId, generation: Generation, verb: Verb) -> Pending<Report> {
        Box::pin(async move {
            let journal = self.table.find(job, generation)?;
            match verb {
                Verb::Perform => self.perform(&journal).await,
                Verb::Resume => self.resume(journal).await,
                Verb::EndCopy => self.end_copy(&journal).await,
                Verb::Abort => self.abort(journal).await,
                Verb::Confirm(request) => self.confirm(journal, request).await,
                Verb::Define => Err(not_a_verb(job, verb)),
            }
        })
    }

    fn release(self: Arc<Self>, job: JobId, generation: Generation) -> Pending<()> {
        Box::pin(async move { Self::release(&self, job, generation).await })
    }
}
