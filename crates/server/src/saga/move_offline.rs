//! A move of a VM that is shut off, step by step:
//!
//! 1. **Preflight** asks both hosts anew what stands against it: a job may have waited.
//! 2. **Reserve** comes before the first change: from here on no other job touches the VM.
//! 3. **PrepareDestination** listens for the files.
//! 4. **PrepareSource** holds the VM against a start, and makes sure that it is shut off: it stays so.
//! 5. **Perform** copies what differs, compares it, and then gives the destination the VM: that it is defined there is the
//!    point of no return. An error promises that it is not; while that is not known, the destination is asked again.
//! 6. **Confirm** removes definition and old files at the source, and gives the destination its autostart.
//! 7. **Release** takes holds and journals away.
//!
//! The source's files are whole and its definition is there until the destination has both. No copy of the VM runs
//! anywhere meanwhile, so that the destination alone says whose it is.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use ferry_client::agent::Attempt;
use ferry_core::{
    api::agent::{ConfirmRequest, OfflineReady, OfflineReport, OfflineStage, ReceiveOffline, Role, SendOffline},
    files::DiskProgress,
    finding::{FindingId, Severity, any_blocks},
    job::Figures,
    migration::Step,
    units::ByteCount,
};

use super::{
    Context,
    executor::{Saga, StepFailed},
    note,
    participant::{failed, gone_or, is_unknown},
};
use crate::{
    clock::now_ms,
    failure::{describe, has_finding},
    inventory::{Host, Inventory, Seen},
    jobs::running::Running,
    plan::offline::OfflinePlan,
    preflight::{
        offline::{Sized, What, as_disk, check, sizes},
        users::needed_by_others_now,
    },
    store::{HostName, JobRecord, Store},
};

/// How long the agent may hold the question how the move stands.
const REPORT_WAIT: Duration = Duration::from_secs(2);
/// How long to wait before an agent that does not answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// One running offline move.
pub(crate) struct MoveOffline {
    context: Context,
    record: JobRecord,
    plan: OfflinePlan,
    source: Arc<Host>,
    destination: Arc<Host>,
    running: Arc<Running>,
    ready: Mutex<Option<OfflineReady>>,
    /// How files stand, and the bytes on the wire.
    last: Mutex<(Vec<DiskProgress>, ByteCount)>,
    /// An earlier life of the server began to perform: the destination may have been asked to define the VM.
    inherited: AtomicBool,
}

impl MoveOffline {
    /// Takes up a job, new or found in the database.
    ///
    /// # Errors
    /// A message, when the job's hosts or plan are not there any more: both are kept while a job is open.
    pub(crate) fn new(context: Context, record: JobRecord, running: Arc<Running>) -> Result<Self, String> {
        let plan =
            OfflinePlan::from_json(&record.job.plan).map_err(|error| format!("its plan is unreadable: {error}"))?;
        let host = |name: &HostName| {
            context
                .preflight
                .inventory
                .by_id(name.id)
                .ok_or_else(|| format!("host {} is not in the inventory", name.name))
        };
        let (source, destination) = (host(&record.job.source)?, host(&record.job.destination)?);
        let wire = record.figures.map(|figures| figures.disk_wire).unwrap_or_default();
        let last = Mutex::new((plan.progress.clone(), wire));
        let (ready, inherited) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { context, record, plan, source, destination, running, ready, last, inherited })
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
        let (vm, source, destination) = (self.record.job.vm, &self.source, &self.destination);
        let what = What::Decided(&self.plan.files);
        let check = || check(&self.context.preflight, vm, source, destination, what, None);
        let checked = self.running.kept(check).await;
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

    async fn files(&self) -> Result<Sized, StepFailed> {
        sizes(&self.source, self.record.job.vm, &self.plan.files).await.map_err(|findings| {
            let messages: Vec<String> = findings.into_iter().map(|finding| finding.message).collect();
            StepFailed(messages.join("; "))
        })
    }

