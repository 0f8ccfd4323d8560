//! A move of a running VM's disks to other files of its host, step by step:
//!
//! 1. **Preflight** asks anew what stands against it, of what is known and of the host: a job may have waited.
//! 2. **Reserve** comes before the first change: from here on no other job touches the VM.
//! 3. **PrepareDestination** makes the new files, thin and empty. What fails for reasons of places has failed by now.
//! 4. **Perform** copies all disks, and switches them over one after the other when all are ready. Before the first is
//!    switched over it can be taken back. An error after that leaves some disks moved and others not, which is a legal
//!    state: the VM runs, and another attempt of the job moves the others.
//! 5. **Confirm** removes the old files that nobody uses any more; the job says which stay.
//! 6. **Release** lets the agent forget the move, and gives the VM free.
//!
//! Which file a disk uses is asked of the host. New files are removed only while they cannot hold what no other file
//! holds, old ones only when every disk has moved and every definition names the new files.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{ConfirmStorage, StorageReport, StorageStage},
    files::{DiskProgress, DiskStage},
    finding::{Finding, FindingId},
    migration::Step,
    units::ByteCount,
};

use super::{
    Context,
    executor::{Saga, StepFailed},
    note,
    participant::failed,
};
use crate::{
    clock::now_ms,
    failure::{describe, has_finding},
    inventory::{Host, Inventory, Seen},
    jobs::running::Running,
    plan::storage::StoragePlan,
    preflight::{storage::blocks_now, users::needed_by_others_now},
    store::{JobRecord, LogEntry, Store},
};

/// How long the agent may hold the question how the move stands.
const REPORT_WAIT: Duration = Duration::from_secs(2);
/// How long to wait before an agent that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// One running storage move.
pub(crate) struct MoveStorage {
    context: Context,
    record: JobRecord,
    plan: StoragePlan,
    host: Arc<Host>,
    running: Arc<Running>,
    last: Mutex<Vec<DiskProgress>>,
    /// The job's, with what was found meanwhile.
    findings: Mutex<Vec<Finding>>,
}

impl MoveStorage {
    /// Takes up a job, new or found in the database.
    ///
    /// # Errors
    /// A message, when the job's host or plan is not there any more: both are kept while a job is open.
    pub(crate) fn new(context: Context, record: JobRecord, running: Arc<Running>) -> Result<Self, String> {
        let plan =
            StoragePlan::from_json(&record.job.plan).map_err(|error| format!("its plan is unreadable: {error}"))?;
        let name = &record.job.source;
        let host = context
            .preflight
            .inventory
            .by_id(name.id)
            .ok_or_else(|| format!("host {} is not in the inventory", name.name))?;
        let last = Mutex::new(plan.disks.clone());
        let findings = Mutex::new(record.job.findings.clone());
        Ok(Self { context, record, plan, host, running, last, findings })
    }

    fn store(&self) -> &Store {
        &self.context.preflight.store
    }

    fn inventory(&self) -> &Arc<Inventory> {
        &self.context.preflight.inventory
    }

    fn attempt(&self) -> Attempt {
        Attempt { job: self.record.id, generation: self.plan.generation }
    }

    async fn preflight(&self) -> Result<(), StepFailed> {
        self.inventory().refresh(&self.host).await;
        let blocks = blocks_now(self.inventory(), &self.host, &self.plan.request);
        if !blocks.is_empty() {
            self.found(&blocks).await;
            let messages: Vec<&str> = blocks.iter().map(|finding| finding.message.as_str()).collect();
            return Err(StepFailed(messages.join("; ")));
        }
        let checked = self.host.agent.check_storage(&self.plan.request).await;
        checked.map(drop).map_err(|error| self.failed(&error))
    }

