//! A live move, step by step. The steps, their order and what each may assume:
//!
//! 1. **Preflight** asks both hosts anew: time has passed since the request was judged, and a job may have waited.
//!    It changes nothing, so it has nothing to take back.
//! 2. **Reserve** comes before the first change on a host: from here on no other job touches the VM.
//! 3. **PrepareDestination** before the source: a listener that nobody calls harms nobody, and its answer (address,
//!    mount points) is what the source needs.
//! 4. **PrepareSource** holds the VM against a second start, clears autostart and connects the carriers. Everything
//!    that can fail for reasons of network or keys has failed by now, with the VM untouched.
//! 5. **Perform** holds the point of no return. It ends only when it is known who has the VM: an error of it promises
//!    that the source does. See [`super::perform`].
//! 6. **Resume**: the destination's carrier runs the VM by itself as soon as it may, without waiting for this server.
//!    The step sees that it happened, and asks for it when the carrier could not know that it may.
//! 7. **Confirm** asks the destination first: that the VM is there, with the files that came for it, and has its
//!    autostart. Only then it removes the source's definition and old files, which may be the only good ones until it is
//!    known: before it the source could still say what the VM was; after it there is one definition in the world.
//! 8. **Release** takes the carriers, sockets, holds and journals away, and gives the VM free.
//!
//! A source that does not answer in 7 or 8 does not endanger the VM: it runs at the destination, and the hold at the
//! source vetoes a second start until the source was cleaned. So these steps are repeated until they are done.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use ferry_client::agent::{AgentClient, Attempt};
use ferry_core::{
    api::agent::{
        ConfirmRequest, DestinationReady, DiskArrival, MigrationReport, PrepareDestination, PrepareSource, Role,
    },
    files::DiskProgress,
    finding::{Finding, FindingId, Severity, any_blocks},
    job::Figures,
    migration::Step,
    units::ByteCount,
    vm::VmState,
};

use super::{
    Context,
    executor::{Saga, StepFailed},
    note,
    participant::{failed, gone_or, is_unknown},
    participants::{Logged, Memory, OtherHosts, Participant, Participants},
    perform, undo,
};
use crate::{
    clock::now_ms,
    inventory::{Host, Inventory, Seen},
    jobs::running::Running,
    plan::live::LivePlan,
    preflight::{
        live::{self, Along, Occasion},
        users::needed_by_others_now,
    },
    store::{HostName, JobRecord, Store},
};

/// One running move.
pub(crate) struct Migrate {
    context: Context,
    record: JobRecord,
    plan: LivePlan,
    source: Arc<Host>,
    destination: Arc<Host>,
    running: Arc<Running>,
    autostart: AtomicBool,
    ready: Mutex<Option<DestinationReady>>,
    figures: Mutex<Figures>,
    disks: Mutex<Vec<DiskProgress>>,
}

impl Migrate {
    /// Takes up a job, new or found in the database.
    ///
    /// # Errors
    /// A message, when the job's hosts or plan are not there any more: both are kept while a job is open.
    pub(crate) fn new(context: Context, record: JobRecord, running: Arc<Running>) -> Result<Self, String> {
        let plan = LivePlan::from_json(&record.job.plan).map_err(|error| format!("its plan is unreadable: {error}"))?;
        let host = |name: &HostName| {
            context
                .preflight
                .inventory
                .by_id(name.id)
                .ok_or_else(|| format!("host {} is not in the inventory", name.name))
        };
        let (source, destination) = (host(&record.job.source)?, host(&record.job.destination)?);
        let figures = Mutex::new(record.figures.unwrap_or_default());
        let autostart = AtomicBool::new(plan.autostart);
        let disks = Mutex::new(plan.progress.clone());
        Ok(Self {
            context,
            record,
            plan,
            source,
            destination,
            running,
            autostart,
            ready: Mutex::default(),
            figures,
            disks,
        })
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

    fn others(&self) -> OtherHosts<'_> {
        OtherHosts { inventory: self.inventory(), participants: [self.source.record.id, self.destination.record.id] }
    }