    async fn prepare_destination(&self) -> Result<OfflineReady, StepFailed> {
        let Sized { files, absent } = self.files().await?;
        let body = ReceiveOffline {
            session: self.plan.session,
            secret: self.plan.secret,
            source_pin: self.source.record.pin,
            vm: self.record.job.vm,
            vm_name: self.record.job.vm_name.clone(),
            shares: self.plan.shares.clone(),
            files,
            absent,
        };
        let ready = self.destination.agent.receive_offline(self.attempt(), &body).await;
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
        let Sized { files, absent } = self.files().await?;
        let body = SendOffline {
            session: self.plan.session,
            secret: self.plan.secret,
            destination_pin: self.destination.record.pin,
            destination,
            vm: self.record.job.vm,
            files,
            absent,
        };
        let report = self.source.agent.send_offline(self.attempt(), &body).await;
        self.take(&report.map_err(|error| failed(&self.source, &error))?);
        Ok(())
    }

    /// Until the destination has the VM, or it is known that it will not.
    async fn perform(&self) -> Result<(), StepFailed> {
        let copied = self.copy().await;
        if let Err(error) = copied {
            self.keep().await;
            if self.inherited.load(Relaxed) && !self.surely_ends_there().await {
                return Ok(());
            }
            return Err(error);
        }
        loop {
            match self.destination.agent.define_offline(self.attempt()).await {
                Ok(report) => {
                    self.running.wait_for(None);
                    self.take(&report);
                    self.keep().await;
                    return Ok(());
                }
                // It said no, or that something failed: whether it has the VM it says when it is asked to end.
                Err(error) if error.problem().is_some() => {
                    if self.surely_ends_there().await {
                        return Err(failed(&self.destination, &error));
                    }
                    self.keep().await;
                    return Ok(());
                }
                Err(error) => {
                    // Whether it heard: the request may be repeated.
                    self.running.wait_for(Some(describe(self.destination.name(), &error)));
                    self.running.pause(ASK_AGAIN).await;
                }
            }
        }
    }

    /// As [`Self::ends_there`], asked until it is known: without that nobody may say whose the VM is. The job shows what it
    /// waits for, and can be dismissed.
    async fn surely_ends_there(&self) -> bool {
        loop {
            match self.ends_there().await {
                Ok(ends) => {
                    self.running.wait_for(None);
                    return ends;
                }
                Err(StepFailed(why)) => {
                    self.running.wait_for(Some(why));
                    self.running.pause(ASK_AGAIN).await;
                }
            }
        }
    }

    /// Ends it at the destination, which says whether it has the VM: true promises that it has not and will not. An error
    /// says that nobody knows.
    async fn ends_there(&self) -> Result<bool, StepFailed> {
        match self.destination.agent.abort_offline(self.attempt()).await {
            Ok(report) => Ok(!matches!(report.stage, OfflineStage::Defined | OfflineStage::Confirmed)),
            Err(error) if is_unknown(&error) => Ok(true),
            Err(error) if has_finding(&error, FindingId::JobPastPivot) => Ok(false),
            Err(error) => {
                let (vm, host) = (&self.record.job.vm_name, self.destination.name());
                let StepFailed(why) = failed(&self.destination, &error);
                Err(StepFailed(format!(
                    "It is not known whether VM {vm} is defined on host {host}, which is asked again: {why}"
                )))
            }
        }
    }

