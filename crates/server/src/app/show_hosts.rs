//! Hosts, as the inventory has them.

use ferry_core::api::server::{HostView, VmRow};

use crate::{App, failure::Failure, inventory::Host};

pub(crate) fn list(app: &App) -> Vec<HostView> {
    app.inventory.hosts().iter().map(|host| view(host)).collect()
}

pub(crate) fn one(app: &App, reference: &str) -> Result<HostView, Failure> {
    let found = app.inventory.find(reference);
    let host = found.map_err(|finding| Failure::found(format!("Could not show host {reference}"), finding))?;
    Ok(view(&host))
}

pub(crate) fn view(host: &Host) -> HostView {
    let seen = host.seen();
    let mut facts = seen.observation.as_ref().map(|observation| observation.host.clone());
    if let (Some(facts), Some(trouble)) = (&mut facts, seen.trouble.clone()) {
        facts.findings.insert(0, trouble);
    }
    let row =
        |vm: &ferry_core::vm::VmFacts| VmRow { id: vm.id, name: vm.name.clone(), state: vm.state, memory: vm.memory };
    HostView {
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
