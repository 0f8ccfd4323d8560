//! The saga of an offline move. Comments between the rows of [`MoveOffline::TABLE`] explain what each step may assume.
//!
//! Until the destination has all files and the definition, those of the source stay intact. In the meantime no copy of
//! the VM runs anywhere, so the destination alone decides which host has the VM.

use std::{sync::Arc, time::Duration};

use ferry_client::agent::Attempt;
use ferry_core::{
    api::agent::{ConfirmRequest, OfflineReady, ReceiveOffline, Report, Role, SendOffline, Stage},
    files::DiskProgress,
    finding::FindingId,
    job::Figures,
    job_text::JobText,
    migration::Step,
    units::ByteCount,
};
use futures_util::FutureExt as _;

use super::{
    common,
    executor::{Entry, Saga, StepFailed},
    follow::{ASK_AGAIN, OnCancel, follow},
    participant::{
        OfflineParticipant, Participant as _, ended_by, failed, gone_or, is_unknown, messages, not_prepared, take_back,
    },
    site::{Check, Checked, Site},
};
use crate::{
    clock::now_ms,
    failure::{describe, has_finding, with_fix},
    jobs::running::Running,
    plan::offline::OfflinePlan,
    preflight::offline::{Sized, as_disk},
    store::JobRecord,
};

/// The saga of one offline move.
pub(crate) struct MoveOffline<S: Site> {
    site: S,
    record: JobRecord,
    steps: Vec<Step>,
    plan: OfflinePlan,
    source: S::Host,
    destination: S::Host,
    running: Arc<Running>,
    /// The destination's answer when it was prepared in this run of the server.
    ready: Option<OfflineReady>,
    /// Bytes sent on the wire.
    wire: ByteCount,
    /// Whether an earlier run of the server began the Perform step: the destination may then already have been asked to
    /// define the VM.
    inherited: bool,
}

impl<S: Site<Host: OfflineParticipant>> MoveOffline<S> {
    const TABLE: [Entry<Self>; 7] = [
        // Asks both hosts for findings again: the job may have waited.
        Entry::kept(Step::Preflight, |saga| saga.preflight().boxed()),
        // Before the first change: from here on no other job touches the VM.
        Entry::undone(
            Step::Reserve,
            |saga| common::reserve(&saga.site, &saga.running, &saga.record).boxed(),
            |saga| common::unreserve(&saga.site, &saga.running, &saga.record).boxed(),
        ),
        // Makes the destination listen for the files.
        Entry::undone(
            Step::PrepareDestination,
            |saga| saga.prepare_destination().boxed(),
            |saga| saga.undo_destination().boxed(),
        ),
        // Holds the VM against a start, and checks that it is shut off, so that it stays so. Undone only after the
        // destination has confirmed that it will not have the VM.
        Entry::undone(Step::PrepareSource, |saga| saga.prepare_source().boxed(), |saga| saga.undo_source().boxed()),
        // Copies and compares the files, then gives the VM to the destination. The point of no return is its definition
        // there. An error promises that it is not defined there; while that is unknown, the destination is asked again.
        Entry::kept(Step::Perform, |saga| saga.perform().boxed()),
        // Removes the definition and old files at the source, and sets autostart at the destination.
        Entry::kept(Step::Confirm, |saga| saga.confirm().boxed()),
        // Removes holds and journals.
        Entry::kept(Step::Release, |saga| saga.release().boxed()),
    ];

    /// Creates the saga of a job, whether the job is new or was found in the database.
    ///
    /// # Errors
    /// The job's hosts or plan are not there any more; both are kept while a job is open.
    pub(crate) fn new(site: S, record: JobRecord, running: Arc<Running>) -> Result<Self, JobText> {
        let plan: OfflinePlan = common::plan(&record)?;
        let source = common::host(&site, &record.job.source)?;
        let destination = common::host(&site, &record.job.destination)?;
        let wire = record.figures.map(|figures| figures.disk_wire).unwrap_or_default();
        let steps = common::steps_of(OfflinePlan::CONTENTS, &Self::TABLE)?;
        Ok(Self { site, record, steps, plan, source, destination, running, ready: None, wire, inherited: false })
    }

    fn attempt(&self) -> Attempt {
        Attempt { job: self.record.id, generation: self.plan.generation }
    }

    async fn preflight(&mut self) -> Result<(), StepFailed> {
        let (site, vm, hosts) = (&self.site, self.record.job.vm, [&self.source, &self.destination]);
        let checked = self.running.kept(|| site.check(self.record.id, vm, Check::Offline(&self.plan), hosts)).await;
        let Checked { findings, route } = checked;
        common::nothing_blocks(&findings)?;
        if route != self.plan.route {
            self.plan.route = route;
            common::keep_plan(&self.site, &self.running, &self.record, &self.plan).await;
        }
        Ok(())
    }

    async fn files(&self) -> Result<Sized, StepFailed> {
        self.source.sizes(self.record.job.vm, &self.plan.files).await.map_err(|findings| messages(&findings))
    }

