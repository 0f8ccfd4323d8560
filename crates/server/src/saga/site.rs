//! What a saga needs from its own server: the database, the reports of other hosts, and the checks.

use std::future::Future;

use ferry_client::ClientError;
use ferry_core::{
    files::DiskMove,
    finding::Finding,
    id::{JobId, VmId},
    job::Figures,
    job_text::JobText,
    migration::LogEvent,
    network::Route,
    vm::{VmFacts, VmState},
};
use futures_util::future::join_all;

use super::{
    Context,
    agent::Agent,
    executor::Log,
    participant::{LiveParticipant as _, Participant},
};
use crate::{
    clock::now_ms,
    inventory::Inventory,
    plan::{live::LivePlan, offline::OfflinePlan, storage::StoragePlan},
    preflight::{
        live::{self, MigratedDisks, Occasion},
        offline::{self, MovedFiles},
        storage::blocks_now,
        users::needed_by_others_now,
    },
    store::{HostName, LogEntry, LogRow, Store, StoreError},
};

/// A host's name and the state of a VM there.
pub(crate) type OtherAnswer = (String, Result<Option<VmState>, ClientError>);

/// What to check again.
#[derive(Clone, Copy)]
pub(crate) enum Check<'a> {
    Live(&'a LivePlan),
    Offline(&'a OfflinePlan),
    Storage(&'a StoragePlan),
}

/// What a check finds.
#[derive(Default)]
pub(crate) struct Checked {
    pub(crate) findings: Vec<Finding>,
    /// Where the bytes of a move to another host travel; `None`: its hosts have no migration networks.
    pub(crate) route: Option<Route>,
}

/// What a saga needs from its own server.
pub(crate) trait Site: Log + Send + 'static {
    /// Hosts as sagas see them.
    type Host: Participant;

    /// A host of the inventory.
    fn host(&self, id: &HostName) -> Option<Self::Host>;
    /// Reserves a VM for a job. Returns the job that has the VM, which may be another one.
    fn reserve(&self, vm: VmId, job: JobId) -> impl Future<Output = Result<JobId, StoreError>> + Send;
    /// Ends a job's reservation of its VM.
    fn unreserve(&self, job: JobId) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Stores a job's plan.
    fn put_plan(&self, job: JobId, plan: &str) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Stores the findings of a job's checks before its first change.
    fn put_findings(&self, job: JobId, findings: &[Finding]) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Stores the measured figures of a job.
    fn put_figures(&self, job: JobId, figures: &Figures) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Adds notes for people to a job's log.
    fn note(&self, job: JobId, notes: &[JobText]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// What is found about the job now.
    fn check(
        &self,
        job: JobId,
        vm: VmId,
        what: Check<'_>,
        hosts: [&Self::Host; 2],
    ) -> impl Future<Output = Result<Checked, StoreError>> + Send;
    /// Makes every host except these refresh its observation, and returns the state of a VM on each.
    fn ask_others(&self, vm: VmId, but: [&Self::Host; 2]) -> impl Future<Output = Vec<OtherAnswer>> + Send;
    /// The name of another host that has the VM, according to its last report.
    fn seen_elsewhere(&self, vm: VmId, but: [&Self::Host; 2]) -> Option<String>;
    /// Asks all hosts now which VMs need old files of a VM. Returns one sentence per reason to keep them.
    fn needed_by_others(&self, vm: VmId, disks: &[DiskMove]) -> impl Future<Output = Vec<JobText>> + Send;
    /// Whether the host answers and does not have the VM.
    fn is_gone(&self, host: &Self::Host, vm: VmId) -> impl Future<Output = bool> + Send;
    /// Waits until `is_so` holds for the VM on this host, but at most some seconds.
    fn wait_until(
        &self,
        host: &Self::Host,
        vm: VmId,
        is_so: impl Fn(Option<&VmFacts>) -> bool + Send + Sync,
    ) -> impl Future<Output = ()> + Send;
}

impl Context {
    fn store(&self) -> &Store {
        &self.preflight.store
    }

    fn inventory(&self) -> &std::sync::Arc<Inventory> {
        &self.preflight.inventory
    }
}

impl Log for Context {
    async fn events(&self, job: JobId) -> Result<Vec<LogEvent>, StoreError> {
        Ok(LogRow::events(&self.store().log(job).await?))
    }

    async fn append(&self, job: JobId, events: &[LogEvent]) -> Result<(), StoreError> {
        Log::append(self.store(), job, events).await
    }
}

impl Site for Context {
    type Host = Agent;

    fn host(&self, name: &HostName) -> Option<Agent> {
        Some(Agent { host: self.inventory().by_id(name.id)? })
    }

    async fn reserve(&self, vm: VmId, job: JobId) -> Result<JobId, StoreError> {
        self.store().reserve(vm, job).await
    }

    async fn unreserve(&self, job: JobId) -> Result<(), StoreError> {
        self.store().unreserve(job).await
    }

    async fn put_plan(&self, job: JobId, plan: &str) -> Result<(), StoreError> {
        self.store().put_plan(job, plan).await
    }

    async fn put_findings(&self, job: JobId, findings: &[Finding]) -> Result<(), StoreError> {
        self.store().put_findings(job, findings).await
    }

    async fn put_figures(&self, job: JobId, figures: &Figures) -> Result<(), StoreError> {
        self.store().put_figures(job, figures).await
    }

    async fn note(&self, job: JobId, notes: &[JobText]) -> Result<(), StoreError> {
        let notes: Vec<LogEntry> = notes.iter().cloned().map(LogEntry::Note).collect();
        self.store().append(job, &notes, now_ms()).await
    }

    async fn check(
        &self,
        job: JobId,
        vm: VmId,
        what: Check<'_>,
        [source, destination]: [&Agent; 2],
    ) -> Result<Checked, StoreError> {
        let (preflight, source, destination) = (&*self.preflight, &source.host, &destination.host);
        match what {
            Check::Live(plan) => {
                let asked = live::ask_both(preflight, vm, source, destination).await?;
                let promised = self.running.promised_before(job, destination.record.id);
                let memory = live::Memory { promised: &promised, overcommit: plan.overcommit };
                let migrated = MigratedDisks::Decided(&plan.migrated);
                let live::Checked { findings, candidate, .. } =
                    live::judge(preflight, vm, &asked, memory, migrated, Occasion::JobStart).await;
                Ok(Checked { findings, route: candidate.route })
            }
            Check::Offline(plan) => {
                let what = MovedFiles::Decided(&plan.files);
                let offline::Checked { findings, route, .. } =
                    offline::check(preflight, vm, source, destination, what, None).await?;
                Ok(Checked { findings, route })
            }
            Check::Storage(plan) => {
                self.inventory().refresh(source).await;
                let findings = blocks_now(self.inventory(), source, &plan.request);
                Ok(Checked { findings, route: None })
            }
        }
    }

    async fn ask_others(&self, vm: VmId, but: [&Agent; 2]) -> Vec<OtherAnswer> {
        let is_other = |id| but.iter().all(|agent| agent.host.record.id != id);
        let others = self.inventory().hosts().into_iter().filter(|host| is_other(host.record.id));
        let ask = |host| async move {
            let agent = Agent { host };
            (agent.name().to_owned(), agent.state_of(vm).await)
        };
        join_all(others.map(ask)).await
    }

    fn seen_elsewhere(&self, vm: VmId, but: [&Agent; 2]) -> Option<String> {
        self.inventory().placed().into_iter().find_map(|(host, seen)| {
            let is_other = but.iter().all(|agent| agent.host.record.id != host.record.id);
            (is_other && seen.reachable && seen.vm(vm).is_some()).then(|| host.name().to_owned())
        })
    }

    async fn needed_by_others(&self, vm: VmId, disks: &[DiskMove]) -> Vec<JobText> {
        needed_by_others_now(self.inventory(), vm, disks).await
    }

    async fn is_gone(&self, agent: &Agent, vm: VmId) -> bool {
        let seen = self.inventory().refresh(&agent.host).await;
        seen.reachable && seen.vm(vm).is_none()
    }

    async fn wait_until(&self, agent: &Agent, vm: VmId, is_so: impl Fn(Option<&VmFacts>) -> bool + Send + Sync) {
        self.inventory().refresh_until(&agent.host, |seen| is_so(seen.vm(vm))).await;
    }
}
