//! Moves of running VMs' disks to other files of this host.
//!
//! ```text
//! prepare: check, make the new files ─▶ perform: copy all, then switch one after the other ─▶ confirm: remove the old
//!             └────────── abort, release: end the copies, remove the new files that no VM uses ◀──┘
//! ```
//! QEMU copies; this says when it begins and when it switches over. A copy goes on while the agent is restarted, and
//! the agent goes on with it.

mod definition_copy;
mod journal;
mod run;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ferry_core::{
    api::agent::{ConfirmStorage, PrepareStorage, StorageReport, StorageStage},
    files::{
        DiskMove, DiskProgress, DiskStage,
        cleanup::{Cleanup, NewFile, OldFile, OldFileStays, new_file, old_file, old_file_kept},
        space::{copy_takes, is_thick},
    },
    finding::{Finding, FindingId},
    id::{Generation, JobId},
    location::Location,
    power::not_running,
    units::ByteCount,
    vm::{DiskFormat, VmFacts, VmFile, VmState},
};
use ferry_drivers::{
    file,
    hypervisor::{Hypervisor, HypervisorError, files_of},
    identity::InUse,
    image,
};
use tokio::sync::watch;
use tracing::{info, warn};

use self::{
    journal::{Disk, Journal, Wish},
    run::Move,
    turns::Turns,
};
use crate::{
    AgentError,
    config::Config,
    ended::{Asked, Ended},
    error::chain,
    failpoint::made_to_fail,
    files::{
        self,
        host_storage::HostStorage,
        new_file::FileIdentity,
        space::{Needs, Reserved},
    },
    lock::lock,
    places::{chain_takes, holds_no_snapshots},
    records,
    refusal::{exists, refused},
};

/// Storage moves that one host takes part in at once: a bound on threads, far above what slots allow.
const MOVES_MAX: usize = 64;
/// Disks of one move: more than a VM has.
const DISKS_MAX: usize = 64;
/// How long libvirt may take to end the copies of a move.
const END_WITHIN: Duration = Duration::from_secs(20);

/// The storage moves.
pub struct StorageMoves {
    folder: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    moves: Mutex<BTreeMap<JobId, Arc<Move>>>,
    turns: Turns,
    ended: Arc<Ended>,
}

impl StorageMoves {
    /// Reads the journals, and goes on with what went on.
    ///
    /// # Errors
    /// When its folder cannot be used, or a move that goes on not be started.
    pub(crate) fn load(
        config: &Config,
        hypervisor: Arc<dyn Hypervisor>,
        ended: Arc<Ended>,
    ) -> Result<Self, AgentError> {
        let folder = config.storage_dir();
        records::ensure_private_dir(&folder)?;
        let mut moves = BTreeMap::new();
        for journal in Journal::read_all(&folder)? {
            let is_open = matches!(journal.stage, StorageStage::Copying | StorageStage::Switching);
            let goes_on = is_open || (journal.stage == StorageStage::Prepared && journal.wish != Wish::GoOn);
            info!(job = %journal.job, vm = %journal.request.vm, goes_on, "found a storage move again");
            let job = journal.job;
            let found = Move::new(&folder, Arc::clone(&hypervisor), journal);
            if goes_on {
                found.start().map_err(|error| AgentError::Carrier(error.to_string()))?;
            }
            moves.insert(job, found);
        }
        Ok(Self { folder, hypervisor, moves: Mutex::new(moves), turns: Turns::default(), ended })
    }

