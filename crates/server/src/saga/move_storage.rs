//! A move of a running VM's disks to other files of its host. What each step may assume stands between the rows of
//! [`MoveStorage::TABLE`].
//!
//! Which file a disk uses is asked of the host. New files are removed only while they cannot hold what no other file
//! holds, old ones only when every disk has moved and every definition names the new files.

use std::{sync::Arc, time::Duration};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{ConfirmRequest, Report, Stage},
    files::{DiskMove, DiskProgress, DiskStage},
    finding::Finding,
    job::Figures,
    migration::Step,
    units::ByteCount,
    vm::VmFacts,
};
use futures_util::FutureExt as _;

use super::{
    common,
    executor::{Entry, Saga, StepFailed},
    follow::{OnCancel, follow},
    participant::{Participant as _, StorageParticipant, failed, messages},
    site::{Check, Site},
};
use crate::{clock::now_ms, jobs::running::Running, plan::storage::StoragePlan, store::JobRecord};

/// One running storage move.
pub(crate) struct MoveStorage<S: Site> {
    site: S,
    record: JobRecord,
    steps: Vec<Step>,
    plan: StoragePlan,
    host: S::Host,
    running: Arc<Running>,
    /// The job's, with what was found meanwhile.
    findings: Vec<Finding>,
}

impl<S: Site<Host: StorageParticipant>> MoveStorage<S> {
    const TABLE: [Entry<Self>; 6] = [
        // Asks anew what stands against it, of what is known and of the host: a job may have waited.
        Entry::kept(Step::Preflight, |saga| saga.preflight().boxed()),
        // Before the first change: from here on no other job touches the VM.
        Entry::undone(
            Step::Reserve,
            |saga| common::reserve(&saga.site, &saga.running, &saga.record).boxed(),
            |saga| common::unreserve(&saga.site, &saga.running, &saga.record).boxed(),
        ),
        // Makes the new files, thin and empty. What fails for reasons of places has failed by now.
        Entry::undone(Step::PrepareDestination, |saga| saga.prepare().boxed(), |saga| saga.undo_files().boxed()),
        // Copies all disks, and switches them over one after the other when all are ready. Before the first is switched over it
        // can be taken back. An error after that leaves some disks moved and others not, which is a legal state: the VM runs, and
        // another attempt of the job moves the others.
        Entry::kept(Step::Perform, |saga| saga.perform().boxed()),
        // Removes the old files that nobody uses any more; the job says which stay.
        Entry::kept(Step::Confirm, |saga| saga.confirm().boxed()),
        // Lets the agent forget the move, and gives the VM free.
        Entry::kept(Step::Release, |saga| saga.release().boxed()),
    ];

    /// Takes up a job, new or found in the database.
    ///
    /// # Errors
    /// A message, when the job's host or plan is not there any more: both are kept while a job is open.
    pub(crate) fn new(site: S, record: JobRecord, running: Arc<Running>) -> Result<Self, String> {
        let plan: StoragePlan = common::plan(&record)?;
        let host = common::host(&site, &record.job.source)?;
        let (steps, findings) = (common::steps(&record, &Self::TABLE)?, record.job.findings.clone());
        Ok(Self { site, record, steps, plan, host, running, findings })
    }

    fn attempt(&self) -> Attempt {
        Attempt { job: self.record.id, generation: self.plan.generation }
    }

    async fn preflight(&mut self) -> Result<(), StepFailed> {
        let (site, vm, hosts) = (&self.site, self.record.job.vm, [&self.host, &self.host]);
        let blocks = self.running.kept(|| site.check(self.record.id, vm, Check::Storage(&self.plan), hosts)).await;
        if !blocks.is_empty() {
            self.found(&blocks).await;
            return Err(messages(&blocks));
        }
        self.host.check(&self.plan.request).await.map_err(|error| self.failed(&error))
    }

    /// Keeps what was found, among the job's findings and in its log.
    async fn found(&mut self, found: &[Finding]) {
        let fresh: Vec<Finding> = found.iter().filter(|finding| !self.findings.contains(finding)).cloned().collect();
        if fresh.is_empty() {
            return;
        }
        let notes = fresh.iter().map(|finding| format!("{}. {}", finding.message, finding.fix)).collect();
        self.findings.extend(fresh);
        self.running.kept(|| self.site.put_findings(self.record.id, &self.findings)).await;
        common::note(&self.site, &self.running, &self.record, notes).await;
    }

    async fn prepare(&mut self) -> Result<(), StepFailed> {
        let prepared = self.host.prepare(self.attempt(), &self.plan.request).await;
        self.take(&prepared.map_err(|error| self.failed(&error))?);
        Ok(())
    }

