//! Moves of running VMs' disks to other files of this host.
//!
//! ```text
//! prepare: check, make the new files ─▶ perform: copy all, then switch one after the other ─▶ confirm: remove the old
//!             └────────── abort, release: end the copies, remove the new files that no VM uses ◀──┘
//! ```
//! QEMU copies; this says when it begins and when it switches over. A copy goes on while the agent is restarted, and
//! the agent goes on with it.

mod beside;
mod journal;
mod room;
mod run;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ferry_core::{
    api::agent::{ConfirmStorage, PrepareStorage, StorageReport, StorageStage},
    finding::{Finding, FindingId},
    id::{Generation, JobId},
    storage::{DiskMove, copy_takes, is_thick},
    units::ByteCount,
    vm::{VmFacts, VmState},
};
use ferry_drivers::{
    hypervisor::{Hypervisor, HypervisorError},
    image,
    places::{Places, Roots, RootsError},
};
use tokio::sync::watch;
use tracing::{info, warn};

pub(crate) use self::room::{Needs, Reserved};
use self::{
    journal::{Disk, Journal},
    run::Move,
};
use crate::{
    AgentError,
    config::Config,
    error::chain,
    files,
    places::{chain_takes, holds_no_snapshots},
    shares::Shares,
};

/// Storage moves that one host takes part in at once: a bound on threads, far above what slots allow.
const MOVES_MAX: usize = 64;
/// Disks of one move: more than a VM has.
const DISKS_MAX: usize = 64;
/// How long libvirt may take to end the copies of a move.
const END_WITHIN: Duration = Duration::from_secs(20);
/// Ended jobs whose last attempt is remembered: a request that was under way for so long does not come.
const ENDED_MAX: usize = 256;

/// The places of this host.
pub struct Reach {
    /// Paths of locations.
    pub places: Places,
    /// Where files may be.
    pub roots: Roots,
    /// Who knows how much room a share has.
    pub shares: Arc<Shares>,
    /// Room that other jobs' copies will still take.
    pub(crate) reserved: Vec<Reserved>,
}

/// The storage moves.
pub struct StorageMoves {
    folder: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    moves: Mutex<BTreeMap<JobId, Arc<Move>>>,
    /// Held by the request that changes a move.
    turn: Mutex<()>,
    ended: Mutex<BTreeMap<JobId, Generation>>,
}

impl StorageMoves {
    /// Reads the journals, and goes on with what went on.
    ///
    /// # Errors
    /// When one cannot be read: a move must not be forgotten silently.
    pub fn load(config: &Config, hypervisor: Arc<dyn Hypervisor>) -> Result<Self, AgentError> {
        let folder = config.state_dir.join("storage");
        files::ensure_private_dir(&folder)?;
        let mut moves = BTreeMap::new();
        for journal in Journal::read_all(&folder)? {
            let goes_on = matches!(journal.stage, StorageStage::Copying | StorageStage::Switching);
            info!(job = %journal.job, vm = %journal.request.vm, goes_on, "found a storage move again");
            let job = journal.job;
            let found = Move::new(&folder, Arc::clone(&hypervisor), journal);
            if goes_on {
                found.start().map_err(|error| AgentError::Carrier(error.to_string()))?;
            }
            moves.insert(job, found);
        }
        Ok(Self { folder, hypervisor, moves: Mutex::new(moves), turn: Mutex::default(), ended: Mutex::default() })
    }

