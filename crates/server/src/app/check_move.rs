//! What stands against a move: quickly for all hosts from what is known, deeply for one by asking both hosts now.

use std::{collections::BTreeMap, sync::Arc};

use ferry_core::{
    api::server::Candidate,
    finding::{Finding, FindingId},
    id::{HostId, JobId, ShareId, VmId},
    preflight::{LiveFacts, NamedShare, Sameness, candidate, shares_of},
    vm::VmFacts,
};
use futures_util::future::join_all;

use super::show_vms;
use crate::{
    App,
    failure::Failure,
    inventory::{Host, Seen},
};

/// Why a move is looked at deeply.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Occasion {
    /// Somebody asks; this job moves the VM already.
    Request(Option<JobId>),
    /// The same, with others: what was shown for them need not be shown again.
    OneOfSeveral(Option<JobId>),
    /// The job itself begins: what was shown for the request some moments ago need not be shown again.
    JobStart,
}

/// What was found, and the VM that it was found of.
pub(crate) struct Checked {
    /// The destination as a candidate.
    pub(crate) candidate: Candidate,
    /// What stands against it, and what should be known.
    pub(crate) findings: Vec<Finding>,
    /// The VM, as the source has it now; `None`: it is not there any more.
    pub(crate) vm: Option<VmFacts>,
}

/// Every host as the destination of a VM, from what is known.
pub(crate) async fn candidates(app: &App, reference: &str) -> Result<Vec<Candidate>, Failure> {
    let title = format!("Could not look for hosts for VM {reference}");
    let (source, vm) = show_vms::find(app, &title, reference)?;
    let busy = show_vms::moving(app).await?.get(&vm.id).copied();
    let shares = named_shares(app).await?;
    let source_seen = source.seen();
    let one = |destination: Arc<Host>| {
        candidate(&LiveFacts {
            vm: &vm,
            busy,
            source: source_seen.side(&source),
            destination: destination.seen().side(&destination),
            shares: &shares,
            sameness: &BTreeMap::new(),
        })
    };
    Ok(app.inventory.hosts().into_iter().map(one).collect())
}

/// One host as the destination of a VM; both hosts are asked now, and that the shares are the same is shown.
pub(crate) async fn deeply(
    app: &App,
    vm: VmId,
    source: &Arc<Host>,
    destination: &Arc<Host>,
    occasion: Occasion,
) -> Result<Checked, Failure> {
    let (at_source, at_destination, shares) =
        tokio::join!(app.inventory.refresh(source), app.inventory.refresh(destination), named_shares(app));
    let asked = Asked { source: (source, &at_source), destination: (destination, &at_destination), shares: &shares? };
    Ok(judge(app, vm, &asked, occasion).await)
}

/// One host as the destination of several VMs, in their order. Each host is asked once.
pub(crate) async fn all_deeply(
    app: &App,
    vms: &[(Arc<Host>, VmFacts)],
    destination: &Arc<Host>,
) -> Result<Vec<Checked>, Failure> {
    let moving = show_vms::moving(app).await?;
    let shares = named_shares(app).await?;
    let at_destination = app.inventory.refresh(destination).await;
    let mut at_sources: BTreeMap<HostId, Seen> = BTreeMap::new();
    let mut checked = Vec::with_capacity(vms.len());
    for (source, vm) in vms {
        let at_source = match at_sources.get(&source.record.id) {
            Some(seen) => seen,
            None => {
                let seen = app.inventory.refresh(source).await;
                at_sources.entry(source.record.id).or_insert(seen)
            }
        };
        let asked = Asked { source: (source, at_source), destination: (destination, &at_destination), shares: &shares };
        checked.push(judge(app, vm.id, &asked, Occasion::OneOfSeveral(moving.get(&vm.id).copied())).await);
    }
    Ok(checked)
}

/// Both hosts, and what they said when they were asked.
struct Asked<'a> {
    source: (&'a Arc<Host>, &'a Seen),
    destination: (&'a Arc<Host>, &'a Seen),
    shares: &'a BTreeMap<ShareId, NamedShare>,
}

async fn judge(app: &App, vm: VmId, asked: &Asked<'_>, occasion: Occasion) -> Checked {
    let ((source, at_source), (destination, at_destination)) = (asked.source, asked.destination);
    let Some(facts) = at_source.vm(vm) else {
        return gone(vm, source, destination, at_source);
    };
    let proofs = shares_of(facts).into_iter().filter(|share| uses(at_source, *share) && uses(at_destination, *share));
    let prove = |share| async move {
        let sameness = match occasion {
            Occasion::Request(_) => app.proofs.prove(share, source, destination).await,
            Occasion::OneOfSeveral(_) | Occasion::JobStart => app.proofs.recent(share, source, destination).await,
        };
        (share, sameness)
    };
    let same_host = source.record.id == destination.record.id;
    let sameness: BTreeMap<ShareId, Sameness> =
        if same_host { BTreeMap::new() } else { join_all(proofs.map(prove)).await.into_iter().collect() };
    let candidate = candidate(&LiveFacts {
        vm: facts,
        busy: match occasion {
            Occasion::Request(busy) | Occasion::OneOfSeveral(busy) => busy,
            Occasion::JobStart => None,
        },
        source: at_source.side(source),
        destination: at_destination.side(destination),
        shares: asked.shares,
        sameness: &sameness,
    });
    Checked { findings: candidate.findings.clone(), candidate, vm: Some(facts.clone()) }
}

/// Whether the share can be used on a host that answers.
fn uses(seen: &Seen, share: ShareId) -> bool {
    let mut shares = seen.observation.iter().flat_map(|observation| &observation.shares);
    seen.reachable && shares.any(|attached| attached.id == share && attached.trouble.is_none())
}

fn gone(vm: VmId, source: &Host, destination: &Host, at_source: &Seen) -> Checked {
    let finding = at_source.trouble.clone().unwrap_or_else(|| {
        Finding::blocks(
            FindingId::VmUnknown,
            vm,
            format!("VM {vm} is not on host {} any more", source.name()),
            "See where it is with `ferry vm list`",
        )
    });
    let candidate = Candidate {
        host: destination.name().to_owned(),
        kind: None,
        why: finding.message.clone(),
        findings: vec![finding.clone()],
    };
    Checked { candidate, findings: vec![finding], vm: None }
}

async fn named_shares(app: &App) -> Result<BTreeMap<ShareId, NamedShare>, Failure> {
    let shares = app.store.shares().await?;
    Ok(shares.into_iter().map(|share| (share.id, NamedShare { name: share.name, unc: share.unc })).collect())
}
