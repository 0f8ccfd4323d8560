//! Memory of hosts that live moves were promised when they were accepted, and that has not arrived there yet.

use ferry_core::{
    id::{HostId, VmId},
    job::JobKind,
    memory::{Need, left},
};

use crate::{App, saga::migrate::Plan, store::StoreError};

/// What each accepted move was promised.
pub(crate) struct Promised(Vec<(VmId, HostId, Need)>);

impl Promised {
    /// Of all moves that have not ended.
    pub(crate) async fn read(app: &App) -> Result<Self, StoreError> {
        let open = app.store.open_jobs().await?;
        let one = |record: &crate::store::JobRecord| {
            let job = &record.job;
            let plan =
                matches!(job.kind, JobKind::Live | JobKind::LiveVsm).then(|| Plan::from_json(&job.plan).ok())??;
            let arrived = app.jobs.running(record.id).map(|running| running.arrived()).unwrap_or_default();
            Some((job.vm, job.destination.id, left(plan.need, arrived)))
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
