//! Moves a VM that is shut off, with the files that the destination does not reach. A running VM is refused.

use std::sync::Arc;

use ferry_core::{
    api::{
        problem::Title,
        server::{Candidate, MigrateVm},
    },
    finding::any_blocks,
    id::{Generation, SessionId},
    job::JobKind,
    preflight::shares_of,
    vm::VmFacts,
};
use uuid::Uuid;

use super::{
    App,
    accept::{Moved, accept},
};
use crate::{
    clock::now_ms,
    failure::Failure,
    plan::{Kept as _, offline::OfflinePlan},
    preflight::{
        offline::{MovedFiles, check},
        places::requested,
    },
    store::NewJob,
};

pub(super) async fn move_offline(
    app: &Arc<App>,
    reference: &str,
    body: &MigrateVm,
    by: &str,
) -> Result<Moved<Candidate>, Failure> {
    let title = Title::MoveVm { vm: reference.to_owned(), host: body.destination.clone() };
    let (source, vm) = app.inventory.find_vm(&title, reference)?;
    let destination = app.inventory.find(&body.destination).map_err(|finding| Failure::found(&title, finding))?;
    let moving = app.store.moving().await?.get(&vm.id).copied();
    let requested = requested(&app.store, &title, &destination, body.storage.as_ref(), &body.disks).await?;
    let checked =
        check(&app.preflight, vm.id, &source, &destination, MovedFiles::Requested(&requested), moving).await?;
    if body.dry_run {
        return Ok(Moved::Tried(checked.candidate(&destination)));
    }
    let files = checked.moves();
    let vm = match checked.vm {
        Some(vm) if !any_blocks(&checked.findings) => vm,
        Some(_) | None => return Err(Failure::refused(title, checked.findings)),
    };
    let accepted_at_ms = now_ms();
    let stay = vm.files.iter().filter(|file| !files.iter().any(|moved| moved.device == file.device));
    let stay = VmFacts { files: stay.cloned().collect(), ..vm.clone() };
    let plan = OfflinePlan {
        session: SessionId(Uuid::new_v4()),
        secret: ferry_trust::random_secret(),
        generation: Generation(accepted_at_ms),
        files,
        shares: shares_of(&stay).into_iter().collect(),
        keep_source: body.keep_source,
        autostart: vm.autostart,
        progress: Vec::new(),
        route: None,
    };
    let job = NewJob {
        kind: JobKind::Offline,
        parent: None,
        vm: vm.id,
        vm_name: vm.name.clone(),
        source: source.named(),
        destination: destination.named(),
        by: by.to_owned(),
        accepted_at_ms,
        plan: plan.to_json(),
        findings: checked.findings,
    };
    accept(app, &title, job).await
}
