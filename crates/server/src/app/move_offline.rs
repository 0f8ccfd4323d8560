//! Moves a VM that is shut off, with the files that the destination does not reach. Never a VM that runs.

use std::{collections::BTreeMap, sync::Arc};

use ferry_core::{
    api::{
        agent::{CheckOffline, OfflineFile},
        server::{Candidate, MigrateVm},
    },
    finding::{Finding, FindingId, any_blocks},
    id::{Generation, JobId, SessionId, VmId},
    job::{JobKind, MoveKind},
    offline::{FileMove, PlannedOffline, plan_offline},
    preflight::{LiveFacts, Sameness, busy, offline, reaches, shares_of},
    storage::{DiskMove, Wanted},
    units::ByteCount,
    vm::{DiskFormat, VmFacts},
};
use futures_util::future::join_all;
use uuid::Uuid;

use super::{
    check_move::{named_shares, told, uses},
    migrate_vm::{Moved, host_name, say_accepted},
    move_storage::{used_by_others, wanted},
    show_jobs, show_vms,
};
use crate::{
    App,
    clock::now_ms,
    failure::Failure,
    inventory::Host,
    saga::move_offline::Plan,
    store::{Created, JobRecord, NewJob},
};

pub(super) async fn move_offline(
    app: &Arc<App>,
    reference: &str,
    body: &MigrateVm,
    by: &str,
) -> Result<Moved, Failure> {
    let title = format!("Could not move VM {reference} to {}", body.destination);
    let (source, vm) = show_vms::find(app, &title, reference)?;
    let destination = app.inventory.find(&body.destination).map_err(|finding| Failure::found(&title, finding))?;
    let moving = show_vms::moving(app).await?.get(&vm.id).copied();
    let wanted = wanted(app, &title, &destination, body.storage.as_ref(), &body.disks).await?;
    let checked = check(app, vm.id, &source, &destination, What::Wanted(&wanted), moving).await?;
    if body.dry_run {
        return Ok(Moved::Tried(checked.candidate(&destination)));
    }
    let vm = match checked.vm {
        Some(vm) if !any_blocks(&checked.findings) => vm,
        Some(_) | None => return Err(Failure::refused(title, checked.findings)),
    };
    let accepted_at_ms = now_ms();
    let stay = vm.files.iter().filter(|file| !checked.files.iter().any(|moved| moved.file.device == file.device));
    let stay = VmFacts { files: stay.cloned().collect(), ..vm.clone() };
    let plan = Plan {
        session: SessionId(Uuid::new_v4()),
        secret: ferry_trust::random_secret(),
        generation: Generation(accepted_at_ms),
        files: checked.files.into_iter().map(|file| file.file).collect(),
        shares: shares_of(&stay).into_iter().collect(),
        keep_source: body.keep_source,
        autostart: vm.autostart,
        progress: Vec::new(),
    };
    let job = NewJob {
        kind: JobKind::Offline,
        parent: None,
        vm: vm.id,
        vm_name: vm.name.clone(),
        source: host_name(&source),
        destination: host_name(&destination),
        by: by.to_owned(),
        accepted_at_ms,
        plan: plan.to_json(),
        findings: checked.findings,
    };
    let id = match app.store.create_job(&job).await? {
        Created::Job(id) => id,
        Created::Busy(other) => return Err(Failure::found(title, busy(&vm, other))),
    };
    let record = JobRecord { id, job, figures: None };
    say_accepted(&record);
    app.jobs.enqueue(app, [record]);
    Ok(Moved::Accepted(Box::new(show_jobs::again(app, &title, id).await?)))
}