    fn moves(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<Move>>> {
        lock(&self.moves)
    }

    fn known(&self, job: JobId, generation: Generation) -> Result<Arc<Move>, AgentError> {
        let known = self.moves().get(&job).cloned();
        known.filter(|known| known.journal().generation == generation).ok_or_else(|| {
            AgentError::refused(
                404,
                Finding::blocks(
                    FindingId::JobUnknown,
                    job,
                    format!("The host's agent knows no storage move of job {job}, attempt {generation}"),
                    "Look at the job with `ferry job show`; restart it if it has failed",
                ),
            )
        })
    }

    /// Makes the new files. Blocks. Repeating it is safe.
    ///
    /// # Errors
    /// `request.stale`, or what stands against it; nothing is left then.
    pub fn prepare(
        &self,
        job: JobId,
        generation: Generation,
        request: PrepareStorage,
        storage: &HostStorage,
    ) -> Result<StorageReport, AgentError> {
        let _turn = self.turns.take(job)?;
        made_to_fail("agent-prepare-storage")?;
        let known = self.moves().get(&job).cloned();
        let newest = known.as_ref().map(|known| known.journal());
        let newest = newest.map(|newest| (newest.generation, newest.request.vm));
        self.ended.admit(Asked { job, generation, vm: request.vm }, newest)?;
        if let Some(known) = known {
            if known.journal().generation == generation {
                if known.report().stage == StorageStage::Prepared {
                    self.make_all_files(&known)?;
                }
                return Ok(known.report());
            }
            self.forget(&known)?;
        }
        if self.moves().len() >= MOVES_MAX || request.disks.len() > DISKS_MAX {
            return Err(AgentError::Carrier(format!("This host moves {MOVES_MAX} VMs' storage already")));
        }
        let disks = self.checked(&request, storage)?;
        let journal = Journal {
            job,
            generation,
            request,
            disks,
            stage: StorageStage::Prepared,
            error: None,
            wish: Wish::GoOn,
            findings: Vec::new(),
        };
        journal.write(&self.folder)?;
        let prepared = Move::new(&self.folder, Arc::clone(&self.hypervisor), journal);
        self.moves().insert(job, Arc::clone(&prepared));
        self.make_all_files(&prepared)?;
        made_to_fail("agent-prepared-storage")?;
        Ok(prepared.report())
    }

    /// Room that copies which go on will still take. Blocks for a bounded time.
    pub(crate) fn reserved(&self) -> Vec<Reserved> {
        let known: Vec<Arc<Move>> = self.moves().values().cloned().collect();
        let of_one = |known: &Arc<Move>| -> Vec<Reserved> {
            let (journal, report) = (known.journal(), known.report());
            let takes = matches!(journal.stage, StorageStage::Prepared | StorageStage::Copying);
            let disks = journal.disks.iter().zip(&journal.request.disks).zip(&report.disks);
            let coming = disks
                .filter(|((disk, _), progress)| takes && disk.from != disk.to && progress.stage != DiskStage::Moved);
            let one = |((disk, wanted), progress): ((&Disk, &DiskMove), &DiskProgress)| match wanted.to {
                Location::Local { .. } => Reserved::new(journal.job, &wanted.to, &disk.to, disk.allocated),
                Location::Share { .. } => {
                    let DiskProgress { copied, total, .. } = progress;
                    Reserved::copied(journal.job, &wanted.to, disk.allocated, *copied, *total)
                }
            };
            coming.map(one).collect()
        };
        known.iter().flat_map(of_one).collect()
    }

    /// What stands against a move, without changing anything. Blocks.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn check(&self, request: &PrepareStorage, storage: &HostStorage) -> Result<Vec<ByteCount>, AgentError> {
        Ok(self.checked(request, storage)?.into_iter().map(|disk| disk.allocated).collect())
    }

    fn checked(&self, request: &PrepareStorage, storage: &HostStorage) -> Result<Vec<Disk>, AgentError> {
        let vm = request.vm;
        let facts = self.hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
        if let Some(finding) = not_running(&facts) {
            return Err(AgentError::refused(409, finding));
        }
        let mut disks = Vec::with_capacity(request.disks.len());
        let mut needs = Needs::default();
        for wanted in &request.disks {
            let path = |place| storage.path(&wanted.device, place);
            let disk = self.checked_disk(&facts, wanted, path(&wanted.from)?, path(&wanted.to)?)?;
            // One that an earlier attempt moved takes its room already.
            if !facts.files.iter().any(|file| file.device == disk.device && file.place == disk.to) {
                needs.add(storage, &wanted.to, disk.allocated)?;
            }
            disks.push(disk);
        }
        needs.are_met(storage)?;
        Ok(disks)
    }

