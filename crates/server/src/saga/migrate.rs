//! The saga of a live move. Comments between the rows of [`Migrate::TABLE`] explain what each step may assume.
//!
//! Once the destination has the VM, an unreachable source is no danger: the VM runs at the destination, and the hold at
//! the source vetoes a second start until the source is cleaned up. So the later steps are repeated until they succeed.

use std::sync::Arc;

use ferry_client::agent::Attempt;
use ferry_core::{
    api::agent::{ConfirmRequest, DestinationReady, IncomingDisk, PrepareDestination, PrepareSource, Report, Role},
    files::DiskProgress,
    finding::{Finding, FindingId},
    job::Figures,
    job_text::JobText,
    migration::Step,
    transfer::Transfer,
    units::ByteCount,
    vm::VmState,
};
use futures_util::FutureExt as _;

use super::{
    common,
    executor::{Entry, Saga, StepFailed},
    participant::{LiveParticipant, Participant as _, failed, gone_or, is_unknown, messages, not_prepared},
    participants::Participants,
    perform,
    site::{Check, Checked, Site},
    undo,
};
use crate::{clock::now_ms, failure::with_fix, jobs::running::Running, plan::live::LivePlan, store::JobRecord};

/// The saga of one live move.
pub(crate) struct Migrate<S: Site> {
    site: S,
    record: JobRecord,
    steps: Vec<Step>,
    plan: LivePlan,
    source: S::Host,
    destination: S::Host,
    running: Arc<Running>,
    /// The destination's answer when it was prepared in this run of the server.
    ready: Option<DestinationReady>,
    figures: Figures,
}

impl<S: Site<Host: LiveParticipant>> Migrate<S> {
    const TABLE: [Entry<Self>; 8] = [
        // Asks both hosts again: time has passed since the request was checked, and the job may have waited. Changes
        // nothing, so there is nothing to undo.
        Entry::kept(Step::Preflight, |saga| saga.preflight().boxed()),
        // Before the first change on a host: from here on no other job touches the VM.
        Entry::undone(
            Step::Reserve,
            |saga| common::reserve(&saga.site, &saga.running, &saga.record).boxed(),
            |saga| common::unreserve(&saga.site, &saga.running, &saga.record).boxed(),
        ),
        // Before the source: a listener without callers does no harm, and the source needs its answer (address, mount
        // points).
        Entry::undone(
            Step::PrepareDestination,
            |saga| saga.prepare_destination().boxed(),
            |saga| saga.undo_destination().boxed(),
        ),
        // Holds the VM against a second start, clears autostart and connects the carriers. Any failure because of
        // network or keys happens here at the latest, while the VM is untouched. Undone first: a source that does not
        // run the VM is released only after the destination has confirmed that it will not run it.
        Entry::undone(Step::PrepareSource, |saga| saga.prepare_source().boxed(), |saga| saga.undo_source().boxed()),
        // Contains the point of no return. It ends only when it is known which host has the VM: an error promises that
        // it is the source. See [`super::perform`].
        Entry::kept(Step::Perform, |saga| saga.perform().boxed()),
        // The destination's carrier resumes the VM by itself as soon as it may, without waiting for this server. This
        // step checks that it happened, and asks for it if the carrier could not know that it may.
        Entry::kept(Step::Resume, |saga| saga.resume().boxed()),
        // First asks the destination to confirm that the VM is there with its new files, and to set its autostart. Only
        // then does it remove the source's definition and old files, which may be the only good ones until that
        // confirmation. Before this step the source can still tell what the VM was; after it, only one definition
        // exists.
        Entry::kept(Step::Confirm, |saga| saga.confirm().boxed()),
        // Removes the carriers, sockets, holds and journals, and ends the reservation of the VM.
        Entry::kept(Step::Release, |saga| saga.release().boxed()),
    ];