    async fn prepare_destination(&mut self) -> Result<(), StepFailed> {
        let Sized { files, absent } = self.files().await?;
        let body = ReceiveOffline {
            session: self.plan.session,
            secret: self.plan.secret,
            source_pin: self.source.pin(),
            vm: self.record.job.vm,
            vm_name: self.record.job.vm_name.clone(),
            shares: self.plan.shares.clone(),
            files,
            absent,
            route: self.plan.route,
        };
        let ready = self.destination.prepare_destination(self.attempt(), &body).await;
        self.ready = Some(ready.map_err(|error| failed(&self.destination, &error))?);
        Ok(())
    }

    async fn prepare_source(&mut self) -> Result<(), StepFailed> {
        if self.ready.is_none() {
            // The server was restarted in between: the destination repeats its answer.
            self.prepare_destination().await?;
        }
        let Sized { files, absent } = self.files().await?;
        let body = SendOffline {
            session: self.plan.session,
            secret: self.plan.secret,
            destination_pin: self.destination.pin(),
            destination: self.ready.clone().expect("it was prepared above"),
            vm: self.record.job.vm,
            files,
            absent,
            route: self.plan.route,
        };
        let report = self.source.prepare_source(self.attempt(), &body).await;
        let report =
            report.map_err(|error| not_prepared((&self.source, &self.destination), self.plan.route, &error))?;
        self.take(&report);
        Ok(())
    }

    /// Runs until the destination has the VM, or until it is certain that it will not have it.
    async fn perform(&mut self) -> Result<(), StepFailed> {
        let copied = self.copy().await;
        if let Err(error) = copied {
            self.keep().await;
            if self.inherited && !self.surely_ends_there().await {
                return Ok(());
            }
            return Err(error);
        }
        loop {
            match self.destination.define(self.attempt()).await {
                Ok(report) => {
                    self.running.wait_for(None);
                    self.take(&report);
                    self.keep().await;
                    return Ok(());
                }
                // The destination refused or failed. Whether it has the VM becomes known when it is asked to end the
                // move.
                Err(error) if error.problem().is_some() => {
                    if self.surely_ends_there().await {
                        return Err(failed(&self.destination, &error));
                    }
                    self.keep().await;
                    return Ok(());
                }
                Err(error) => {
                    // It is unknown whether the request arrived, and it may be repeated.
                    self.running.wait_for(Some(describe(self.destination.name(), &error)));
                    self.running.pause(ASK_AGAIN).await;
                }
            }
        }
    }

    /// Like [`Self::ends_there`], but repeated until the answer is known: without it nobody can tell which host has the
    /// VM. The job shows what it waits for, and can be dismissed.
    async fn surely_ends_there(&self) -> bool {
        loop {
            match self.ends_there().await {
                Ok(outcome) => {
                    self.running.wait_for(None);
                    return outcome;
                }
                Err(StepFailed(why)) => {
                    self.running.wait_for(Some(why));
                    self.running.pause(ASK_AGAIN).await;
                }
            }
        }
    }

    /// Ends the move at the destination. True promises that the destination neither has the VM nor will have it; false
    /// means that it has the VM. An error means that this is unknown.
    async fn ends_there(&self) -> Result<bool, StepFailed> {
        match self.destination.abort(self.attempt()).await {
            Ok(report) => Ok(!matches!(report.stage, Stage::Delivered | Stage::Confirmed)),
            Err(error) if is_unknown(&error) => Ok(true),
            Err(error) if has_finding(&error, FindingId::JobPastPivot) => Ok(false),
            Err(error) => {
                let (vm, host) = (&self.record.job.vm_name, self.destination.name());
                let StepFailed(why) = failed(&self.destination, &error);
                let (vm, host) = (vm.clone(), host.to_owned());
                Err(StepFailed(JobText::MaybeDefined { vm, host, why: why.into() }))
            }
        }
    }

    async fn copy(&mut self) -> Result<(), StepFailed> {
        let (attempt, plan, wire, running) = (self.attempt(), &mut self.plan, &mut self.wire, &self.running);
        let taken = |report: &Report| take(plan, wire, running, report);
        let report = follow(&self.source, attempt, running, OnCancel::Leave, taken).await?;
        match report.stage {
            Stage::Delivered | Stage::Confirmed => Ok(()),
            Stage::Prepared | Stage::Performing | Stage::Resumed | Stage::Failed | Stage::Aborted => {
                Err(StepFailed(ended_by(&report, self.source.name())))
            }
        }
    }