    fn checked_disk(
        &self,
        facts: &VmFacts<PathBuf>,
        wanted: &DiskMove,
        from: PathBuf,
        to: PathBuf,
    ) -> Result<Disk, AgentError> {
        let device = &wanted.device;
        let file = facts.files.iter().find(|file| file.device == *device);
        let in_use = file.map(|file| file.place.clone());
        let size = self.hypervisor.disk_size(facts.id, device)?;
        let chain = file.map_or(size.allocated, |file| chain_takes(file, size.allocated));
        let allocated = copy_takes(size.virtual_size, chain, file.is_some_and(|file| is_thick(file, wanted)));
        let disk = Disk {
            device: device.clone(),
            from,
            to,
            made: false,
            identity: FileIdentity::default(),
            allocated,
            switch_asked: false,
        };
        if in_use.as_ref() == Some(&disk.to) {
            // An earlier attempt moved it.
            return Ok(disk);
        }
        if in_use.as_ref() != Some(&disk.from) {
            return Err(refused(
                FindingId::DiskUnknown,
                device,
                format!("Disk {device} of VM {} does not use {} any more", facts.name, disk.from.display()),
                "Look at the VM with `ferry vm show` and ask again",
            ));
        }
        if let Some(file) = file {
            holds_no_snapshots(file, &facts.name)?;
        }
        if disk.to.symlink_metadata().is_ok() {
            return Err(exists(&disk.to));
        }
        Ok(disk)
    }

    /// Makes those of the new files that are not made yet. After an error it is forgotten; if it cannot be, it stays known
    /// until it can.
    fn make_all_files(&self, prepared: &Move) -> Result<(), AgentError> {
        let made = self.make_files(prepared);
        if made.is_err()
            && let Err(error) = self.forget(prepared)
        {
            warn!(job = %prepared.journal().job, error = %chain(&error), "what a storage move made could not be removed yet");
        }
        made
    }

    fn make_files(&self, prepared: &Move) -> Result<(), AgentError> {
        let owner = self.hypervisor.process_owner()?;
        let journal = settled(prepared)?;
        let vm = journal.request.vm;
        let facts = self.hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
        for (index, (disk, wanted)) in journal.disks.iter().zip(&journal.request.disks).enumerate() {
            if facts.files.iter().any(|file| file.place == disk.to) || disk.made {
                continue;
            }
            let size = self.hypervisor.disk_size(vm, &disk.device)?.virtual_size;
            make_file(prepared, index, wanted.format, size, owner)?;
        }
        Ok(())
    }

    /// Begins, or goes on; returns when it was started.
    ///
    /// # Errors
    /// When the attempt is not known.
    pub fn perform(&self, job: JobId, generation: Generation) -> Result<StorageReport, AgentError> {
        let _turn = self.turns.take(job)?;
        let known = self.known(job, generation)?;
        known.start().map_err(|error| AgentError::Carrier(error.to_string()))?;
        Ok(known.report())
    }

    /// How it stands, and how it changes.
    ///
    /// # Errors
    /// When the attempt is not known.
    pub fn watch(&self, job: JobId, generation: Generation) -> Result<watch::Receiver<StorageReport>, AgentError> {
        Ok(self.known(job, generation)?.watch())
    }

    /// Ends it before the first disk is switched over. Blocks.
    ///
    /// # Errors
    /// `job.past-pivot`; when libvirt does not end the copies.
    pub fn abort(&self, job: JobId, generation: Generation) -> Result<StorageReport, AgentError> {
        let _turn = self.turns.take(job)?;
        let known = self.known(job, generation)?;
        let is_early = |stage| matches!(stage, StorageStage::Prepared | StorageStage::Copying);
        if is_early(known.report().stage) && !known.end(Wish::End, END_WITHIN)? && is_early(known.report().stage) {
            return Err(AgentError::Carrier(format!("The storage move of job {job} does not end")));
        }
        made_to_fail("agent-storage-ending")?;
        match known.report().stage {
            StorageStage::Aborted | StorageStage::Failed => {}
            StorageStage::Prepared | StorageStage::Copying => {
                known.abandon_all()?;
                known.write(|page| page.stage = StorageStage::Aborted)?;
            }
            StorageStage::Switching | StorageStage::Moved | StorageStage::Confirmed => {
                known.go_on()?;
                return Err(AgentError::refused(
                    409,
                    Finding::blocks(
                        FindingId::JobPastPivot,
                        job,
                        "Disks of the VM are being switched over to their new files".to_owned(),
                        "Wait until the job has ended; then move them back if you like",
                    ),
                ));
            }
        }
        known.say(self.new_files_that_stay(&settled(&known)?)?)?;
        Ok(known.report())
    }