/// Which files move.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What<'a> {
    /// What somebody wants: it is decided by what the destination reaches now.
    Wanted(&'a Wanted),
    /// What was decided before.
    Decided(&'a [FileMove]),
}

/// What was found.
pub(crate) struct Checked {
    /// The VM, as the source has it now; `None`: it is not there any more.
    pub(crate) vm: Option<VmFacts>,
    /// What moves, with its size.
    pub(crate) files: Vec<OfflineFile>,
    /// What stands against it, and what should be known.
    pub(crate) findings: Vec<Finding>,
}

impl Checked {
    fn candidate(self, destination: &Host) -> Candidate {
        let blocked = any_blocks(&self.findings);
        let why = match self.findings.first() {
            Some(first) if blocked => first.message.clone(),
            _ if self.files.is_empty() => "Every file of the VM lies on shares that both hosts reach".to_owned(),
            _ => {
                let names: Vec<&str> = self.files.iter().map(|file| file.file.device.as_str()).collect();
                let bytes = ByteCount(self.files.iter().map(|file| file.allocated.0).sum());
                format!("Moves while it is shut off: {}, {bytes} to copy", names.join(", "))
            }
        };
        Candidate {
            host: destination.name().to_owned(),
            kind: (!blocked).then_some(MoveKind::Offline),
            why,
            findings: self.findings,
        }
    }
}

/// What stands against it; both hosts are asked now.
pub(crate) async fn check(
    app: &App,
    vm: VmId,
    source: &Arc<Host>,
    destination: &Arc<Host>,
    what: What<'_>,
    moving: Option<JobId>,
) -> Result<Checked, Failure> {
    let (at_source, at_destination, shares) =
        tokio::join!(app.inventory.refresh(source), app.inventory.refresh(destination), named_shares(app));
    let shares = shares?;
    let Some(facts) = at_source.vm(vm).cloned() else {
        let gone = Finding::blocks(
            FindingId::VmUnknown,
            vm,
            format!("VM {vm} is not on host {} any more", source.name()),
            "See where it is with `ferry vm list`",
        );
        let findings = vec![at_source.trouble.clone().unwrap_or(gone)];
        return Ok(Checked { vm: None, files: Vec::new(), findings });
    };
    let there = at_destination.side(destination);
    let PlannedOffline { files, mut findings } = match what {
        What::Wanted(wanted) => plan_offline(&facts, wanted, |place| reaches(&there, place)),
        What::Decided(files) => {
            let planned = plan_offline(&facts, &Wanted::default(), |_| true);
            PlannedOffline { files: files.to_vec(), findings: planned.findings }
        }
    };
    let as_disk = |file: &FileMove| DiskMove {
        device: file.device.clone(),
        from: file.from.clone(),
        to: file.to.clone(),
        format: DiskFormat::Raw,
    };
    let mut along: Vec<DiskMove> = files.iter().map(as_disk).collect();
    if any_blocks(&findings) {
        // What was said of a file is said once.
        let rest = facts.files.iter().map(|file| DiskMove {
            device: file.device.clone(),
            from: file.place.clone(),
            to: file.place.clone(),
            format: DiskFormat::Raw,
        });
        along.extend(rest);
    }
    // Media and what VMs boot from may serve several: they stay, too.
    let taken: Vec<DiskMove> = files.iter().filter(|file| file.is_removed()).map(as_disk).collect();
    findings.extend(used_by_others(app, &facts, &taken));
    let proofs =
        shares_of(&facts).into_iter().filter(|share| uses(&at_source, *share) && uses(&at_destination, *share));
    let prove = |share| async move { (share, app.proofs.prove(share, source, destination).await) };
    let same_host = source.record.id == destination.record.id;
    let sameness: BTreeMap<_, Sameness> =
        if same_host { BTreeMap::new() } else { join_all(proofs.map(prove)).await.into_iter().collect() };
    findings.extend(offline(&LiveFacts {
        vm: &facts,
        busy: moving,
        source: at_source.side(source),
        destination: there,
        shares: &shares,
        sameness: &sameness,
        along: &along,
    }));
    let mut sized = Vec::new();
    if !any_blocks(&findings) {
        match sizes(source, vm, &files).await {
            Ok(files) => {
                let request = CheckOffline { vm, files: files.clone() };
                if let Err(error) = destination.agent.check_offline(&request).await {
                    findings.extend(told(destination, &error));
                }
                sized = files;
            }
            Err(more) => findings.extend(more),
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(Checked { vm: Some(facts), files: sized, findings })
}

/// What moves, with its size as the source says now.
pub(crate) async fn sizes(source: &Host, vm: VmId, files: &[FileMove]) -> Result<Vec<OfflineFile>, Vec<Finding>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let sizes = source.agent.files(vm).await.map_err(|error| told(source, &error))?;
    let one = |file: &FileMove| {
        let size = sizes.iter().find(|size| size.device == file.device).ok_or_else(|| {
            vec![Finding::blocks(
                FindingId::DiskUnknown,
                &file.device,
                format!("Host {} does not say how large file {} is", source.name(), file.device),
                "Look at the VM with `ferry vm show` and ask again",
            )]
        })?;
        Ok(OfflineFile { file: file.clone(), length: size.length, allocated: size.allocated })
    };
    files.iter().map(one).collect()
}
