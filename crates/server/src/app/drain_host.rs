//! Drains a host: from now on nothing is placed there, and every running VM moves away. A VM that cannot move is listed
//! with the reason and the fix; the others move.

use std::{collections::BTreeMap, sync::Arc};

use ferry_core::{
    api::{
        problem::Title,
        server::{Candidate, DrainHost, HostView, JobView, MigrateVm},
    },
    files::DiskMove,
    finding::{Action, ByHand, Command, Finding, FindingId, Fix, Fixes, Message, Messages, Severity},
    id::HostId,
    job::JobKind,
    location::Location,
    placement::{Chosen, Leaving, Room, spread},
    vm::{VmFacts, VmState},
};
use uuid::Uuid;

use super::{
    App,
    accept::{accept_all, parent},
    migrate_many,
    migrate_vm::new_move,
    show_hosts,
};
use crate::{
    failure::Failure,
    inventory::Host,
    preflight::{live, places, promised::Promised},
    store::{HostName, HostSettings, NewJob},
};

pub(crate) async fn drain_host(
    app: &Arc<App>,
    reference: &str,
    body: &DrainHost,
    by: &str,
) -> Result<JobView, Failure> {
    let title = Title::DrainHost { host: reference.to_owned() };
    let found = |reference: &str| app.inventory.find(reference).map_err(|finding| Failure::found(&title, finding));
    let host = found(reference)?;
    let requested = body.destination.as_deref().map(found).transpose()?;
    if requested.as_ref().is_some_and(|requested| requested.record.id == host.record.id) {
        let message = Message::HostTakesOwn { host: host.name().to_owned() };
        return Err(super::invalid(&title, host.name(), message, ByHand::NameAnotherHost));
    }
    let seen = app.inventory.refresh_now(&host).await;
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
    let promised = app.promised().await?;
    let places = storage_places(app, &title, &host, requested.as_deref(), body.storage.as_ref()).await?;
    let leaves = |vm: &&VmFacts| match vm.state {
        VmState::Running | VmState::Paused | VmState::Crashed | VmState::Suspended => !is_moved(vm),
        VmState::Incoming | VmState::ShutOff => false,
    };
    let to = |host: &Host| places.get(&host.record.id).cloned();
    for vm in vms.iter().filter(leaves) {
        let candidates = live::judge_all(&app.preflight, &host, vm, &promised, body.overcommit, to).await?;
        let hosts = open_hosts(app, &candidates, requested.as_deref());
        if hosts.is_empty() {
            let candidates: Vec<Candidate> = candidates.into_iter().map(|(candidate, _)| candidate).collect();
            stay.push(nowhere(&vm.name, &candidates, requested.as_deref().map(Host::name), host.name()));
        } else {
            leaving.push((vm, hosts));
        }
    }
    let children = place(app, &host, leaving, &promised, body.overcommit, &mut stay, by);
    let destination = requested.map_or(HostName { id: HostId(Uuid::nil()), name: String::new() }, |host| host.named());
    let parent = parent(JobKind::Drain, host.named(), destination, &children, body.overcommit, by);
    accept_all(app, &title, NewJob { findings: stay, ..parent }, children).await
}

