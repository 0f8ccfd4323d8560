//! Which live moves this host takes part in, and what both ends of them need: their journals, their carriers, and one
//! request at a time.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use ferry_core::{
    api::agent::{DiskArrival, MigrationReport, Role, ShareMount},
    error::chain,
    finding::{Finding, FindingId},
    id::{Generation, JobId, SessionId, VmId},
};
use ferry_drivers::hypervisor::Hypervisor;
use tokio::sync::{OnceCell, OwnedMutexGuard};
use tracing::{info, warn};

use super::{
    carrier::control::{self, Answer, Ask},
    journal::{CarrierState, Journal, Task},
    launch::{self, Launcher, make_socket_dir},
};
use crate::{
    AgentError,
    blocking::{Probes, call},
    config::Config,
    ended::{Asked, Ended},
    files::{claims::Reserved, new_file::IncomingDisk, partial::PartialCopies},
    lock::lock,
    records,
    refusal::stale,
};

/// Migrations that one host takes part in at once: a bound on processes, far above what slots allow.
const MIGRATIONS_MAX: usize = 64;

/// The migrations.
pub struct Registry {
    pub(super) config: Config,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) launcher: Launcher,
    /// Who QEMU runs as. Asked once: libvirt looks at every emulator to answer.
    pub(super) process_owner: OnceCell<(u32, u32)>,
    pub(super) entries: Mutex<HashMap<JobId, Journal>>,
    /// Held by the request that changes a migration: one at a time for each.
    pub(super) turns: Mutex<HashMap<JobId, Arc<tokio::sync::Mutex<()>>>>,
    pub(super) partials: Arc<PartialCopies>,
    pub(super) probes: Probes,
    pub(super) ended: Arc<Ended>,
}

pub(super) type Reported = Result<MigrationReport, AgentError>;

impl Registry {
    /// Reads the journals.
    ///
    /// # Errors
    /// When its folders cannot be used.
    pub fn load(config: &Config, hypervisor: Arc<dyn Hypervisor>, launcher: Launcher) -> Result<Self, AgentError> {
        records::ensure_private_dir(&config.journal_dir())?;
        records::ensure_private_dir(&config.holds_dir())?;
        for (dir, mode) in [(&config.run_dir, 0o711), (&config.sessions_dir(), 0o711), (&config.controls_dir(), 0o700)]
        {
            let fault = |source| AgentError::File { path: dir.clone(), source };
            fs::create_dir_all(dir).map_err(fault)?;
            // QEMU goes through to its session's folder, whose name nobody else can list.
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(fault)?;
        }
        let journals = Journal::read_all(&config.journal_dir())?;
        let entries = journals.into_iter().map(|journal| (journal.job, journal)).collect();
        Ok(Self {
            config: config.clone(),
            hypervisor,
            launcher,
            process_owner: OnceCell::new(),
            entries: Mutex::new(entries),
            turns: Mutex::default(),
            partials: Arc::new(PartialCopies::load(config)?),
            probes: Probes::default(),
            ended: Arc::new(Ended::load(config)?),
        })
    }