    /// Creates the saga of a job, whether the job is new or was found in the database.
    ///
    /// # Errors
    /// The job's hosts or plan are not there any more; both are kept while a job is open.
    pub(crate) fn new(site: S, record: JobRecord, running: Arc<Running>) -> Result<Self, JobText> {
        let plan: LivePlan = common::plan(&record)?;
        let (source, destination) =
            (common::host(&site, &record.job.source)?, common::host(&site, &record.job.destination)?);
        let (steps, figures) =
            (common::steps_of(LivePlan::CONTENTS, &Self::TABLE)?, record.figures.unwrap_or_default());
        Ok(Self { site, record, steps, plan, source, destination, running, ready: None, figures })
    }

    fn attempt(&self) -> Attempt {
        Attempt { job: self.record.id, generation: self.plan.generation }
    }

    fn participants(&self) -> Participants<'_, S> {
        Participants {
            site: &self.site,
            vm: self.record.job.vm,
            attempt: self.attempt(),
            source: &self.source,
            destination: &self.destination,
            running: &self.running,
            ended_there: false,
        }
    }

    async fn preflight(&mut self) -> Result<(), StepFailed> {
        let (site, vm, hosts) = (&self.site, self.record.job.vm, [&self.source, &self.destination]);
        let checked = self.running.kept(|| site.check(self.record.id, vm, Check::Live(&self.plan), hosts)).await;
        let Checked { findings: found, route } = checked;
        let findings = with_planned(&self.record.job.findings, &found);
        if findings != self.record.job.findings {
            self.running.kept(|| site.put_findings(self.record.id, &findings)).await;
        }
        common::nothing_blocks(&found)?;
        if route != self.plan.route {
            self.plan.route = route;
            self.keep().await;
        }
        Ok(())
    }

    async fn prepare_destination(&mut self) -> Result<(), StepFailed> {
        let job = &self.record.job;
        let disks = match self.plan.migrated.is_empty() {
            true => Vec::new(),
            false => self.source.incoming(job.vm, &self.plan.migrated).await.map_err(|found| messages(&found))?,
        };
        self.figures.allocated_source = ByteCount(disks.iter().map(|disk| disk.allocated.0).sum());
        let before = |disk: &IncomingDisk| DiskProgress {
            device: disk.device.clone(),
            total: disk.virtual_size,
            allocated_before: disk.allocated,
            ..DiskProgress::default()
        };
        take_disks(&mut self.plan.progress, &self.running, disks.iter().map(before).collect());
        let body = PrepareDestination {
            session: self.plan.session,
            secret: self.plan.secret,
            source_pin: self.source.pin(),
            vm: job.vm,
            vm_name: job.vm_name.clone(),
            shares: self.plan.shares.clone(),
            persistent: self.plan.persistent,
            downtime_limit_ms: self.plan.downtime_limit_ms,
            disks,
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
        let Transfer { preset, limits } = self.plan.transfer();
        let body = PrepareSource {
            session: self.plan.session,
            secret: self.plan.secret,
            destination_pin: self.destination.pin(),
            destination: self.ready.clone().expect("it was prepared above"),
            vm: self.record.job.vm,
            downtime_limit_ms: self.plan.downtime_limit_ms,
            bandwidth_bytes_per_s: limits.memory.map(|limit| limit.0),
            disk_bandwidth_bytes_per_s: limits.storage.map(|limit| limit.0),
            performance: preset,
            timeout_ms: self.plan.timeout_ms,
            on_stall: self.plan.on_stall,
            disks: self.plan.migrated.clone(),
            // Preflight of this attempt has proven them: it refuses a move whose shares it cannot prove.
            shares_proven: true,
            route: self.plan.route,
        };
        let autostart = self.source.prepare_source(self.attempt(), &body).await;
        let autostart =
            autostart.map_err(|error| not_prepared((&self.source, &self.destination), self.plan.route, &error))?;
        if autostart != self.plan.autostart {
            self.plan.autostart = autostart;
            self.keep().await;
        }
        Ok(())
    }

    /// Stores the plan with everything that was learned since.
    async fn keep(&self) {
        common::keep_plan(&self.site, &self.running, &self.record, &self.plan).await;
    }

    async fn perform(&mut self) -> Result<(), StepFailed> {
        let accepted_at_ms = self.record.job.accepted_at_ms;
        let (mut figures, mut progress) = (self.figures, self.plan.progress.clone());
        let running = self.running.clone();
        let outcome = perform::perform(&self.participants(), |report| {
            if figures.accepted_to_migrate_ms == 0 {
                // The first report: libvirt's migrate call has begun.
                figures.accepted_to_migrate_ms = now_ms().saturating_sub(accepted_at_ms);
            }
            take(&mut figures, &mut progress, &running, report);
        })
        .await;
        (self.figures, self.plan.progress) = (figures, progress);
        if !self.plan.migrated.is_empty() {
            self.keep().await;
        }
        if outcome.is_ok() {
            self.running.kept(|| self.site.put_figures(self.record.id, &self.figures)).await;
        }
        outcome
    }

    async fn resume(&mut self) -> Result<(), StepFailed> {
        if let Some(report) = perform::resume(&self.participants()).await? {
            self.take(&report);
        }
        Ok(())
    }

    async fn confirm(&mut self) -> Result<(), StepFailed> {
        let with_disks = !self.plan.migrated.is_empty();
        let body = ConfirmRequest { autostart: self.plan.autostart, keep_source: self.plan.keep_source };
        match self.destination.confirm(self.attempt(), &body).await {
            Ok(report) => self.take(&report),
            // An agent that lost its journal cannot set autostart, which is not needed here, and cannot confirm that
            // files are there.
            Err(error) if is_unknown(&error) && !with_disks && !body.autostart => {}
            Err(error) => return Err(failed(&self.destination, &error)),
        }
        // Another VM of any host may need an old file by now. Then all old files stay.
        let needed = match with_disks && !body.keep_source {
            true => self.site.needed_by_others(self.record.job.vm, &self.plan.migrated).await,
            false => Vec::new(),
        };
        let keep_source = body.keep_source || !needed.is_empty();
        match self.source.confirm(self.attempt(), &ConfirmRequest { keep_source, ..body }).await {
            Ok(report) => {
                self.take(&report);
                let notes = needed.into_iter().chain(report.findings.iter().map(with_fix)).collect();
                common::note(&self.site, &self.running, &self.record, notes).await;
            }
            Err(error) if is_unknown(&error) && self.site.is_gone(&self.source, self.record.job.vm).await => {}
            Err(error) => return Err(failed(&self.source, &error)),
        }
        if with_disks {
            let disks = &self.plan.progress;
            self.figures.allocated_destination = ByteCount(disks.iter().map(|disk| disk.allocated_after.0).sum());
            self.keep().await;
        }
        Ok(())
    }

    async fn release(&mut self) -> Result<(), StepFailed> {
        let (source, destination) =
            tokio::join!(self.source.release(self.attempt()), self.destination.release(self.attempt()));
        gone_or(&self.destination, destination)?;
        gone_or(&self.source, source)?;
        self.figures.total_ms = now_ms().saturating_sub(self.record.job.accepted_at_ms);
        self.running.kept(|| self.site.put_figures(self.record.id, &self.figures)).await;
        common::unreserve(&self.site, &self.running, &self.record).await?;
        self.wait_until_seen(&self.destination, &self.source).await;
        Ok(())
    }

    /// Waits, so that users who see the job's end also see the VM at its new place only.
    async fn wait_until_seen(&self, here: &S::Host, gone: &S::Host) {
        let vm = self.record.job.vm;
        tokio::join!(
            self.site.wait_until(here, vm, |facts| facts.is_some_and(|facts| facts.state != VmState::Incoming)),
            self.site.wait_until(gone, vm, |facts| facts.is_none()),
        );
    }

    async fn undo_source(&mut self) -> Result<(), StepFailed> {
        undo::source(&self.participants()).await
    }

    async fn undo_destination(&mut self) -> Result<(), StepFailed> {
        undo::destination(&self.participants()).await?;
        self.wait_until_seen(&self.source, &self.destination).await;
        Ok(())
    }

    fn take(&mut self, report: &Report) {
        take(&mut self.figures, &mut self.plan.progress, &self.running, report);
    }
}