/// Ends a host's maintenance.
pub(crate) async fn resume_host(app: &App, reference: &str) -> Result<HostView, Failure> {
    let title = Title::ResumeHost { host: reference.to_owned() };
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

/// The places for disks on each possible destination that does not reach them: the requested place, or the host's first
/// storage location.
async fn storage_places(
    app: &App,
    title: &Title,
    source: &Host,
    requested: Option<&Host>,
    storage: Option<&String>,
) -> Result<BTreeMap<HostId, Location>, Failure> {
    let Some(text) = storage else {
        let locations = app.store.storage_locations().await?;
        return Ok(locations.into_iter().filter_map(|(host, all)| Some((host, all.into_iter().next()?))).collect());
    };
    let shares = app.store.shares().await?;
    if let Some(requested) = requested {
        return Ok([(requested.record.id, places::within_reach(title, requested, &shares, text)?)].into());
    }
    let hosts: Vec<_> = app.inventory.hosts().into_iter().filter(|host| host.record.id != source.record.id).collect();
    // A host without such a place still receives VMs whose disks need none.
    let found: Vec<_> =
        hosts.iter().map(|host| Ok((host.record.id, places::within_reach(title, host, &shares, text)?))).collect();
    match found.iter().all(Result::is_err) {
        true => found.into_iter().collect(),
        false => Ok(found.into_iter().filter_map(Result::ok).collect()),
    }
}

/// How a VM would move to a host: its migrated disks, and the findings.
type PlannedMove = (Vec<DiskMove>, Vec<Finding>);

fn open_hosts(
    app: &App,
    candidates: &[(Candidate, Vec<DiskMove>)],
    requested: Option<&Host>,
) -> BTreeMap<HostId, PlannedMove> {
    let may = candidates.iter().filter(|(candidate, _)| candidate.kind.is_some());
    may.filter_map(|(candidate, migrated)| {
        let id = app.inventory.find(&candidate.host).ok()?.record.id;
        Some((id, (migrated.clone(), candidate.findings.clone())))
    })
    .filter(|(id, _)| requested.is_none_or(|requested| requested.record.id == *id))
    .collect()
}

/// Creates a move for each VM for which some host has enough memory; the others stay.
fn place(
    app: &App,
    source: &Host,
    leaving: Vec<(&VmFacts, BTreeMap<HostId, PlannedMove>)>,
    promised: &Promised,
    overcommit: bool,
    stay: &mut Vec<Finding>,
    by: &str,
) -> Vec<NewJob> {
    let room = |host: Arc<Host>| Some(Room { host: host.record.id, stock: migrate_many::stock(&host, promised)? });
    let rooms: Vec<Room> = app.inventory.hosts().into_iter().filter_map(room).collect();
    let wishes: Vec<_> =
        leaving.iter().map(|(vm, hosts)| migrate_many::leaving(vm, hosts.keys().copied().collect())).collect();
    let chosen = spread(&wishes, &rooms, overcommit);
    stay.extend(beyond(app, &wishes, &chosen, &rooms));
    let mut children = Vec::new();
    for ((vm, mut hosts), chosen) in leaving.into_iter().zip(chosen) {
        match chosen.and_then(|chosen| app.inventory.by_id(chosen.host)) {
            Some(destination) => {
                let how = MigrateVm { destination: destination.name().to_owned(), overcommit, ..MigrateVm::default() };
                let (migrated, findings) = hosts.remove(&destination.record.id).unwrap_or_default();
                children.push(NewJob { findings, ..new_move(source, &destination, vm, &how, migrated, by) });
            }
            None => stay.push(Finding::blocks(
                FindingId::HostNone,
                &vm.name,
                Message::NoHostHasRoom { memory: vm.memory },
                match (vm.huge_page, source.name().to_owned()) {
                    (None, host) => Fix::from(Action::FreeMemoryElsewhere { host }),
                    (Some(_), host) => Command::SetHugePagesElsewhere { host }.into(),
                },
            )),
        }
    }
    children
}

/// Findings about hosts on which the moves would use more memory than the host has.
fn beyond(app: &App, wishes: &[Leaving], chosen: &[Option<Chosen>], rooms: &[Room]) -> Vec<Finding> {
    let one = |room: &Room| {
        let goes_there = |chosen: &Option<Chosen>| chosen.is_some_and(|chosen| chosen.host == room.host);
        let there = wishes.iter().zip(chosen).filter(|(_, chosen)| goes_there(chosen));
        let (vms, chosen): (Vec<Leaving>, Vec<Option<Chosen>>) = there.map(|(vm, to)| (vm.clone(), *to)).unzip();
        migrate_many::not_for_all(app.inventory.by_id(room.host)?.name(), &room.stock, &vms, &chosen)
    };
    rooms.iter().filter_map(one).collect()
}

/// The finding that no host can receive a VM. Its fix lists everything to do for the host with the fewest problems.
fn nowhere(vm: &str, candidates: &[Candidate], requested: Option<&str>, source: &str) -> Finding {
    let asked = |candidate: &&Candidate| match requested {
        Some(requested) => candidate.host == requested,
        None => candidate.host != source,
    };
    let blocking = |candidate: &Candidate| -> Vec<Finding> {
        candidate.findings.iter().filter(|finding| finding.severity == Severity::Blocks).cloned().collect()
    };
    let blocked: Vec<(&str, Vec<Finding>)> =
        candidates.iter().filter(asked).map(|candidate| (candidate.host.as_str(), blocking(candidate))).collect();
    let reasons: BTreeMap<String, Message> = blocked
        .iter()
        .flat_map(|(_, all)| all)
        .map(|finding| (finding.message.to_string(), finding.message.clone()))
        .collect();
    let (message, first): (_, Fix) = match blocked.iter().min_by_key(|(_, all)| all.len()) {
        None => (Message::NoOtherHost, Action::AddAnotherHost.into()),
        Some((host, all)) => {
            let mut fixes: Vec<Fix> = Vec::new();
            for finding in all {
                if !fixes.contains(&finding.fix) {
                    fixes.push(finding.fix.clone());
                }
            }
            let fixes = Fixes(fixes);
            let fix = match blocked.len() {
                0 | 1 => ByHand::AllOf { fixes },
                _ => ByHand::ToGoTo { host: (*host).to_owned(), fixes },
            };
            (Message::Several { reasons: Messages(reasons.into_values().collect()) }, fix.into())
        }
    };
    let fix = Action::ThenDrain { first: first.into(), host: source.to_owned() };
    Finding::blocks(FindingId::HostNone, vm, message, fix)
}

fn comes(vm: &str, job: ferry_core::id::JobId, host: &str) -> Finding {
    Finding::blocks(
        FindingId::HostBusy,
        vm,
        Message::JobBringsIt { job, host: host.to_owned() },
        Action::WaitOrCancelThenDrain { job, host: host.to_owned() },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_stays_has_the_whole_fix_for_the_host_that_lacks_least() {
        let finding = |what: &str| {
            Finding::of_text(FindingId::DiskNotShared, "web01", format!("{what} is wrong"), format!("Mend {what}"))
        };
        let candidate = |host: &str, whats: &[&str]| Candidate {
            host: host.to_owned(),
            kind: None,
            why: String::new(),
            sentence: None,
            transfer: None,
            route: None,
            findings: whats
                .iter()
                .map(|what| finding(what))
                .chain([Finding {
                    severity: Severity::Warns,
                    ..Finding::of_text(FindingId::DiskUnsafe, "web01", "It is odd", "Change it")
                }])
                .collect(),
        };
        let three = [candidate("kvm1", &[]), candidate("kvm2", &["a", "b", "c"]), candidate("kvm3", &["b", "a", "b"])];
        let two = [candidate("kvm1", &[]), candidate("kvm2", &["a", "b"]), candidate("kvm3", &["c"])];
        for (candidates, requested, message, fix) in [
            (
                &three[..],
                None,
                "a is wrong; b is wrong; c is wrong",
                "So that it can go to kvm2: Mend a; and Mend b; and Mend c",
            ),
            (&three[..], Some("kvm3"), "a is wrong; b is wrong", "Mend b; and Mend a"),
            (&two[..], None, "a is wrong; b is wrong; c is wrong", "So that it can go to kvm3: Mend c"),
            (&two[..1], None, "There is no other host", "Add another host with `ferry host add`"),
        ] {
            let found = nowhere("web01", candidates, requested, "kvm1");
            assert_eq!(found.message.to_string(), message);
            assert_eq!(found.fix.to_string(), format!("{fix}; then `ferry host drain kvm1` again"));
        }
    }
}
