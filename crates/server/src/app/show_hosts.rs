//! Hosts, as the inventory has them.

use ferry_core::{
    api::server::{HostView, MoveOnHost, VmRow},
    migration::{Phase, phase},
};

use crate::{App, failure::Failure, inventory::Host, store::JobRecord};

pub(crate) async fn list(app: &App) -> Result<Vec<HostView>, Failure> {
    let moves = moves(app).await?;
    Ok(app.inventory.hosts().iter().map(|host| view(host, &moves)).collect())
}

pub(crate) async fn one(app: &App, reference: &str) -> Result<HostView, Failure> {
    let found = app.inventory.find(reference);
    let host = found.map_err(|finding| Failure::found(format!("Could not show host {reference}"), finding))?;
    shown(app, &host).await
}

/// The host as it is now.
pub(super) async fn shown(app: &App, host: &Host) -> Result<HostView, Failure> {
    Ok(view(host, &moves(app).await?))
}

/// Every move that has not ended, oldest first.
async fn moves(app: &App) -> Result<Vec<(JobRecord, Phase)>, Failure> {
    let open = app.store.open_jobs_with_logs().await?;
    Ok(open.into_iter().map(|(record, log)| (record, phase(&log))).collect())
}

fn view(host: &Host, moves: &[(JobRecord, Phase)]) -> HostView {
    let seen = host.seen();
    let mut facts = seen.observation.as_ref().map(|observation| observation.host.clone());
    if let (Some(facts), Some(trouble)) = (&mut facts, seen.trouble.clone()) {
        facts.findings.insert(0, trouble);
    }
    let row =
        |vm: &ferry_core::vm::VmFacts| VmRow { id: vm.id, name: vm.name.clone(), state: vm.state, memory: vm.memory };
    let settings = host.settings();
    let here = host.record.id;
    let on_host = |(record, phase): &(JobRecord, Phase)| {
        let (source, destination) = (&record.job.source, &record.job.destination);
        let incoming = destination.id == here;
        let other = if incoming { source } else { destination };
        (incoming || source.id == here).then(|| MoveOnHost {
            job: record.id,
            vm_name: record.job.vm_name.clone(),
            incoming,
            other: other.name.clone(),
            phase: *phase,
        })
    };
    HostView {
        limits: settings.limits,
        maintenance: settings.maintenance,
        moves: moves.iter().filter_map(on_host).collect(),
        id: host.record.id,
        name: host.record.name.clone(),
        address: host.record.address.clone(),
        pin: host.record.pin,
        reachable: seen.reachable,
        seen_at_ms: seen.seen_at_ms,
        facts,
        vms: seen.vms().iter().map(row).collect(),
        shares: seen.observation.map(|observation| observation.shares.clone()).unwrap_or_default(),
    }
}
