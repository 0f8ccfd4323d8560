//! Moves of VMs that are shut off, with their files.
//!
//! ```text
//! destination: prepare: make new files, listen ─▶ take files, then the definition ─▶ define: the VM is here ─▶ confirm
//! source:      prepare: hold the VM ─▶ perform: send what differs ─▶ confirm: remove definition and old files
//! before define:  abort, release: new files are removed or kept as seeds; the VM is at the source and free again
//! ```
//! Whether the destination has the VM decides whose it is: before it is defined there nothing at the source was changed
//! but that the VM is held against a start; after that nothing at the destination is ever removed.

mod copy;
mod journal;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use ferry_core::{
    api::agent::{
        CheckOffline, ConfirmRequest, DiskArrival, FileSize, OfflineFile, OfflineReady, OfflineReport, OfflineStage,
        ReceiveOffline, Role, SendOffline, ShareMount,
    },
    finding::{Finding, FindingId},
    id::{Generation, JobId, VmId},
    storage::{DiskProgress, DiskStage},
    units::ByteCount,
    vm::{DiskFormat, FileRole, VmFacts, VmState},
};
use ferry_drivers::{
    hypervisor::{Hypervisor, HypervisorError, rpc::Bound},
    image,
};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{info, warn};

use self::journal::{Arrival, Journal, Task};
use crate::{
    AgentError,
    config::Config,
    error::chain,
    files,
    migration::{
        arrivals::{self, exists},
        hold,
        seeds::Seeds,
        translation,
    },
    storage::{Needs, Reach, Reserved},
};

/// Offline moves that one host takes part in at once: far above what slots allow.
const MOVES_MAX: usize = 64;
/// Files of one VM: more than it has.
const FILES_MAX: usize = 64;
/// Ended jobs whose last attempt is remembered.
const ENDED_MAX: usize = 256;

/// The offline moves.
pub struct OfflineMoves {
    config: Config,
    folder: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    seeds: Arc<Seeds>,
    moves: Mutex<BTreeMap<JobId, Arc<Move>>>,
    /// Held by the request that changes a move.
    turn: tokio::sync::Mutex<()>,
    ended: Mutex<BTreeMap<JobId, Generation>>,
}

/// How far files are; not written down.
#[derive(Clone, Debug, Default)]
struct Known {
    sequence: u64,
    files: Vec<DiskProgress>,
    /// Bytes on the wire, by file.
    wires: Vec<u64>,
}

/// One attempt at this end.
struct Move {
    folder: PathBuf,
    journal: Mutex<Journal>,
    known: watch::Sender<Known>,
    /// What copies, at either end.
    task: Mutex<Option<JoinHandle<()>>>,
    address: Mutex<Option<String>>,
}

impl Move {
    fn new(folder: &Path, journal: Journal) -> Arc<Self> {
        let files = match &journal.task {
            Task::Source { request, .. } => &request.files,
            Task::Destination { request, .. } => &request.files,
        };
        let one = |file: &OfflineFile| DiskProgress {
            device: file.file.device.clone(),
            total: file.length,
            allocated_before: file.allocated,
            ..DiskProgress::default()
        };
        let known = Known { sequence: 1, files: files.iter().map(one).collect(), wires: vec![0; files.len()] };
        Arc::new(Self {
            folder: folder.to_owned(),
            journal: Mutex::new(journal),
            known: watch::Sender::new(known),
            task: Mutex::default(),
            address: Mutex::default(),
        })
    }

    fn journal(&self) -> Journal {
        self.journal.lock().expect("nobody panics while holding it").clone()
    }

    /// Changes what is written down, and says so when it is.
    fn write(&self, change: impl FnOnce(&mut Journal)) -> Result<(), AgentError> {
        let mut journal = self.journal.lock().expect("nobody panics while holding it");
        let mut changed = journal.clone();
        change(&mut changed);
        if changed != *journal {
            changed.write(&self.folder)?;
            *journal = changed;
            drop(journal);
            self.tell(|_| {});
        }
        Ok(())
    }

    fn tell(&self, change: impl FnOnce(&mut Known)) {
        self.known.send_modify(|known| {
            change(known);
            known.sequence += 1;
        });
    }

