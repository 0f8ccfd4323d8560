//! The saga of a storage move. Comments between the rows of [`MoveStorage::TABLE`] explain what each step may assume.
//!
//! The host is always asked which file a disk uses. New files are removed only while they cannot hold data that no
//! other file has; old files are removed only after every disk has moved and every definition names the new files.

use std::{sync::Arc, time::Duration};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{ConfirmRequest, Report, Stage},
    files::{DiskMove, DiskProgress, DiskStage},
    finding::Finding,
    job::Figures,
    job_text::JobText,
    migration::Step,
    text::List,
    units::ByteCount,
    vm::VmFacts,
};
use futures_util::FutureExt as _;

use super::{
    common,
    executor::{Entry, Saga, StepFailed},
    follow::{OnCancel, follow},
    participant::{Participant as _, StorageParticipant, ended_by, failed, messages},
    site::{Check, Site},
};
use crate::{clock::now_ms, failure::with_fix, jobs::running::Running, plan::storage::StoragePlan, store::JobRecord};

/// The saga of one storage move.
pub(crate) struct MoveStorage<S: Site> {
    site: S,
    record: JobRecord,
    steps: Vec<Step>,
    plan: StoragePlan,
    host: S::Host,
    running: Arc<Running>,
    /// The job's findings, with those made since.
    findings: Vec<Finding>,
}

impl<S: Site<Host: StorageParticipant>> MoveStorage<S> {
    const TABLE: [Entry<Self>; 6] = [
        // Checks the move again, from what is known and by asking the host: the job may have waited.
        Entry::kept(Step::Preflight, |saga| saga.preflight().boxed()),
        // Before the first change: from here on no other job touches the VM.
        Entry::undone(
            Step::Reserve,
            |saga| common::reserve(&saga.site, &saga.running, &saga.record).boxed(),
            |saga| common::unreserve(&saga.site, &saga.running, &saga.record).boxed(),
        ),
        // Creates the new files, thin and empty. Any failure because of a place happens here at the latest.
        Entry::undone(Step::PrepareDestination, |saga| saga.prepare().boxed(), |saga| saga.undo_files().boxed()),
        // Copies all disks and, when all copies are ready, pivots one disk after another. It can be undone until the
        // first pivot. An error after that leaves some disks moved and others not, which is a legal state: the VM runs,
        // and another attempt of the job moves the others.
        Entry::kept(Step::Perform, |saga| saga.perform().boxed()),
        // Removes the old files that nobody uses any more; the job names those that stay.
        Entry::kept(Step::Confirm, |saga| saga.confirm().boxed()),
        // Lets the agent forget the move, and ends the reservation of the VM.
        Entry::kept(Step::Release, |saga| saga.release().boxed()),
    ];

    /// Creates the saga of a job, whether the job is new or was found in the database.
    ///
    /// # Errors
    /// The job's host or plan is not there any more; both are kept while a job is open.
    pub(crate) fn new(site: S, record: JobRecord, running: Arc<Running>) -> Result<Self, JobText> {
        let plan: StoragePlan = common::plan(&record)?;
        let host = common::host(&site, &record.job.source)?;
        let (steps, findings) = (common::steps_of(StoragePlan::CONTENTS, &Self::TABLE)?, record.job.findings.clone());
        Ok(Self { site, record, steps, plan, host, running, findings })
    }

    fn attempt(&self) -> Attempt {
        Attempt { job: self.record.id, generation: self.plan.generation }
    }

    async fn preflight(&mut self) -> Result<(), StepFailed> {
        let (site, vm, hosts) = (&self.site, self.record.job.vm, [&self.host, &self.host]);
        let checked = self.running.kept(|| site.check(self.record.id, vm, Check::Storage(&self.plan), hosts)).await;
        let blocks = checked.findings;
        if !blocks.is_empty() {
            self.found(&blocks).await;
            return Err(messages(&blocks));
        }
        self.host.check(&self.plan.request).await.map_err(|error| self.failed(&error))
    }

    /// Adds findings to the job's findings and to its log.
    async fn found(&mut self, found: &[Finding]) {
        let fresh: Vec<Finding> = found.iter().filter(|finding| !self.findings.contains(finding)).cloned().collect();
        if fresh.is_empty() {
            return;
        }
        let notes = fresh.iter().map(with_fix).collect();
        self.findings.extend(fresh);
        self.running.kept(|| self.site.put_findings(self.record.id, &self.findings)).await;
        common::note(&self.site, &self.running, &self.record, notes).await;
    }

    async fn prepare(&mut self) -> Result<(), StepFailed> {
        let prepared = self.host.prepare(self.attempt(), &self.plan.request).await;
        self.take(&prepared.map_err(|error| self.failed(&error))?);
        Ok(())
    }

    /// Runs until every disk is moved, or until it is certain that the rest will not be.
    async fn perform(&mut self) -> Result<(), StepFailed> {
        let (attempt, plan, running) = (self.attempt(), &mut self.plan, &self.running);
        let report =
            follow(&self.host, attempt, running, OnCancel::Abort, |report| take(plan, running, report)).await?;
        self.keep().await;
        match report.stage {
            Stage::Failed | Stage::Aborted => Err(StepFailed(why(&report, self.host.name()))),
            Stage::Prepared | Stage::Performing | Stage::Delivered | Stage::Resumed | Stage::Confirmed => Ok(()),
        }
    }

    /// Stores the progress of disks, so that it is known after the job's end.
    async fn keep(&self) {
        common::keep_plan(&self.site, &self.running, &self.record, &self.plan).await;
    }

    fn take(&mut self, report: &Report) {
        take(&mut self.plan, &self.running, report);
    }

    async fn confirm(&mut self) -> Result<(), StepFailed> {
        // Another VM of any host may need an old file by now. Then all old files stay.
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
        // Waits, so that users who see the job's end also see the VM with its new files.
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
            // The move ended by itself or is not known: then nothing is left but what release removes.
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
        // All other steps can be repeated safely.
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

/// Why the move ended, and where each disk is.
fn why(report: &Report, host: &str) -> JobText {
    let why = match report.stage == Stage::Aborted && report.error.is_none() {
        true => JobText::WasCancelled,
        false => ended_by(report, host),
    };
    let with = |moved: bool| -> List {
        let disks = report.disks.iter().filter(|disk| (disk.stage == DiskStage::Moved) == moved);
        disks.map(|disk| &disk.device).collect()
    };
    let (moved, stayed) = (with(true), with(false));
    match moved.0.is_empty() {
        true => why,
        false => JobText::PartlyMoved { why: why.into(), moved, stayed },
    }
}
