//! Moves several VMs to one host: a parent job with one move per VM. Either all are accepted or none.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ferry_core::{
    api::{
        problem::Title,
        server::{JobView, MigrateMany},
    },
    finding::{Action, ByHand, Command, Finding, FindingId, Fix, Message, Severity, any_blocks},
    id::HostId,
    job::JobKind,
    memory::{Need, Stock, need},
    placement::{Chosen, Leaving, Room, spread},
    units::ByteCount,
    vm::VmFacts,
};
use uuid::Uuid;

use super::{
    App,
    accept::{accept_all, parent},
    invalid,
    migrate_vm::{check_numbers, new_move},
};
use crate::{
    failure::Failure,
    inventory::Host,
    preflight::{live, places::requested, promised::Promised},
    store::{HostName, NewJob},
};

/// How many VMs one request may name.
const VMS_MAX: usize = 1000;

pub(crate) async fn migrate_many(app: &Arc<App>, body: &MigrateMany, by: &str) -> Result<JobView, Failure> {
    let title = Title::MoveVms { count: body.vms.len() as u64, host: body.how.destination.clone() };
    check_numbers(&title, &body.how)?;
    if body.vms.is_empty() || body.vms.len() > VMS_MAX {
        let message = Message::VmsNamed { count: body.vms.len() as u64 };
        return Err(invalid(&title, "vms", message, ByHand::NameVms { most: VMS_MAX as u64 }));
    }
    if body.how.dry_run {
        return Err(invalid(&title, "dry_run", Message::SeveralDryRun, Action::TryEach));
    }
    if body.how.offline {
        return Err(invalid(&title, "offline", Message::SeveralOffline, Action::MoveEachOffline));
    }
    let destination = app.inventory.find(&body.how.destination).map_err(|finding| Failure::found(&title, finding))?;
    if !body.how.disks.is_empty() {
        return Err(invalid(&title, "disks", Message::SeveralDisks, Action::MoveAlone));
    }
    let vms = find_all(app, &title, &body.vms)?;
    let requested = requested(&app.store, &title, &destination, body.how.storage.as_ref(), &[]).await?;
    let (promised, overcommit) = (app.promised().await?, body.how.overcommit);
    let checked = live::judge_several(&app.preflight, &vms, &destination, &requested, &promised, overcommit).await?;
    let (mut blocked, mut children) = (Vec::new(), Vec::new());
    for ((source, vm), checked) in vms.iter().zip(checked) {
        if any_blocks(&checked.findings) {
            blocked.extend(checked.findings);
        } else {
            let vm = checked.vm.as_ref().unwrap_or(vm);
            let new = new_move(source, &destination, vm, &body.how, checked.migrated, by);
            children.push(NewJob { findings: checked.findings, ..new });
        }
    }
    // A warning that the user accepted for all VMs together is stored with the parent job.
    let together: Vec<Finding> = room_for_all(&destination, &vms, &promised, overcommit).into_iter().collect();
    if any_blocks(&together) {
        blocked.extend(together.clone());
    }
    if any_blocks(&blocked) {
        return Err(Failure::refused(title, blocked));
    }
    let nowhere = HostName { id: HostId(Uuid::nil()), name: String::new() };
    let sources: BTreeMap<_, _> = vms.iter().map(|(source, _)| (source.record.id, source.named())).collect();
    let source = if sources.len() == 1 { sources.into_values().next() } else { None };
    let source = source.unwrap_or(nowhere);
    let parent = parent(JobKind::Several, source, destination.named(), &children, overcommit, by);
    accept_all(app, &title, NewJob { findings: together, ..parent }, children).await
}

fn find_all(app: &App, title: &Title, references: &[String]) -> Result<Vec<(Arc<Host>, VmFacts)>, Failure> {
    let mut seen = BTreeSet::new();
    let mut vms = Vec::with_capacity(references.len());
    for reference in references {
        let (host, vm) = app.inventory.find_vm(title, reference)?;
        if !seen.insert(vm.id) {
            let message = Message::VmNamedTwice { vm: vm.name.clone() };
            return Err(invalid(title, &vm.name, message, ByHand::NameVmOnce));
        }
        vms.push((host, vm));
    }
    Ok(vms)
}

/// Checks the memory for all VMs together: each may fit alone although all together do not.
fn room_for_all(
    destination: &Host,
    vms: &[(Arc<Host>, VmFacts)],
    promised: &Promised,
    overcommit: bool,
) -> Option<Finding> {
    let here = destination.record.id;
    let stock = stock(destination, promised)?;
    let leaving: Vec<Leaving> = vms.iter().map(|(_, vm)| leaving(vm, vec![here])).collect();
    let chosen = spread(&leaving, &[Room { host: here, stock: stock.clone() }], overcommit);
    // For a single VM, its own check already found this.
    not_for_all(destination.name(), &stock, &leaving, &chosen).filter(|_| vms.len() > 1)
}

/// The memory of a host that is not in use and not promised.
pub(super) fn stock(host: &Host, promised: &Promised) -> Option<Stock> {
    Some(Stock::of(&host.seen().observation.as_ref()?.host, &promised.all(host.record.id)))
}

/// The finding that the host's memory does not suffice for all VMs of `leaving` that chose it or found no host. It
/// blocks if some VMs found no room, and only warns if the user accepted too little memory.
pub(super) fn not_for_all(
    host: &str,
    stock: &Stock,
    leaving: &[Leaving],
    chosen: &[Option<Chosen>],
) -> Option<Finding> {
    let none: Vec<&Leaving> =
        leaving.iter().zip(chosen).filter(|(_, chosen)| chosen.is_none()).map(|(vm, _)| vm).collect();
    let beyond = chosen.iter().flatten().filter(|chosen| chosen.beyond).count();
    // The finding is about VMs with one page size, and about the free memory of that kind.
    let kind = none.first().map(|vm| vm.need.page).or((beyond > 0).then_some(None))?;
    let of_kind = || leaving.iter().filter(|vm| vm.need.page == kind);
    let needed = ByteCount(of_kind().map(|vm| vm.need.bytes.0).fold(0, u64::saturating_add));
    let free = stock.open(&Need { page: kind, bytes: ByteCount(0) });
    let pages = match kind {
        None => Message::Empty,
        Some(ByteCount(0)) => Message::InUsualHugePages,
        Some(page) => Message::InHugePages { page },
    };
    let left = none.iter().filter(|vm| vm.need.page == kind).count();
    let fix = match (left, kind) {
        (0, _) | (_, None) => Fix::from(Action::FreeMemoryOrFewer),
        (_, Some(_)) => Command::SetHugePagesOrFewer.into(),
    };
    let (severity, left) = if left == 0 { (Severity::Warns, beyond) } else { (Severity::Blocks, left) };
    let (count, left) = (of_kind().count() as u64, left as u64);
    let message = Message::NoRoomForAll { count, needed, kind: pages.into(), host: host.to_owned(), free, left };
    Some(Finding { severity, ..Finding::warns(FindingId::HostMemory, host, message, fix) })
}

/// A VM as input for the placement.
pub(super) fn leaving(vm: &VmFacts, hosts: Vec<HostId>) -> Leaving {
    Leaving { vm: vm.id, need: need(vm), hosts }
}
