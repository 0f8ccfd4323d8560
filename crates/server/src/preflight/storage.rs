//! What stands against a move of disks on one host.

use ferry_core::{
    api::agent::{Check, PrepareStorage},
    files::{
        DiskMove,
        plan::{Planned, Requested, plan_again, plan_storage},
    },
    finding::{Finding, Severity},
    preflight::soft_shares,
    units::ByteCount,
    vm::VmFacts,
};

use super::{told, users::used_by_others};
use crate::inventory::{Host, Inventory};

/// Which disks of a VM would go where, and what is known against it.
pub(crate) fn planned(inventory: &Inventory, host: &Host, vm: &VmFacts, wanted: &Requested) -> Planned<DiskMove> {
    let Planned { moves: disks, mut findings } = plan_storage(vm, wanted);
    findings.extend(used_by_others(inventory, vm.id, &disks));
    findings.extend(soft_shares(&host.seen().side(host), disks.iter().map(|disk| &disk.to)));
    Planned { moves: disks, findings }
}

/// What each disk takes now, as its host says, or what the host finds against the move.
pub(crate) async fn asked(host: &Host, request: &PrepareStorage) -> Result<Vec<ByteCount>, Vec<Finding>> {
    host.agent.check(&Check::Storage(request.clone())).await.map_err(|error| told(host, &error))
}

/// What stands against a job's moves by what is known now: it may have waited since it was accepted. What the host itself
/// finds is not among it.
pub(crate) fn blocks_now(inventory: &Inventory, host: &Host, request: &PrepareStorage) -> Vec<Finding> {
    // A VM that is not there any more is the host's to tell.
    let Some(vm) = host.seen().vm(request.vm).cloned() else { return Vec::new() };
    let Planned { moves: disks, mut findings } = plan_again(&vm, &request.disks);
    findings.extend(used_by_others(inventory, vm.id, &disks));
    findings.retain(|finding| finding.severity == Severity::Blocks);
    findings
}