    /// Keeps what was found, among the job's findings and in its log.
    async fn found(&self, found: &[Finding]) {
        let (fresh, all) = {
            let mut known = self.findings.lock().expect("nobody panics with it");
            let fresh: Vec<Finding> = found.iter().filter(|finding| !known.contains(finding)).cloned().collect();
            known.extend(fresh.iter().cloned());
            (fresh, known.clone())
        };
        if fresh.is_empty() {
            return;
        }
        let note = |finding: &Finding| LogEntry::Note(format!("{}. {}", finding.message, finding.fix));
        let notes: Vec<LogEntry> = fresh.iter().map(note).collect();
        let store = self.store();
        self.running.kept(|| store.put_findings(self.record.id, &all)).await;
        self.running.kept(|| store.append(self.record.id, &notes, now_ms())).await;
    }

    async fn reserve(&self) -> Result<(), StepFailed> {
        match self.running.kept(|| self.store().reserve(self.record.job.vm, self.record.id)).await {
            job if job == self.record.id => Ok(()),
            other => Err(StepFailed(format!("Job {other} has reserved VM {}", self.record.job.vm_name))),
        }
    }

    /// Until every disk is moved, or it is known that they will not be.
    async fn perform(&self) -> Result<(), StepFailed> {
        let mut begun = false;
        let mut past_pivot = false;
        let mut after = 0;
        loop {
            let cancelled = self.running.cancelled.is_cancelled() && !past_pivot;
            let asked = match (cancelled, begun) {
                (true, _) => self.host.agent.abort_storage(self.attempt()).await,
                (false, false) => self.host.agent.perform_storage(self.attempt()).await,
                (false, true) => {
                    let report = self.host.agent.report_storage(self.attempt(), after, REPORT_WAIT);
                    tokio::select! {
                        report = report => report,
                        () = self.running.cancelled.cancelled(), if !past_pivot => continue,
                    }
                }
            };
            let report = match asked {
                Ok(report) => report,
                Err(error) if has_finding(&error, FindingId::JobPastPivot) => {
                    past_pivot = true;
                    continue;
                }
                Err(error) if error.problem().is_some() => return Err(self.failed(&error)),
                Err(error) => {
                    // Copies go on without anybody: what becomes of them is asked when the agent answers again.
                    self.running.wait_for(Some(describe(self.host.name(), &error)));
                    self.running.pause(ASK_AGAIN).await;
                    begun = false;
                    continue;
                }
            };
            self.running.wait_for(None);
            begun = true;
            after = report.sequence;
            self.take(&report);
            match report.stage {
                StorageStage::Prepared | StorageStage::Copying | StorageStage::Switching => {}
                StorageStage::Moved | StorageStage::Confirmed => {
                    self.keep().await;
                    return Ok(());
                }
                StorageStage::Failed | StorageStage::Aborted => {
                    self.keep().await;
                    return Err(StepFailed(told(&report)));
                }
            }
        }
    }

    /// Keeps how the disks stand, so that it is known after the job's end.
    async fn keep(&self) {
        let disks = self.last.lock().expect("nobody panics with it").clone();
        let plan = StoragePlan { disks, ..self.plan.clone() }.to_json();
        self.running.kept(|| self.store().put_plan(self.record.id, &plan)).await;
    }

    fn take(&self, report: &StorageReport) {
        self.last.lock().expect("nobody panics with it").clone_from(&report.disks);
        self.running.disks(report.disks.clone());
    }

