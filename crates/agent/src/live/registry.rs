//! Which migrations there are, and what the agent does around their carriers.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::{
        ConfirmRequest, DestinationReady, DiskArrival, MigrationReport, PrepareDestination, PrepareSource, Role,
        ShareMount, SourceReady, Stage,
    },
    files::{DiskMove, cleanup::old_file_kept},
    finding::{Finding, FindingId},
    id::{Generation, JobId, SessionId, VmId},
    migration::Presence,
    vm::{FileRole, NVRAM, VmFacts},
};
use ferry_drivers::{
    file,
    hypervisor::{Hypervisor, HypervisorError},
    identity::InUse,
};
use tokio::sync::{OnceCell, OwnedMutexGuard};
use tracing::{info, warn};

use super::{
    carrier::{
        control::{self, Answer, Ask},
        source::run_again,
    },
    journal::{CarrierState, Journal, Task},
    launch::{self, Launcher, is_session_dir, make_socket_dir},
    vouch,
};
use crate::{
    AgentError,
    blocking::{Probes, blocking, call},
    config::Config,
    ended::{Asked, Ended},
    error::chain,
    failpoint::made_to_fail,
    files::{
        self,
        host_storage::HostStorage,
        incoming,
        new_file::{FileIdentity, IncomingDisk},
        partial::PartialCopies,
        space::Reserved,
    },
    hold,
    lock::lock,
    records,
    refusal::{past_pivot, stale, uuid_taken},
};

/// Migrations that one host takes part in at once: a bound on processes, far above what slots allow.
const MIGRATIONS_MAX: usize = 64;
/// How long libvirt may take to end a move whose carrier is gone, or the source's call after the hand-over.
const END_DEADLINE: Duration = Duration::from_secs(25);
/// How often it is asked meanwhile.
const END_LOOK: Duration = Duration::from_millis(200);

/// The migrations.
pub struct Registry {
    config: Config,
    hypervisor: Arc<dyn Hypervisor>,
    launcher: Launcher,
    /// Who QEMU runs as. Asked once: libvirt looks at every emulator to answer.
    process_owner: OnceCell<(u32, u32)>,
    entries: Mutex<HashMap<JobId, Journal>>,
    /// Held by the request that changes a migration: one at a time for each.
    turns: Mutex<HashMap<JobId, Arc<tokio::sync::Mutex<()>>>>,
    partials: Arc<PartialCopies>,
    probes: Probes,
    ended: Arc<Ended>,
}

