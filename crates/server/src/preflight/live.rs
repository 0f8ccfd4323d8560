//! Checks of a live move: quickly for all hosts, from what is already known, or thoroughly for one host, by asking both
//! hosts now.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use ferry_core::{
    api::{
        agent::{Check, IncomingDisk},
        server::Candidate,
    },
    files::{
        DiskMove,
        plan::{Planned, Requested, plan_live},
    },
    finding::{Action, Finding, FindingId, Message, any_blocks},
    id::{HostId, JobId, ShareId, VmId},
    location::Location,
    memory::Need,
    preflight::{Assessment, LiveFacts, NamedShare, ShareIdentity, assess, reaches, route_between, shares_of},
    units::ByteCount,
    vm::{FileRole, VmFacts, VmState},
};
use futures_util::future::join_all;

use super::{Preflight, candidate, findings_of, gone, promised::Promised, users::used_by_others, uses};
use crate::{
    inventory::{Host, Inventory, Seen},
    store::StoreError,
};

/// Why a move is checked thoroughly.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Occasion {
    /// A request for one move; the job is the one that already moves the VM.
    Request(Option<JobId>),
    /// A request for several moves: proofs of the last few seconds are used again for the next VM.
    OneOfSeveral(Option<JobId>),
    /// The start of the job: proofs that were made for its request a few seconds ago are used again.
    JobStart,
}

/// The disks that migrate with the VM.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MigratedDisks<'a> {
    /// What the request asks for: the disks are chosen by what the destination reaches now.
    Requested(&'a Requested),
    /// The disks that were chosen earlier.
    Decided(&'a [DiskMove]),
}

/// The result of a check, with the VM that was checked.
pub(crate) struct Checked {
    /// The destination as a candidate.
    pub(crate) candidate: Candidate,
    /// Everything that blocks the move or that its user should know.
    pub(crate) findings: Vec<Finding>,
    /// The VM as the source reports it now; `None`: it is no longer there.
    pub(crate) vm: Option<VmFacts>,
    /// The migrated disks.
    pub(crate) migrated: Vec<DiskMove>,
}

/// Judges every host as the destination of a VM, from what is already known. Returns the migrated disks of each;
/// `storage` gives the place of each host for disks that it does not reach.
pub(crate) async fn judge_all(
    preflight: &Preflight,
    source: &Host,
    vm: &VmFacts,
    promised: &Promised,
    overcommit: bool,
    storage: impl Fn(&Host) -> Option<Location>,
) -> Result<Vec<(Candidate, Vec<DiskMove>)>, StoreError> {
    let busy = preflight.store.moving().await?.get(&vm.id).copied();
    let shares = preflight.shares().await?;
    let source_seen = source.seen();
    let one = |destination: Arc<Host>| {
        let seen = destination.seen();
        let there = seen.side(&destination);
        let requested = Requested { all: storage(&destination), named: Vec::new() };
        let planned = plan_live(vm, &requested, destination.record.id, |place| reaches(&there, place));
        let Assessment { kind, why, mut findings } = assess(&LiveFacts {
            vm,
            busy,
            source: source_seen.side(source),
            destination: there,
            shares: &shares,
            share_identity: &BTreeMap::new(),
            migrated_disks: &planned.moves,
            promised: &promised.at(destination.record.id, vm.id),
            overcommit,
        });
        findings.extend(planned.findings);
        findings.extend(used_by_others(&preflight.inventory, vm.id, &planned.moves));
        (candidate(&destination, Assessment::new(kind, why, findings)), planned.moves)
    };
    Ok(preflight.inventory.hosts().into_iter().map(one).collect())
}

/// Asks a host now. A report that the VM does not run counts only after the agent has refreshed its observation.
async fn ask(inventory: &Arc<Inventory>, host: &Arc<Host>, vm: VmId) -> Seen {
    let seen = inventory.refresh(host).await;
    let runs = seen.vm(vm).is_some_and(|facts| facts.state == VmState::Running);
    if runs || !seen.reachable { seen } else { inventory.refresh_now(host).await }
}

/// Both hosts of a move, and their answers.
pub(crate) struct Request<'a> {
    source: (&'a Arc<Host>, Cow<'a, Seen>),
    destination: (&'a Arc<Host>, Cow<'a, Seen>),
    shares: Cow<'a, BTreeMap<ShareId, NamedShare>>,
}