    /// How many sides of moves it knows, by role.
    pub(crate) fn count_by_role(&self) -> BTreeMap<&'static str, u32> {
        let mut counts = BTreeMap::new();
        for journal in self.entries().values() {
            let role = match journal.task {
                Task::Source { .. } => "source",
                Task::Destination { .. } => "destination",
            };
            *counts.entry(role).or_default() += 1;
        }
        counts
    }

    /// Room that disks which come will still take.
    pub(crate) fn reserved(&self) -> Vec<Reserved> {
        let journals: Vec<Journal> = self.entries().values().cloned().collect();
        let mut reserved = Vec::new();
        for journal in journals.iter().filter(|journal| !journal.here && !journal.confirmed && !journal.aborted) {
            if let Task::Destination { request, incoming_disks, .. } = &journal.task {
                let files = request.disks.iter().zip(incoming_disks);
                let one = |(disk, incoming_disk): (&DiskArrival, &IncomingDisk)| {
                    Reserved::new(journal.job, &disk.to, &incoming_disk.path, disk.allocated)
                };
                reserved.extend(files.map(one));
            }
        }
        reserved
    }

    /// Whether a VM is being moved, from or to here.
    pub(crate) fn moves(&self, vm: VmId) -> bool {
        self.entries().values().any(|journal| journal.task.vm() == vm)
    }

    /// Unfinished copies of disks.
    pub(crate) fn partials(&self) -> Arc<PartialCopies> {
        Arc::clone(&self.partials)
    }

    /// Attempts that were released, of all kinds.
    pub(crate) fn ended(&self) -> Arc<Ended> {
        Arc::clone(&self.ended)
    }

    /// Looks after the migrations of an earlier life: logs which carriers still run, and runs a VM that was handed
    /// over to a carrier that died before it could. Requests come meanwhile: each migration is looked at in its turn, as it
    /// is then.
    pub async fn find_again(&self) {
        let jobs: Vec<JobId> = self.entries().keys().copied().collect();
        for job in jobs {
            let _turn = self.turn(job).await;
            let Some(journal) = self.entries().get(&job).cloned() else { continue };
            let alive = self.ask(&journal, Ask::Report { after: 0, wait_ms: 0 }).await.is_some();
            info!(job = %journal.job, role = ?journal.task.role(), vm = %journal.task.vm(), alive, "Found a migration again");
            let state = self.carrier_state(&journal).unwrap_or_default();
            let handed_over = (state.finish_delivered || journal.here) && !state.resumed && !journal.aborted;
            if !alive
                && handed_over
                && journal.task.role() == Role::Destination
                && let Err(error) = self.resume_without_carrier(&journal).await
            {
                warn!(vm = %journal.task.vm(), error = %chain(&error), "A VM that was handed over could not be resumed");
            }
        }
        // Known before the first move needs it; if libvirt does not answer now, it is asked again then.
        let _ = self.process_owner().await;
    }

    /// What is known of this attempt; an older one of the same VM, whose end was never asked for, is undone first.
    pub(super) async fn take_up(&self, asked: Asked) -> Result<Option<Journal>, AgentError> {
        let known = self.entries().get(&asked.job).cloned();
        self.ended.admit(asked, known.as_ref().map(|known| (known.generation, known.task.vm())))?;
        let Some(known) = known else { return Ok(None) };
        if known.generation == asked.generation {
            return Ok(Some(known));
        }
        let known = if known.confirmed { known } else { self.undo(known).await? };
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
        let (here, ending, confirmed, aborted) = (false, false, false, false);
        Journal { job, generation, task, socket_dir, control, autostart, here, ending, confirmed, aborted }
    }

    /// Whether one more migration may begin here.
    pub(super) fn must_have_room(&self, job: JobId) -> Result<(), AgentError> {
        if self.entries().keys().filter(|known| **known != job).count() < MIGRATIONS_MAX {
            return Ok(());
        }
        Err(AgentError::Carrier(format!("This host takes part in {MIGRATIONS_MAX} migrations already")))
    }

    /// Writes the journal, then starts the carrier, and waits until it is ready. After an error it is to be forgotten.
    pub(super) async fn begin(&self, journal: &Journal) -> Result<Answer, AgentError> {
        make_socket_dir(&journal.socket_dir, self.process_owner().await?)?;
        self.put(journal)?;
        launch::launch(&self.launcher, &self.config, &self.hypervisor, journal).await
    }

    async fn process_owner(&self) -> Result<u32, AgentError> {
        let ask = || call(&self.hypervisor, |hypervisor| hypervisor.process_owner());
        Ok(self.process_owner.get_or_try_init(ask).await?.0)
    }

    /// Asks the carrier; `None` if it is not there.
    pub(super) async fn ask(&self, journal: &Journal, ask: Ask) -> Option<Answer> {
        control::ask(&journal.control, ask).await.ok()
    }

    pub(super) fn find(&self, job: JobId, generation: Generation) -> Result<Journal, AgentError> {
        match self.entries().get(&job) {
            Some(known) if known.generation == generation => Ok(known.clone()),
            Some(known) if known.generation > generation => Err(stale(job, generation, known.generation)),
            Some(_) | None => Err(AgentError::refused(
                404,
                Finding::blocks(
                    FindingId::JobUnknown,
                    job,
                    format!("This host takes no part in attempt {generation} of job {job}"),
                    "Ask again with `ferry job show`",
                ),
            )),
        }
    }

    /// Where shares are mounted on the destinations of this host's moves.
    pub(crate) fn mounts_elsewhere(&self) -> Vec<ShareMount> {
        let entries = self.entries();
        let mounts = entries.values().filter_map(|journal| match &journal.task {
            Task::Source { request, .. } => Some(&request.destination.mounts),
            Task::Destination { .. } => None,
        });
        mounts.flatten().cloned().collect()
    }

    /// The names of VMs that arrive.
    pub(crate) fn names(&self) -> Vec<(VmId, String)> {
        let entries = self.entries();
        let names = entries.values().filter_map(|journal| match &journal.task {
            Task::Source { .. } => None,
            Task::Destination { request, .. } => Some((request.vm, request.vm_name.clone())),
        });
        names.collect()
    }

    pub(super) fn put(&self, journal: &Journal) -> Result<(), AgentError> {
        journal.write(&self.config.journal_dir())?;
        self.entries().insert(journal.job, journal.clone());
        Ok(())
    }

    pub(super) fn carrier_state(&self, journal: &Journal) -> Result<CarrierState, AgentError> {
        Journal::carrier_state(&self.config.journal_dir(), journal.job)
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, HashMap<JobId, Journal>> {
        lock(&self.entries)
    }

    pub(super) async fn turn(&self, job: JobId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(job).or_default())
        };
        turn.lock_owned().await
    }
}
