//! Moves a running VM's disks on its host: plans the move and asks the host for findings, then refuses with all
//! findings or accepts a job.

use std::sync::Arc;

use ferry_core::{
    api::{
        agent::PrepareStorage,
        problem::Title,
        server::{MoveStorage, PlannedDisk, StoragePlan},
    },
    files::plan::{Planned, is_file},
    finding::{Action, Finding, FindingId, Message, any_blocks},
    id::Generation,
    job::JobKind,
    preflight::busy,
};

use super::{
    App,
    accept::{Moved, accept},
    add_storage_location,
};
use crate::{
    clock::now_ms,
    failure::Failure,
    inventory::Host,
    plan::{self, Kept as _},
    preflight::{
        places::requested,
        storage::{asked, planned},
    },
    store::NewJob,
};

pub(crate) async fn move_storage(
    app: &Arc<App>,
    reference: &str,
    body: &MoveStorage,
    by: &str,
) -> Result<Moved<StoragePlan>, Failure> {
    let title = Title::MoveDisks { vm: reference.to_owned() };
    let (host, _) = app.inventory.find_vm(&title, reference)?;
    app.inventory.refresh(&host).await;
    let (host, vm) = app.inventory.find_vm(&title, reference)?;
    let requested = requested(&app.store, &title, &host, body.to.as_ref(), &body.disks).await?;
    let Planned { moves: disks, mut findings } = planned(&app.inventory, &host, &vm, &requested);
    if let Some(job) = app.store.moving().await?.get(&vm.id) {
        findings.push(busy(&vm, *job));
    }
    if disks.is_empty() && !any_blocks(&findings) {
        findings.push(Finding::blocks(
            FindingId::DiskUnknown,
            &vm.name,
            Message::NoDiskMoves { vm: vm.name.clone() },
            Action::NameDisks,
        ));
    }
    let request = PrepareStorage {
        vm: vm.id,
        vm_name: vm.name.clone(),
        disks,
        bandwidth_bytes_per_s: body.bandwidth_bytes_per_s,
        whole: body.to.is_some(),
    };
    let mut allocated = Vec::new();
    if !any_blocks(&findings) {
        match asked(&host, &request).await {
            Ok(sizes) => allocated = sizes,
            Err(found) => findings.extend(found),
        }
    }
    if body.dry_run {
        let sizes = allocated.into_iter().map(Some).chain(std::iter::repeat(None));
        let disks = request.disks.into_iter().zip(sizes);
        let disks = disks.map(|(disk, allocated)| PlannedDisk { disk, allocated }).collect();
        return Ok(Moved::Tried(StoragePlan { host: host.name().to_owned(), disks, findings }));
    }
    if any_blocks(&findings) {
        return Err(Failure::refused(title, findings));
    }
    if body.add_default {
        add_defaults(app, &host, body).await?;
    }
    let accepted_at_ms = now_ms();
    let kept = plan::storage::StoragePlan {
        generation: Generation(accepted_at_ms),
        request,
        keep_source: body.keep_source,
        disks: Vec::new(),
    };
    let job = NewJob {
        kind: JobKind::Storage,
        parent: None,
        vm: vm.id,
        vm_name: vm.name.clone(),
        source: host.named(),
        destination: host.named(),
        by: by.to_owned(),
        accepted_at_ms,
        plan: kept.to_json(),
        findings,
    };
    accept(app, &title, job).await
}

/// Makes the directories that the request named storage locations of the host.
async fn add_defaults(app: &Arc<App>, host: &Host, body: &MoveStorage) -> Result<(), Failure> {
    let named = body.disks.iter().filter_map(|disk| disk.to.as_ref());
    for text in body.to.iter().chain(named).filter(|text| !is_file(text)) {
        add_storage_location::add_storage_location(app, host.name(), text).await?;
    }
    Ok(())
}