    fn moves(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<Move>>> {
        self.moves.lock().expect("nobody panics while holding it")
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
        reach: &Reach,
    ) -> Result<StorageReport, AgentError> {
        let _turn = self.turn.lock().expect("nobody panics while holding it");
        made_to_fail("agent-prepare-storage")?;
        let ended = self.ended.lock().expect("nobody panics while holding it").get(&job).copied();
        let known = self.moves().get(&job).cloned();
        let newest = ended.max(known.as_ref().map(|known| known.journal().generation));
        if newest.is_some_and(|newest| newest > generation) || ended == Some(generation) {
            return Err(stale(job));
        }
        if let Some(known) = known {
            if known.journal().generation == generation {
                return Ok(known.report());
            }
            self.forget(&known)?;
        }
        if self.moves().len() >= MOVES_MAX || request.disks.len() > DISKS_MAX {
            return Err(AgentError::Carrier(format!("This host moves {MOVES_MAX} VMs' storage already")));
        }
        let disks = self.checked(&request, reach)?;
        let owner = self.hypervisor.process_owner()?;
        let journal = Journal { job, generation, request, disks, stage: StorageStage::Prepared, error: None };
        journal.write(&self.folder)?;
        let prepared = Move::new(&self.folder, Arc::clone(&self.hypervisor), journal);
        if let Err(error) = self.make_files(&prepared, owner) {
            self.forget(&prepared)?;
            return Err(error);
        }
        self.moves().insert(job, Arc::clone(&prepared));
        made_to_fail("agent-prepared-storage")?;
        Ok(prepared.report())
    }

    /// Room that copies which go on will still take.
    pub(crate) fn reserved(&self) -> Vec<Reserved> {
        let journals: Vec<Journal> = self.moves().values().map(|known| known.journal()).collect();
        let goes_on = |stage| matches!(stage, StorageStage::Prepared | StorageStage::Copying);
        let of_one = |journal: &Journal| -> Vec<Reserved> {
            let disks = journal.disks.iter().zip(&journal.request.disks).filter(|(disk, _)| disk.made);
            disks.map(|(disk, wanted)| Reserved::new(journal.job, &wanted.to, &disk.to, disk.allocated)).collect()
        };
        journals.iter().filter(|journal| goes_on(journal.stage)).flat_map(of_one).collect()
    }

    /// What stands against a move, without changing anything. Blocks.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn check(&self, request: &PrepareStorage, reach: &Reach) -> Result<Vec<ByteCount>, AgentError> {
        Ok(self.checked(request, reach)?.into_iter().map(|disk| disk.allocated).collect())
    }

