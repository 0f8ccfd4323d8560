//! One running storage move: polls every disk, takes the next action, and polls again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ferry_core::{
    api::agent::{Report, Role},
    error::chain,
    files::{
        DiskProgress, DiskStage,
        block_copy::{DiskNow, Next, next, share_of_cap},
    },
    finding::Finding,
    units::ByteCount,
};
use ferry_drivers::{
    file,
    hypervisor::{DiskCopyRequest, Hypervisor, HypervisorError},
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::journal::{Journal, Stage, Wish};
use crate::{
    AgentError,
    attempt::{self, Attempt, table::Entry},
    lock::lock,
};

/// Poll interval of disks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Polls for which libvirt may be away, or a disk refuse to pivot, before the move fails. Copies continue in QEMU while
/// libvirt restarts.
const PATIENCE_LOOKS: u32 = 300;

/// A move, shared by its requests and the thread that performs it.
pub(super) struct Move {
    folder: std::path::PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    journal: Mutex<Journal>,
    news: watch::Sender<Report>,
    thread: Mutex<Thread>,
    changed: Condvar,
}

/// The outcome requested from the thread, and whether a thread runs.
#[derive(Clone, Copy, Default)]
struct Thread {
    wish: Wish,
    runs: bool,
}

/// Reports the end of the thread on drop, however it ended.
struct Ended<'a>(&'a Move);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).runs = false;
        self.0.changed.notify_all();
    }
}

/// The result of a poll.
enum Looked {
    /// Every disk has moved.
    Done,
    /// An action was taken: its result may be visible at once.
    Acted,
    /// Nothing to do: the copies continue.
    Waits,
}