/// Asks both hosts of a move now.
pub(crate) async fn ask_both<'a>(
    preflight: &Preflight,
    vm: VmId,
    source: &'a Arc<Host>,
    destination: &'a Arc<Host>,
) -> Result<Request<'a>, StoreError> {
    let inventory = &preflight.inventory;
    let (at_source, at_destination, shares) =
        tokio::join!(ask(inventory, source, vm), inventory.refresh(destination), preflight.shares());
    Ok(Request {
        source: (source, Cow::Owned(at_source)),
        destination: (destination, Cow::Owned(at_destination)),
        shares: Cow::Owned(shares?),
    })
}

/// Judges one host as the destination of several VMs, in the order of `vms`. Each host is asked once.
pub(crate) async fn judge_several(
    preflight: &Preflight,
    vms: &[(Arc<Host>, VmFacts)],
    destination: &Arc<Host>,
    requested: &Requested,
    promised: &Promised,
    overcommit: bool,
) -> Result<Vec<Checked>, StoreError> {
    let moving = preflight.store.moving().await?;
    let shares = preflight.shares().await?;
    let at_destination = preflight.inventory.refresh(destination).await;
    let mut at_sources: BTreeMap<HostId, Seen> = BTreeMap::new();
    let mut checked = Vec::with_capacity(vms.len());
    for (source, vm) in vms {
        let at_source = match at_sources.get(&source.record.id) {
            Some(seen) => seen,
            None => {
                let seen = preflight.inventory.refresh(source).await;
                at_sources.entry(source.record.id).or_insert(seen)
            }
        };
        let asked = Request {
            source: (source, Cow::Borrowed(at_source)),
            destination: (destination, Cow::Borrowed(&at_destination)),
            shares: Cow::Borrowed(&shares),
        };
        let memory = Memory { promised: &promised.at(destination.record.id, vm.id), overcommit };
        let occasion = Occasion::OneOfSeveral(moving.get(&vm.id).copied());
        checked.push(judge(preflight, vm.id, &asked, memory, MigratedDisks::Requested(requested), occasion).await);
    }
    Ok(checked)
}

/// What the move may use of the destination's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory<'a> {
    /// Memory that was promised to other moves.
    pub(crate) promised: &'a [Need],
    /// Whether the user accepts that the memory may not suffice.
    pub(crate) overcommit: bool,
}

