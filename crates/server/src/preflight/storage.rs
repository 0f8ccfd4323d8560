//! Checks of a storage move.

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

use super::{findings_of, users::used_by_others};
use crate::inventory::{Host, Inventory};

/// Plans which disks of a VM go where, with the findings that are already known.
pub(crate) fn planned(inventory: &Inventory, host: &Host, vm: &VmFacts, requested: &Requested) -> Planned<DiskMove> {
    let Planned { moves: disks, mut findings } = plan_storage(vm, requested);
    findings.extend(used_by_others(inventory, vm.id, &disks));
    findings.extend(soft_shares(&host.seen().side(host), disks.iter().map(|disk| &disk.to)));
    Planned { moves: disks, findings }
}

/// Asks the host for the space that each disk needs now. The error holds the host's findings against the move.
pub(crate) async fn asked(host: &Host, request: &PrepareStorage) -> Result<Vec<ByteCount>, Vec<Finding>> {
    host.agent.check(&Check::Storage(request.clone())).await.map_err(|error| findings_of(host, &error))
}

/// The findings against a job's move that are known now, since the job may have waited. The host's own findings are not
/// included.
pub(crate) fn blocks_now(inventory: &Inventory, host: &Host, request: &PrepareStorage) -> Vec<Finding> {
    // If the VM is no longer there, its host reports that.
    let Some(vm) = host.seen().vm(request.vm).cloned() else { return Vec::new() };
    let Planned { moves: disks, mut findings } = plan_again(&vm, &request.disks);
    findings.extend(used_by_others(inventory, vm.id, &disks));
    findings.retain(|finding| finding.severity == Severity::Blocks);
    findings
}
