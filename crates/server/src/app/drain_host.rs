//! Drains a host: nothing is placed there from now on, and every running VM moves away. A VM that cannot is named with
//! the reason and the fix; the others go.

use std::{collections::BTreeMap, sync::Arc};

use ferry_core::{
    api::server::{Candidate, DrainHost, HostView, JobView, MigrateVm},
    finding::{Finding, FindingId, Severity},
    id::HostId,
    job::JobKind,
    memory::room,
    placement::{Room, spread},
    vm::{VmFacts, VmState},
};
use uuid::Uuid;

use super::{
    check_move, migrate_many,
    migrate_vm::{host_name, new_move},
    promised::Promised,
    show_hosts,
};
use crate::{
    App,
    failure::Failure,
    inventory::Host,
    store::{HostName, HostSettings, NewJob},
};

pub(crate) async fn drain_host(
    app: &Arc<App>,
    reference: &str,
    body: &DrainHost,
    by: &str,
) -> Result<JobView, Failure> {
    let title = format!("Could not drain host {reference}");
    let found = |reference: &str| app.inventory.find(reference).map_err(|finding| Failure::found(&title, finding));
    let host = found(reference)?;
    let wanted = body.destination.as_deref().map(found).transpose()?;
    if wanted.as_ref().is_some_and(|wanted| wanted.record.id == host.record.id) {
        let message = format!("Host {} cannot take its own VMs", host.name());
        return Err(super::invalid(&title, host.name(), message, "Name another host, or none"));
    }
    let seen = app.inventory.refresh(&host).await;
    if let Some(trouble) = seen.trouble.filter(|_| !seen.reachable) {
        return Err(Failure::found(title, trouble));
    }
    set_maintenance(app, &host, true).await?;
    let moving = app.store.open_jobs().await?;
    let mut stay: Vec<Finding> = moving
        .iter()
        .filter(|job| job.job.destination.id == host.record.id)
        .map(|job| comes(&job.job.vm_name, job.id, host.name()))
        .collect();
    let vms: Vec<VmFacts> = seen.observation.map(|observation| observation.vms.clone()).unwrap_or_default();
    let is_moved = |vm: &VmFacts| moving.iter().any(|job| job.job.vm == vm.id);
    let mut leaving = Vec::new();
    let leaves = |vm: &&VmFacts| match vm.state {
        VmState::Running | VmState::Paused | VmState::Crashed | VmState::Suspended => !is_moved(vm),
        VmState::Incoming | VmState::ShutOff => false,
    };
    for vm in vms.iter().filter(leaves) {
        let candidates = check_move::candidates(app, &format!("{}/{}", host.name(), vm.id)).await?;
        let hosts = open_hosts(app, &candidates, wanted.as_deref());
        if hosts.is_empty() {
            stay.push(nowhere(vm, &candidates, wanted.as_deref(), host.name()));
        } else {
            leaving.push((vm, hosts));
        }
    }
    let children = place(app, &host, leaving, &Promised::read(app).await?, &mut stay, by);
    let destination = wanted.map_or(HostName { id: HostId(Uuid::nil()), name: String::new() }, |host| host_name(&host));
    let parent = migrate_many::parent(JobKind::Drain, host_name(&host), destination, &children, by);
    migrate_many::create(app, &title, NewJob { findings: stay, ..parent }, children).await
}

/// Ends a host's maintenance.
pub(crate) async fn resume_host(app: &App, reference: &str) -> Result<HostView, Failure> {
    let title = format!("Could not resume host {reference}");
    let host = app.inventory.find(reference).map_err(|finding| Failure::found(&title, finding))?;
    set_maintenance(app, &host, false).await?;
    show_hosts::shown(app, &host).await
}

async fn set_maintenance(app: &App, host: &Host, maintenance: bool) -> Result<(), Failure> {
    let settings = HostSettings { maintenance, ..host.settings() };
    app.store.put_host_settings(host.record.id, settings).await?;
    app.inventory.set(host, settings);
    tracing::info!(host = host.name(), maintenance, "A host's maintenance was set");
    Ok(())
}

fn open_hosts(app: &App, candidates: &[Candidate], wanted: Option<&Host>) -> Vec<HostId> {
    let may = candidates.iter().filter(|candidate| candidate.kind.is_some());
    may.filter_map(|candidate| app.inventory.find(&candidate.host).ok())
        .map(|host| host.record.id)
        .filter(|id| wanted.is_none_or(|wanted| wanted.record.id == *id))
        .collect()
}

/// A move for each VM that finds room; the others stay.
fn place(
    app: &App,
    source: &Host,
    leaving: Vec<(&VmFacts, Vec<HostId>)>,
    promised: &Promised,
    stay: &mut Vec<Finding>,
    by: &str,
) -> Vec<NewJob> {
    let free = |host: Arc<Host>| {
        let observation = host.seen().observation?;
        Some(Room { host: host.record.id, free: room(&observation.host, &promised.all(host.record.id)) })
    };
    let rooms: Vec<Room> = app.inventory.hosts().into_iter().filter_map(free).collect();
    let wishes: Vec<_> = leaving.iter().map(|(vm, hosts)| migrate_many::leaving(vm, hosts.clone())).collect();
    let mut children = Vec::new();
    for ((vm, _), chosen) in leaving.into_iter().zip(spread(&wishes, &rooms)) {
        match chosen.and_then(|id| app.inventory.by_id(id)) {
            Some(destination) => {
                let how = MigrateVm { destination: destination.name().to_owned(), ..MigrateVm::default() };
                children.push(new_move(source, &destination, vm, &how, Vec::new(), by));
            }
            None => stay.push(Finding::blocks(
                FindingId::HostNone,
                &vm.name,
                format!("No host has room for its {} beside the VMs that leave with it", vm.memory),
                format!("Free memory on another host, then `ferry host drain {}` again", source.name()),
            )),
        }
    }
    children
}

/// Why a VM can go to none of the hosts.
fn nowhere(vm: &VmFacts, candidates: &[Candidate], wanted: Option<&Host>, source: &str) -> Finding {
    let asked = |candidate: &&Candidate| match wanted {
        Some(wanted) => candidate.host == wanted.name(),
        None => candidate.host != source,
    };
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for candidate in candidates.iter().filter(asked) {
        let blocking = candidate.findings.iter().filter(|finding| finding.severity == Severity::Blocks);
        for finding in blocking {
            reasons.entry(&finding.message).or_default().push(&finding.fix);
        }
    }
    let fix = reasons.values().flatten().next().copied().unwrap_or("Add another host with `ferry host add`");
    let message = match reasons.len() {
        0 => "There is no other host".to_owned(),
        _ => reasons.keys().copied().collect::<Vec<_>>().join("; "),
    };
    Finding::blocks(FindingId::HostNone, &vm.name, message, format!("{fix}; then `ferry host drain {source}` again"))
}

fn comes(vm: &str, job: ferry_core::id::JobId, host: &str) -> Finding {
    Finding::blocks(
        FindingId::HostBusy,
        vm,
        format!("Job {job} moves it to {host}"),
        format!(
            "Wait for it (`ferry job watch {job}`) or cancel it (`ferry job cancel {job}`), then `ferry host drain {host}` again"
        ),
    )
}