    /// Until every disk is moved, or it is known that they will not be.
    async fn perform(&mut self) -> Result<(), StepFailed> {
        let (attempt, plan, running) = (self.attempt(), &mut self.plan, &self.running);
        let report =
            follow(&self.host, attempt, running, OnCancel::Abort, |report| take(plan, running, report)).await?;
        self.keep().await;
        match report.stage {
            Stage::Failed | Stage::Aborted => Err(StepFailed(told(&report))),
            Stage::Prepared | Stage::Performing | Stage::Delivered | Stage::Resumed | Stage::Confirmed => Ok(()),
        }
    }

    /// Keeps how the disks stand, so that it is known after the job's end.
    async fn keep(&self) {
        common::keep_plan(&self.site, &self.running, &self.record, &self.plan).await;
    }

    fn take(&mut self, report: &Report) {
        take(&mut self.plan, &self.running, report);
    }

    async fn confirm(&mut self) -> Result<(), StepFailed> {
        // Another VM, of any host, may need an old file by now: then all of them stay.
        let needed = match self.plan.keep_source {
            true => Vec::new(),
            false => self.site.needed_by_others(self.record.job.vm, &self.plan.request.disks).await,
        };
        let keep_source = self.plan.keep_source || !needed.is_empty();
        let body = ConfirmRequest { autostart: false, keep_source };
        let report = self.host.confirm(self.attempt(), &body).await.map_err(|error| self.failed(&error))?;
        self.take(&report);
        common::note(&self.site, &self.running, &self.record, needed).await;
        self.found(&report.findings).await;
        Ok(())
    }

    async fn release(&mut self) -> Result<(), StepFailed> {
        self.host.release(self.attempt()).await.map_err(|error| self.failed(&error))?;
        let sum = |of: fn(&DiskProgress) -> ByteCount| ByteCount(self.plan.disks.iter().map(|disk| of(disk).0).sum());
        let figures = Figures {
            total_ms: now_ms().saturating_sub(self.record.job.accepted_at_ms),
            sent: sum(|disk| disk.copied),
            allocated_source: sum(|disk| disk.allocated_before),
            allocated_destination: sum(|disk| disk.allocated_after),
            ..Figures::default()
        };
        self.running.kept(|| self.site.put_figures(self.record.id, &figures)).await;
        common::unreserve(&self.site, &self.running, &self.record).await?;
        // So that whoever sees the job's end sees the VM with its new files.
        let uses = |vm: &VmFacts, disk: &DiskMove| {
            vm.files.iter().any(|file| file.device == disk.device && file.place == disk.to)
        };
        let disks = &self.plan.request.disks;
        let moved = |vm: Option<&VmFacts>| vm.is_some_and(|vm| disks.iter().all(|disk| uses(vm, disk)));
        self.site.wait_until(&self.host, self.record.job.vm, moved).await;
        Ok(())
    }

    async fn undo_files(&mut self) -> Result<(), StepFailed> {
        match self.host.abort(self.attempt()).await {
            Err(error) if error.problem().is_none() => return Err(self.failed(&error)),
            Ok(report) => self.found(&report.findings).await,
            // It ended by itself, or it is not known: then it has nothing but what release removes.
            Err(_) => {}
        }
        self.host.release(self.attempt()).await.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &ClientError) -> StepFailed {
        failed(&self.host, error)
    }
}

impl<S: Site<Host: StorageParticipant>> Saga for MoveStorage<S> {
    fn steps(&self) -> &[Step] {
        &self.steps
    }

    async fn probe(&mut self, step: Step) -> bool {
        // Each of the others is repeated safely.
        if step != Step::Perform {
            return false;
        }
        let Ok(report) = self.host.report(self.attempt(), 0, Duration::ZERO).await else { return false };
        self.take(&report);
        matches!(report.stage, Stage::Delivered | Stage::Confirmed)
    }

    async fn run(&mut self, step: Step) -> Result<(), StepFailed> {
        Entry::of(Self::TABLE, step).run(self).await
    }

    async fn undo(&mut self, step: Step) -> Result<(), StepFailed> {
        Entry::of(Self::TABLE, step).undo(self).await
    }

    fn running(&self) -> &Running {
        &self.running
    }
}

fn take(plan: &mut StoragePlan, running: &Running, report: &Report) {
    plan.disks.clone_from(&report.disks);
    running.disks(report.disks.clone());
}

/// Why it ended, and which disks are where.
fn told(report: &Report) -> String {
    let why = match (&report.error, report.stage) {
        (Some(error), _) => error.clone(),
        (None, Stage::Aborted) => "It was ended by request".to_owned(),
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