    async fn copy(&self) -> Result<(), StepFailed> {
        let (mut begun, mut after) = (false, 0);
        loop {
            if self.running.cancelled.is_cancelled() {
                return Err(StepFailed("The move was cancelled".to_owned()));
            }
            let asked = match begun {
                false => self.source.agent.perform_offline(self.attempt()).await,
                true => {
                    let report = self.source.agent.report_offline(self.attempt(), after, REPORT_WAIT);
                    tokio::select! {
                        report = report => report,
                        () = self.running.cancelled.cancelled() => continue,
                    }
                }
            };
            let report = match asked {
                Ok(report) => report,
                Err(error) if error.problem().is_some() => return Err(failed(&self.source, &error)),
                Err(error) => {
                    self.running.wait_for(Some(describe(self.source.name(), &error)));
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
                OfflineStage::Prepared | OfflineStage::Copying => {}
                OfflineStage::Copied | OfflineStage::Confirmed => return Ok(()),
                OfflineStage::Failed | OfflineStage::Aborted | OfflineStage::Defined => {
                    let why = report.error.unwrap_or_else(|| "The source ended the move".to_owned());
                    return Err(StepFailed(why));
                }
            }
        }
    }

    /// Keeps what is known of files and bytes, so that it is known after the job's end.
    async fn keep(&self) {
        let (progress, wire) = self.last.lock().expect("nobody panics with it").clone();
        let sum = |of: fn(&DiskProgress) -> ByteCount| ByteCount(progress.iter().map(|file| of(file).0).sum());
        let figures = Figures {
            total_ms: now_ms().saturating_sub(self.record.job.accepted_at_ms),
            sent: wire,
            wire,
            disk_wire: wire,
            allocated_source: sum(|file| file.allocated_before),
            allocated_destination: sum(|file| file.allocated_after),
            ..Figures::default()
        };
        let plan = OfflinePlan { progress, ..self.plan.clone() }.to_json();
        let store = self.store();
        self.running.kept(|| store.put_plan(self.record.id, &plan)).await;
        self.running.kept(|| store.put_figures(self.record.id, &figures)).await;
    }

    /// Each end knows other things; what is zero is not known.
    fn take(&self, report: &OfflineReport) {
        let files = {
            let mut last = self.last.lock().expect("nobody panics with it");
            if report.role == Role::Source {
                last.1 = ByteCount(last.1.0.max(report.wire.0));
            }
            for new in &report.files {
                match last.0.iter_mut().find(|file| file.device == new.device) {
                    None => last.0.push(new.clone()),
                    Some(file) => {
                        if report.role == Role::Source || new.allocated_after.0 > 0 {
                            file.stage = new.stage;
                        }
                        file.copied = file.copied.max(new.copied);
                        file.total = file.total.max(new.total);
                        file.allocated_before = file.allocated_before.max(new.allocated_before);
                        file.allocated_after = file.allocated_after.max(new.allocated_after);
                    }
                }
            }
            last.0.clone()
        };
        self.running.disks(files);
    }

    async fn confirm(&self) -> Result<(), StepFailed> {
        let body = ConfirmRequest { autostart: self.plan.autostart, keep_source: self.plan.keep_source };
        match self.destination.agent.confirm_offline(self.attempt(), &body).await {
            Ok(report) => self.take(&report),
            Err(error) if has_finding(&error, FindingId::VmUnknown) => self.has_moved_on().await?,
            Err(error) => return Err(failed(&self.destination, &error)),
        }
        // Another VM, of any host, may need an old file by now: then all of them stay.
        let removed: Vec<_> = self.plan.files.iter().filter(|file| file.is_removed()).map(as_disk).collect();
        let needed = match body.keep_source || removed.is_empty() {
            true => Vec::new(),
            false => needed_by_others_now(self.inventory(), self.record.job.vm, &removed).await,
        };
        let body = ConfirmRequest { keep_source: body.keep_source || !needed.is_empty(), ..body };
        match self.source.agent.confirm_offline(self.attempt(), &body).await {
            Ok(report) => {
                note(self.store(), &self.running, &self.record, needed.into_iter().chain(report.remarks).collect())
                    .await
            }
            Err(error) if is_unknown(&error) && self.is_gone_at_source().await => {}
            Err(error) => return Err(failed(&self.source, &error)),
        }
        self.keep().await;
        Ok(())
    }

    /// The VM was defined at the destination and is not there any more. If another host has it, somebody moved it on, and
    /// the source's part is over. If none has, what the source holds may be all there is: it stays.
    async fn has_moved_on(&self) -> Result<(), StepFailed> {
        let (vm, name) = (self.record.job.vm, &self.record.job.vm_name);
        let (source, destination) = (self.source.name(), self.destination.name());
        let elsewhere = |(host, seen): (Arc<Host>, Seen)| {
            let is_third = ![self.source.record.id, self.destination.record.id].contains(&host.record.id);
            (is_third && seen.reachable && seen.vm(vm).is_some()).then(|| host.name().to_owned())
        };
        match self.inventory().placed().into_iter().find_map(elsewhere) {
            Some(host) => {
                let said = format!(
                    "VM {name} has left host {destination} already; host {host} has it: its autostart is as it is there"
                );
                note(self.store(), &self.running, &self.record, vec![said]).await;
                Ok(())
            }
            None => Err(StepFailed(format!(
                "VM {name} was defined on host {destination}, and is not on any host now but {source}, which keeps its \
                 definition and its old files, and holds it: define it on {destination} again with what `virsh dumpxml` says on \
                 {source}, with the paths of the new files"
            ))),
        }
    }

    async fn is_gone_at_source(&self) -> bool {
        let seen = self.inventory().refresh(&self.source).await;
        seen.reachable && seen.vm(self.record.job.vm).is_none()
    }

    async fn release(&self) -> Result<(), StepFailed> {
        gone_or(self.destination.name(), self.destination.agent.release_offline(self.attempt()).await)?;
        gone_or(self.source.name(), self.source.agent.release_offline(self.attempt()).await)?;
        self.keep().await;
        self.running.kept(|| self.store().unreserve(self.record.id)).await;
        // So that whoever sees the job's end sees the VM where it is, and there only.
        let vm = self.record.job.vm;
        let inventory = self.inventory();
        tokio::join!(
            inventory.look_until(&self.destination, |seen: &Seen| seen.vm(vm).is_some()),
            inventory.look_until(&self.source, |seen: &Seen| seen.vm(vm).is_none()),
        );
        Ok(())
    }

    async fn take_back(&self, host: &Host) -> Result<(), StepFailed> {
        gone_or(host.name(), host.agent.abort_offline(self.attempt()).await.map(drop))?;
        gone_or(host.name(), host.agent.release_offline(self.attempt()).await)
    }
}

impl Saga for MoveOffline {
    fn steps(&self) -> &'static [Step] {
        Step::of(self.record.job.kind)
    }