    /// Removes the old files, unless they are to stay or something uses them. Blocks. Repeating it is safe.
    ///
    /// # Errors
    /// When not every disk is moved; the file system's.
    pub fn confirm(
        &self,
        job: JobId,
        generation: Generation,
        request: ConfirmStorage,
    ) -> Result<StorageReport, AgentError> {
        let _turn = self.turns.take(job)?;
        let known = self.known(job, generation)?;
        match known.report().stage {
            StorageStage::Confirmed => return Ok(known.report()),
            StorageStage::Moved => {}
            stage => return Err(AgentError::Carrier(format!("The disks of job {job} are not moved yet: {stage:?}"))),
        }
        made_to_fail("agent-storage-confirm")?;
        let journal = known.journal();
        let facts = self.hypervisor.vm(journal.request.vm)?;
        let definition = match facts {
            Some(_) => Some(self.hypervisor.kept_definition(journal.request.vm)?),
            None => None,
        };
        if !request.keep_source {
            known.say(self.remove_old_files(&journal, facts.as_ref(), definition.as_deref())?)?;
        }
        if let Some(definition) = &definition {
            known.say(keep_definition(&journal, facts.as_ref(), definition, request.keep_source))?;
        }
        made_to_fail("agent-storage-removed")?;
        known.write(|page| page.stage = StorageStage::Confirmed)?;
        Ok(known.report())
    }

    /// Removes the old files that nobody will use again. Ok: which stay, and why.
    fn remove_old_files(
        &self,
        journal: &Journal,
        facts: Option<&VmFacts<PathBuf>>,
        definition: Option<&str>,
    ) -> Result<Vec<Finding>, AgentError> {
        let whole = facts.filter(|facts| facts.state != VmState::Incoming);
        // One that cannot be read names no new file.
        let next = definition.and_then(|text| files_of(text).ok()).unwrap_or_default();
        let used = files::in_use(self.hypervisor.files_in_use()?)?;
        let mut findings = Vec::new();
        for disk in journal.disks.iter().filter(|disk| disk.from != disk.to) {
            let is_new = |file: &VmFile<PathBuf>| file.device == disk.device && file.place == disk.to;
            let fault = |source| AgentError::File { path: disk.from.clone(), source };
            let stays = old_file(&OldFile {
                persistent: whole.map(|facts| facts.persistent),
                obstacle: used.obstacle(&disk.from).map_err(fault)?,
                new_file_is_used: whole.is_some_and(|facts| facts.files.iter().any(is_new)) && next.iter().any(is_new),
            });
            match stays {
                Some(_) if disk.from.symlink_metadata().is_err() => {}
                Some(why) => findings.push(old_file_stays(&journal.request.vm_name, disk, why)),
                None => file::remove(&disk.from).map_err(fault)?,
            }
        }
        Ok(findings)
    }

    /// The new files that stay though the move did not end well, for whoever looks after them.
    fn new_files_that_stay(&self, journal: &Journal) -> Result<Vec<Finding>, AgentError> {
        let fates = self.fates(journal, &self.used(journal)?)?;
        let told = fates
            .iter()
            .zip(&journal.disks)
            .filter(|(fate, disk)| **fate == Cleanup::KeepAndReport && disk.to.symlink_metadata().is_ok());
        Ok(told.map(|(_, disk)| new_file_stays(&journal.request.vm_name, disk)).collect())
    }