    fn checked(&self, request: &PrepareStorage, reach: &Reach) -> Result<Vec<Disk>, AgentError> {
        let vm = request.vm;
        let facts = self.hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
        if facts.state != VmState::Running {
            return Err(refused(
                FindingId::VmNotRunning,
                &facts.name,
                format!("VM {} does not run on this host", facts.name),
                "Start it, or move its files offline",
            ));
        }
        let mut disks = Vec::with_capacity(request.disks.len());
        let mut needs = Needs::default();
        for wanted in &request.disks {
            let path = |location| {
                reach.places.path(location).ok_or_else(|| {
                    refused(
                        FindingId::FilePlace,
                        &wanted.device,
                        format!("A place of disk {} cannot be reached on this host", wanted.device),
                        "See what the host reaches with `ferry host show`",
                    )
                })
            };
            let disk = self.checked_disk(&facts, wanted, path(&wanted.from)?, path(&wanted.to)?)?;
            if disk.from != disk.to && !disk.made {
                needs.add(reach, &wanted.to, disk.allocated)?;
            }
            disks.push(disk);
        }
        needs.are_met(reach)?;
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
        let disk = Disk { device: device.clone(), from, to, made: false, allocated };
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
            return Err(refused(
                FindingId::FileExists,
                disk.to.display(),
                format!("{} is there already", disk.to.display()),
                "Remove it if nothing needs it, or choose another place",
            ));
        }
        Ok(disk)
    }

    fn make_files(&self, prepared: &Move, owner: (u32, u32)) -> Result<(), AgentError> {
        let journal = prepared.journal();
        let vm = journal.request.vm;
        let facts = self.hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
        for (index, (disk, wanted)) in journal.disks.iter().zip(&journal.request.disks).enumerate() {
            if facts.files.iter().any(|file| file.place == disk.to) {
                continue;
            }
            let size = self.hypervisor.disk_size(vm, &disk.device)?.virtual_size;
            image::create(&disk.to, wanted.format, size, owner).map_err(|source| match source.kind() {
                std::io::ErrorKind::AlreadyExists => refused(
                    FindingId::FileExists,
                    disk.to.display(),
                    format!("{} is there already", disk.to.display()),
                    "Remove it if nothing needs it, or choose another place",
                ),
                _ => AgentError::File { path: disk.to.clone(), source },
            })?;
            prepared.write(|page| page.disks[index].made = true)?;
        }
        Ok(())
    }

    /// Begins, or goes on; returns when it was started.
    ///
    /// # Errors
    /// When the attempt is not known.
    pub fn perform(&self, job: JobId, generation: Generation) -> Result<StorageReport, AgentError> {
        let _turn = self.turn.lock().expect("nobody panics while holding it");
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
        let _turn = self.turn.lock().expect("nobody panics while holding it");
        let known = self.known(job, generation)?;
        if known.report().stage == StorageStage::Prepared || known.report().stage == StorageStage::Copying {
            known.end(END_WITHIN);
        }
        match known.report().stage {
            StorageStage::Aborted | StorageStage::Failed => {}
            StorageStage::Prepared | StorageStage::Copying => {
                self.abandon_all(&known)?;
                known.write(|page| page.stage = StorageStage::Aborted)?;
            }
            StorageStage::Switching | StorageStage::Moved | StorageStage::Confirmed => {
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
        Ok(known.report())
    }

    fn abandon_all(&self, known: &Move) -> Result<(), AgentError> {
        for disk in &known.journal().disks {
            known.abandon(&disk.device)?;
        }
        Ok(())
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
        let _turn = self.turn.lock().expect("nobody panics while holding it");
        let known = self.known(job, generation)?;
        match known.report().stage {
            StorageStage::Confirmed => return Ok(known.report()),
            StorageStage::Moved => {}
            stage => return Err(AgentError::Carrier(format!("The disks of job {job} are not moved yet: {stage:?}"))),
        }
        made_to_fail("agent-storage-confirm")?;
        let journal = known.journal();
        if !request.keep_source {
            let used = self.hypervisor.files_in_use()?;
            for disk in journal.disks.iter().filter(|disk| disk.from != disk.to) {
                if used.contains(&disk.from) || !used.contains(&disk.to) {
                    warn!(vm = %journal.request.vm, disk = disk.device, "an old file stays: something uses it");
                    continue;
                }
                image::remove(&disk.from).map_err(|source| AgentError::File { path: disk.from.clone(), source })?;
            }
        }
        if journal.request.whole {
            self.keep_definition(&journal, request.keep_source);
        }
        made_to_fail("agent-storage-removed")?;
        known.write(|page| page.stage = StorageStage::Confirmed)?;
        Ok(known.report())
    }

    /// The definition goes where the disks went. The disks have moved whatever becomes of it.
    fn keep_definition(&self, journal: &Journal, keep_source: bool) {
        let (vm, name) = (journal.request.vm, &journal.request.vm_name);
        let Some(disk) = journal.disks.first() else { return };
        let kept = self.hypervisor.kept_definition(vm).map_err(|error| chain(&error));
        let kept = kept.and_then(|text| beside::keep(vm, name, &text, &disk.to).map_err(|error| error.to_string()));
        match kept {
            Ok(true) => {}
            Ok(false) => {
                warn!(%vm, beside = %disk.to.display(), "no copy of the definition is kept: another file is there")
            }
            Err(error) => warn!(%vm, beside = %disk.to.display(), error, "no copy of the definition could be kept"),
        }
        if !keep_source && disk.from.parent() != disk.to.parent() {
            for old in &journal.disks {
                if let Err(error) = beside::remove(vm, name, &old.from) {
                    warn!(%vm, beside = %old.from.display(), %error, "the old copy of the definition could not be removed");
                }
            }
        }
    }

    /// Forgets it; what it made and no VM uses is removed. Blocks. Ok if it is not known.
    ///
    /// # Errors
    /// When its copies cannot be ended or its files not be removed.
    pub fn release(&self, job: JobId, generation: Generation) -> Result<(), AgentError> {
        let _turn = self.turn.lock().expect("nobody panics while holding it");
        if let Ok(known) = self.known(job, generation) {
            self.forget(&known)?;
        }
        let mut ended = self.ended.lock().expect("nobody panics while holding it");
        ended.entry(job).and_modify(|known| *known = generation.max(*known)).or_insert(generation);
        while ended.len() > ENDED_MAX {
            ended.pop_first();
        }
        Ok(())
    }

    fn forget(&self, known: &Move) -> Result<(), AgentError> {
        let journal = known.journal();
        if !known.end(END_WITHIN) {
            return Err(AgentError::Carrier(format!("The storage move of job {} does not end", journal.job)));
        }
        self.abandon_all(known)?;
        let used = self.hypervisor.files_in_use()?;
        for disk in journal.disks.iter().filter(|disk| disk.made && !used.contains(&disk.to)) {
            image::remove(&disk.to).map_err(|source| AgentError::File { path: disk.to.clone(), source })?;
        }
        journal.remove(&self.folder)?;
        self.moves().remove(&journal.job);
        Ok(())
    }
}

fn refused(id: FindingId, object: impl std::fmt::Display, message: String, fix: &str) -> AgentError {
    AgentError::refused(409, Finding::blocks(id, object, message, fix))
}

fn stale(job: JobId) -> AgentError {
    AgentError::refused(
        409,
        Finding::blocks(
            FindingId::RequestStale,
            job,
            format!("The agent has already taken a newer request of job {job}"),
            "Nothing: the newer request counts",
        ),
    )
}

fn outside(error: &RootsError) -> AgentError {
    AgentError::refused(409, error.finding())
}

/// Lets a test fail the host's part of a step before or after its effect.
fn made_to_fail(point: &str) -> Result<(), AgentError> {
    fail::fail_point!(point, |_| Err(AgentError::Carrier(format!("A test made it fail at {point}"))));
    let _ = point;
    Ok(())
}
