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

mod copy;
mod journal;
mod parts;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use ferry_core::{
    api::agent::{
        CheckOffline, ConfirmRequest, DiskArrival, FileSize, OfflineFile, OfflineReady, OfflineReport, OfflineStage,
        ReceiveOffline, Role, SendOffline, ShareMount,
    },
    files::{DiskProgress, DiskStage, FileMove},
    finding::{Finding, FindingId},
    id::{Generation, JobId, VmId},
    power::not_shut_off,
    units::ByteCount,
    vm::{DiskFormat, FileRole, VmFacts},
};
use ferry_drivers::{
    file,
    hypervisor::{
        Domains, Hypervisor, HypervisorError,
        rpc::{Bound, definition::check_definition},
    },
    image,
};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{info, warn};

use self::journal::{Form, IncomingFile, Journal, Task};
use crate::{
    AgentError,
    blocking::blocking,
    config::Config,
    ended::{Asked, Ended},
    error::chain,
    files::{
        self,
        fingerprint::FileFingerprint,
        host_storage::HostStorage,
        new_file::FileIdentity,
        partial::PartialCopies,
        space::{Needs, Reserved},
    },
    hold,
    live::translation,
    lock::lock,
    records,
    refusal::{exists, refused, uuid_taken},
};

/// Offline moves that one host takes part in at once: far above what slots allow.
const MOVES_MAX: usize = 64;
/// Files of one VM: more than it has.
const FILES_MAX: usize = 64;

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
    /// Destination: no file is made for it any more.
    ended: Mutex<bool>,
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
            ended: Mutex::default(),
        })
    }

    fn journal(&self) -> Journal {
        lock(&self.journal).clone()
    }

    /// Changes what is written down, and says so when it is.
    fn write(&self, change: impl FnOnce(&mut Journal)) -> Result<(), AgentError> {
        let mut journal = lock(&self.journal);
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
        if let Task::Destination { incoming_files, .. } = &journal.task
            && done
        {
            for (file, incoming_file) in files.iter_mut().zip(incoming_files) {
                file.stage = DiskStage::Moved;
                file.copied = file.total;
                file.allocated_after = file::allocated(&incoming_file.path).unwrap_or_default();
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
            remarks: journal.remarks,
        }
    }

    /// Ends what copies. Nothing is written by it afterwards but the block that is being written.
    async fn end(&self) {
        let task = lock(&self.task).take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    fn is_busy(&self) -> bool {
        lock(&self.task).as_ref().is_some_and(|task| !task.is_finished())
    }
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

    /// Whether the files can come. Changes nothing. Blocks.
    ///
    /// # Errors
    /// What stands against it.
    pub fn check(&self, request: &CheckOffline, storage: &HostStorage) -> Result<(), AgentError> {
        self.checked(request.vm, &request.files, &request.absent, storage).map(drop)
    }

    /// Where the files will be, and where those that are not there at the source either.
    fn checked(
        &self,
        vm: VmId,
        wanted: &[OfflineFile],
        absent: &[FileMove],
        storage: &HostStorage,
    ) -> Result<(Vec<IncomingFile>, Vec<PathBuf>), AgentError> {
        if wanted.len() + absent.len() > FILES_MAX {
            return Err(AgentError::Carrier(format!("No VM has more than {FILES_MAX} files")));
        }
        if let Some(facts) = self.hypervisor.vm(vm)? {
            return Err(uuid_taken(vm, &facts.name));
        }
        let mut needs = Needs::default();
        let mut incoming_files: Vec<IncomingFile> = Vec::with_capacity(wanted.len());
        for file in wanted {
            let path = storage.path(&file.file.device, &file.file.to)?;
            let form = self.form(vm, file, &path)?;
            let still = match &form {
                Form::Adopted => ByteCount(0),
                Form::Part(part) => {
                    let part = file::allocated(part).unwrap_or_default();
                    let held = self.partials.held(vm, &as_disk(file), &path).max(part);
                    ByteCount(file.allocated.0.saturating_sub(held.0))
                }
                Form::Whole => file.allocated,
            };
            needs.add(storage, &file.file.to, still)?;
            if incoming_files.iter().any(|other| other.path == path) {
                return Err(exists(&path));
            }
            incoming_files.push(IncomingFile {
                path,
                form,
                made: false,
                identity: FileIdentity::default(),
                arrived: false,
                named: false,
            });
        }
        let mut missing = Vec::with_capacity(absent.len());
        for file in absent {
            let path = storage.path(&file.device, &file.to)?;
            needs.add(storage, &file.to, ByteCount(0))?;
            if path.symlink_metadata().is_ok() || incoming_files.iter().any(|other| other.path == path) {
                return Err(exists(&path));
            }
            missing.push(path);
        }
        needs.are_met(storage)?;
        Ok((incoming_files, missing))
    }

    /// How a file comes. What is there already is nobody's to overwrite; a disk that VMs share may have come with another.
    fn form(&self, vm: VmId, file: &OfflineFile, path: &Path) -> Result<Form, AgentError> {
        let of_another = |page: &Arc<Move>| {
            let journal = page.journal();
            let goes_on = !matches!(journal.stage, OfflineStage::Defined | OfflineStage::Confirmed);
            goes_on && journal.task.vm() != vm && journal.task.incoming_files().iter().any(|other| other.path == path)
        };
        let coming = self.moves().values().find(|page| of_another(page)).map(|page| page.journal().job);
        if let Some(job) = coming {
            return Err(refused(
                FindingId::FileExists,
                path.display(),
                format!("Job {job} brings a file to {}", path.display()),
                "Wait until that job has ended, or choose another place",
            ));
        }
        match path.symlink_metadata() {
            Err(_) => Ok(Form::Part(parts::part_of(path, vm))),
            Ok(found) if file.file.shareable && found.is_file() => match found.len() == file.length.0 {
                true => Ok(Form::Adopted),
                false => Err(differs(&file.file.device, path)),
            },
            Ok(_) => Err(exists(path)),
        }
    }

    /// Listens for the files. None is made before the definition is known to be one that this host takes.
    ///
    /// # Errors
    /// `request.stale`, or what stands against it; nothing is left then.
    pub async fn prepare_destination(
        self: &Arc<Self>,
        job: JobId,
        generation: Generation,
        request: ReceiveOffline,
        mounts: Vec<ShareMount>,
        storage: HostStorage,
    ) -> Result<OfflineReady, AgentError> {
        let this = Arc::clone(self);
        self.in_turn(job, async move { this.begin_to_receive(job, generation, request, mounts, storage).await }).await
    }

    async fn begin_to_receive(
        self: Arc<Self>,
        job: JobId,
        generation: Generation,
        request: ReceiveOffline,
        mounts: Vec<ShareMount>,
        storage: HostStorage,
    ) -> Result<OfflineReady, AgentError> {
        let page = match self.take_up(Asked { job, generation, vm: request.vm }).await? {
            Some(known) => known,
            None => {
                let (this, wanted) = (Arc::clone(&self), request.clone());
                let checked = move || this.checked(wanted.vm, &wanted.files, &wanted.absent, &storage);
                let (incoming_files, absent) = blocking(checked).await?;
                let mounted = mounts.iter().map(|mount| PathBuf::from(&mount.path));
                let files =
                    incoming_files.iter().map(|incoming_file| incoming_file.path.clone()).chain(absent.iter().cloned());
                let roots = mounted.chain(files).collect();
                let task =
                    Task::Destination { request: request.clone(), incoming_files, absent, roots, definition: None };
                self.put(Journal::new(job, generation, task))?
            }
        };
        let Task::Destination { incoming_files, absent, request: wanted, .. } = page.journal().task else {
            return Err(AgentError::Carrier(format!("This host is the source of job {job}")));
        };
        if !page.is_busy() {
            let acceptor = copy::listen(&self.config, &request).await?;
            *lock(&page.address) = Some(acceptor.address().to_string());
            let taking = tokio::spawn(copy::take(acceptor, Arc::clone(&self), Arc::clone(&page)));
            *lock(&page.task) = Some(taking);
        }
        let address = lock(&page.address).clone().unwrap_or_default();
        let shown = |path: &PathBuf| path.display().to_string();
        let adopted =
            wanted.files.iter().zip(&incoming_files).filter(|(_, incoming_file)| incoming_file.form == Form::Adopted);
        Ok(OfflineReady {
            address,
            mounts,
            paths: incoming_files.iter().map(|incoming_file| shown(&incoming_file.path)).collect(),
            absent: absent.iter().map(shown).collect(),
            adopted: adopted.map(|(file, _)| file.file.device.clone()).collect(),
        })
    }

    /// Writes an attempt down that is new. Nothing was changed for it before.
    fn put(&self, journal: Journal) -> Result<Arc<Move>, AgentError> {
        journal.write(&self.folder)?;
        let job = journal.job;
        let page = Move::new(&self.folder, journal);
        self.moves().insert(job, Arc::clone(&page));
        Ok(page)
    }

    /// Takes a definition that came, if this host would keep it, and makes the files that are not there yet. Blocks.
    fn take_definition(&self, page: &Move, text: String) -> Result<(), AgentError> {
        let Task::Destination { request, roots, .. } = page.journal().task else { return Ok(()) };
        check_definition(&text, &bound(&request, roots)).map_err(|error| {
            AgentError::Hypervisor(HypervisorError::Definition { vm: request.vm, reason: error.to_string() })
        })?;
        parts::make_all(page, &*self.hypervisor, &self.partials)?;
        page.write(|journal| {
            if journal.task.incoming_files().iter().all(|incoming_file| incoming_file.arrived) {
                journal.stage = OfflineStage::Copied;
            }
            if let Task::Destination { definition, .. } = &mut journal.task {
                *definition = Some(text);
            }
        })
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
        storage: HostStorage,
    ) -> Result<OfflineReport, AgentError> {
        let this = Arc::clone(self);
        self.in_turn(job, async move { this.begin_to_send(job, generation, request, mounts, storage).await }).await
    }

    async fn begin_to_send(
        self: Arc<Self>,
        job: JobId,
        generation: Generation,
        request: SendOffline,
        mounts: Vec<ShareMount>,
        storage: HostStorage,
    ) -> Result<OfflineReport, AgentError> {
        let page = match self.take_up(Asked { job, generation, vm: request.vm }).await? {
            Some(known) => known,
            None => {
                let this = Arc::clone(&self);
                let task = blocking(move || this.source(request, &mounts, &storage)).await?;
                // Before the first change: an agent that ends in between must know what it is to take back.
                self.put(Journal::new(job, generation, task))?
            }
        };
        if page.journal().stage == OfflineStage::Prepared
            && let Err(error) = self.hold(&page).await
        {
            if let Err(error) = self.forget(&page).await {
                warn!(error = %chain(&error), "what was changed for an offline move could not be taken back");
            }
            return Err(error);
        }
        Ok(page.report())
    }

    /// Holds the VM of a source: from here on it stays as it is found to be. May be repeated.
    async fn hold(&self, page: &Move) -> Result<(), AgentError> {
        let journal = page.journal();
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

    fn source(&self, request: SendOffline, mounts: &[ShareMount], storage: &HostStorage) -> Result<Task, AgentError> {
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
                    format!("File {device} of VM {} is not where it was", facts.name),
                    "Look at the VM with `ferry vm show` and ask again",
                )
            })?;
            stands_alone(&path, device)?;
            paths.push(path);
        }
        let absent: Vec<PathBuf> = request.absent.iter().filter_map(|file| storage.places.path(&file.from)).collect();
        let there = &request.destination;
        if paths.len() != there.paths.len() || absent.len() != there.absent.len() {
            return Err(AgentError::Carrier("The destination tells another number of files".to_owned()));
        }
        let here = paths.iter().chain(&absent).cloned();
        let moved = here.zip(there.paths.iter().chain(&there.absent).map(PathBuf::from));
        let translate: Vec<_> = moved.chain(translation(mounts, &there.mounts)).collect();
        // What cannot be said at the destination is found out before anything is copied.
        self.hypervisor.definition(request.vm, &translate)?;
        Ok(Task::Source { request, paths, translate, autostart: facts.autostart, fingerprints: Vec::new() })
    }

    /// Begins to copy, at the source.
    ///
    /// # Errors
    /// When the attempt is not known.
    pub async fn perform(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<OfflineReport, AgentError> {
        let this = Arc::clone(self);
        self.in_turn(job, async move { this.begin_to_copy(job, generation) }).await
    }

    fn begin_to_copy(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<OfflineReport, AgentError> {
        let page = self.known(job, generation)?;
        if page.journal().stage == OfflineStage::Prepared && page.journal().task.role() == Role::Source {
            page.write(|journal| journal.stage = OfflineStage::Copying)?;
            let (this, copied) = (Arc::clone(self), Arc::clone(&page));
            let task = tokio::spawn(async move {
                let outcome = copy::give(&this.config, this.hypervisor.clone(), Arc::clone(&copied)).await;
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
            *lock(&page.task) = Some(task);
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
    /// Why it could not be defined: whose it is then says [`Self::abort`].
    pub async fn define(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<OfflineReport, AgentError> {
        let this = Arc::clone(self);
        self.in_turn(job, async move { this.name_and_define(job, generation).await }).await
    }

    async fn name_and_define(&self, job: JobId, generation: Generation) -> Result<OfflineReport, AgentError> {
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
        let vm = request.vm;
        let (hypervisor, naming) = (Arc::clone(&self.hypervisor), Arc::clone(&page));
        blocking(move || {
            parts::name_all(&naming)?;
            Ok(hypervisor.define(&definition, &bound(&request, roots))?)
        })
        .await?;
        // The VM may come home: a hold of an earlier move away is over.
        hold::release(&self.config.holds_dir(), vm)?;
        page.write(|journal| journal.stage = OfflineStage::Defined)?;
        page.end().await;
        info!(%vm, "the VM is defined here");
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

    /// Removes what the source has of a VM that is the destination's; what stays all the same is told. Blocks.
    fn leave(
        &self,
        request: &ConfirmRequest,
        of: &SendOffline,
        paths: &[PathBuf],
        fingerprints: &[FileFingerprint],
    ) -> Result<Vec<String>, AgentError> {
        if self.hypervisor.vm(of.vm)?.is_some() {
            shut_off(&*self.hypervisor, of.vm)?;
            self.hypervisor.undefine(of.vm)?;
        }
        let mut remarks = Vec::new();
        if request.keep_source {
            return Ok(remarks);
        }
        let used = files::in_use(self.hypervisor.files_in_use()?)?;
        for (index, (file, path)) in of.files.iter().zip(paths).enumerate() {
            let fault = |source| AgentError::File { path: path.clone(), source };
            if !file.file.is_removed() || path.symlink_metadata().is_err() {
                continue;
            }
            let stays = if let Some(obstacle) = used.obstacle(path).map_err(fault)? {
                Some(obstacle.why())
            } else if fingerprints.get(index).is_some_and(|fingerprint| !fingerprint.is_of(path, &file.file.from)) {
                Some("something has written to it since it was copied")
            } else {
                None
            };
            match stays {
                Some(why) => {
                    warn!(vm = %of.vm, file = %path.display(), why, "an old file stays");
                    remarks.push(format!("The old file {} stays: {why}", path.display()));
                }
                None => file::remove(path).map_err(fault)?,
            }
        }
        Ok(remarks)
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

/// What a definition that comes may ask of this host.
fn bound(request: &ReceiveOffline, roots: Vec<PathBuf>) -> Bound {
    Bound {
        vm: request.vm,
        name: request.vm_name.clone(),
        roots,
        memory_socket: PathBuf::new(),
        disk_socket: PathBuf::new(),
        disks: Vec::new(),
    }
}

/// A disk that VMs share came with one of them, and is not what it was.
fn differs(device: &str, path: &Path) -> AgentError {
    refused(
        FindingId::FileExists,
        path.display(),
        format!(
            "{} is there already, and is not the same as disk {device}, which stays as it is: a VM may have written to it \
             since it came",
            path.display()
        ),
        "Shut down every VM that uses either file, decide which of the two counts, copy that one over the other, and ask \
         again",
    )
}

/// Sizes of files of a VM that is shut off: of all, or of those that are named. UEFI variables of a VM that was never
/// started are not there yet, and left out. Blocks.
///
/// # Errors
/// `vm.running`; a file that is not there.
pub fn files_of(hypervisor: &dyn Domains, vm: VmId, only: Option<&[&str]>) -> Result<Vec<FileSize>, AgentError> {
    let facts = shut_off(hypervisor, vm)?;
    let mut sizes = Vec::new();
    for file in facts.files.iter().filter(|file| file.role != FileRole::NotAFile) {
        if only.is_some_and(|only| !only.contains(&file.device.as_str())) {
            continue;
        }
        let fault = |source| AgentError::File { path: file.place.clone(), source };
        let found = match file.place.metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.role == FileRole::Nvram => continue,
            found => found.map_err(fault)?,
        };
        let length = ByteCount(found.len());
        let allocated = file::allocated(&file.place).map_err(fault)?;
        sizes.push(FileSize { device: file.device.clone(), length, allocated: ByteCount(allocated.0.min(length.0)) });
    }
    Ok(sizes)
}

fn shut_off(hypervisor: &dyn Domains, vm: VmId) -> Result<VmFacts<PathBuf>, AgentError> {
    let facts = hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
    match not_shut_off(&facts) {
        None => Ok(facts),
        Some(finding) => Err(AgentError::refused(409, finding)),
    }
}

/// Refuses an image that is nothing without other files: the definition of a VM that is shut off does not tell.
fn stands_alone(path: &Path, device: &str) -> Result<(), AgentError> {
    match image::header(path) {
        Ok(None) => return Ok(()),
        Ok(Some(header)) if header.backing.is_none() && header.data_file.is_none() => return Ok(()),
        Ok(Some(_)) => {}
        // It names what lies below it, in a way that nobody reads.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {}
        Err(source) => return Err(AgentError::File { path: path.to_owned(), source }),
    }
    Err(refused(
        FindingId::DiskFlattened,
        device,
        format!("Disk {device} is an overlay, or keeps its data in another file, which would stay behind"),
        "Start the VM and move it live, which copies the whole chain; or flatten the disk with `qemu-img rebase`",
    ))
}

/// A file as partials know it: whatever it holds, by its length.
fn as_disk(file: &OfflineFile) -> DiskArrival {
    DiskArrival {
        device: file.file.device.clone(),
        to: file.file.to.clone(),
        format: DiskFormat::Raw,
        virtual_size: file.length,
        allocated: file.allocated,
    }
}
