//! VMs, as the hosts' agents see them. One that is on its way is shown where it runs.

use std::{collections::BTreeMap, sync::Arc};

use ferry_core::{
    api::server::VmView,
    finding::Finding,
    id::{JobId, VmId},
    preflight::{Placed, resolve_vm, runs_twice},
    vm::{VmFacts, VmState},
};

use crate::{
    App,
    failure::Failure,
    inventory::{Host, Seen},
};

pub(crate) async fn list(app: &App) -> Result<Vec<VmView>, Failure> {
    let jobs = moving(app).await?;
    let placed = app.inventory.placed();
    let mut views: Vec<VmView> =
        shown(&placed).into_iter().map(|(host, vm)| view(app, &jobs, host.name(), vm.clone())).collect();
    views.sort_by(|one, other| (&one.facts.name, &one.host).cmp(&(&other.facts.name, &other.host)));
    Ok(views)
}

pub(crate) async fn one(app: &App, reference: &str) -> Result<VmView, Failure> {
    let jobs = moving(app).await?;
    let (host, vm) = find(app, &format!("Could not show VM {reference}"), reference)?;
    Ok(view(app, &jobs, host.name(), vm))
}

/// The VM that `reference` (a name, a UUID, or `HOST/NAME`) means, and where it is.
pub(super) fn find(app: &App, title: &str, reference: &str) -> Result<(Arc<Host>, VmFacts), Failure> {
    resolve(app, reference).map_err(|finding| Failure::found(title, finding))
}

fn resolve(app: &App, reference: &str) -> Result<(Arc<Host>, VmFacts), Finding> {
    let placed = app.inventory.placed();
    let mut rows = Vec::new();
    let mut facts = Vec::new();
    for (host, seen) in &placed {
        for vm in seen.vms() {
            let host_name = host.name().to_owned();
            rows.push(Placed { host: host_name, id: vm.id, name: vm.name.clone(), state: vm.state });
            facts.push((host, vm));
        }
    }
    let (host, vm) = facts[resolve_vm(reference, &rows)?];
    Ok((host.clone(), vm.clone()))
}

/// Which job moves which VM.
pub(super) async fn moving(app: &App) -> Result<BTreeMap<VmId, JobId>, Failure> {
    Ok(app.store.open_jobs().await?.into_iter().map(|job| (job.job.vm, job.id)).collect())
}

pub(super) fn view(app: &App, jobs: &BTreeMap<VmId, JobId>, host: &str, facts: VmFacts) -> VmView {
    let twins = app.inventory.twins(facts.id);
    let findings = if twins.len() > 1 { vec![runs_twice(&facts.name, &twins)] } else { Vec::new() };
    VmView { host: host.to_owned(), job: jobs.get(&facts.id).copied(), facts, findings }
}

/// A VM that has a process somewhere is there; definitions that other hosts have of it are not VMs of their own.
fn shown(placed: &[(Arc<Host>, Seen)]) -> Vec<(&Arc<Host>, &VmFacts)> {
    let all: Vec<_> = placed.iter().flat_map(|(host, seen)| seen.vms().iter().map(move |vm| (host, vm))).collect();
    let rank = |state: VmState| match state {
        VmState::Running => 4,
        VmState::Crashed | VmState::Suspended => 3,
        VmState::Paused => 2,
        VmState::Incoming => 1,
        VmState::ShutOff => 0,
    };
    let mut best: BTreeMap<VmId, u8> = BTreeMap::new();
    for (_, vm) in &all {
        let known = best.entry(vm.id).or_default();
        *known = rank(vm.state).max(*known);
    }
    all.into_iter().filter(|(_, vm)| rank(vm.state) == best[&vm.id]).collect()
}