/// Judges one host as the destination of a VM, and proves that both hosts mounted the same shares.
pub(crate) async fn judge(
    preflight: &Preflight,
    vm: VmId,
    asked: &Request<'_>,
    memory: Memory<'_>,
    migrated: MigratedDisks<'_>,
    occasion: Occasion,
) -> Checked {
    let ((source, at_source), (destination, at_destination)) = (&asked.source, &asked.destination);
    let Some(facts) = at_source.vm(vm) else {
        return not_there(vm, source, destination, at_source);
    };
    // The settings of one moment, for the findings and the route alike.
    let (here, there) = (at_source.side(source), at_destination.side(destination));
    let Planned { moves: migrated, findings: mut planned } = match migrated {
        MigratedDisks::Requested(requested) => {
            plan_live(facts, requested, destination.record.id, |place| reaches(&there, place))
        }
        MigratedDisks::Decided(disks) => Planned { moves: disks.to_vec(), findings: moved_meanwhile(facts, disks) },
    };
    planned.extend(used_by_others(&preflight.inventory, facts.id, &migrated));
    let identities =
        shares_of(facts).into_iter().filter(|share| uses(at_source, *share) && uses(at_destination, *share));
    let prove = |share| async move {
        let identity = match occasion {
            Occasion::Request(_) => preflight.identity.prove(share, source, destination).await,
            Occasion::OneOfSeveral(_) | Occasion::JobStart => {
                preflight.identity.recent(share, source, destination).await
            }
        };
        (share, identity)
    };
    let same_host = source.record.id == destination.record.id;
    let identity: BTreeMap<ShareId, ShareIdentity> =
        if same_host { BTreeMap::new() } else { join_all(identities.map(prove)).await.into_iter().collect() };
    let assessed = assess(&LiveFacts {
        vm: facts,
        busy: match occasion {
            Occasion::Request(busy) | Occasion::OneOfSeveral(busy) => busy,
            Occasion::JobStart => None,
        },
        source: here,
        destination: there,
        shares: &asked.shares,
        share_identity: &identity,
        migrated_disks: &migrated,
        promised: memory.promised,
        overcommit: memory.overcommit,
    });
    let mut findings = planned;
    findings.extend(assessed.findings);
    let mut why = assessed.why;
    if !migrated.is_empty() && !any_blocks(&findings) {
        match incoming_disks(source, vm, &migrated).await {
            Ok(requested) => {
                let bytes = ByteCount(requested.iter().map(|disk| disk.allocated.0).sum());
                why = Message::WithBytes { moves: why.into(), bytes };
                if let Err(error) = destination.agent.check(&Check::LiveDestination { vm, disks: requested }).await {
                    findings.extend(findings_of(destination, &error));
                }
            }
            Err(finding) => findings.extend(finding),
        }
    }
    let route = route_between(&here, &there);
    let candidate = Candidate { route, ..candidate(destination, Assessment::new(assessed.kind, why, findings)) };
    Checked { findings: candidate.findings.clone(), candidate, vm: Some(facts.clone()), migrated }
}

/// The findings against a move that was planned a while ago, if the VM uses another file by now: the move would copy
/// that file and remove the planned one.
fn moved_meanwhile(vm: &VmFacts, migrated: &[DiskMove]) -> Vec<Finding> {
    let one = |disk: &DiskMove| {
        let mut files = vm.files.iter().filter(|file| file.device == disk.device && file.role == FileRole::Disk);
        files.find(|file| file.place != disk.from)?;
        Some(Finding::blocks(
            FindingId::DiskMovedMeanwhile,
            &disk.device,
            Message::DiskMovedMeanwhile { device: disk.device.clone(), vm: vm.name.clone() },
            Action::NewMove,
        ))
    };
    migrated.iter().filter_map(one).collect()
}

/// The migrated disks in the form that the destination expects, with the sizes that the source reports now.
pub(crate) async fn incoming_disks(
    source: &Host,
    vm: VmId,
    migrated: &[DiskMove],
) -> Result<Vec<IncomingDisk>, Vec<Finding>> {
    let sizes = source.agent.disks(vm).await.map_err(|error| findings_of(source, &error))?;
    let one = |disk: &DiskMove| {
        let size = sizes.iter().find(|size| size.device == disk.device).ok_or_else(|| {
            vec![Finding::blocks(
                FindingId::DiskUnknown,
                &disk.device,
                Message::DiskSizeUnknown { host: source.name().to_owned(), device: disk.device.clone() },
                Action::ShowVm,
            )]
        })?;
        Ok(IncomingDisk {
            device: disk.device.clone(),
            to: disk.to.clone(),
            format: disk.format,
            virtual_size: size.virtual_size,
            allocated: size.allocated,
        })
    };
    migrated.iter().map(one).collect()
}

fn not_there(vm: VmId, source: &Host, destination: &Host, at_source: &Seen) -> Checked {
    let finding = gone(vm, source, at_source);
    let candidate = candidate(destination, Assessment::new(None, Message::Empty, vec![finding.clone()]));
    Checked { candidate, findings: vec![finding], vm: None, migrated: Vec::new() }
}
