//! Moves a VM: checks the move now, then refuses it with all findings or accepts a job.

use std::sync::Arc;

use ferry_core::{
    api::{
        problem::Title,
        server::{Candidate, MigrateVm},
    },
    files::DiskMove,
    finding::{ByHand, Message, any_blocks},
    id::{Generation, SessionId, ShareId},
    job::JobKind,
    memory::need,
    preflight::shares_of,
    transfer::{RateLimits, Transfer},
    units::ByteCount,
    vm::VmFacts,
};
use uuid::Uuid;

use super::{
    App,
    accept::{Moved, accept},
    invalid, move_offline,
};
use crate::{
    clock::now_ms,
    failure::Failure,
    inventory::Host,
    plan::{Kept as _, live::LivePlan},
    preflight::{
        live::{self, MigratedDisks, Occasion},
        places::requested,
    },
    store::NewJob,
};

/// QEMU's own default.
const DOWNTIME_LIMIT_MS: u32 = 300;
const DOWNTIME_LIMITS_MS: std::ops::RangeInclusive<u32> = 10..=10_000;
const TIMEOUT_MS: u64 = 60 * 60 * 1000;
const TIMEOUTS_MS: std::ops::RangeInclusive<u64> = 1000..=7 * 24 * 60 * 60 * 1000;

pub(crate) async fn migrate_vm(
    app: &Arc<App>,
    reference: &str,
    body: &MigrateVm,
    by: &str,
) -> Result<Moved<Candidate>, Failure> {
    let title = Title::MoveVm { vm: reference.to_owned(), host: body.destination.clone() };
    check_numbers(&title, body)?;
    if body.offline {
        return move_offline::move_offline(app, reference, body, by).await;
    }
    let (source, vm) = app.inventory.find_vm(&title, reference)?;
    let destination = app.inventory.find(&body.destination).map_err(|finding| Failure::found(&title, finding))?;
    let moving = app.store.moving().await?.get(&vm.id).copied();
    let requested = requested(&app.store, &title, &destination, body.storage.as_ref(), &body.disks).await?;
    let asked = live::ask_both(&app.preflight, vm.id, &source, &destination).await?;
    let promised = app.promised().await?.at(destination.record.id, vm.id);
    let memory = live::Memory { promised: &promised, overcommit: body.overcommit };
    let (migrated, occasion) = (MigratedDisks::Requested(&requested), Occasion::Request(moving));
    let checked = live::judge(&app.preflight, vm.id, &asked, memory, migrated, occasion).await;
    if body.dry_run {
        let transfer = Some(transfer(&source, &destination, body));
        return Ok(Moved::Tried(Candidate { transfer, ..checked.candidate }));
    }
    let vm = match checked.vm {
        Some(vm) if !any_blocks(&checked.findings) => vm,
        Some(_) | None => return Err(Failure::refused(title, checked.findings)),
    };
    let job = NewJob { findings: checked.findings, ..new_move(&source, &destination, &vm, body, checked.migrated, by) };
    accept(app, &title, job).await
}

/// The job for a move of one VM, still without findings.
pub(super) fn new_move(
    source: &Host,
    destination: &Host,
    vm: &VmFacts,
    how: &MigrateVm,
    migrated: Vec<DiskMove>,
    by: &str,
) -> NewJob {
    let accepted_at_ms = now_ms();
    let plan = LivePlan {
        session: SessionId(Uuid::new_v4()),
        secret: ferry_trust::random_secret(),
        generation: Generation(accepted_at_ms),
        downtime_limit_ms: how.downtime_limit_ms.unwrap_or(DOWNTIME_LIMIT_MS),
        bandwidth_bytes_per_s: how.bandwidth_bytes_per_s,
        transfer: Some(transfer(source, destination, how)),
        timeout_ms: how.timeout_ms.unwrap_or(TIMEOUT_MS),
        on_stall: how.on_stall,
        need: need(vm),
        overcommit: how.overcommit,
        persistent: vm.persistent,
        autostart: vm.autostart,
        shares: shares_that_stay(vm, &migrated),
        keep_source: how.keep_source,
        progress: Vec::new(),
        route: None,
        migrated,
    };
    NewJob {
        kind: if plan.migrated.is_empty() { JobKind::Live } else { JobKind::LiveVsm },
        parent: None,
        vm: vm.id,
        vm_name: vm.name.clone(),
        source: source.named(),
        destination: destination.named(),
        by: by.to_owned(),
        accepted_at_ms,
        plan: plan.to_json(),
        findings: Vec::new(),
    }
}

/// How the bytes of a move travel, by what is requested and what both hosts are set to.
fn transfer(source: &Host, destination: &Host, how: &MigrateVm) -> Transfer {
    let memory = how.bandwidth_bytes_per_s.map(ByteCount);
    let limits = RateLimits { memory, storage: how.storage_bandwidth_bytes_per_s.map(ByteCount).or(memory) };
    Transfer::of(how.performance, limits, source.settings().transfer, destination.settings().transfer)
}

/// Shares with files that do not migrate: both hosts must reach them.
fn shares_that_stay(vm: &VmFacts, migrated: &[DiskMove]) -> Vec<ShareId> {
    let moves = |device: &str| migrated.iter().any(|disk| disk.device == device);
    let files = vm.files.iter().filter(|file| !moves(&file.device)).cloned().collect();
    shares_of(&VmFacts { files, ..vm.clone() }).into_iter().collect()
}

pub(super) fn check_numbers(title: &Title, body: &MigrateVm) -> Result<(), Failure> {
    let bad = |what: &str, value: u64, fix: ByHand| {
        Err(invalid(title, what, Message::NotANumber { name: what.to_owned(), value }, fix))
    };
    let bandwidths = [
        ("bandwidth_bytes_per_s", body.bandwidth_bytes_per_s),
        ("storage_bandwidth_bytes_per_s", body.storage_bandwidth_bytes_per_s),
    ];
    let too_little = bandwidths.iter().find_map(|(what, bandwidth)| {
        let bandwidth = bandwidth.filter(|bandwidth| ByteCount(*bandwidth) < RateLimits::LEAST)?;
        Some((*what, bandwidth))
    });
    match (body.downtime_limit_ms, too_little, body.timeout_ms) {
        (Some(limit), _, _) if !DOWNTIME_LIMITS_MS.contains(&limit) => {
            bad("downtime_limit_ms", limit.into(), ByHand::GiveDowntime)
        }
        (_, Some((what, bandwidth)), _) => bad(what, bandwidth, ByHand::GiveBandwidth { least: RateLimits::LEAST.0 }),
        (_, _, Some(timeout)) if !TIMEOUTS_MS.contains(&timeout) => bad("timeout_ms", timeout, ByHand::GiveTimeout),
        _ => Ok(()),
    }
}