impl<S: Site<Host: LiveParticipant>> Saga for Migrate<S> {
    fn steps(&self) -> &[Step] {
        &self.steps
    }

    async fn probe(&mut self, step: Step) -> bool {
        // The move may have ended long ago. All other steps can be repeated safely: agents and database know the job
        // and its generation.
        step == Step::Perform && perform::has_arrived(&self.participants()).await
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

/// Merges a report into what is known. The hosts know different figures; zero means "not known".
fn take(figures: &mut Figures, progress: &mut Vec<DiskProgress>, running: &Running, report: &Report) {
    *figures = merged(*figures, report.figures);
    take_disks(progress, running, report.disks.clone());
    if report.role == Role::Source
        && let Some(progress) = report.progress
    {
        running.progress(progress);
    }
}

/// Merges the progress of disks into what is known. The hosts know different values; zero means "not known".
fn take_disks(disks: &mut Vec<DiskProgress>, running: &Running, news: Vec<DiskProgress>) {
    if news.is_empty() {
        return;
    }
    for new in news {
        match disks.iter_mut().find(|disk| disk.device == new.device) {
            None => disks.push(new),
            Some(disk) => {
                disk.stage = new.stage;
                disk.learn(&new);
            }
        }
    }
    running.disks(disks.clone());
}

/// The current findings, and those earlier ones that only the planning of migrated disks can find.
fn with_planned(stored: &[Finding], found: &[Finding]) -> Vec<Finding> {
    let is_planned = |finding: &&Finding| {
        matches!(finding.id, FindingId::DiskFlattened | FindingId::DiskThick) && !found.contains(finding)
    };
    found.iter().chain(stored.iter().filter(is_planned)).cloned().collect()
}

fn merged(one: Figures, other: Figures) -> Figures {
    Figures {
        total_ms: one.total_ms.max(other.total_ms),
        accepted_to_migrate_ms: one.accepted_to_migrate_ms.max(other.accepted_to_migrate_ms),
        migrate_ms: one.migrate_ms.max(other.migrate_ms),
        downtime_ms: one.downtime_ms.max(other.downtime_ms),
        qemu_downtime_ms: one.qemu_downtime_ms.max(other.qemu_downtime_ms),
        sent: ByteCount(one.sent.0.max(other.sent.0)),
        wire: ByteCount(one.wire.0.max(other.wire.0)),
        disk_wire: ByteCount(one.disk_wire.0.max(other.disk_wire.0)),
        iterations: one.iterations.max(other.iterations),
        allocated_source: ByteCount(one.allocated_source.0.max(other.allocated_source.0)),
        allocated_destination: ByteCount(one.allocated_destination.0.max(other.allocated_destination.0)),
        carried: match (one.carried, other.carried) {
            (Some(one), Some(other)) => Some(one.merged(other)),
            (one, other) => one.or(other),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_at_the_start_takes_nothing_of_what_was_planned_away() {
        let warns = |id, object: &str| Finding::of_text(id, object, "A message", "A fix");
        let stored = [
            warns(FindingId::DiskThick, "vda"),
            warns(FindingId::DiskFlattened, "vdb"),
            warns(FindingId::DiskUnsafe, "vdc"),
        ];
        let now = [warns(FindingId::HostMemory, "kvm2"), warns(FindingId::DiskThick, "vda")];
        let merged = with_planned(&stored, &now);
        assert_eq!(merged, [now[0].clone(), now[1].clone(), stored[1].clone()]);
        assert_eq!(with_planned(&merged, &now), merged, "again");
    }
}