type Reported = Result<MigrationReport, AgentError>;

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
            info!(job = %journal.job, role = ?journal.task.role(), vm = %journal.task.vm(), alive, "found a migration again");
            let state = self.carrier_state(&journal).unwrap_or_default();
            let handed_over = (state.finish_delivered || journal.here) && !state.resumed && !journal.aborted;
            if !alive
                && handed_over
                && journal.task.role() == Role::Destination
                && let Err(error) = self.resume_without_carrier(&journal).await
            {
                warn!(vm = %journal.task.vm(), error = %chain(&error), "a VM that was handed over could not be resumed");
            }
        }
        // Known before the first move needs it; if libvirt does not answer now, it is asked again then.
        let _ = self.process_owner().await;
    }

    /// Makes ready to receive.
    ///
    /// # Errors
    /// `request.stale`, `vm.uuid-taken`, or why the carrier could not be started. Nothing is left then; a file that could
    /// not be removed is written down, and goes when this is undone.
    pub async fn prepare_destination(
        &self,
        job: JobId,
        generation: Generation,
        request: PrepareDestination,
        mounts: Vec<ShareMount>,
        storage: HostStorage,
    ) -> Result<DestinationReady, AgentError> {
        let _turn = self.turn(job).await;
        made_to_fail("agent-prepare-destination")?;
        let vm = request.vm;
        let socket_dir = self.config.sessions_dir().join(request.session.0.simple().to_string());
        let ready = |answer, journal: &Journal| match answer {
            Answer::Report { address: Some(carrier), .. } => {
                let socket_dir = socket_dir.display().to_string();
                let files = journal.task.incoming_disks().iter().map(IncomingDisk::file).collect();
                Ok(DestinationReady { carrier, mounts: mounts.clone(), socket_dir, files })
            }
            Answer::Report { address: None, .. } | Answer::Refused { .. } => {
                Err(AgentError::Carrier("The carrier does not say where it listens".to_owned()))
            }
        };
        match self.take_up(Asked { job, generation, vm }).await? {
            Some(known) => {
                if let Some(answer) = self.ask(&known, Ask::Report { after: 0, wait_ms: 0 }).await {
                    return ready(answer, &known);
                }
                // Its carrier is gone, and what was made for it is made again.
                self.remove_incoming(known).await?;
            }
            None => self.must_not_be_here(vm).await?,
        }
        self.must_have_room(job)?;
        let session = request.session;
        let (wanted, disks) = (request.disks.clone(), request.disks.clone());
        let incoming_disks = match wanted.is_empty() {
            true => Vec::new(),
            false => {
                let partials = Arc::clone(&self.partials);
                blocking(move || incoming::with_room(&storage, vm, &wanted, &partials)).await?
            }
        };
        let mounted = mounts.iter().map(|mount| PathBuf::from(&mount.path));
        let roots = mounted.chain(incoming_disks.iter().map(|incoming_disk| incoming_disk.path.clone())).collect();
        let task = Task::Destination { request, roots, incoming_disks };
        let mut journal = self.journal(job, generation, task, session, socket_dir.clone(), false);
        let begun = async {
            self.make_incoming(&mut journal, &disks).await?;
            self.begin(&journal).await
        };
        let answer = match begun.await {
            Ok(answer) => answer,
            Err(error) => {
                self.give_up(journal).await;
                return Err(error);
            }
        };
        made_to_fail("agent-prepared-destination")?;
        // The VM may come home: a hold of an earlier move away is over.
        hold::release(&self.config.holds_dir(), vm)?;
        ready(answer, &journal)
    }

    /// Makes the files of disks that come along. Each is written down before, since this process may die in between, and
    /// after. What is there after an error is in the journal.
    async fn make_incoming(&self, journal: &mut Journal, wanted: &[DiskArrival]) -> Result<(), AgentError> {
        for index in 0..journal.task.incoming_disks().len() {
            let owner = call(&self.hypervisor, |hypervisor| hypervisor.process_owner()).await?;
            made_to_fail("agent-make-arrival")?;
            self.note_incoming(journal, index, |incoming_disk| incoming_disk.identity = FileIdentity::Making)?;
            let (incoming_disk, wanted) = (journal.task.incoming_disks()[index].clone(), wanted[index].clone());
            let (partials, vm) = (Arc::clone(&self.partials), journal.task.vm());
            let make = move || match partials.take(vm, &wanted, &incoming_disk.path) {
                Some(sown) => Ok((Some(sown), FileIdentity::of(&incoming_disk.path).unwrap_or_default())),
                None => incoming::make(&incoming_disk, owner).map(|identity| (None, identity)),
            };
            match blocking(make).await {
                Ok((sown, identity)) => self.note_incoming(journal, index, |incoming_disk| {
                    (incoming_disk.made, incoming_disk.identity, incoming_disk.from_partial) = (true, identity, sown);
                })?,
                Err(error) => {
                    // What is there now, if anything, was not made by this.
                    self.note_incoming(journal, index, |incoming_disk| incoming_disk.identity = FileIdentity::Path)?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Writes down how it stands with the file of one disk.
    fn note_incoming(
        &self,
        journal: &mut Journal,
        index: usize,
        change: impl FnOnce(&mut IncomingDisk),
    ) -> Result<(), AgentError> {
        if let Task::Destination { incoming_disks, .. } = &mut journal.task {
            change(&mut incoming_disks[index]);
        }
        self.put(journal)
    }

    /// Takes back what was made for a migration that could not be begun. What cannot be taken back now stays written down
    /// for the undo.
    async fn give_up(&self, journal: Journal) {
        let job = journal.job;
        let given_up = async {
            let journal = self.remove_incoming(journal).await?;
            self.forget(&journal).await
        };
        if let Err(error) = given_up.await {
            warn!(%job, error = %chain(&error), "what was made for a move that could not begin is still here");
        }
    }

    /// Removes the files that were made for disks that do not come, or keeps them for the next attempt; each is written
    /// down as gone at once: whatever has its name afterwards is not ours.
    async fn remove_incoming(&self, mut journal: Journal) -> Result<Journal, AgentError> {
        if !journal.task.incoming_disks().iter().any(IncomingDisk::is_left) {
            return Ok(journal);
        }
        let used = Arc::new(self.files_in_use(&journal).await?);
        for index in 0..journal.task.incoming_disks().len() {
            let incoming_disk = journal.task.incoming_disks()[index].clone();
            if !incoming_disk.is_left() {
                continue;
            }
            let (vm, used, partials) = (journal.task.vm(), Arc::clone(&used), Arc::clone(&self.partials));
            blocking(move || incoming::remove_one(vm, &incoming_disk, &used, &partials)).await?;
            self.note_incoming(&mut journal, index, |incoming_disk| {
                (incoming_disk.made, incoming_disk.identity, incoming_disk.from_partial) =
                    (false, FileIdentity::Path, None);
            })?;
        }
        Ok(journal)
    }

    /// Files that VMs of this host name, and those of other migrations: they are not to be removed for this one.
    async fn files_in_use(&self, journal: &Journal) -> Result<InUse, AgentError> {
        let mut used = call(&self.hypervisor, |hypervisor| hypervisor.files_in_use()).await?;
        for other in self.entries().values().filter(|other| other.job != journal.job) {
            match &other.task {
                Task::Destination { incoming_disks, .. } => {
                    let left = incoming_disks.iter().filter(|incoming_disk| incoming_disk.is_left());
                    used.extend(left.map(|incoming_disk| incoming_disk.path.clone()));
                }
                Task::Source { along, .. } if !other.confirmed => {
                    used.extend(along.iter().map(|(_, path)| path.clone()));
                }
                Task::Source { .. } => {}
            }
        }
        blocking(move || files::in_use(used)).await
    }

    /// Whether new files for disks of a VM can be made. Blocks.
    ///
    /// # Errors
    /// What stands against it.
    pub fn check_incoming(&self, storage: &HostStorage, vm: VmId, wanted: &[DiskArrival]) -> Result<(), AgentError> {
        incoming::checked(storage, vm, wanted, &self.partials).map(drop)
    }

    /// A copy that is given up is destroyed with its definition: it must be nothing that was here before.
    async fn must_not_be_here(&self, vm: VmId) -> Result<(), AgentError> {
        let Some(facts) = call(&self.hypervisor, move |hypervisor| hypervisor.vm(vm)).await? else { return Ok(()) };
        Err(uuid_taken(vm, &facts.name))
    }

    /// Makes ready to send: holds the VM, clears autostart, connects to the destination.
    ///
    /// # Errors
    /// `request.stale`, or why the carrier could not be started or connect; nothing is changed then.
    pub async fn prepare_source(
        &self,
        job: JobId,
        generation: Generation,
        request: PrepareSource,
        mounts: &[ShareMount],
    ) -> Result<SourceReady, AgentError> {
        let _turn = self.turn(job).await;
        made_to_fail("agent-prepare-source")?;
        let (vm, session) = (request.vm, request.session);
        let known = self.take_up(Asked { job, generation, vm }).await?;
        if let Some(known) = &known
            && self.ask(known, Ask::Report { after: 0, wait_ms: 0 }).await.is_some()
        {
            self.hold(known).await?;
            return Ok(SourceReady { autostart: known.autostart });
        }
        // The destination's QEMU listens at this path there, so it must be this path here.
        let socket_dir = PathBuf::from(&request.destination.socket_dir);
        if !is_session_dir(&socket_dir) {
            return Err(AgentError::Carrier(format!("{} is no folder for sockets", socket_dir.display())));
        }
        let facts = call(&self.hypervisor, move |hypervisor| hypervisor.vm(vm)).await?;
        let facts = facts.ok_or(HypervisorError::NoVm(vm))?;
        let along = files_along(&facts, &request)?;
        let translate = nvram_along(&along, &request).into_iter();
        let translate = translate.chain(translation(mounts, &request.destination.mounts)).collect();
        self.must_have_room(job)?;
        let (judged, asked) = (facts.clone(), request.clone());
        let vouched =
            call(&self.hypervisor, move |hypervisor| Ok(vouch::vouched(hypervisor, &judged, &asked))).await??;
        let (persistent, name) = (facts.persistent, facts.name);
        let task = Task::Source { request, translate, persistent, along, vouched, name };
        let autostart = known.map_or(facts.autostart, |known| known.autostart);
        let journal = self.journal(job, generation, task, session, socket_dir, autostart);
        if let Err(error) = self.begin(&journal).await {
            self.forget(&journal).await?;
            return Err(error);
        }
        if let Err(error) = self.hold(&journal).await {
            if let Err(error) = self.let_go(&journal).await {
                warn!(%vm, error = %chain(&error), "what was changed for the move could not be taken back");
            }
            self.forget(&journal).await?;
            return Err(error);
        }
        made_to_fail("agent-prepared-source")?;
        Ok(SourceReady { autostart })
    }

    async fn hold(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        hold::ensure(&self.config.holds_dir(), vm, journal.job)?;
        if journal.autostart {
            call(&self.hypervisor, move |hypervisor| hypervisor.set_autostart(vm, false)).await?;
        }
        Ok(())
    }

    /// Takes back what [`Registry::hold`] did.
    async fn let_go(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        hold::release(&self.config.holds_dir(), vm)?;
        if journal.autostart {
            call(&self.hypervisor, move |hypervisor| hypervisor.set_autostart(vm, true)).await?;
        }
        Ok(())
    }

    /// Begins to move.
    ///
    /// # Errors
    /// `job.unknown`, `request.stale`.
    pub async fn perform(&self, job: JobId, generation: Generation) -> Reported {
        let journal = self.find(job, generation)?;
        made_to_fail("agent-perform")?;
        match self.ask(&journal, Ask::Perform).await {
            Some(answer) => reported(answer),
            None => self.report_of(&journal, 0, Duration::ZERO).await,
        }
    }

    /// How it stands, as soon as that is newer than `after`, or after `wait`.
    ///
    /// # Errors
    /// `job.unknown`, `request.stale`.
    pub async fn report(&self, job: JobId, generation: Generation, after: u64, wait: Duration) -> Reported {
        let journal = self.find(job, generation)?;
        self.report_of(&journal, after, wait).await
    }

    /// Runs the VM here: the server asked both hosts, and it is here.
    ///
    /// # Errors
    /// Why it could not be resumed; `request.stale` if the copy was given up.
    pub async fn resume(&self, job: JobId, generation: Generation) -> Reported {
        let _turn = self.turn(job).await;
        made_to_fail("agent-resume")?;
        let journal = self.find(job, generation)?;
        if journal.aborted || journal.task.role() == Role::Source {
            let vm = journal.task.vm();
            return Err(AgentError::refused(
                409,
                Finding::blocks(
                    FindingId::RequestStale,
                    vm,
                    format!("This host's part of job {job} is not to run VM {vm}"),
                    "Ask both hosts again who has the VM",
                ),
            ));
        }
        let journal = Journal { here: true, ..journal };
        self.put(&journal)?;
        match self.ask(&journal, Ask::Resume).await {
            Some(answer) => reported(answer),
            None => {
                self.resume_without_carrier(&journal).await?;
                self.report_of(&journal, 0, Duration::ZERO).await
            }
        }
    }

    async fn resume_without_carrier(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        Ok(call(&self.hypervisor, move |hypervisor| hypervisor.resume(vm)).await?)
    }

    /// Ends it before the point of no return. Ok promises: at the source, the VM stays and may be started and moved
    /// again; at the destination, nothing of it is left.
    ///
    /// # Errors
    /// `job.past-pivot` (409); `job.undecided` (409) while it is not known who has the VM; at the destination also when its
    /// copy could not be destroyed.
    pub async fn abort(&self, job: JobId, generation: Generation) -> Reported {
        let _turn = self.turn(job).await;
        made_to_fail("agent-abort")?;
        let journal = self.find(job, generation)?;
        let journal = self.undo(journal).await?;
        self.report_of(&journal, 0, Duration::ZERO).await
    }

    async fn undo(&self, mut journal: Journal) -> Result<Journal, AgentError> {
        if journal.aborted {
            return Ok(journal);
        }
        let (vm, role) = (journal.task.vm(), journal.task.role());
        if journal.confirmed || journal.here {
            return Err(AgentError::refused(409, *past_pivot(vm)));
        }
        match self.ask(&journal, Ask::Abort).await {
            Some(answer) => drop(reported(answer)?),
            None => self.abort_without_carrier(&journal)?,
        }
        if role == Role::Source {
            // Its carrier may have lost libvirt, which goes on by itself then.
            self.end_migration(vm).await?;
        }
        let presence = call(&self.hypervisor, move |hypervisor| hypervisor.presence(vm, role)).await?;
        match (role, self.carrier_state(&journal)?.sees(presence)) {
            // It may have moved, if its carrier died before it could tell: release lets it go, not this.
            (Role::Source, Presence::Absent | Presence::Off | Presence::Ended | Presence::Left | Presence::Stopped) => {
            }
            (Role::Source, Presence::HandedOver) => return Err(not_ended(vm)),
            (Role::Source, _) => self.let_go(&journal).await?,
            (Role::Destination, Presence::Running | Presence::Halted) => {
                return Err(AgentError::refused(409, *past_pivot(vm)));
            }
            (Role::Destination, Presence::Off) if !journal.ending => {
                return Err(AgentError::refused(409, was_complete(vm)));
            }
            (Role::Destination, _) => {
                if presence != Presence::Absent {
                    journal.ending = true;
                    self.put(&journal)?;
                }
                call(&self.hypervisor, move |hypervisor| {
                    hypervisor.destroy(vm)?;
                    hypervisor.undefine(vm)
                })
                .await?;
                journal = self.remove_incoming(journal).await?;
            }
        }
        made_to_fail("agent-undone")?;
        journal.aborted = true;
        self.put(&journal)?;
        Ok(journal)
    }

    fn abort_without_carrier(&self, journal: &Journal) -> Result<(), AgentError> {
        let state = self.carrier_state(journal)?;
        if state.finish_delivered || state.resumed {
            return Err(AgentError::refused(409, *past_pivot(journal.task.vm())));
        }
        Ok(())
    }

    /// Source: sees that libvirt has no migration of the VM any more.
    async fn end_migration(&self, vm: VmId) -> Result<(), AgentError> {
        let until = Instant::now() + END_DEADLINE;
        loop {
            let moving = call(&self.hypervisor, move |hypervisor| {
                if hypervisor.migration_stats(vm)?.is_none() {
                    return Ok(None);
                }
                Ok(Some(hypervisor.abort_migration(vm)))
            });
            match moving.await? {
                None => return Ok(()),
                Some(Err(error)) if Instant::now() > until => return Err(error.into()),
                Some(_) if Instant::now() > until => return Err(not_ended(vm)),
                Some(_) => tokio::time::sleep(END_LOOK).await,
            }
        }
    }

    /// Source: ends the process that libvirt left of the VM here, for the destination has the VM and needs its disks. Ok if
    /// there is none.
    ///
    /// # Errors
    /// `job.unknown`, `request.stale`; when the VM is not left here, but is: nothing is done then.
    pub async fn end_copy(&self, job: JobId, generation: Generation) -> Reported {
        let _turn = self.turn(job).await;
        let journal = self.find(job, generation)?;
        let vm = journal.task.vm();
        if journal.task.role() == Role::Source {
            call(&self.hypervisor, move |hypervisor| end_left_copy(hypervisor, vm)).await?;
        }
        self.report_of(&journal, 0, Duration::ZERO).await
    }

    /// Makes the move final. The destination is asked first: its Ok promises that the VM is here, with the files that came
    /// for it, and autostart is set. Then the source's definition and old files go.
    ///
    /// # Errors
    /// When libvirt refuses; repeating it is safe. At the destination also while the VM or a file of it is not here, at
    /// the source while the VM has a process here.
    pub async fn confirm(&self, job: JobId, generation: Generation, request: ConfirmRequest) -> Reported {
        let _turn = self.turn(job).await;
        made_to_fail("agent-confirm")?;
        let mut journal = self.find(job, generation)?;
        let (vm, role) = (journal.task.vm(), journal.task.role());
        match role {
            Role::Source => self.wait_ended(&journal).await,
            Role::Destination => self.must_be_here(&journal).await?,
        }
        call(&self.hypervisor, move |hypervisor| match role {
            Role::Source => {
                end_left_copy(hypervisor, vm)?;
                hypervisor.undefine(vm)
            }
            Role::Destination if request.autostart => hypervisor.set_autostart(vm, true),
            Role::Destination => Ok(()),
        })
        .await?;
        let kept = if request.keep_source { Vec::new() } else { self.remove_old_files(&journal).await? };
        made_to_fail("agent-confirmed")?;
        journal.confirmed = true;
        self.put(&journal)?;
        let mut report = self.report_of(&journal, 0, Duration::ZERO).await?;
        report.findings = kept;
        if role == Role::Destination {
            let incoming_disks = journal.task.incoming_disks().to_vec();
            let what = format!("The disks of VM {vm}");
            report.disks = self.probes.probe(&what, move || incoming::arrived(&incoming_disks)).await?;
        }
        Ok(report)
    }

    /// Destination: the VM is here and not only arriving, and so are the files that came for it. Until this is so the
    /// source's files may be the only good ones.
    async fn must_be_here(&self, journal: &Journal) -> Result<(), AgentError> {
        let Task::Destination { request, incoming_disks, .. } = &journal.task else { return Ok(()) };
        if journal.confirmed || (incoming_disks.is_empty() && !request.persistent) {
            return Ok(());
        }
        let vm = journal.task.vm();
        let not_here =
            |why: String| AgentError::Carrier(format!("VM {vm} cannot be confirmed at the destination yet: {why}"));
        let report = self.report_of(journal, 0, Duration::ZERO).await?;
        match report.presence {
            Presence::Running | Presence::Halted | Presence::Paused | Presence::Off | Presence::Absent => {}
            // Somebody paused it, or its storage failed, after it had run here.
            Presence::Arrived if matches!(report.stage, Stage::Resumed | Stage::Confirmed) => {}
            Presence::Arrived
            | Presence::Receiving
            | Presence::HandedOver
            | Presence::Left
            | Presence::Stopped
            | Presence::Ended
            | Presence::Unknown => {
                return Err(not_here(format!("it is {:?} there", report.presence)));
            }
        }
        let facts = call(&self.hypervisor, move |hypervisor| hypervisor.vm(vm)).await?;
        let facts = facts.ok_or_else(|| not_here("the host does not know it".to_owned()))?;
        for incoming_disk in incoming_disks {
            if !facts.files.iter().any(|file| file.place == incoming_disk.path) {
                return Err(not_here(format!("it does not use {}", incoming_disk.path.display())));
            }
        }
        let paths: Vec<PathBuf> = incoming_disks.iter().map(|incoming_disk| incoming_disk.path.clone()).collect();
        let missing = move || paths.into_iter().find(|path| !path.is_file());
        match self.probes.probe(&format!("The disks of VM {vm}"), missing).await? {
            None => Ok(()),
            Some(path) => Err(not_here(format!("its file {} is not there", path.display()))),
        }
    }

    /// Source: removes the files of disks that moved along, which nobody uses any more. Gives those that stay, and why.
    async fn remove_old_files(&self, journal: &Journal) -> Result<Vec<Finding>, AgentError> {
        let Task::Source { along, name, .. } = &journal.task else { return Ok(Vec::new()) };
        if along.is_empty() {
            return Ok(Vec::new());
        }
        let (along, name) = (along.clone(), name.clone());
        let (vm, used) = (journal.task.vm(), self.files_in_use(journal).await?);
        blocking(move || {
            let mut kept = Vec::new();
            for (device, path) in along {
                let fault = |source| AgentError::File { path: path.clone(), source };
                match used.obstacle(&path).map_err(fault)? {
                    Some(obstacle) => {
                        let (why, fix) = (obstacle.why(), obstacle.fix());
                        warn!(%vm, disk = device, file = %path.display(), why, "an old file stays");
                        kept.push(old_file_kept(&name, &device, path.display(), why, fix));
                    }
                    None => file::remove(&path).map_err(fault)?,
                }
            }
            Ok(kept)
        })
        .await
    }

    /// The destination may run the VM before libvirt's call has ended at the source.
    async fn wait_ended(&self, journal: &Journal) {
        let until = Instant::now() + END_DEADLINE;
        let mut after = 0;
        while Instant::now() < until {
            let ask = Ask::Report { after, wait_ms: END_DEADLINE.as_millis() as u64 };
            match self.ask(journal, ask).await {
                Some(Answer::Report { report, .. }) if report.stage == Stage::Performing => after = report.sequence,
                Some(Answer::Report { .. } | Answer::Refused { .. }) | None => return,
            }
        }
    }

    /// Forgets it: the carrier leaves, its sockets and journal go, the hold is released.
    ///
    /// # Errors
    /// `request.stale`, or files that cannot be removed; repeating it is safe. Ok if it is not known.
    pub async fn release(&self, job: JobId, generation: Generation) -> Result<(), AgentError> {
        let _turn = self.turn(job).await;
        made_to_fail("agent-release")?;
        let journal = match self.find(job, generation) {
            Ok(journal) => journal,
            Err(AgentError::Refused { status: 404, .. }) => return self.ended.remember(job, generation),
            Err(error) => return Err(error),
        };
        if journal.task.role() == Role::Source {
            self.release_source(&journal).await?;
        }
        self.ended.remember(job, generation)?;
        made_to_fail("agent-released")?;
        self.forget(&journal).await
    }

    async fn release_source(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        let (presence, defined) = call(&self.hypervisor, move |hypervisor| {
            Ok((hypervisor.presence(vm, Role::Source)?, hypervisor.vm(vm)?.is_some()))
        })
        .await?;
        // Neither confirmed nor undone: a definition without a process may be of a VM that runs elsewhere.
        let off = matches!(presence, Presence::Absent | Presence::Off | Presence::Ended);
        let settled = journal.confirmed || journal.aborted || !defined || !off;
        if settled {
            hold::release(&self.config.holds_dir(), vm)?;
        } else {
            warn!(%vm, "the VM stays held: it is not known that it is not elsewhere");
        }
        // Its undo could not know whether the VM was elsewhere. Whoever releases it after that says that it is not.
        let was_stopped = matches!(presence, Presence::Left | Presence::Stopped);
        let was_open = off || was_stopped;
        if journal.aborted && journal.autostart && defined && was_open {
            call(&self.hypervisor, move |hypervisor| hypervisor.set_autostart(vm, true)).await?;
        }
        // libvirt says of such a copy who stopped it: nobody else will run it.
        if was_stopped && journal.aborted {
            tokio::spawn(run_again(Arc::clone(&self.hypervisor), vm));
        }
        Ok(())
    }

    /// The carrier leaves, and every file of the migration goes.
    async fn forget(&self, journal: &Journal) -> Result<(), AgentError> {
        let folder = self.config.journal_dir();
        let path = Journal::path(&folder, journal.job);
        if self.ask(journal, Ask::Leave).await.is_none() {
            launch::end_process(self.carrier_state(journal).unwrap_or_default().pid, &path);
        }
        match fs::remove_dir_all(&journal.socket_dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(AgentError::File { path: journal.socket_dir.clone(), source }),
        }
        for left in [&journal.control, &path.with_extension("said"), &Journal::state_path(&folder, journal.job)] {
            records::remove(left)?;
        }
        // Last: until then a repeated request finds what is left.
        records::remove(&path)?;
        self.entries().remove(&journal.job);
        Ok(())
    }

    /// What is known of this attempt; an older one of the same VM, whose end was never asked for, is undone first.
    async fn take_up(&self, asked: Asked) -> Result<Option<Journal>, AgentError> {
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

    fn journal(
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
    fn must_have_room(&self, job: JobId) -> Result<(), AgentError> {
        if self.entries().keys().filter(|known| **known != job).count() < MIGRATIONS_MAX {
            return Ok(());
        }
        Err(AgentError::Carrier(format!("This host takes part in {MIGRATIONS_MAX} migrations already")))
    }

    /// Writes the journal, then starts the carrier, and waits until it is ready. After an error it is to be forgotten.
    async fn begin(&self, journal: &Journal) -> Result<Answer, AgentError> {
        make_socket_dir(&journal.socket_dir, self.process_owner().await?)?;
        self.put(journal)?;
        launch::launch(&self.launcher, &self.config, &self.hypervisor, journal).await
    }

    async fn process_owner(&self) -> Result<u32, AgentError> {
        let ask = || call(&self.hypervisor, |hypervisor| hypervisor.process_owner());
        Ok(self.process_owner.get_or_try_init(ask).await?.0)
    }

    /// Asks the carrier; `None` if it is not there.
    async fn ask(&self, journal: &Journal, ask: Ask) -> Option<Answer> {
        control::ask(&journal.control, ask).await.ok()
    }

    async fn report_of(&self, journal: &Journal, after: u64, wait: Duration) -> Reported {
        let ask = Ask::Report { after, wait_ms: wait.as_millis() as u64 };
        let mut report = match self.ask(journal, ask).await {
            Some(answer) => reported(answer)?,
            None => {
                if after == u64::MAX {
                    // Nothing more will be said of it.
                    tokio::time::sleep(wait.min(control::WAIT_MAX)).await;
                }
                self.report_without_carrier(journal).await?
            }
        };
        if journal.aborted {
            report.stage = Stage::Aborted;
        } else if journal.confirmed {
            report.stage = Stage::Confirmed;
        }
        report.gave_up |= journal.ending;
        Ok(report)
    }

    /// The carrier is gone: what it wrote down, and what the hypervisor says.
    async fn report_without_carrier(&self, journal: &Journal) -> Reported {
        let (vm, role) = (journal.task.vm(), journal.task.role());
        let mut state = self.carrier_state(journal)?;
        state.finish_delivered |= journal.here;
        let presence = call(&self.hypervisor, move |hypervisor| hypervisor.presence(vm, role)).await;
        let presence = state.sees(presence.unwrap_or(Presence::Unknown));
        let has_run = state.resumed || matches!(presence, Presence::Running | Presence::Halted);
        let stage = match (role, has_run, state.finish_delivered) {
            (Role::Destination, true, _) => Stage::Resumed,
            (_, _, true) => Stage::Delivered,
            // libvirt goes on with a migration whose caller died; without the channels it fails soon.
            (Role::Source | Role::Destination, _, false) => Stage::Failed,
        };
        let end = match role {
            Role::Source => "source",
            Role::Destination => "destination",
        };
        Ok(MigrationReport {
            job: journal.job,
            generation: journal.generation,
            role,
            sequence: u64::MAX,
            stage,
            finish_delivered: state.finish_delivered,
            gave_up: state.given_up,
            presence,
            progress: None,
            disks: Vec::new(),
            figures: state.figures,
            findings: Vec::new(),
            error: Some(format!("The process that carried the move at the {end} is gone")),
        })
    }

    fn find(&self, job: JobId, generation: Generation) -> Result<Journal, AgentError> {
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

    fn put(&self, journal: &Journal) -> Result<(), AgentError> {
        journal.write(&self.config.journal_dir())?;
        self.entries().insert(journal.job, journal.clone());
        Ok(())
    }

    fn carrier_state(&self, journal: &Journal) -> Result<CarrierState, AgentError> {
        Journal::carrier_state(&self.config.journal_dir(), journal.job)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<JobId, Journal>> {
        lock(&self.entries)
    }

    async fn turn(&self, job: JobId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(job).or_default())
        };
        turn.lock_owned().await
    }
}

/// Source: ends a process that libvirt left paused. Fails if the VM is here in another way.
fn end_left_copy(hypervisor: &dyn Hypervisor, vm: VmId) -> Result<(), HypervisorError> {
    match hypervisor.presence(vm, Role::Source)? {
        Presence::Absent | Presence::Off | Presence::Ended => Ok(()),
        Presence::Left | Presence::Stopped => {
            info!(%vm, "the destination has the VM: what libvirt left of it here is ended");
            hypervisor.destroy(vm)
        }
        presence => Err(HypervisorError::Failed {
            what: format!("Could not end what is left of VM {vm} at the source"),
            reason: format!("the VM still has a process here ({presence:?})"),
        }),
    }
}

fn not_ended(vm: VmId) -> AgentError {
    AgentError::Carrier(format!("libvirt does not end the move of VM {vm}"))
}

/// The VM was at the destination, and may have run there: it is shut off by now.
fn was_complete(vm: VmId) -> Finding {
    Finding::blocks(
        FindingId::JobUndecided,
        vm,
        format!("VM {vm} was complete at the destination and is shut off there: nothing of it is removed"),
        format!("Start it where its disks are newest; at the other host remove it with `virsh undefine {vm}`"),
    )
}

/// What UEFI variables that move along are called here, and at the destination.
fn nvram_along(along: &[(String, PathBuf)], request: &PrepareSource) -> Option<(PathBuf, PathBuf)> {
    let (_, here) = along.iter().find(|(device, _)| device == NVRAM)?;
    let there = request.destination.files.iter().find(|file| file.device == NVRAM)?;
    Some((here.clone(), PathBuf::from(&there.path)))
}

/// The files that disks which move along use here. Each has a new one at the destination.
fn files_along(facts: &VmFacts<PathBuf>, request: &PrepareSource) -> Result<Vec<(String, PathBuf)>, AgentError> {
    let one = |disk: &DiskMove| {
        let has_new = request.destination.files.iter().any(|file| file.device == disk.device);
        let file = facts.files.iter().find(|file| file.device == disk.device);
        let file = file.filter(|file| matches!(file.role, FileRole::Disk | FileRole::Nvram));
        let path = file.filter(|_| has_new).map(|file| file.place.clone());
        path.map(|path| (disk.device.clone(), path)).ok_or_else(|| {
            let finding = Finding::blocks(
                FindingId::DiskUnknown,
                &disk.device,
                format!(
                    "Disk {} of VM {} cannot move along: it has no file at one of the hosts",
                    disk.device, facts.name
                ),
                "Look at the VM with `ferry vm show` and ask again",
            );
            AgentError::refused(409, finding)
        })
    };
    request.disks.iter().map(one).collect()
}

/// Folders here and what they are called at the destination.
pub(crate) fn translation(here: &[ShareMount], there: &[ShareMount]) -> Vec<(PathBuf, PathBuf)> {
    let pair = |there: &ShareMount| {
        let here = here.iter().find(|here| here.share == there.share)?;
        Some((PathBuf::from(&here.path), PathBuf::from(&there.path)))
    };
    there.iter().filter_map(pair).collect()
}

fn reported(answer: Answer) -> Reported {
    match answer {
        Answer::Report { report, .. } => Ok(*report),
        Answer::Refused { finding } => Err(AgentError::Refused { status: 409, finding }),
    }
}
