//! Facts → findings: everything that prevents a move, reported before anything is changed. One file for each kind of
//! object.
//!
//! Every function here is pure. Each finding names its object and the fix; ids are documented in `docs/findings.md`.

mod facts;
mod files;
mod hosts;
mod networks;
mod resolve;
mod shares;
#[cfg(test)]
mod tests;
mod vm;

use std::collections::BTreeSet;

pub use facts::{LiveFacts, NamedShare, ShareIdentity, Side};
pub use hosts::versions_differ;
pub use networks::{route_between, unusable_networks};
pub use resolve::{Placed, resolve_vm, runs_twice};
pub use shares::{not_same, reaches, shares_of, soft_shares};
pub use vm::{busy, busy_by};

use crate::{
    finding::{Action, Finding, FindingId, Message, Severity},
    immovable::immovable,
    job::MoveKind,
    location::Location,
    vm::{DiskFeature, VmFile},
};

/// The findings for a live move, blocking ones first.
pub fn live(facts: &LiveFacts<'_>) -> Vec<Finding> {
    judge(facts, true)
}

/// What hosts and shares have against a move of a VM that is shut off, blocking findings first.
/// [`crate::files::plan::plan_offline`] reports what the VM itself has against it.
pub fn offline(facts: &LiveFacts<'_>) -> Vec<Finding> {
    judge(facts, false)
}

fn judge(facts: &LiveFacts<'_>, live: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.source.name == facts.destination.name {
        findings.push(Finding::blocks(
            FindingId::VmAlreadyThere,
            &facts.vm.name,
            Message::VmAlreadyThere { vm: facts.vm.name.clone(), host: facts.destination.name.to_owned() },
            Action::ListHostsForVm,
        ));
        return findings;
    }
    if let Some(job) = facts.busy {
        // Any other problem may be caused by that job.
        findings.push(busy(facts.vm, job));
        return findings;
    }
    if live {
        findings.extend(vm::state(facts));
        findings.extend(immovable(facts.vm));
    }
    for side in [&facts.source, &facts.destination] {
        findings.extend(hosts::state(side));
    }
    findings.extend(networks::findings(facts));
    findings.extend(hosts::maintenance(&facts.destination));
    if facts.destination.reachable {
        findings.extend(hosts::room(facts));
    }
    for file in &facts.vm.files {
        let stays = facts.moves_to(file).is_none();
        if stays {
            files::reach(facts, file, &mut findings);
        }
        findings.extend(files::shows_errors(facts, file));
        if file.has(DiskFeature::Encrypted) && (stays || !live) {
            findings.push(files::needs_secret(facts, file));
        }
    }
    // Shares on which two QEMUs open a file in turn: not those of migrated disks, nor of a VM that is shut off.
    let handed_over = if live { facts.shares_that_stay() } else { BTreeSet::new() };
    if live {
        findings.extend(files::trusted(facts));
    }
    for side in [&facts.source, &facts.destination] {
        findings.extend(shares::server_locks(side, &handed_over));
    }
    shares::identity(facts, &handed_over, &mut findings);
    let places: Vec<&Location> = facts.vm.files.iter().flat_map(VmFile::places).collect();
    findings.extend(soft_shares(&facts.source, places.iter().copied()));
    findings.extend(soft_shares(
        &facts.destination,
        places.into_iter().chain(facts.migrated_disks.iter().map(|disk| &disk.to)),
    ));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// One host, judged as the destination of the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assessment {
    /// The kind of move that is possible; `None`: no move is possible.
    pub kind: Option<MoveKind>,
    /// The reason, in one sentence.
    pub why: Message,
    /// Blocking findings first.
    pub findings: Vec<Finding>,
}

impl Assessment {
    /// A move of this kind for this reason; a blocking finding overrides both.
    pub fn new(kind: Option<MoveKind>, why: Message, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        match findings.iter().find(|finding| finding.severity == Severity::Blocks) {
            Some(first) => Self { kind: None, why: first.message.clone(), findings },
            None => Self { kind, why, findings },
        }
    }
}

/// Judges one host as the destination of the VM.
pub fn assess(facts: &LiveFacts<'_>) -> Assessment {
    let (kind, why) = if facts.migrated_disks.is_empty() {
        (MoveKind::Live, Message::AllOnShares)
    } else {
        let disks = facts.migrated_disks.iter().map(|disk| &disk.device).collect();
        (MoveKind::LiveVsm, Message::MigratesDisks { disks })
    };
    Assessment::new(Some(kind), why, live(facts))
}
