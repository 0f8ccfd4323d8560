//! Memory of hosts that live moves were promised when they were accepted, and that has not arrived there yet.

use ferry_core::{
    id::{HostId, VmId},
    job::JobKind,
    memory::{Need, left},
};

use crate::{
    App,
    saga::migrate::Plan,
    store::{JobRecord, StoreError},
};

/// The memory that a job was promised, and at which host; `None`: it is no live move.
pub(crate) fn memory_of(record: &JobRecord) -> Option<(HostId, Need)> {
    let job = &record.job;
    let is_live = matches!(job.kind, JobKind::Live | JobKind::LiveVsm);
    let plan = is_live.then(|| Plan::from_json(&job.plan).ok())??;
    Some((job.destination.id, plan.need))
}

/// What each accepted move was promised.
pub(crate) struct Promised(Vec<(VmId, HostId, Need)>);

impl Promised {
    /// Of all moves that have not ended.
    pub(crate) async fn read(app: &App) -> Result<Self, StoreError> {
        let open = app.store.open_jobs().await?;
        let one = |record: &JobRecord| {
            let (host, need) = memory_of(record)?;
            let arrived = app.jobs.running(record.id).map(|running| running.arrived()).unwrap_or_default();
            Some((record.job.vm, host, left(need, arrived)))
        };
        Ok(Self(open.iter().filter_map(one).collect()))
    }

    /// At a host, to moves of other VMs.
    pub(crate) fn at(&self, host: HostId, vm: VmId) -> Vec<Need> {
        self.all_at(host, |of| of != vm)
    }

    /// At a host, to every move.
    pub(crate) fn all(&self, host: HostId) -> Vec<Need> {
        self.all_at(host, |_| true)
    }

    fn all_at(&self, host: HostId, is: impl Fn(VmId) -> bool) -> Vec<Need> {
        self.0.iter().filter(|(vm, at, _)| *at == host && is(*vm)).map(|(.., need)| *need).collect()
    }
}