    fn memory(&self) -> Logged<'_, Store> {
        Logged::new(self.store(), self.record.id, &self.running)
    }

    fn ends<'a>(&'a self, others: &'a OtherHosts<'a>, memory: &'a dyn Memory) -> Participants<'a, AgentClient> {
        Participants {
            vm: self.record.job.vm,
            attempt: self.attempt(),
            source: Participant { name: self.source.name(), agent: &self.source.agent },
            destination: Participant { name: self.destination.name(), agent: &self.destination.agent },
            others,
            memory,
            running: &self.running,
        }
    }

    async fn preflight(&self) -> Result<(), StepFailed> {
        let preflight = &self.context.preflight;
        let (vm, source, destination) = (self.record.job.vm, &self.source, &self.destination);
        let asked = self.running.kept(|| live::ask_both(preflight, vm, source, destination)).await;
        let promised = self.context.running.promised_before(self.record.id, destination.record.id);
        let memory = live::Memory { promised: &promised, overcommit: self.plan.overcommit };
        let along = Along::Decided(&self.plan.along);
        let checked = live::judge(preflight, vm, &asked, memory, along, Occasion::JobStart).await;
        let findings = with_planned(&self.record.job.findings, &checked.findings);
        if findings != self.record.job.findings {
            self.running.kept(|| self.store().put_findings(self.record.id, &findings)).await;
        }
        if any_blocks(&checked.findings) {
            let blocking = checked.findings.iter().filter(|finding| finding.severity == Severity::Blocks);
            let messages: Vec<&str> = blocking.map(|finding| finding.message.as_str()).collect();
            return Err(StepFailed(messages.join("; ")));
        }
        Ok(())
    }

    async fn reserve(&self) -> Result<(), StepFailed> {
        match self.running.kept(|| self.store().reserve(self.record.job.vm, self.record.id)).await {
            job if job == self.record.id => Ok(()),
            other => Err(StepFailed(format!("Job {other} has reserved VM {}", self.record.job.vm_name))),
        }
    }

    async fn prepare_destination(&self) -> Result<DestinationReady, StepFailed> {
        let job = &self.record.job;
        let disks = match self.plan.along.is_empty() {
            true => Vec::new(),
            false => live::arrivals(&self.source, job.vm, &self.plan.along).await.map_err(messages)?,
        };
        {
            let mut figures = self.figures.lock().expect("nobody panics with it");
            figures.allocated_source = ByteCount(disks.iter().map(|disk| disk.allocated.0).sum());
        }
        let before = |disk: &DiskArrival| DiskProgress {
            device: disk.device.clone(),
            total: disk.virtual_size,
            allocated_before: disk.allocated,
            ..DiskProgress::default()
        };
        self.take_disks(disks.iter().map(before).collect());
        let body = PrepareDestination {
            session: self.plan.session,
            secret: self.plan.secret,
            source_pin: self.source.record.pin,
            vm: job.vm,
            vm_name: job.vm_name.clone(),
            shares: self.plan.shares.clone(),
            persistent: self.plan.persistent,
            downtime_limit_ms: self.plan.downtime_limit_ms,
            disks,
        };
        let ready = self.destination.agent.prepare_destination(self.attempt(), &body).await;
        let ready = ready.map_err(|error| failed(&self.destination, &error))?;
        *self.ready.lock().expect("nobody panics with it") = Some(ready.clone());
        Ok(ready)
    }

    async fn prepare_source(&self) -> Result<(), StepFailed> {
        let known = self.ready.lock().expect("nobody panics with it").clone();
        let destination = match known {
            Some(ready) => ready,
            // The server was restarted in between: the destination says the same again.
            None => self.prepare_destination().await?,
        };
        let body = PrepareSource {
            session: self.plan.session,
            secret: self.plan.secret,
            destination_pin: self.destination.record.pin,
            destination,
            vm: self.record.job.vm,
            downtime_limit_ms: self.plan.downtime_limit_ms,
            bandwidth_bytes_per_s: self.plan.bandwidth_bytes_per_s,
            timeout_ms: self.plan.timeout_ms,
            on_stall: self.plan.on_stall,
            disks: self.plan.along.clone(),
            // Preflight of this attempt has: it lets none through of which it could not be.
            shares_proven: true,
        };
        let ready = self.source.agent.prepare_source(self.attempt(), &body).await;
        let ready = ready.map_err(|error| failed(&self.source, &error))?;
        if self.autostart.swap(ready.autostart, Ordering::SeqCst) != ready.autostart {
            self.keep().await;
        }
        Ok(())
    }

    /// Stores what is known by now of what was planned.
    async fn keep(&self) {
        let progress = self.disks.lock().expect("nobody panics with it").clone();
        let plan = LivePlan { autostart: self.autostart.load(Ordering::SeqCst), progress, ..self.plan.clone() };
        let plan = plan.to_json();
        self.running.kept(|| self.store().put_plan(self.record.id, &plan)).await;
    }

    /// Keeps how disks stand. Each end knows other things of them; what is zero is not known.
    fn take_disks(&self, news: Vec<DiskProgress>) {
        if news.is_empty() {
            return;
        }
        let disks = {
            let mut disks = self.disks.lock().expect("nobody panics with it");
            for new in news {
                match disks.iter_mut().find(|disk| disk.device == new.device) {
                    None => disks.push(new),
                    Some(disk) => {
                        disk.stage = new.stage;
                        disk.copied = disk.copied.max(new.copied);
                        disk.total = disk.total.max(new.total);
                        disk.allocated_before = disk.allocated_before.max(new.allocated_before);
                        disk.allocated_after = disk.allocated_after.max(new.allocated_after);
                    }
                }
            }
            disks.clone()
        };
        self.running.disks(disks);
    }

    async fn perform(&self) -> Result<(), StepFailed> {
        let outcome =
            perform::perform(&self.ends(&self.others(), &self.memory()), |report| self.take(report), || self.started())
                .await;
        let figures = *self.figures.lock().expect("nobody panics with it");
        if !self.plan.along.is_empty() {
            self.keep().await;
        }
        if outcome.is_ok() {
            self.running.kept(|| self.store().put_figures(self.record.id, &figures)).await;
        }
        outcome
    }

    /// libvirt's migrate call has begun.
    fn started(&self) {
        let mut figures = self.figures.lock().expect("nobody panics with it");
        if figures.accepted_to_migrate_ms == 0 {
            figures.accepted_to_migrate_ms = now_ms().saturating_sub(self.record.job.accepted_at_ms);
        }
    }

    async fn resume(&self) -> Result<(), StepFailed> {
        if let Some(report) = perform::resume(&self.ends(&self.others(), &self.memory())).await? {
            self.take(&report);
        }
        Ok(())
    }

    async fn confirm(&self) -> Result<(), StepFailed> {
        let along = !self.plan.along.is_empty();
        let autostart = self.autostart.load(Ordering::SeqCst);
        let body = ConfirmRequest { autostart, keep_source: self.plan.keep_source };
        match self.destination.agent.confirm(self.attempt(), &body).await {
            Ok(report) => self.take(&report),
            // An agent that lost its journal cannot set what is not to be set; nor can it say that files are there.
            Err(error) if is_unknown(&error) && !along && !autostart => {}
            Err(error) => return Err(failed(&self.destination, &error)),
        }
        // Another VM, of any host, may need an old file by now: then all of them stay.
        let needed = match along && !body.keep_source {
            true => needed_by_others_now(self.inventory(), self.record.job.vm, &self.plan.along).await,
            false => Vec::new(),
        };
        let keep_source = body.keep_source || !needed.is_empty();
        match self.source.agent.confirm(self.attempt(), &ConfirmRequest { keep_source, ..body }).await {
            Ok(report) => {
                self.take(&report);
                let said = report.findings.iter().map(|finding| format!("{}. {}", finding.message, finding.fix));
                note(self.store(), &self.running, &self.record, needed.into_iter().chain(said).collect()).await;
            }
            Err(error) if is_unknown(&error) && self.is_gone_at_source().await => {}
            Err(error) => return Err(failed(&self.source, &error)),
        }
        if along {
            let disks = self.disks.lock().expect("nobody panics with it").clone();
            let allocated = ByteCount(disks.iter().map(|disk| disk.allocated_after.0).sum());
            self.figures.lock().expect("nobody panics with it").allocated_destination = allocated;
            self.keep().await;
        }
        Ok(())
    }

    async fn is_gone_at_source(&self) -> bool {
        let seen = self.inventory().refresh(&self.source).await;
        seen.reachable && seen.vm(self.record.job.vm).is_none()
    }

    async fn release(&self) -> Result<(), StepFailed> {
        let (source, destination) =
            tokio::join!(self.source.agent.release(self.attempt()), self.destination.agent.release(self.attempt()));
        gone_or(self.destination.name(), destination)?;
        gone_or(self.source.name(), source)?;
        let figures = {
            let mut figures = self.figures.lock().expect("nobody panics with it");
            figures.total_ms = now_ms().saturating_sub(self.record.job.accepted_at_ms);
            *figures
        };
        let store = &self.store();
        self.running.kept(|| store.put_figures(self.record.id, &figures)).await;
        self.running.kept(|| store.unreserve(self.record.id)).await;
        self.wait_until_seen(&self.destination, &self.source).await;
        Ok(())
    }

    /// So that whoever sees the job's end sees the VM where it is, and there only.
    async fn wait_until_seen(&self, here: &Host, gone: &Host) {
        let vm = self.record.job.vm;
        let is_here = |seen: &Seen| seen.vm(vm).is_some_and(|facts| facts.state != VmState::Incoming);
        let inventory = self.inventory();
        tokio::join!(inventory.look_until(here, is_here), inventory.look_until(gone, |seen| seen.vm(vm).is_none()));
    }

    async fn undo_source(&self) -> Result<(), StepFailed> {
        undo::source(&self.ends(&self.others(), &self.memory())).await
    }

    async fn undo_destination(&self) -> Result<(), StepFailed> {
        undo::destination(&self.ends(&self.others(), &self.memory())).await?;
        self.wait_until_seen(&self.source, &self.destination).await;
        Ok(())
    }

    /// Keeps what a report knows. Each end knows other figures; zero is "not known".
    fn take(&self, report: &MigrationReport) {
        {
            let mut figures = self.figures.lock().expect("nobody panics with it");
            *figures = merged(*figures, report.figures);
        }
        self.take_disks(report.disks.clone());
        if report.role == Role::Source
            && let Some(progress) = report.progress
        {
            self.running.progress(progress);
        }
    }
}