/// Why a poll failed.
enum Trouble {
    /// Temporary.
    Passing(String),
    /// Permanent.
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

impl Entry for Arc<Move> {
    fn attempt(&self) -> Attempt {
        let page = self.page();
        Attempt { job: page.job, generation: page.generation, vm: page.request.vm }
    }
}

impl Move {
    pub(super) fn new(folder: &Path, hypervisor: Arc<dyn Hypervisor>, journal: Journal) -> Arc<Self> {
        let disks = journal.disks.iter().map(|disk| DiskProgress {
            device: disk.device.clone(),
            allocated_before: disk.allocated,
            ..DiskProgress::default()
        });
        let report = Report {
            disks: disks.collect(),
            error: journal.error.clone(),
            findings: journal.findings.clone(),
            ..Report::new(journal.job, journal.generation, Role::Source, 1, journal.stage.reported())
        };
        Arc::new(Self {
            folder: folder.to_owned(),
            hypervisor,
            journal: Mutex::new(journal),
            news: watch::Sender::new(report),
            thread: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    pub(super) fn journal(&self) -> Journal {
        self.page().clone()
    }

    pub(super) fn stage(&self) -> Stage {
        self.page().stage
    }

    fn page(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }

    pub(super) fn report(&self) -> Report {
        self.news.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Report> {
        self.news.subscribe()
    }

    /// Changes the journal. It is on disk when this returns.
    pub(super) fn write(&self, change: impl FnOnce(&mut Journal)) -> Result<(), AgentError> {
        let (stage, error, findings) = {
            let mut page = self.page();
            let mut changed = page.clone();
            change(&mut changed);
            if *page != changed {
                attempt::journal::write(&self.folder, changed.job, &changed)?;
                *page = changed;
            }
            (page.stage, page.error.clone(), page.findings.clone())
        };
        self.tell(|report| (report.stage, report.error, report.findings) = (stage.reported(), error, findings));
        Ok(())
    }

    /// Adds findings for people. They are on disk when this returns.
    pub(super) fn say(&self, findings: Vec<Finding>) -> Result<(), AgentError> {
        self.write(|page| {
            for finding in findings {
                if !page.findings.contains(&finding) {
                    page.findings.push(finding);
                }
            }
        })
    }

    fn tell(&self, change: impl FnOnce(&mut Report)) {
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

    /// Starts the thread, unless it is running or the move has ended. For a move that must end, the thread ends its
    /// copies.
    pub(super) fn start(self: &Arc<Self>) -> Result<(), AgentError> {
        let (stage, wish) = {
            let page = self.page();
            (page.stage, page.wish)
        };
        if !matches!(stage, Stage::Prepared | Stage::Copying | Stage::Switching) {
            return Ok(());
        }
        {
            let mut thread = self.thread();
            if thread.runs || thread.wish != Wish::GoOn {
                return Ok(());
            }
            (thread.runs, thread.wish) = (true, wish);
        }
        let this = Arc::clone(self);
        let name = format!("storage-{}", self.page().job);
        let started = std::thread::Builder::new().name(name).spawn(move || {
            let _ended = Ended(&this);
            let ran = catch_unwind(AssertUnwindSafe(|| match this.must_end(stage) {
                false => this.run(),
                true => this.wind_up(),
            }));
            if ran.is_err() {
                this.fail("the agent's part of it panicked, which its log tells");
            }
        });
        if let Err(error) = started {
            self.thread().runs = false;
            return Err(AgentError::because(
                format!("Could not go on with the disks of VM {}", self.page().request.vm),
                error,
            ));
        }
        Ok(())
    }

    fn thread(&self) -> MutexGuard<'_, Thread> {
        lock(&self.thread)
    }

    /// Ends the thread, as far as `wish` demands. Returns whether it has ended within `deadline`, or there was none.
    /// The wish is stored on disk first, so that a restarted agent does not continue the move.
    pub(super) fn end(&self, wish: Wish, deadline: Duration) -> Result<bool, AgentError> {
        self.write(|page| page.wish = page.wish.max(wish))?;
        let mut thread = self.thread();
        thread.wish = thread.wish.max(wish);
        self.changed.notify_all();
        let ended = self.changed.wait_timeout_while(thread, deadline, |thread| thread.runs);
        Ok(!ended.expect("nobody panics while holding it").0.runs)
    }

    /// It was too late to end the move: continue it.
    pub(super) fn go_on(self: &Arc<Self>) -> Result<(), AgentError> {
        self.write(|page| page.wish = Wish::GoOn)?;
        self.thread().wish = Wish::GoOn;
        self.start()
    }

    /// Whether the thread must stop, if the move is at `stage`.
    fn must_end(&self, stage: Stage) -> bool {
        match self.thread().wish {
            Wish::GoOn => false,
            Wish::End => stage != Stage::Switching,
            Wish::Forget => true,
        }
    }

    /// Ends copies that an earlier agent process was asked to end: they would otherwise continue in QEMU for ever.
    fn wind_up(&self) {
        let Journal { request, job, stage, .. } = self.journal();
        for _ in 0..PATIENCE_LOOKS {
            let ended = self.abandon_all().map_err(|error| chain(&error)).and_then(|()| {
                self.write(|page| match stage {
                    Stage::Switching => {
                        page.stage = Stage::Failed;
                        page.error = Some("it was given up between two disks".to_owned());
                    }
                    _ => page.stage = Stage::Aborted,
                })
                .map_err(|error| chain(&error))
            });
            match ended {
                Ok(()) => return info!(vm = %request.vm, %job, "A storage move that was to end has ended"),
                Err(reason) => info!(vm = %request.vm, %job, reason, "A storage move that was to end waits"),
            }
            std::thread::sleep(LOOK_EVERY);
        }
        warn!(vm = %request.vm, %job, "The copies of a storage move that was to end could not be ended");
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
                    info!(%vm, %job, "Every disk uses its new file");
                    return;
                }
                Ok(Looked::Acted) => {
                    looks_in_vain = 0;
                    pause = Duration::ZERO;
                }
                Ok(Looked::Waits) => looks_in_vain = 0,
                Err(Trouble::Passing(reason)) if looks_in_vain < PATIENCE_LOOKS => {
                    looks_in_vain += 1;
                    info!(%vm, %job, reason, "The storage move waits");
                }
                Err(Trouble::Passing(reason) | Trouble::Lasting(reason)) => {
                    warn!(%vm, %job, reason, "The storage move failed");
                    self.fail(&reason);
                    return;
                }
            }
            let stage = self.page().stage;
            if !self.must_end(stage) {
                let before = self.thread();
                let was = before.wish;
                let waited = self.changed.wait_timeout_while(before, pause, |thread| thread.wish == was);
                drop(waited.expect("nobody panics while holding it"));
            }
            if self.must_end(stage) {
                return;
            }
        }
    }

    /// Polls every disk once, and acts on the result.
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
                stage(Stage::Copying)?;
                let (disk, wanted) = (&journal.disks[index], &journal.request.disks[index]);
                let cap = journal.request.bandwidth_bytes_per_s;
                let at_once = now.iter().filter(|now| **now != DiskNow::New).count();
                self.hypervisor.copy_disk(&DiskCopyRequest {
                    vm: journal.request.vm,
                    device: disk.device.clone(),
                    to: disk.to.clone(),
                    format: wanted.format,
                    bandwidth_bytes_per_s: cap.map(|cap| share_of_cap(cap, at_once)),
                })?;
                begun[index] = true;
            }
            Next::Wait => {
                // Including those whose copy an earlier agent process began.
                for (begun, now) in begun.iter_mut().zip(&now) {
                    *begun |= matches!(now, DiskNow::Copying | DiskNow::Ready);
                }
                return Ok(Looked::Waits);
            }
            Next::Pivot(index) => {
                fail::fail_point!("agent-storage-ready");
                if self.must_end(journal.stage) {
                    return Ok(Looked::Waits);
                }
                // From here on the new file may contain the only copy of some data.
                let asked = self.write(|page| {
                    page.stage = Stage::Switching;
                    page.disks[index].switch_asked = true;
                });
                asked.map_err(|error| Trouble::Lasting(chain(&error)))?;
                fail::fail_point!("agent-storage-pivot", |_| Err(Trouble::Lasting("A test made it fail".to_owned())));
                let device = &journal.disks[index].device;
                if let Err(error) = self.hypervisor.pivot_disk(journal.request.vm, device) {
                    // The next poll shows which file the disk uses.
                    return Err(Trouble::Passing(chain(&error)));
                }
                fail::fail_point!("agent-storage-pivoted");
            }
            Next::Done => {
                stage(Stage::Moved)?;
                return Ok(Looked::Done);
            }
            Next::Fail(reason) => return Err(Trouble::Lasting(self.explained(&journal, &now, &reason))),
        }
        Ok(Looked::Acted)
    }

    /// Queries the state of each disk, and publishes it.
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
            let after = if now == DiskNow::New { file::allocated(&disk.to).unwrap_or_default() } else { ByteCount(0) };
            self.tell(|report| {
                let progress = &mut report.disks[index];
                progress.stage = match now {
                    DiskNow::Copying => DiskStage::Copying,
                    DiskNow::Ready => DiskStage::Ready,
                    DiskNow::New => DiskStage::Moved,
                    DiskNow::Old | DiskNow::CopiedElsewhere | DiskNow::Elsewhere => progress.stage,
                };
                if let Some(copy) = &copy {
                    progress.looked(copy.copied, copy.total);
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

    /// The reason with further facts: the free space, and which disks were moved.
    fn explained(&self, journal: &Journal, now: &[DiskNow], reason: &str) -> String {
        let full = journal.disks.iter().zip(now).filter(|(_, now)| **now == DiskNow::Old).find_map(|(disk, _)| {
            let folder = disk.to.parent()?;
            let (_, free) = file::free(folder).ok()?;
            free.filter(|free| *free < ByteCount::mib(16))
                .map(|free| format!("; the file system of the new file has {} MiB left", free.0 >> 20))
        });
        format!("{reason}{}", full.unwrap_or_default())
    }

    fn fail(&self, reason: &str) {
        let journal = self.journal();
        // Remaining copies would continue for ever.
        if let Err(error) = self.abandon_all() {
            warn!(vm = %journal.request.vm, error = %chain(&error), "A copy of a disk could not be ended");
        }
        let written = self.write(|page| {
            page.stage = Stage::Failed;
            page.error = Some(reason.to_owned());
        });
        if let Err(error) = written {
            warn!(error = %chain(&error), "A failed storage move could not be written down");
        }
    }

    /// Ends every copy of this move.
    ///
    /// # Errors
    /// The first copy that could not be ended; the others are.
    pub(super) fn abandon_all(&self) -> Result<(), HypervisorError> {
        let ended: Vec<_> = self.journal().disks.iter().map(|disk| self.abandon(&disk.device)).collect();
        ended.into_iter().collect()
    }

    /// Ends the copy of a disk if it belongs to this move.
    fn abandon(&self, device: &str) -> Result<(), HypervisorError> {
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
