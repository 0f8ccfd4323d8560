//! VMs as the hosts' agents report them. A VM that is moving is shown where it runs.

use std::{collections::BTreeMap, sync::Arc};

use ferry_core::{
    api::{problem::Title, server::VmView},
    id::{JobId, VmId},
    preflight::runs_twice,
    vm::{VmFacts, VmState},
};

use super::App;
use crate::{
    failure::Failure,
    inventory::{Host, Seen},
};

pub(crate) async fn list(app: &App) -> Result<Vec<VmView>, Failure> {
    let jobs = app.store.moving().await?;
    let placed = app.inventory.placed();
    let mut views: Vec<VmView> =
        shown(&placed).into_iter().map(|(host, vm)| view(app, &jobs, host.name(), vm.clone())).collect();
    views.sort_by(|one, other| (&one.facts.name, &one.host).cmp(&(&other.facts.name, &other.host)));
    Ok(views)
}

pub(crate) async fn one(app: &App, reference: &str) -> Result<VmView, Failure> {
    let jobs = app.store.moving().await?;
    let (host, vm) = app.inventory.find_vm(&Title::ShowVm { vm: reference.to_owned() }, reference)?;
    Ok(view(app, &jobs, host.name(), vm))
}

pub(super) fn view(app: &App, jobs: &BTreeMap<VmId, JobId>, host: &str, facts: VmFacts) -> VmView {
    let hosts = app.inventory.split_brain(facts.id);
    let findings = if hosts.len() > 1 { vec![runs_twice(&facts.name, &hosts)] } else { Vec::new() };
    VmView { host: host.to_owned(), job: jobs.get(&facts.id).copied(), facts, findings }
}

/// For each VM, only its copies with the most active state: if it has a process on some host, definitions on other
/// hosts are not listed as separate VMs.
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
