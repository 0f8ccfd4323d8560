//! Moves a running VM's disks on its host: plans it, asks the host what stands against it, refuses with every finding,
//! or accepts a job.

use std::sync::Arc;

use ferry_core::{
    api::{
        agent::PrepareStorage,
        server::{JobView, MoveDisk, MoveStorage, PlannedDisk, StoragePlan},
    },
    files::{
        DiskMove,
        plan::{Planned, Requested, is_file, plan_again, plan_storage},
    },
    finding::{Finding, FindingId, Severity, any_blocks},
    id::{Generation, VmId},
    job::JobKind,
    location::Location,
    preflight::{busy, soft_shares},
};

use super::{
    add_storage_location, locate,
    migrate_vm::{host_name, say_accepted},
    show_jobs, show_vms,
};
use crate::{
    App,
    clock::now_ms,
    failure::{Failure, fault_finding},
    inventory::Host,
    saga::move_storage::Plan,
    store::{Created, JobRecord, NewJob},
};

/// What came of it.
pub(crate) enum Moved {
    /// It was only tried.
    Tried(StoragePlan),
    /// A job does it.
    Accepted(Box<JobView>),
}

pub(crate) async fn move_storage(
    app: &Arc<App>,
    reference: &str,
    body: &MoveStorage,
    by: &str,
) -> Result<Moved, Failure> {
    let title = format!("Could not move the disks of VM {reference}");
    let (host, _) = show_vms::find(app, &title, reference)?;
    app.inventory.refresh(&host).await;
    let (host, vm) = show_vms::find(app, &title, reference)?;
    let wanted = wanted(app, &title, &host, body.to.as_ref(), &body.disks).await?;
    let Planned { moves: disks, mut findings } = plan_storage(&vm, &wanted);
    if let Some(job) = show_vms::moving(app).await?.get(&vm.id) {
        findings.push(busy(&vm, *job));
    }
    findings.extend(used_by_others(app, vm.id, &disks));
    findings.extend(soft_shares(&host.seen().side(&host), disks.iter().map(|disk| &disk.to)));
    if disks.is_empty() && !any_blocks(&findings) {
        findings.push(Finding::blocks(
            FindingId::DiskUnknown,
            &vm.name,
            format!("No disk of VM {} would move", vm.name),
            "Name disks with `--disk`, or a place for all with `--to`",
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
        match host.agent.check_storage(&request).await {
            Ok(sizes) => allocated = sizes,
            Err(error) => findings.extend(match error.problem() {
                Some(problem) if !problem.findings.is_empty() => problem.findings.clone(),
                _ => vec![fault_finding(host.name(), &error)],
            }),
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
    let plan =
        Plan { generation: Generation(accepted_at_ms), request, keep_source: body.keep_source, disks: Vec::new() };
    let job = NewJob {
        kind: JobKind::Storage,
        parent: None,
        vm: vm.id,
        vm_name: vm.name.clone(),
        source: host_name(&host),
        destination: host_name(&host),
        by: by.to_owned(),
        accepted_at_ms,
        plan: plan.to_json(),
        findings,
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

/// What is meant by places and disks, on the host that is to hold the files.
pub(super) async fn wanted(
    app: &App,
    title: &str,
    host: &Host,
    all: Option<&String>,
    disks: &[MoveDisk],
) -> Result<Requested, Failure> {
    let shares = app.store.shares().await?;
    let place = |text: Option<&String>| -> Result<Option<Location>, Failure> {
        text.map(|text| locate::within_reach(title, host, &shares, text)).transpose()
    };
    let named = disks.iter().map(|disk| Ok((disk.device.clone(), place(disk.to.as_ref())?, disk.format)));
    Ok(Requested { all: place(all)?, named: named.collect::<Result<_, Failure>>()? })
}

/// Makes the folders that were named storage locations of the host.
async fn add_defaults(app: &Arc<App>, host: &Host, body: &MoveStorage) -> Result<(), Failure> {
    let named = body.disks.iter().filter_map(|disk| disk.to.as_ref());
    for text in body.to.iter().chain(named).filter(|text| !is_file(text)) {
        add_storage_location::add_storage_location(app, host.name(), text).await?;
    }
    Ok(())
}

/// What stands against a job's moves by what is known now: it may have waited since it was accepted. What the host itself
/// finds is not among it.
pub(crate) fn blocks_now(app: &App, host: &Host, request: &PrepareStorage) -> Vec<Finding> {
    // A VM that is not there any more is the host's to tell.
    let Some(vm) = host.seen().vm(request.vm).cloned() else { return Vec::new() };
    let Planned { moves: disks, mut findings } = plan_again(&vm, &request.disks);
    findings.extend(used_by_others(app, vm.id, &disks));
    findings.retain(|finding| finding.severity == Severity::Blocks);
    findings
}

/// Why old files of a VM stay, in words: what VMs of any host, asked now, need of them.
pub(crate) async fn needed_by_others_now(app: &App, vm: VmId, disks: &[DiskMove]) -> Vec<String> {
    app.inventory.look_at_all().await;
    let found = used_by_others(app, vm, disks);
    found.into_iter().map(|finding| format!("The old files stay: {}", finding.message)).collect()
}

/// Files that another VM needs, on any host, for itself or below an overlay: they would be taken away from it.
pub(crate) fn used_by_others(app: &App, vm: VmId, disks: &[DiskMove]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (host, seen) in app.inventory.placed() {
        for other in seen.vms().iter().filter(|other| other.id != vm) {
            for disk in disks.iter().filter(|disk| other.files.iter().any(|file| disk.is_needed_by(file))) {
                let is_base = !other.files.iter().any(|file| disk.leaves(file));
                let fix = match is_base {
                    true => {
                        "Leave it where it is; or make the other VM's disk an image of its own with `virsh blockpull`"
                    }
                    false => "Give each VM files of its own",
                };
                findings.push(Finding::blocks(
                    FindingId::DiskTwice,
                    &disk.device,
                    format!("VM {} on {} uses the file of disk {}, too", other.name, host.name(), disk.device),
                    fix,
                ));
            }
        }
    }
    findings
}
