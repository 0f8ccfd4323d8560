//! The model's server: a database in memory, a third host, and runs of the server, one after another.

use std::sync::Arc;

use ferry_core::{
    api::agent::Role,
    files::DiskMove,
    finding::Finding,
    id::{JobId, VmId},
    job::Figures,
    job_text::JobText,
    migration::{LogEvent, Phase, newest_attempt, phase},
    vm::VmFacts,
};

use super::{
    super::{
        executor::{Log, RetryPolicy, Saga, drive},
        site::{Check, Checked, OtherAnswer, Site},
    },
    host::Host,
    world::{Model, ServerRun, Shared, lock, server_goes_on},
};
use crate::{
    jobs::running::Running,
    store::{HostName, JobRecord, StoreError},
};

/// The server of one move.
pub(in super::super) struct ModelSite<M>(pub(in super::super) Shared<M>);

impl<M: Model> Log for ModelSite<M> {
    async fn events(&self, _: JobId) -> Result<Vec<LogEvent>, StoreError> {
        Ok(lock(&self.0).server().log.clone())
    }

    async fn append(&self, _: JobId, events: &[LogEvent]) -> Result<(), StoreError> {
        server_goes_on(&self.0).await;
        lock(&self.0).server().log.extend_from_slice(events);
        server_goes_on(&self.0).await;
        Ok(())
    }
}

impl<M: Model> Site for ModelSite<M> {
    type Host = Host<M>;

    fn host(&self, name: &HostName) -> Option<Host<M>> {
        let role = if name.name == "kvm1" { Role::Source } else { Role::Destination };
        Some(Host { world: self.0.clone(), role })
    }

    async fn reserve(&self, _: VmId, job: JobId) -> Result<JobId, StoreError> {
        lock(&self.0).server().reserved = true;
        Ok(job)
    }

    async fn unreserve(&self, _: JobId) -> Result<(), StoreError> {
        lock(&self.0).server().reserved = false;
        Ok(())
    }

    async fn put_plan(&self, _: JobId, plan: &str) -> Result<(), StoreError> {
        lock(&self.0).server().plan = Some(plan.to_owned());
        Ok(())
    }

    async fn put_findings(&self, _: JobId, _: &[Finding]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put_figures(&self, _: JobId, _: &Figures) -> Result<(), StoreError> {
        Ok(())
    }

    async fn note(&self, _: JobId, _: &[JobText]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn check(&self, _: JobId, _: VmId, _: Check<'_>, _: [&Host<M>; 2]) -> Result<Checked, StoreError> {
        server_goes_on(&self.0).await;
        Ok(Checked::default())
    }

    async fn ask_others(&self, _: VmId, _: [&Host<M>; 2]) -> Vec<OtherAnswer> {
        let mut world = lock(&self.0);
        world.tick();
        vec![("kvm3".to_owned(), world.third_host())]
    }

    fn seen_elsewhere(&self, _: VmId, _: [&Host<M>; 2]) -> Option<String> {
        let has_it = lock(&self.0).third_host().is_ok_and(|state| state.is_some());
        has_it.then(|| "kvm3".to_owned())
    }

    async fn needed_by_others(&self, _: VmId, _: &[DiskMove]) -> Vec<JobText> {
        let needed = lock(&self.0).needs_old_files();
        if needed { vec![JobText::Text { text: "A VM needs it".to_owned() }] } else { Vec::new() }
    }

    async fn is_gone(&self, host: &Host<M>, _: VmId) -> bool {
        let mut world = lock(&self.0);
        world.tick();
        world.is_gone(host.role)
    }

    async fn wait_until(&self, _: &Host<M>, _: VmId, _: impl Fn(Option<&VmFacts>) -> bool + Send + Sync) {
        lock(&self.0).tick();
        server_goes_on(&self.0).await;
    }
}

/// Runs of the server, one after another, until the job has ended or waits for a human.
pub(in super::super) async fn run_of_server<M: Model, S: Saga>(
    world: &Shared<M>,
    record: &JobRecord,
    policy: RetryPolicy,
    saga: impl Fn(ModelSite<M>, JobRecord, Arc<Running>) -> Result<S, JobText>,
) -> Phase {
    let mut record = record.clone();
    loop {
        let running = Arc::new(Running::default());
        let run = ServerRun { cancelled: running.cancelled.clone(), ..ServerRun::default() };
        {
            let mut world = lock(world);
            let server = world.server();
            server.run = run.clone();
            if newest_attempt(&server.log).iter().any(|event| matches!(event, LogEvent::CancelRequested { .. })) {
                running.cancelled.cancel();
            }
            if let Some(plan) = server.plan.take() {
                record.job.plan = plan;
            }
        }
        let site = ModelSite(world.clone());
        let mut saga = saga(ModelSite(world.clone()), record.clone(), running).expect("its hosts and plan are there");
        tokio::select! {
            biased;
            () = run.died.cancelled() => {}
            () = run.waits.cancelled() => return phase(&lock(world).server().log),
            phase = drive(&site, record.id, &mut saga, policy) => return phase,
        }
        lock(world).tick();
    }
}