    fn report(&self) -> OfflineReport {
        let (journal, known) = (self.journal(), self.known.borrow().clone());
        let mut files = known.files;
        let done = matches!(journal.stage, OfflineStage::Defined | OfflineStage::Confirmed);
        if let Task::Destination { arrivals, .. } = &journal.task
            && done
        {
            for (file, arrival) in files.iter_mut().zip(arrivals) {
                file.stage = DiskStage::Moved;
                file.copied = file.total;
                file.allocated_after = image::allocated(&arrival.path).unwrap_or_default();
            }
        }
        let autostart = matches!(journal.task, Task::Source { autostart: true, .. });
        OfflineReport {
            role: journal.task.role(),
            sequence: known.sequence,
            stage: journal.stage,
            files,
            wire: ByteCount(known.wires.iter().sum()),
            autostart,
            error: journal.error,
        }
    }

    /// Ends what copies. Nothing is written by it afterwards but the block that is being written.
    async fn end(&self) {
        let task = self.task.lock().expect("nobody panics while holding it").take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    fn is_busy(&self) -> bool {
        self.task.lock().expect("nobody panics while holding it").as_ref().is_some_and(|task| !task.is_finished())
    }
}

impl OfflineMoves {
    /// Reads the journals. What was being copied has failed: another attempt sends what differs.
    ///
    /// # Errors
    /// When one cannot be read: a move must not be forgotten silently.
    pub fn load(config: &Config, hypervisor: Arc<dyn Hypervisor>, seeds: Arc<Seeds>) -> Result<Self, AgentError> {
        let folder = config.state_dir.join("offline");
        files::ensure_private_dir(&folder)?;
        let mut moves = BTreeMap::new();
        for journal in Journal::read_all(&folder)? {
            info!(job = %journal.job, vm = %journal.task.vm(), stage = ?journal.stage, "found an offline move again");
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
            seeds,
            moves: Mutex::new(moves),
            turn: tokio::sync::Mutex::default(),
            ended: Mutex::default(),
        })
    }