    /// What becomes of each new file, now that no copy goes on.
    fn fates(&self, journal: &Journal, used: &InUse) -> Result<Vec<Cleanup>, AgentError> {
        let facts = self.hypervisor.vm(journal.request.vm)?;
        let runs = facts.filter(|facts| match facts.state {
            VmState::Running | VmState::Paused | VmState::Crashed | VmState::Suspended => true,
            VmState::Incoming | VmState::ShutOff => false,
        });
        let moved = matches!(journal.stage, StorageStage::Moved | StorageStage::Confirmed);
        let one = |disk: &Disk| {
            let is_old = |file: &VmFile<PathBuf>| file.device == disk.device && file.place == disk.from;
            let fault = |source| AgentError::File { path: disk.to.clone(), source };
            Ok(new_file(&NewFile {
                made: disk.made,
                in_use: disk.made && used.obstacle(&disk.to).map_err(fault)?.is_some(),
                switch_asked: disk.switch_asked,
                moved,
                old_file_runs: runs.as_ref().is_some_and(|facts| facts.files.iter().any(is_old)),
            }))
        };
        journal.disks.iter().map(one).collect()
    }

    /// Files that VMs of this host use. Not asked when nothing was made.
    fn used(&self, journal: &Journal) -> Result<InUse, AgentError> {
        match journal.disks.iter().any(|disk| disk.made) {
            true => files::in_use(self.hypervisor.files_in_use()?),
            false => files::in_use(BTreeSet::new()),
        }
    }

    /// Forgets it; what it made and cannot be needed is removed. Blocks. Ok if it is not known.
    ///
    /// # Errors
    /// When its copies cannot be ended or its files not be removed.
    pub fn release(&self, job: JobId, generation: Generation) -> Result<(), AgentError> {
        let _turn = self.turns.take(job)?;
        if let Ok(known) = self.known(job, generation) {
            self.forget(&known)?;
        }
        self.ended.remember(job, generation)
    }

    fn forget(&self, known: &Move) -> Result<(), AgentError> {
        if !known.end(Wish::Forget, END_WITHIN)? {
            return Err(AgentError::Carrier(format!("The storage move of job {} does not end", known.journal().job)));
        }
        known.abandon_all()?;
        let journal = settled(known)?;
        let used = self.used(&journal)?;
        for (index, (fate, disk)) in self.fates(&journal, &used)?.into_iter().zip(&journal.disks).enumerate() {
            match fate {
                Cleanup::Remove => {
                    journal.made(index).remove(&used, || false)?;
                    // Written down at once: whatever has its name afterwards is not ours.
                    known.write(|page| page.disks[index].made = false)?;
                    made_to_fail("agent-storage-new-file-removed")?;
                }
                Cleanup::Keep => {}
                Cleanup::KeepAndReport => {
                    let (vm, file) = (journal.request.vm, disk.to.display());
                    warn!(%vm, disk = disk.device, %file, "a new file stays: it may hold the newest data of its disk");
                }
            }
        }
        journal.remove(&self.folder)?;
        self.moves().remove(&journal.job);
        Ok(())
    }
}

/// Makes the file of a disk: under a name of the move's own first, so that a file of this name is somebody's or whole.
fn make_file(
    prepared: &Move,
    index: usize,
    format: DiskFormat,
    size: ByteCount,
    owner: (u32, u32),
) -> Result<(), AgentError> {
    let journal = prepared.journal();
    let (making, to) = (journal.making(index), &journal.disks[index].to);
    let fault = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => exists(to),
        _ => AgentError::File { path: to.clone(), source },
    };
    image::create(&making, format, size, owner).map_err(fault)?;
    made_to_fail("agent-storage-file-made")?;
    let identity = FileIdentity::of(&making).unwrap_or_default();
    prepared.write(|page| (page.disks[index].made, page.disks[index].identity) = (true, identity))?;
    file::rename_new(&making, to).map_err(fault)?;
    made_to_fail("agent-storage-file-named")
}