    async fn probe(&self, step: Step) -> bool {
        // Each of the others is repeated safely.
        self.inherited.fetch_or(step == Step::Perform, Relaxed);
        step == Step::Perform
            && self.destination.agent.report_offline(self.attempt(), 0, Duration::ZERO).await.is_ok_and(|report| {
                self.take(&report);
                matches!(report.stage, OfflineStage::Defined | OfflineStage::Confirmed)
            })
    }

    async fn run(&self, step: Step) -> Result<(), StepFailed> {
        match step {
            Step::Preflight => self.preflight().await,
            Step::Reserve => self.reserve().await,
            Step::PrepareDestination => self.prepare_destination().await.map(drop),
            Step::PrepareSource => self.prepare_source().await,
            Step::Perform => self.perform().await,
            Step::Confirm => self.confirm().await,
            Step::Release => self.release().await,
            Step::Resume => unreachable!("no step of an offline move"),
        }
    }

    async fn undo(&self, step: Step) -> Result<(), StepFailed> {
        match step {
            Step::Preflight => Ok(()),
            Step::Reserve => {
                self.running.kept(|| self.store().unreserve(self.record.id)).await;
                Ok(())
            }
            // The destination first has to say that it will not have the VM: only then is the VM free at the source.
            Step::PrepareSource => {
                if !self.ends_there().await? {
                    let name = self.destination.name();
                    return Err(StepFailed(format!("The VM is defined on host {name}: it cannot be taken back")));
                }
                self.take_back(&self.source).await
            }
            Step::PrepareDestination => self.take_back(&self.destination).await,
            Step::Perform | Step::Resume | Step::Confirm | Step::Release => {
                unreachable!("the executor takes back compensable steps only")
            }
        }
    }

    fn running(&self) -> &Running {
        &self.running
    }
}
