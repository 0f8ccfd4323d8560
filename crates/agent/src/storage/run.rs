//! One storage move while it goes on: looks at every disk, does what comes next, and looks again.

use std::{
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use ferry_core::{
    api::agent::{StorageReport, StorageStage},
    storage::{DiskNow, DiskProgress, DiskStage, Next, next},
    units::ByteCount,
};
use ferry_drivers::{
    hypervisor::{DiskCopyRequest, Hypervisor, HypervisorError},
    image,
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::journal::Journal;
use crate::error::chain;

/// How often disks are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long libvirt may be away, or a disk refuse to switch over, before the move is given up. Copies go on in QEMU
/// while libvirt is restarted.
const PATIENCE_LOOKS: u32 = 300;

/// A move, shared by the requests about it and the thread that does it.
pub(super) struct Move {
    folder: std::path::PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    journal: Mutex<Journal>,
    news: watch::Sender<StorageReport>,
    wish: Mutex<Wish>,
    changed: Condvar,
}

/// What requests want of the thread, and whether there is one.
#[derive(Clone, Copy, Default)]
struct Wish {
    ends: bool,
    runs: bool,
}

/// What a look led to.
enum Looked {
    /// Every disk is moved.
    Done,
    /// Something was done: what follows from it may be there at once.
    Acted,
    /// It goes on by itself.
    Waits,
}

/// Why a look led nowhere.
enum Trouble {
    /// It may pass.
    Passing(String),
    /// It does not pass.
    Lasting(String),
}

impl From<HypervisorError> for Trouble {
    fn from(error: HypervisorError) -> Self {
        match error {
            HypervisorError::Unreachable(_) => Self::Passing(chain(&error)),
            error => Self::Lasting(chain(&error)),
        }
    }
}

impl Move {
    pub(super) fn new(folder: &Path, hypervisor: Arc<dyn Hypervisor>, journal: Journal) -> Arc<Self> {
        let disks = journal.disks.iter().map(|disk| DiskProgress {
            device: disk.device.clone(),
            allocated_before: disk.allocated,
            ..DiskProgress::default()
        });
        let report = StorageReport {
            job: journal.job,
            generation: journal.generation,
            sequence: 1,
            stage: journal.stage,
            disks: disks.collect(),
            error: journal.error.clone(),
        };
        Arc::new(Self {
            folder: folder.to_owned(),
            hypervisor,
            journal: Mutex::new(journal),
            news: watch::Sender::new(report),
            wish: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    pub(super) fn journal(&self) -> Journal {
        self.page().clone()
    }

    fn page(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().expect("nobody panics while holding it")
    }

    pub(super) fn report(&self) -> StorageReport {
        self.news.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<StorageReport> {
        self.news.subscribe()
    }

    /// Changes the journal. On the disk when it returns.
    pub(super) fn write(&self, change: impl FnOnce(&mut Journal)) -> Result<(), crate::AgentError> {
        let (stage, error) = {
            let mut page = self.page();
            let mut changed = page.clone();
            change(&mut changed);
            if *page != changed {
                changed.write(&self.folder)?;
                *page = changed;
            }
            (page.stage, page.error.clone())
        };
        self.tell(|report| (report.stage, report.error) = (stage, error));
        Ok(())
    }

    fn tell(&self, change: impl FnOnce(&mut StorageReport)) {
        self.news.send_if_modified(|report| {
            let mut changed = report.clone();
            change(&mut changed);
            let news = *report != changed;
            if news {
                changed.sequence = report.sequence + 1;
                *report = changed;
            }
            news
        });
    }

    /// Starts the thread, unless it runs or the move has ended.
    pub(super) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let stage = self.page().stage;
        if !matches!(stage, StorageStage::Prepared | StorageStage::Copying | StorageStage::Switching) {
            return Ok(());
        }
        {
            let mut wish = self.wishes();
            if wish.runs || wish.ends {
                return Ok(());
            }
            wish.runs = true;
        }
        let this = Arc::clone(self);
        let name = format!("storage-{}", self.page().job);
        let started = std::thread::Builder::new().name(name).spawn(move || {
            this.run();
            this.wishes().runs = false;
            this.changed.notify_all();
        });
        if started.is_err() {
            self.wishes().runs = false;
        }
        started.map(drop)
    }

    fn wishes(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().expect("nobody panics while holding it")
    }

    /// Ends the thread before the first disk is switched over. Whether it has ended within `deadline`, or there was none.
    pub(super) fn end(&self, deadline: Duration) -> bool {
        let mut wish = self.wishes();
        wish.ends = true;
        self.changed.notify_all();
        let ended = self.changed.wait_timeout_while(wish, deadline, |wish| wish.runs);
        !ended.expect("nobody panics while holding it").0.runs
    }

    fn run(&self) {
        let Journal { request, job, disks, .. } = self.journal();
        let vm = request.vm;
        let mut begun = vec![false; disks.len()];
        let mut looks_in_vain = 0;
        loop {
            let outcome = self.look(&mut begun);
            let mut pause = LOOK_EVERY;
            match outcome {
                Ok(Looked::Done) => {
                    info!(%vm, %job, "every disk uses its new file");
                    return;
                }
                Ok(Looked::Acted) => {
                    looks_in_vain = 0;
                    pause = Duration::ZERO;
                }
                Ok(Looked::Waits) => looks_in_vain = 0,
                Err(Trouble::Passing(reason)) if looks_in_vain < PATIENCE_LOOKS => {
                    looks_in_vain += 1;
                    info!(%vm, %job, reason, "the storage move waits");
                }
                Err(Trouble::Passing(reason) | Trouble::Lasting(reason)) => {
                    warn!(%vm, %job, reason, "the storage move failed");
                    self.fail(&reason);
                    return;
                }
            }
            let wish = self.wishes();
            let waited = self.changed.wait_timeout_while(wish, pause, |wish| !wish.ends);
            let ends = waited.expect("nobody panics while holding it").0.ends;
            if ends && self.page().stage != StorageStage::Switching {
                return;
            }
        }
    }

    /// One look at every disk, and what follows from it.
    fn look(&self, begun: &mut [bool]) -> Result<Looked, Trouble> {
        let journal = self.journal();
        let now: Vec<DiskNow> = self.see(&journal)?;
        let known: Vec<(&str, bool, DiskNow)> = journal
            .disks
            .iter()
            .zip(&*begun)
            .zip(&now)
            .map(|((disk, begun), now)| (&*disk.device, *begun, *now))
            .collect();
        let stage = |stage| self.write(|page| page.stage = stage).map_err(|error| Trouble::Lasting(chain(&error)));
        match next(&known) {
            Next::Begin(index) => {
                stage(StorageStage::Copying)?;
                let (disk, wanted) = (&journal.disks[index], &journal.request.disks[index]);
                self.hypervisor.copy_disk(&DiskCopyRequest {
                    vm: journal.request.vm,
                    device: disk.device.clone(),
                    to: disk.to.clone(),
                    format: wanted.format,
                    bandwidth_bytes_per_s: journal.request.bandwidth_bytes_per_s,
                })?;
                begun[index] = true;
            }
            Next::Wait => {
                // Also those whose copy an earlier life of this process began.
                for (begun, now) in begun.iter_mut().zip(&now) {
                    *begun |= matches!(now, DiskNow::Copying | DiskNow::Ready);
                }
                return Ok(Looked::Waits);
            }
            Next::Pivot(index) => {
                fail::fail_point!("agent-storage-ready");
                if self.wishes().ends && journal.stage != StorageStage::Switching {
                    return Ok(Looked::Waits);
                }
                stage(StorageStage::Switching)?;
                fail::fail_point!("agent-storage-pivot", |_| Err(Trouble::Lasting("A test made it fail".to_owned())));
                let device = &journal.disks[index].device;
                if let Err(error) = self.hypervisor.pivot_disk(journal.request.vm, device) {
                    // What the disk uses is seen at the next look.
                    return Err(Trouble::Passing(chain(&error)));
                }
                fail::fail_point!("agent-storage-pivoted");
            }
            Next::Done => {
                stage(StorageStage::Moved)?;
                return Ok(Looked::Done);
            }
            Next::Fail(reason) => return Err(Trouble::Lasting(self.explained(&journal, &now, &reason))),
        }
        Ok(Looked::Acted)
    }

    /// What the hypervisor says of each disk; told to whoever listens.
    fn see(&self, journal: &Journal) -> Result<Vec<DiskNow>, Trouble> {
        let vm = journal.request.vm;
        let facts = self.hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
        let mut all = Vec::with_capacity(journal.disks.len());
        for (index, disk) in journal.disks.iter().enumerate() {
            let in_use = facts.files.iter().find(|file| file.device == disk.device).map(|file| &file.place);
            let copy = if in_use == Some(&disk.from) { self.hypervisor.disk_copy(vm, &disk.device)? } else { None };
            let now = match (in_use, &copy) {
                (Some(file), _) if *file == disk.to => DiskNow::New,
                (Some(file), None) if *file == disk.from => DiskNow::Old,
                (Some(_), Some(copy)) if copy.to != disk.to => DiskNow::CopiedElsewhere,
                (Some(_), Some(copy)) if copy.ready => DiskNow::Ready,
                (Some(_), Some(_)) => DiskNow::Copying,
                (Some(_) | None, None) | (None, Some(_)) => DiskNow::Elsewhere,
            };
            let after = if now == DiskNow::New { image::allocated(&disk.to).unwrap_or_default() } else { ByteCount(0) };
            self.tell(|report| {
                let progress = &mut report.disks[index];
                progress.stage = match now {
                    DiskNow::Copying => DiskStage::Copying,
                    DiskNow::Ready => DiskStage::Ready,
                    DiskNow::New => DiskStage::Moved,
                    DiskNow::Old | DiskNow::CopiedElsewhere | DiskNow::Elsewhere => progress.stage,
                };
                if let Some(copy) = &copy {
                    progress.total = copy.total;
                    progress.copied = ByteCount(copy.copied.0.max(progress.copied.0).min(copy.total.0));
                }
                if now == DiskNow::New {
                    progress.copied = progress.total;
                    progress.allocated_after = after;
                }
            });
            all.push(now);
        }
        Ok(all)
    }

    /// The reason with what else is known: how much room there is, and which disks were moved.
    fn explained(&self, journal: &Journal, now: &[DiskNow], reason: &str) -> String {
        let full = journal.disks.iter().zip(now).filter(|(_, now)| **now == DiskNow::Old).find_map(|(disk, _)| {
            let folder = disk.to.parent()?;
            let (_, free) = image::free(folder).ok()?;
            free.filter(|free| *free < ByteCount::mib(16))
                .map(|free| format!("; the file system of the new file has {} MiB left", free.0 >> 20))
        });
        format!("{reason}{}", full.unwrap_or_default())
    }

    fn fail(&self, reason: &str) {
        let journal = self.journal();
        // Copies that are left would go on for ever.
        for disk in &journal.disks {
            if let Err(error) = self.abandon(disk.device.as_str()) {
                warn!(vm = %journal.request.vm, error = %chain(&error), "a copy of a disk could not be ended");
            }
        }
        let written = self.write(|page| {
            page.stage = StorageStage::Failed;
            page.error = Some(reason.to_owned());
        });
        if let Err(error) = written {
            warn!(error = %chain(&error), "a failed storage move could not be written down");
        }
    }

    /// Ends the copy of a disk if it is this move's.
    pub(super) fn abandon(&self, device: &str) -> Result<(), HypervisorError> {
        let journal = self.journal();
        let vm = journal.request.vm;
        let Some(disk) = journal.disks.iter().find(|disk| disk.device == device) else { return Ok(()) };
        match self.hypervisor.disk_copy(vm, device) {
            Ok(Some(copy)) if copy.to == disk.to => self.hypervisor.abandon_disk_copy(vm, device),
            Ok(_) | Err(HypervisorError::NoVm(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