    async fn confirm(&self) -> Result<(), StepFailed> {
        // Another VM, of any host, may need an old file by now: then all of them stay.
        let needed = match self.plan.keep_source {
            true => Vec::new(),
            false => needed_by_others_now(self.inventory(), self.record.job.vm, &self.plan.request.disks).await,
        };
        let body = ConfirmStorage { keep_source: self.plan.keep_source || !needed.is_empty() };
        match self.host.agent.confirm_storage(self.attempt(), &body).await {
            Ok(report) => {
                self.take(&report);
                note(self.store(), &self.running, &self.record, needed).await;
                self.found(&report.findings).await;
                Ok(())
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn release(&self) -> Result<(), StepFailed> {
        self.host.agent.release_storage(self.attempt()).await.map_err(|error| self.failed(&error))?;
        let disks = self.last.lock().expect("nobody panics with it").clone();
        let sum = |of: fn(&DiskProgress) -> ByteCount| ByteCount(disks.iter().map(|disk| of(disk).0).sum());
        let figures = ferry_core::job::Figures {
            total_ms: now_ms().saturating_sub(self.record.job.accepted_at_ms),
            sent: sum(|disk| disk.copied),
            allocated_source: sum(|disk| disk.allocated_before),
            allocated_destination: sum(|disk| disk.allocated_after),
            ..ferry_core::job::Figures::default()
        };
        let store = self.store();
        self.running.kept(|| store.put_figures(self.record.id, &figures)).await;
        self.running.kept(|| store.unreserve(self.record.id)).await;
        // So that whoever sees the job's end sees the VM with its new files.
        let moved = |seen: &Seen| {
            seen.vm(self.record.job.vm).is_some_and(|vm| {
                let uses = |disk: &ferry_core::files::DiskMove| {
                    vm.files.iter().any(|file| file.device == disk.device && file.place == disk.to)
                };
                self.plan.request.disks.iter().all(uses)
            })
        };
        self.inventory().look_until(&self.host, moved).await;
        Ok(())
    }

    async fn undo_files(&self) -> Result<(), StepFailed> {
        match self.host.agent.abort_storage(self.attempt()).await {
            Err(error) if error.problem().is_none() => return Err(self.failed(&error)),
            Ok(report) => self.found(&report.findings).await,
            // It ended by itself, or it is not known: then it has nothing but what release removes.
            Err(_) => {}
        }
        self.host.agent.release_storage(self.attempt()).await.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &ClientError) -> StepFailed {
        failed(&self.host, error)
    }
}

/// Why it ended, and which disks are where.
fn told(report: &StorageReport) -> String {
    let why = match (&report.error, report.stage) {
        (Some(error), _) => error.clone(),
        (None, StorageStage::Aborted) => "It was ended by request".to_owned(),
        (None, _) => "The agent does not say why".to_owned(),
    };
    let with = |moved: bool| -> Vec<&str> {
        let disks = report.disks.iter().filter(|disk| (disk.stage == DiskStage::Moved) == moved);
        disks.map(|disk| disk.device.as_str()).collect()
    };
    let (moved, stayed) = (with(true), with(false));
    if moved.is_empty() {
        return why;
    }
    format!("{why} ({} moved, {} not: another attempt moves what is left)", moved.join(", "), stayed.join(", "))
}

impl Saga for MoveStorage {
    fn steps(&self) -> &'static [Step] {
        Step::of(ferry_core::job::JobKind::Storage)
    }

    async fn probe(&self, step: Step) -> bool {
        // Each of the others is repeated safely.
        step == Step::Perform
            && self.host.agent.report_storage(self.attempt(), 0, Duration::ZERO).await.is_ok_and(|report| {
                self.take(&report);
                matches!(report.stage, StorageStage::Moved | StorageStage::Confirmed)
            })
    }

    async fn run(&self, step: Step) -> Result<(), StepFailed> {
        match step {
            Step::Preflight => self.preflight().await,
            Step::Reserve => self.reserve().await,
            Step::PrepareDestination => {
                let prepared = self.host.agent.prepare_storage(self.attempt(), &self.plan.request).await;
                self.take(&prepared.map_err(|error| self.failed(&error))?);
                Ok(())
            }
            Step::Perform => self.perform().await,
            Step::Confirm => self.confirm().await,
            Step::Release => self.release().await,
            Step::PrepareSource | Step::Resume => unreachable!("no step of a storage move"),
        }
    }

    async fn undo(&self, step: Step) -> Result<(), StepFailed> {
        match step {
            Step::Preflight => Ok(()),
            Step::Reserve => {
                self.running.kept(|| self.store().unreserve(self.record.id)).await;
                Ok(())
            }
            Step::PrepareDestination => self.undo_files().await,
            Step::PrepareSource | Step::Perform | Step::Resume | Step::Confirm | Step::Release => {
                unreachable!("the executor takes back compensable steps only")
            }
        }
    }

    fn running(&self) -> &Running {
        &self.running
    }
}
