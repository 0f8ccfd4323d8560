//! Moves a running VM's disks on its host: plans it, asks the host what stands against it, refuses with every finding,
//! or accepts a job.

use std::sync::Arc;

use ferry_core::{
    api::{
        agent::PrepareStorage,
        server::{JobView, MoveStorage, PlannedDisk, StoragePlan},
    },
    finding::{Finding, FindingId, any_blocks},
    id::Generation,
    job::JobKind,
    location::{Location, UncPath},
    preflight::busy,
    storage::{Planned, Wanted, plan},
    vm::VmFacts,
};

use super::{migrate_vm::host_name, migrate_vm::say_accepted, show_jobs, show_vms};
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
    let wanted = wanted(app, &title, &host, body).await?;
    let Planned { disks, mut findings } = plan(&vm, &wanted);
    if let Some(job) = show_vms::moving(app).await?.get(&vm.id) {
        findings.push(busy(&vm, *job));
    }
    findings.extend(used_by_others(app, &vm, &disks));
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

async fn wanted(app: &App, title: &str, host: &Host, body: &MoveStorage) -> Result<Wanted, Failure> {
    let mut wanted = Wanted::default();
    if let Some(to) = &body.to {
        wanted.all = Some(place(app, title, host, to).await?);
    }
    for disk in &body.disks {
        let to = match &disk.to {
            Some(to) => Some(place(app, title, host, to).await?),
            None => None,
        };
        wanted.named.push((disk.device.clone(), to, disk.format));
    }
    Ok(wanted)
}

/// The location that an administrator's text means on a host.
async fn place(app: &App, title: &str, host: &Host, text: &str) -> Result<Location, Failure> {
    let slashed = text.replace('\\', "/");
    let bad = |message: String, fix: &str| {
        Failure::found(title, Finding::blocks(FindingId::FilePlace, text, message, fix.to_owned()))
    };
    if slashed.split('/').any(|part| part == "..") {
        return Err(bad(format!("{text:?} climbs with `..`"), "Write the path without `..`"));
    }
    let Some(unc) = slashed.strip_prefix("//") else {
        if !slashed.starts_with('/') {
            let fix = "Write an absolute path, or \\\\server.domain\\share\\folder";
            return Err(bad(format!("{text:?} is neither an absolute path nor a UNC path"), fix));
        }
        return Ok(Location::Local { host: host.record.id, path: text.to_owned() });
    };
    let mut parts = unc.splitn(3, '/');
    let (server, share) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let path = parts.next().unwrap_or_default().trim_end_matches('/').to_owned();
    let unc: UncPath = format!("//{server}/{share}").parse().map_err(|error: ferry_core::location::UncError| {
        bad(error.to_string(), "Write \\\\server.domain\\share\\folder")
    })?;
    let shares = app.store.shares().await?;
    let Some(known) = shares.into_iter().find(|share| share.unc.same_as(&unc)) else {
        return Err(bad(format!("Share {unc} is not in the inventory"), "Add it with `ferry share add`"));
    };
    if !host.seen().has_share(known.id) {
        let message = format!("Share {} is not attached on host {}", known.name, host.name());
        let fix = format!("Attach it with `ferry share attach {} --host {}`", known.name, host.name());
        return Err(Failure::found(title, Finding::blocks(FindingId::ShareNotAttached, text, message, fix)));
    }
    Ok(Location::Share { share: known.id, path })
}

/// Files that another VM names, on any host: they would be taken away from it.
fn used_by_others(app: &App, vm: &VmFacts, disks: &[ferry_core::storage::DiskMove]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (host, seen) in app.inventory.placed() {
        for other in seen.vms().iter().filter(|other| other.id != vm.id) {
            for disk in disks.iter().filter(|disk| other.files.iter().any(|file| file.place == disk.from)) {
                findings.push(Finding::blocks(
                    FindingId::DiskTwice,
                    &disk.device,
                    format!("VM {} on {} uses the file of disk {}, too", other.name, host.name(), disk.device),
                    "Give each VM files of its own",
                ));
            }
        }
    }
    findings
}