/// The journal with whether each new file is this attempt's, wherever the making of it was interrupted. What has another
/// name still is removed.
fn settled(known: &Move) -> Result<Journal, AgentError> {
    let journal = known.journal();
    for (index, disk) in journal.disks.iter().enumerate() {
        let making = journal.making(index);
        let fault = |source| AgentError::File { path: making.clone(), source };
        if making.symlink_metadata().is_err() {
            continue;
        }
        // Two names for a moment, where a file is named by a link. Written down while there is still something to see.
        let made = file::is_same(&making, &disk.to).map_err(fault)?;
        known.write(|page| page.disks[index].made = made)?;
        file::remove(&making).map_err(fault)?;
    }
    Ok(known.journal())
}

/// The definition goes where the disks went, and what is kept of it elsewhere follows. The disks have moved whatever
/// becomes of it.
fn keep_definition(
    journal: &Journal,
    facts: Option<&VmFacts<PathBuf>>,
    definition: &str,
    keep_source: bool,
) -> Vec<Finding> {
    let (vm, name) = (journal.request.vm, &journal.request.vm_name);
    let mut findings = Vec::new();
    let mut failed = |beside: &Path, why: String| {
        findings.push(Finding::warns(
            FindingId::DefinitionNotKept,
            beside.display(),
            format!("The definition of VM {name} beside {} is not of now: {why}", beside.display()),
            format!("See to the file {name}.xml there; `virsh dumpxml --inactive {name}` gives the definition"),
        ));
    };
    let mut kept = None;
    if journal.request.whole
        && let Some(disk) = journal.disks.first()
    {
        match definition_copy::keep(vm, name, definition, &disk.to) {
            Ok(Some(path)) => kept = Some(path),
            Ok(None) => failed(&disk.to, "another file is there".to_owned()),
            Err(error) => failed(&disk.to, error.to_string()),
        }
    }
    let is_used =
        |folder: Option<&Path>| facts.is_some_and(|facts| facts.files.iter().any(|file| file.place.parent() == folder));
    for disk in &journal.disks {
        let done = match journal.request.whole {
            true if keep_source => Ok(()),
            true => definition_copy::remove(vm, name, &disk.from, kept.as_deref()),
            // Chosen disks moved: what is beside one that was the last in its folder goes with it.
            false if keep_source || is_used(disk.from.parent()) => {
                definition_copy::refresh(vm, name, definition, &disk.from)
            }
            false => definition_copy::follow(vm, name, definition, &disk.from, &disk.to),
        };
        if let Err(error) = done {
            failed(&disk.from, error.to_string());
        }
    }
    // What is beside the disks that stayed names those that moved.
    let used = facts.map(|facts| facts.files.iter().map(|file| &file.place)).into_iter().flatten();
    for disk in used.filter(|_| !journal.request.whole) {
        if let Err(error) = definition_copy::refresh(vm, name, definition, disk) {
            failed(disk, error.to_string());
        }
    }
    findings
}

fn old_file_stays(vm: &str, disk: &Disk, why: OldFileStays) -> Finding {
    let file = disk.from.display();
    let (why, fix) = match why {
        OldFileStays::NotHere => {
            ("the VM is not on this host any more", "Look where the VM is and which files it uses")
        }
        OldFileStays::Transient => (
            "the host keeps no definition of the VM, and the one that it starts from names it",
            "Name the new file in that definition, then remove the old one",
        ),
        OldFileStays::Stands(obstacle) => (obstacle.why(), obstacle.fix()),
        OldFileStays::NewFileUnused => (
            "the definition by which the VM starts next does not name the new file",
            "Name the new file with `virsh edit`, then remove the old one",
        ),
    };
    old_file_kept(vm, &disk.device, file, why, fix)
}

fn new_file_stays(vm: &str, disk: &Disk) -> Finding {
    let file = disk.to.display();
    Finding::warns(
        FindingId::FileKept,
        file,
        format!(
            "The new file {} of disk {} of VM {vm} stays: the disk may have been switched over to it, and the VM does not \
             run on this host with the old one",
            disk.to.display(),
            disk.device
        ),
        "Look where the VM is and which file it uses, or was using when it ended; remove the other",
    )
}