    /// Stores the progress of files and bytes, so that it is known after the job's end.
    async fn keep(&self) {
        let files = &self.plan.progress;
        let sum = |of: fn(&DiskProgress) -> ByteCount| ByteCount(files.iter().map(|file| of(file).0).sum());
        let figures = Figures {
            total_ms: now_ms().saturating_sub(self.record.job.accepted_at_ms),
            sent: self.wire,
            wire: self.wire,
            disk_wire: self.wire,
            allocated_source: sum(|file| file.allocated_before),
            allocated_destination: sum(|file| file.allocated_after),
            ..Figures::default()
        };
        common::keep_plan(&self.site, &self.running, &self.record, &self.plan).await;
        self.running.kept(|| self.site.put_figures(self.record.id, &figures)).await;
    }

    fn take(&mut self, report: &Report) {
        take(&mut self.plan, &mut self.wire, &self.running, report);
    }

    async fn confirm(&mut self) -> Result<(), StepFailed> {
        let body = ConfirmRequest { autostart: self.plan.autostart, keep_source: self.plan.keep_source };
        match self.destination.confirm(self.attempt(), &body).await {
            Ok(report) => self.take(&report),
            Err(error) if has_finding(&error, FindingId::VmUnknown) => self.has_moved_on().await?,
            Err(error) => return Err(failed(&self.destination, &error)),
        }
        // Another VM of any host may need an old file by now. Then all old files stay.
        let removed: Vec<_> = self.plan.files.iter().filter(|file| file.is_removed()).map(as_disk).collect();
        let needed = match body.keep_source || removed.is_empty() {
            true => Vec::new(),
            false => self.site.needed_by_others(self.record.job.vm, &removed).await,
        };
        let body = ConfirmRequest { keep_source: body.keep_source || !needed.is_empty(), ..body };
        match self.source.confirm(self.attempt(), &body).await {
            Ok(report) => {
                let notes = needed.into_iter().chain(report.findings.iter().map(with_fix)).collect();
                common::note(&self.site, &self.running, &self.record, notes).await;
            }
            Err(error) if is_unknown(&error) && self.site.is_gone(&self.source, self.record.job.vm).await => {}
            Err(error) => return Err(failed(&self.source, &error)),
        }
        self.keep().await;
        Ok(())
    }

    /// Handles a VM that was defined at the destination and is no longer there. If another host has it, somebody moved
    /// it there, and the source's part is over. If no host has it, the source may hold the only copy, which then stays.
    async fn has_moved_on(&self) -> Result<(), StepFailed> {
        let vm = self.record.job.vm_name.clone();
        let (source, destination) = (self.source.name().to_owned(), self.destination.name().to_owned());
        match self.site.seen_elsewhere(self.record.job.vm, [&self.source, &self.destination]) {
            Some(host) => {
                let text = JobText::LeftAlready { vm, destination, host };
                common::note(&self.site, &self.running, &self.record, vec![text]).await;
                Ok(())
            }
            None => Err(StepFailed(JobText::DefinedAndGone { vm, source, destination })),
        }
    }

    async fn release(&mut self) -> Result<(), StepFailed> {
        gone_or(&self.destination, self.destination.release(self.attempt()).await)?;
        gone_or(&self.source, self.source.release(self.attempt()).await)?;
        self.keep().await;
        common::unreserve(&self.site, &self.running, &self.record).await?;
        // Waits, so that users who see the job's end also see the VM at its new place only.
        let vm = self.record.job.vm;
        tokio::join!(
            self.site.wait_until(&self.destination, vm, |facts| facts.is_some()),
            self.site.wait_until(&self.source, vm, |facts| facts.is_none()),
        );
        Ok(())
    }

    async fn undo_destination(&mut self) -> Result<(), StepFailed> {
        take_back(&self.destination, self.attempt()).await
    }

    /// The destination must first confirm that it will not have the VM: only then is the VM released at the source.
    async fn undo_source(&mut self) -> Result<(), StepFailed> {
        if !self.ends_there().await? {
            return Err(StepFailed(JobText::HasVm { host: self.destination.name().to_owned() }));
        }
        take_back(&self.source, self.attempt()).await
    }
}

impl<S: Site<Host: OfflineParticipant>> Saga for MoveOffline<S> {
    fn steps(&self) -> &[Step] {
        &self.steps
    }

    async fn probe(&mut self, step: Step) -> bool {
        // All other steps can be repeated safely.
        if step != Step::Perform {
            return false;
        }
        self.inherited = true;
        let Ok(report) = self.destination.report(self.attempt(), 0, Duration::ZERO).await else { return false };
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

/// Merges a report into what is known. The hosts know different values; zero means "not known".
fn take(plan: &mut OfflinePlan, wire: &mut ByteCount, running: &Running, report: &Report) {
    if report.role == Role::Source {
        *wire = ByteCount(wire.0.max(report.figures.disk_wire.0));
    }
    let files = &mut plan.progress;
    for new in &report.disks {
        match files.iter_mut().find(|file| file.device == new.device) {
            None => files.push(new.clone()),
            Some(file) => {
                if report.role == Role::Source || new.allocated_after.0 > 0 {
                    file.stage = new.stage;
                }
                file.learn(new);
            }
        }
    }
    running.disks(files.clone());
}
