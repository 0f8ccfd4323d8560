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

use super::journal::{Intent, Journal, State};
use crate::{
    AgentError,
    attempt::{self, Attempt, table::Entry},
    files::new_file::Lifecycle,
    lock::lock,
};

/// Poll interval of disks.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// Polls for which libvirt may be away, or a disk refuse to pivot, before the move fails. Copies continue in QEMU while
/// libvirt restarts.
const FAILED_POLLS_MAX: u32 = 300;

/// A move, shared by its requests and the thread that performs it.
pub(super) struct Move {
    folder: std::path::PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    record: Mutex<Record>,
    news: watch::Sender<Report>,
    changed: Condvar,
}

/// The journal, and whether a thread performs what it says.
struct Record {
    journal: Journal,
    runs: bool,
}

/// Reports the end of the thread on drop, however it ended.
struct Ended<'a>(&'a Move);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner).runs = false;
        self.0.changed.notify_all();
    }
}

/// The result of a poll.
enum PollResult {
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
            HypervisorError::NoVm(_)
            | HypervisorError::Aborted { .. }
            | HypervisorError::Failed { .. }
            | HypervisorError::Definition { .. } => Self::Lasting(chain(&error)),
        }
    }
}

impl Entry for Arc<Move> {
    fn attempt(&self) -> Attempt {
        let journal = &self.record().journal;
        Attempt { job: journal.job, generation: journal.generation, vm: journal.request.vm }
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
            error: journal.state.error().cloned(),
            findings: journal.findings.clone(),
            ..Report::new(journal.job, journal.generation, Role::Source, 1, journal.state.reported())
        };
        Arc::new(Self {
            folder: folder.to_owned(),
            hypervisor,
            record: Mutex::new(Record { journal, runs: false }),
            news: watch::Sender::new(report),
            changed: Condvar::new(),
        })
    }

    pub(super) fn journal(&self) -> Journal {
        self.record().journal.clone()
    }

    pub(super) fn state(&self) -> State {
        self.record().journal.state.clone()
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
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
            let mut record = self.record();
            let mut changed = record.journal.clone();
            change(&mut changed);
            if record.journal != changed {
                attempt::journal::write(&self.folder, changed.job, &changed)?;
                record.journal = changed;
            }
            let Journal { state, findings, .. } = &record.journal;
            (state.reported(), state.error().cloned(), findings.clone())
        };
        self.update_report(|report| (report.stage, report.error, report.findings) = (stage, error, findings));
        Ok(())
    }

    /// Adds findings for people. They are on disk when this returns.
    pub(super) fn add_findings(&self, findings: Vec<Finding>) -> Result<(), AgentError> {
        self.write(|journal| {
            for finding in findings {
                if !journal.findings.contains(&finding) {
                    journal.findings.push(finding);
                }
            }
        })
    }

    fn update_report(&self, change: impl FnOnce(&mut Report)) {
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
        let (job, vm) = {
            let mut record = self.record();
            if record.runs || record.journal.state.intent().is_none() {
                return Ok(());
            }
            record.runs = true;
            (record.journal.job, record.journal.request.vm)
        };
        let (this, span) = (Arc::clone(self), self.attempt().span());
        let started = std::thread::Builder::new().name(format!("storage-{job}")).spawn(move || {
            let _span = span.entered();
            let _ended = Ended(&this);
            let ran = catch_unwind(AssertUnwindSafe(|| match this.must_end() {
                false => this.run(),
                true => this.wind_up(),
            }));
            if ran.is_err() {
                this.fail("the agent's part of it panicked, which its log tells");
            }
        });
        if let Err(error) = started {
            self.record().runs = false;
            return Err(AgentError::because(format!("Could not go on with the disks of VM {vm}"), error));
        }
        Ok(())
    }

    /// Ends the thread, as far as `intent` demands. Returns whether it has ended within `deadline`, or there was none.
    /// The intent is stored on disk first, so that a restarted agent does not continue the move.
    pub(super) fn end(&self, intent: Intent, deadline: Duration) -> Result<bool, AgentError> {
        self.write(|journal| {
            if let Some(before) = journal.state.intent() {
                *before = intent.max(*before);
            }
        })?;
        self.changed.notify_all();
        let ended = self.changed.wait_timeout_while(self.record(), deadline, |record| record.runs);
        Ok(!ended.expect("nobody panics while holding it").0.runs)
    }

    /// It was too late to end the move: continue it.
    pub(super) fn go_on(self: &Arc<Self>) -> Result<(), AgentError> {
        self.write(|journal| {
            if let Some(intent) = journal.state.intent() {
                *intent = Intent::GoOn;
            }
        })?;
        self.start()
    }

    /// Whether the thread must stop.
    fn must_end(&self) -> bool {
        self.record().journal.state.must_end()
    }

    /// Ends copies that an earlier agent process was asked to end: they would otherwise continue in QEMU for ever.
    fn wind_up(&self) {
        for _ in 0..FAILED_POLLS_MAX {
            let ended = self.abandon_all().map_err(|error| chain(&error)).and_then(|()| {
                self.write(|journal| match journal.state {
                    State::Prepared { .. } | State::Copying { .. } => journal.state = State::Aborted,
                    State::Switching { .. } => {
                        journal.state = State::Failed { error: "it was given up between two disks".to_owned() };
                    }
                    State::Moved | State::Confirmed | State::Failed { .. } | State::Aborted => {}
                })
                .map_err(|error| chain(&error))
            });
            match ended {
                Ok(()) => return info!("A storage move that was to end has ended"),
                Err(reason) => info!(reason, "A storage move that was to end waits"),
            }
            std::thread::sleep(POLL_EVERY);
        }
        warn!("The copies of a storage move that was to end could not be ended");
    }

    fn run(&self) {
        let mut begun = vec![false; self.record().journal.disks.len()];
        let mut failed_polls = 0;
        loop {
            let outcome = self.poll(&mut begun);
            let mut pause = POLL_EVERY;
            match outcome {
                Ok(PollResult::Done) => {
                    info!("Every disk uses its new file");
                    return;
                }
                Ok(PollResult::Acted) => {
                    failed_polls = 0;
                    pause = Duration::ZERO;
                }
                Ok(PollResult::Waits) => failed_polls = 0,
                Err(Trouble::Passing(reason)) if failed_polls < FAILED_POLLS_MAX => {
                    failed_polls += 1;
                    info!(reason, "The storage move waits");
                }
                Err(Trouble::Passing(reason) | Trouble::Lasting(reason)) => {
                    warn!(reason, "The storage move failed");
                    self.fail(&reason);
                    return;
                }
            }
            let ends = self.changed.wait_timeout_while(self.record(), pause, |record| !record.journal.state.must_end());
            if ends.expect("nobody panics while holding it").0.journal.state.must_end() {
                return;
            }
        }
    }

    /// Polls every disk once, and acts on the result.
    fn poll(&self, begun: &mut [bool]) -> Result<PollResult, Trouble> {
        let journal = self.journal();
        let now: Vec<DiskNow> = self.see(&journal)?;
        let known: Vec<(&str, bool, DiskNow)> = journal
            .disks
            .iter()
            .zip(&*begun)
            .zip(&now)
            .map(|((disk, begun), now)| (&*disk.device, *begun, *now))
            .collect();
        let write = |change: &dyn Fn(&mut Journal)| self.write(change).map_err(|error| Trouble::Lasting(chain(&error)));
        match next(&known) {
            Next::Begin(index) => {
                write(&|journal| {
                    if let State::Prepared { intent } = journal.state {
                        journal.state = State::Copying { intent };
                    }
                })?;
                let (disk, requested) = (&journal.disks[index], &journal.request.disks[index]);
                let cap = journal.request.bandwidth_bytes_per_s;
                let at_once = now.iter().filter(|now| **now != DiskNow::New).count();
                self.hypervisor.copy_disk(&DiskCopyRequest {
                    vm: journal.request.vm,
                    device: disk.device.clone(),
                    to: disk.to.clone(),
                    format: requested.format,
                    bandwidth_bytes_per_s: cap.map(|cap| share_of_cap(cap, at_once)),
                })?;
                begun[index] = true;
            }
            Next::Wait => {
                // Including those whose copy an earlier agent process began.
                for (begun, now) in begun.iter_mut().zip(&now) {
                    *begun |= matches!(now, DiskNow::Copying | DiskNow::Ready);
                }
                return Ok(PollResult::Waits);
            }
            Next::Pivot(index) => {
                fail::fail_point!("agent-storage-ready");
                // From here on the new file may contain the only copy of some data.
                write(&|journal| {
                    if !journal.state.must_end()
                        && let Some(intent) = journal.state.intent().copied()
                    {
                        journal.state = State::Switching { intent };
                        journal.disks[index].lifecycle = journal.disks[index].lifecycle.then(Lifecycle::HandedOver);
                    }
                })?;
                if self.must_end() {
                    return Ok(PollResult::Waits);
                }
                fail::fail_point!("agent-storage-pivot", |_| Err(Trouble::Lasting("A test made it fail".to_owned())));
                let device = &journal.disks[index].device;
                if let Err(error) = self.hypervisor.pivot_disk(journal.request.vm, device) {
                    // The next poll shows which file the disk uses.
                    return Err(Trouble::Passing(chain(&error)));
                }
                fail::fail_point!("agent-storage-pivoted");
            }
            Next::Done => {
                write(&|journal| journal.state = State::Moved)?;
                return Ok(PollResult::Done);
            }
            Next::Fail(reason) => return Err(Trouble::Lasting(self.explained(&journal, &now, &reason))),
        }
        Ok(PollResult::Acted)
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
            self.update_report(|report| {
                let progress = &mut report.disks[index];
                progress.stage = match now {
                    DiskNow::Copying => DiskStage::Copying,
                    DiskNow::Ready => DiskStage::Ready,
                    DiskNow::New => DiskStage::Moved,
                    DiskNow::Old | DiskNow::CopiedElsewhere | DiskNow::Elsewhere => progress.stage,
                };
                if let Some(copy) = &copy {
                    progress.update(copy.copied, copy.total);
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
        // Remaining copies would continue for ever.
        if let Err(error) = self.abandon_all() {
            warn!(error = %chain(&error), "A copy of a disk could not be ended");
        }
        let written = self.write(|journal| journal.state = State::Failed { error: reason.to_owned() });
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