    fn moves(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<Move>>> {
        self.moves.lock().expect("nobody panics while holding it")
    }

    fn known(&self, job: JobId, generation: Generation) -> Result<Arc<Move>, AgentError> {
        let known = self.moves().get(&job).cloned();
        known.filter(|known| known.journal().generation == generation).ok_or_else(|| {
            let message = format!("The host's agent knows no offline move of job {job}, attempt {generation}");
            let fix = "Look at the job with `ferry job show`; restart it if it has failed";
            AgentError::refused(404, Finding::blocks(FindingId::JobUnknown, job, message, fix))
        })
    }

    /// Room that files which come will still take.
    pub(crate) fn reserved(&self) -> Vec<Reserved> {
        let journals: Vec<Journal> = self.moves().values().map(|known| known.journal()).collect();
        let mut reserved = Vec::new();
        for Journal { job, task, stage, .. } in journals {
            if let Task::Destination { request, arrivals, .. } = task
                && matches!(stage, OfflineStage::Prepared | OfflineStage::Copying)
            {
                let files = request.files.iter().zip(&arrivals);
                let one = |(file, arrival): (&OfflineFile, &Arrival)| {
                    Reserved::new(job, &file.file.to, &arrival.path, file.allocated)
                };
                reserved.extend(files.map(one));
            }
        }
        reserved
    }

    /// What is known of the attempt; another one of the job is taken back. `None`: it is new.
    async fn take_up(&self, job: JobId, generation: Generation) -> Result<Option<Arc<Move>>, AgentError> {
        let ended = self.ended.lock().expect("nobody panics while holding it").get(&job).copied();
        let known = self.moves().get(&job).cloned();
        let newest = ended.max(known.as_ref().map(|known| known.journal().generation));
        if newest.is_some_and(|newest| newest > generation) || ended == Some(generation) {
            let message = format!("The agent has already taken a newer request of job {job}");
            let fix = "Nothing: the newer request counts";
            return Err(AgentError::refused(409, Finding::blocks(FindingId::RequestStale, job, message, fix)));
        }
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

    /// Whether the files can come. Changes nothing. Blocks.
    ///
    /// # Errors
    /// What stands against it.
    pub fn check(&self, request: &CheckOffline, reach: &Reach) -> Result<(), AgentError> {
        self.checked(request.vm, &request.files, reach).map(drop)
    }

    fn checked(&self, vm: VmId, wanted: &[OfflineFile], reach: &Reach) -> Result<Vec<Arrival>, AgentError> {
        if wanted.len() > FILES_MAX {
            return Err(AgentError::Carrier(format!("No VM has more than {FILES_MAX} files")));
        }
        if let Some(facts) = self.hypervisor.vm(vm)? {
            return Err(refused(
                FindingId::VmUuidTaken,
                vm,
                format!("The destination already has a VM of UUID {vm}: {}", facts.name),
                "Remove its definition there with `virsh undefine`, if it is a leftover",
            ));
        }
        let mut needs = Needs::default();
        let mut arrivals: Vec<Arrival> = Vec::with_capacity(wanted.len());
        for file in wanted {
            let device = &file.file.device;
            let path = reach.places.path(&file.file.to).ok_or_else(|| {
                refused(
                    FindingId::FilePlace,
                    device,
                    format!("The place of file {device} cannot be reached on this host"),
                    "See what the host reaches with `ferry host show`",
                )
            })?;
            let held = self.seeds.held(vm, &as_disk(file));
            needs.add(reach, &file.file.to, ByteCount(file.allocated.0.saturating_sub(held.0)))?;
            if path.symlink_metadata().is_ok() || arrivals.iter().any(|other| other.path == path) {
                return Err(exists(&path));
            }
            arrivals.push(Arrival { path, made: false });
        }
        needs.are_met(reach)?;
        Ok(arrivals)
    }

    /// Makes the new files, and listens.
    ///
    /// # Errors
    /// `request.stale`, or what stands against it; nothing is left then.
    pub async fn prepare_destination(
        self: &Arc<Self>,
        job: JobId,
        generation: Generation,
        request: ReceiveOffline,
        mounts: Vec<ShareMount>,
        reach: Reach,
    ) -> Result<OfflineReady, AgentError> {
        let _turn = self.turn.lock().await;
        let page = match self.take_up(job, generation).await? {
            Some(known) => known,
            None => {
                let (this, wanted) = (Arc::clone(self), request.clone());
                let arrivals = off_thread(move || this.checked(wanted.vm, &wanted.files, &reach)).await?;
                let mounted = mounts.iter().map(|mount| PathBuf::from(&mount.path));
                let roots = mounted.chain(arrivals.iter().map(|arrival| arrival.path.clone())).collect();
                let task = Task::Destination { request: request.clone(), arrivals, roots, definition: None };
                let journal = Journal { job, generation, task, stage: OfflineStage::Prepared, error: None };
                journal.write(&self.folder)?;
                let page = Move::new(&self.folder, journal);
                self.moves().insert(job, Arc::clone(&page));
                let (this, making) = (Arc::clone(self), Arc::clone(&page));
                if let Err(error) = off_thread(move || this.make(&making)).await {
                    self.forget(&page).await?;
                    return Err(error);
                }
                page
            }
        };
        let Task::Destination { arrivals, .. } = page.journal().task else {
            return Err(AgentError::Carrier(format!("This host is the source of job {job}")));
        };
        if !page.is_busy() {
            let acceptor = copy::listen(&self.config, &request).await?;
            *page.address.lock().expect("nobody panics while holding it") = Some(acceptor.address().to_string());
            let taking = tokio::spawn(copy::take(acceptor, Arc::clone(&page)));
            *page.task.lock().expect("nobody panics while holding it") = Some(taking);
        }
        let address = page.address.lock().expect("nobody panics while holding it").clone().unwrap_or_default();
        let paths = arrivals.iter().map(|arrival| arrival.path.display().to_string()).collect();
        Ok(OfflineReady { address, mounts, paths })
    }

    /// Makes the files, each written down when it is there. An unfinished copy of an earlier attempt becomes the file.
    fn make(&self, page: &Move) -> Result<(), AgentError> {
        let Task::Destination { request, arrivals, .. } = page.journal().task else { return Ok(()) };
        let owner = self.hypervisor.process_owner()?;
        for (index, (file, arrival)) in request.files.iter().zip(&arrivals).enumerate() {
            match self.seeds.take(request.vm, &as_disk(file), &arrival.path) {
                Some(sown) => files::remove(&sown.index)?,
                None => {
                    image::create(&arrival.path, DiskFormat::Raw, ByteCount(0), owner).map_err(|source| match source
                        .kind()
                    {
                        std::io::ErrorKind::AlreadyExists => exists(&arrival.path),
                        _ => AgentError::File { path: arrival.path.clone(), source },
                    })?
                }
            }
            page.write(|journal| {
                if let Task::Destination { arrivals, .. } = &mut journal.task {
                    arrivals[index].made = true;
                }
            })?;
        }
        Ok(())
    }

    /// Holds the VM, and makes sure that it is shut off.
    ///
    /// # Errors
    /// `vm.running`, `request.stale`, or what stands against it; nothing is changed then.
    pub async fn prepare_source(
        self: &Arc<Self>,
        job: JobId,
        generation: Generation,
        request: SendOffline,
        mounts: Vec<ShareMount>,
        reach: Reach,
    ) -> Result<OfflineReport, AgentError> {
        let _turn = self.turn.lock().await;
        if let Some(known) = self.take_up(job, generation).await? {
            return Ok(known.report());
        }
        let vm = request.vm;
        // The hold comes first: from here on the VM stays as it is found to be.
        hold::ensure(&self.config.holds_dir(), vm, job)?;
        let this = Arc::clone(self);
        let looked = off_thread(move || {
            let task = this.source(request, &mounts, &reach)?;
            if let Task::Source { autostart: true, .. } = task {
                this.hypervisor.set_autostart(vm, false)?;
            }
            Ok(task)
        });
        let task = match looked.await {
            Ok(task) => task,
            Err(error) => {
                hold::release(&self.config.holds_dir(), vm)?;
                return Err(error);
            }
        };
        let journal = Journal { job, generation, task, stage: OfflineStage::Prepared, error: None };
        journal.write(&self.folder)?;
        let page = Move::new(&self.folder, journal);
        self.moves().insert(job, Arc::clone(&page));
        Ok(page.report())
    }

    fn source(&self, request: SendOffline, mounts: &[ShareMount], reach: &Reach) -> Result<Task, AgentError> {
        let facts = shut_off(&*self.hypervisor, request.vm)?;
        let mut paths = Vec::with_capacity(request.files.len());
        for file in &request.files {
            let device = &file.file.device;
            let path = reach.places.path(&file.file.from);
            let path = path.filter(|path| facts.files.iter().any(|of| of.device == *device && of.place == *path));
            let path = path.ok_or_else(|| {
                refused(
                    FindingId::DiskUnknown,
                    device,
                    format!("File {device} of VM {} is not where it was", facts.name),
                    "Look at the VM with `ferry vm show` and ask again",
                )
            })?;
            stands_alone(&path, device)?;
            paths.push(path);
        }
        if paths.len() != request.destination.paths.len() {
            return Err(AgentError::Carrier("The destination tells another number of files".to_owned()));
        }
        let moved = paths.iter().cloned().zip(request.destination.paths.iter().map(PathBuf::from));
        let translate = moved.chain(translation(mounts, &request.destination.mounts)).collect();
        Ok(Task::Source { request, paths, translate, autostart: facts.autostart })
    }

    /// Begins to copy, at the source.
    ///
    /// # Errors
    /// When the attempt is not known.
    pub async fn perform(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<OfflineReport, AgentError> {
        let _turn = self.turn.lock().await;
        let page = self.known(job, generation)?;
        if page.journal().stage == OfflineStage::Prepared && page.journal().task.role() == Role::Source {
            page.write(|journal| journal.stage = OfflineStage::Copying)?;
            let (this, copied) = (Arc::clone(self), Arc::clone(&page));
            let task = tokio::spawn(async move {
                let outcome = copy::give(&this.config, Arc::clone(&this.hypervisor), Arc::clone(&copied)).await;
                let written = copied.write(|journal| match &outcome {
                    Ok(()) => journal.stage = OfflineStage::Copied,
                    Err(error) => {
                        journal.stage = OfflineStage::Failed;
                        journal.error = Some(chain(error));
                    }
                });
                if let Err(error) = written {
                    warn!(error = %chain(&error), "how the offline move stands could not be written down");
                }
            });
            *page.task.lock().expect("nobody panics while holding it") = Some(task);
        }
        Ok(page.report())
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

    /// Gives the destination the VM. The point of no return; may be repeated.
    ///
    /// # Errors
    /// Why it could not be defined: it is the source's then.
    pub async fn define(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<OfflineReport, AgentError> {
        let _turn = self.turn.lock().await;
        let page = self.known(job, generation)?;
        let journal = page.journal();
        let Task::Destination { request, roots, definition: Some(definition), .. } = journal.task else {
            return Err(AgentError::Carrier(format!("The definition of job {job}'s VM is not here yet")));
        };
        match journal.stage {
            OfflineStage::Copied => {}
            OfflineStage::Defined | OfflineStage::Confirmed => return Ok(page.report()),
            stage => return Err(AgentError::Carrier(format!("Job {job} is not copied yet: {stage:?}"))),
        }
        let bound = Bound {
            vm: request.vm,
            name: request.vm_name.clone(),
            roots,
            memory_socket: PathBuf::new(),
            disk_socket: PathBuf::new(),
            disks: Vec::new(),
        };
        let hypervisor = Arc::clone(&self.hypervisor);
        off_thread(move || Ok(hypervisor.define(&definition, &bound)?)).await?;
        // The VM may come home: a hold of an earlier move away is over.
        hold::release(&self.config.holds_dir(), request.vm)?;
        page.write(|journal| journal.stage = OfflineStage::Defined)?;
        page.end().await;
        info!(vm = %request.vm, "the VM is defined here");
        Ok(page.report())
    }

    /// Ends it before the point of no return.
    ///
    /// # Errors
    /// `job.past-pivot` when the VM is defined at the destination.
    pub async fn abort(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<OfflineReport, AgentError> {
        let _turn = self.turn.lock().await;
        let page = self.known(job, generation)?;
        if self.is_here(&page).await? {
            let vm = page.journal().task.vm();
            let message = format!("VM {vm} is defined at the destination; the move can no longer be cancelled");
            let fix = "Let it finish, then move the VM back";
            return Err(AgentError::refused(409, Finding::blocks(FindingId::JobPastPivot, job, message, fix)));
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
    /// the hypervisor is asked: the VM was not here before.
    async fn is_here(&self, page: &Move) -> Result<bool, AgentError> {
        let journal = page.journal();
        if matches!(journal.stage, OfflineStage::Defined | OfflineStage::Confirmed) {
            return Ok(true);
        }
        if journal.task.role() == Role::Source {
            return Ok(false);
        }
        let (hypervisor, vm) = (Arc::clone(&self.hypervisor), journal.task.vm());
        off_thread(move || Ok(hypervisor.vm(vm)?.is_some())).await
    }

    /// Source: removes definition and old files. Destination: sets autostart. Only for a VM that is defined at the
    /// destination. May be repeated.
    ///
    /// # Errors
    /// The hypervisor's, the file system's; `vm.running` if the VM runs at the source in spite of everything.
    pub async fn confirm(
        self: &Arc<Self>,
        job: JobId,
        generation: Generation,
        request: ConfirmRequest,
    ) -> Result<OfflineReport, AgentError> {
        let _turn = self.turn.lock().await;
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
        let hypervisor = Arc::clone(&self.hypervisor);
        off_thread(move || match journal.task {
            Task::Destination { request: of, .. } => {
                if request.autostart {
                    hypervisor.set_autostart(of.vm, true)?;
                }
                Ok(())
            }
            Task::Source { request: of, paths, .. } => {
                if hypervisor.vm(of.vm)?.is_some() {
                    shut_off(&*hypervisor, of.vm)?;
                    hypervisor.undefine(of.vm)?;
                }
                if !request.keep_source {
                    let used = hypervisor.files_in_use()?;
                    let gone = of.files.iter().zip(&paths).filter(|(file, _)| file.file.is_removed());
                    for (_, path) in gone.filter(|(_, path)| !used.contains(*path)) {
                        image::remove(path).map_err(|source| AgentError::File { path: path.clone(), source })?;
                    }
                }
                Ok(())
            }
        })
        .await?;
        page.write(|journal| journal.stage = OfflineStage::Confirmed)?;
        Ok(page.report())
    }

    /// Forgets it. Source: the VM is free again, if it is still there. Destination: files of a VM that did not come are
    /// removed, or kept as seeds. Ok if it is not known.
    ///
    /// # Errors
    /// When something cannot be taken back.
    pub async fn release(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<(), AgentError> {
        let _turn = self.turn.lock().await;
        if let Ok(known) = self.known(job, generation) {
            self.forget(&known).await?;
        }
        let mut ended = self.ended.lock().expect("nobody panics while holding it");
        ended.entry(job).and_modify(|known| *known = generation.max(*known)).or_insert(generation);
        while ended.len() > ENDED_MAX {
            ended.pop_first();
        }
        Ok(())
    }

    async fn forget(&self, page: &Arc<Move>) -> Result<(), AgentError> {
        page.end().await;
        let journal = page.journal();
        let vm = journal.task.vm();
        match journal.task {
            Task::Source { autostart, .. } => {
                if autostart && journal.stage != OfflineStage::Confirmed {
                    let hypervisor = Arc::clone(&self.hypervisor);
                    off_thread(move || match hypervisor.set_autostart(vm, true) {
                        Ok(()) | Err(HypervisorError::NoVm(_)) => Ok(()),
                        Err(error) => Err(error.into()),
                    })
                    .await?;
                }
                hold::release(&self.config.holds_dir(), vm)?;
            }
            Task::Destination { request, arrivals: made, .. } if !self.is_here(page).await? => {
                let one = |(file, arrival): (&OfflineFile, &Arrival)| arrivals::Arrival {
                    device: file.file.device.clone(),
                    path: arrival.path.clone(),
                    format: DiskFormat::Raw,
                    virtual_size: file.length,
                    made: arrival.made,
                    sown: None,
                };
                let left: Vec<_> = request.files.iter().zip(&made).map(one).collect();
                let (hypervisor, seeds) = (Arc::clone(&self.hypervisor), Arc::clone(&self.seeds));
                off_thread(move || arrivals::remove(vm, &left, &*hypervisor, Some(&seeds))).await?;
            }
            Task::Destination { .. } => {}
        }
        page.journal().remove(&self.folder)?;
        self.moves().remove(&journal.job);
        Ok(())
    }
}

/// Sizes of the files of a VM that is shut off. Blocks.
///
/// # Errors
/// `vm.running`; a file that is not there.
pub fn files_of(hypervisor: &dyn Hypervisor, vm: VmId) -> Result<Vec<FileSize>, AgentError> {
    let facts = shut_off(hypervisor, vm)?;
    let one = |file: &ferry_core::vm::VmFile<PathBuf>| {
        let fault = |source| AgentError::File { path: file.place.clone(), source };
        let length = ByteCount(file.place.metadata().map_err(fault)?.len());
        let allocated = image::allocated(&file.place).map_err(fault)?;
        Ok(FileSize { device: file.device.clone(), length, allocated: ByteCount(allocated.0.min(length.0)) })
    };
    facts.files.iter().filter(|file| file.role != FileRole::NotAFile).map(one).collect()
}

fn shut_off(hypervisor: &dyn Hypervisor, vm: VmId) -> Result<VmFacts<PathBuf>, AgentError> {
    let facts = hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
    if facts.state == VmState::ShutOff {
        return Ok(facts);
    }
    Err(refused(
        FindingId::VmRunning,
        &facts.name,
        format!("VM {} is not shut off: an offline move is never made of a VM that runs", facts.name),
        "Leave `--offline` out to move it while it runs, or shut it down first",
    ))
}

/// Refuses an image that is nothing without other files: the definition of a VM that is shut off does not tell.
///
/// QEMU's own format: magic, version, then the offset of the backing file's name at 8; incompatible features at 72, of
/// which bit 2 says that data are in another file (docs/interop/qcow2 of QEMU).
fn stands_alone(path: &Path, device: &str) -> Result<(), AgentError> {
    let fault = |source| AgentError::File { path: path.to_owned(), source };
    let mut head = Vec::new();
    File::open(path).map_err(fault)?.take(80).read_to_end(&mut head).map_err(fault)?;
    if head.len() < 80 || !head.starts_with(b"QFI\xfb") {
        return Ok(());
    }
    let backing = head[8..16].iter().any(|byte| *byte != 0);
    let version = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    if !backing && (version < 3 || head[79] & 4 == 0) {
        return Ok(());
    }
    Err(refused(
        FindingId::DiskFlattened,
        device,
        format!("Disk {device} is an overlay, or keeps its data in another file, which would stay behind"),
        "Start the VM and move it live, which copies the whole chain; or flatten the disk with `qemu-img rebase`",
    ))
}

/// A file as seeds know it: whatever it holds, by its length.
fn as_disk(file: &OfflineFile) -> DiskArrival {
    DiskArrival {
        device: file.file.device.clone(),
        to: file.file.to.clone(),
        format: DiskFormat::Raw,
        virtual_size: file.length,
        allocated: file.allocated,
    }
}

async fn off_thread<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    let outcome = tokio::task::spawn_blocking(call).await;
    outcome.unwrap_or_else(|error| Err(AgentError::Carrier(error.to_string())))
}

fn refused(id: FindingId, object: impl std::fmt::Display, message: String, fix: &str) -> AgentError {
    AgentError::refused(409, Finding::blocks(id, object, message, fix))
}