impl Saga for Migrate {
    fn steps(&self) -> &'static [Step] {
        Step::of(self.record.job.kind)
    }

    async fn probe(&self, step: Step) -> bool {
        match step {
            // Each of these is repeated safely: agents and database know the job and its generation.
            Step::Preflight
            | Step::Reserve
            | Step::PrepareDestination
            | Step::PrepareSource
            | Step::Resume
            | Step::Confirm
            | Step::Release => false,
            // The move may be over since long.
            Step::Perform => perform::has_arrived(&self.ends(&self.others(), &self.memory())).await,
        }
    }

    async fn run(&self, step: Step) -> Result<(), StepFailed> {
        match step {
            Step::Preflight => self.preflight().await,
            Step::Reserve => self.reserve().await,
            Step::PrepareDestination => self.prepare_destination().await.map(drop),
            Step::PrepareSource => self.prepare_source().await,
            Step::Perform => self.perform().await,
            Step::Resume => self.resume().await,
            Step::Confirm => self.confirm().await,
            Step::Release => self.release().await,
        }
    }

    async fn undo(&self, step: Step) -> Result<(), StepFailed> {
        match step {
            Step::Preflight => Ok(()),
            Step::Reserve => {
                self.running.kept(|| self.store().unreserve(self.record.id)).await;
                Ok(())
            }
            Step::PrepareDestination => self.undo_destination().await,
            Step::PrepareSource => self.undo_source().await,
            Step::Perform | Step::Resume | Step::Confirm | Step::Release => {
                unreachable!("the executor takes back compensable steps only")
            }
        }
    }

    fn running(&self) -> &Running {
        &self.running
    }
}

/// What is found now, with what was found only when it was decided which disks move along and how.
fn with_planned(stored: &[Finding], found: &[Finding]) -> Vec<Finding> {
    let is_planned = |finding: &&Finding| match finding.id {
        FindingId::DiskFlattened | FindingId::DiskThick => !found.contains(finding),
        _ => false,
    };
    found.iter().chain(stored.iter().filter(is_planned)).cloned().collect()
}

fn messages(findings: Vec<Finding>) -> StepFailed {
    let messages: Vec<String> = findings.into_iter().map(|finding| finding.message).collect();
    StepFailed(messages.join("; "))
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_at_the_start_takes_nothing_of_what_was_planned_away() {
        let warns = |id, object: &str| Finding::warns(id, object, "A message", "A fix");
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
