//! The model's server: a database in memory, and a third host.

use ferry_core::{
    api::agent::Role,
    files::DiskMove,
    finding::Finding,
    id::{JobId, VmId},
    job::Figures,
    migration::{LogEvent, Presence},
    vm::{VmFacts, VmState},
};

use super::{
    super::{
        executor::Log,
        models::away,
        site::{Check, Site, Told},
    },
    hosts::{Host, Shared, lock, server_goes_on},
    world::FAULTS_UNTIL,
};
use crate::store::{HostName, StoreError};

/// The server of one move.
#[derive(Clone)]
pub(super) struct Model(pub(super) Shared);

impl Log for Model {
    async fn events(&self, _: JobId) -> Result<Vec<LogEvent>, StoreError> {
        Ok(lock(&self.0).log.clone())
    }

    async fn append(&self, _: JobId, events: &[LogEvent]) -> Result<(), StoreError> {
        server_goes_on(&self.0).await;
        lock(&self.0).log.extend_from_slice(events);
        server_goes_on(&self.0).await;
        Ok(())
    }
}

impl Site for Model {
    type Host = Host;

    fn host(&self, name: &HostName) -> Option<Host> {
        let role = if name.name == "kvm1" { Role::Source } else { Role::Destination };
        Some(Host { world: self.0.clone(), role })
    }

    async fn reserve(&self, _: VmId, job: JobId) -> Result<JobId, StoreError> {
        lock(&self.0).reserved = true;
        Ok(job)
    }

    async fn unreserve(&self, _: JobId) -> Result<(), StoreError> {
        lock(&self.0).reserved = false;
        Ok(())
    }

    async fn put_plan(&self, _: JobId, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put_findings(&self, _: JobId, _: &[Finding]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put_figures(&self, _: JobId, _: &Figures) -> Result<(), StoreError> {
        Ok(())
    }

    async fn note(&self, _: JobId, _: &[String]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn check(&self, _: JobId, _: VmId, _: Check<'_>, _: [&Host; 2]) -> Result<Vec<Finding>, StoreError> {
        server_goes_on(&self.0).await;
        Ok(Vec::new())
    }

    async fn ask_others(&self, _: VmId, _: [&Host; 2]) -> Vec<Told> {
        let mut world = lock(&self.0);
        world.tick();
        let state = match world.moment < FAULTS_UNTIL && world.chance.one_in(4) {
            true => Err(away()),
            false => Ok((world.elsewhere && !world.unknown).then_some(VmState::Running)),
        };
        vec![("kvm3".to_owned(), state)]
    }

    fn seen_elsewhere(&self, _: VmId, _: [&Host; 2]) -> Option<String> {
        None
    }

    async fn needed_by_others(&self, _: VmId, _: &[DiskMove]) -> Vec<String> {
        Vec::new()
    }

    async fn is_gone(&self, host: &Host, _: VmId) -> bool {
        let mut world = lock(&self.0);
        world.tick();
        let side = world.side(host.role);
        side.agent_is_up && side.libvirt_is_up && side.process == Presence::Absent
    }

    async fn wait_until(&self, _: &Host, _: VmId, _: impl Fn(Option<&VmFacts>) -> bool + Send + Sync) {
        lock(&self.0).tick();
        server_goes_on(&self.0).await;
    }
}
