//! Accepts checked requests: stores jobs, puts them into the queue, and returns their views.

use std::sync::Arc;

use ferry_core::{
    api::{problem::Title, server::JobView},
    id::VmId,
    job::JobKind,
    preflight::busy_by,
};
use uuid::Uuid;

use super::{App, show_jobs};
use crate::{
    clock::now_ms,
    failure::Failure,
    plan::{Kept as _, Parts},
    store::{Created, CreatedMany, HostName, JobRecord, NewJob},
};

/// The result of a request with an optional dry run.
pub(crate) enum Moved<T> {
    /// It was a dry run: this is the plan.
    Tried(T),
    /// This job does it.
    Accepted(Box<JobView>),
}

/// Accepts a job, unless another job moves the VM.
pub(super) async fn accept<T>(app: &Arc<App>, title: &Title, job: NewJob) -> Result<Moved<T>, Failure> {
    let id = match app.store.create_job(&job).await? {
        Created::Job(id) => id,
        Created::Busy(other) => return Err(Failure::found(title, busy_by(&job.vm_name, other))),
    };
    let record = JobRecord { id, job, figures: None };
    log_accepted(&record);
    app.jobs.enqueue([record]);
    Ok(Moved::Accepted(Box::new(show_jobs::again(app, title, id).await?)))
}

/// Accepts a job together with its parts, or nothing.
pub(super) async fn accept_all(
    app: &Arc<App>,
    title: &Title,
    parent: NewJob,
    children: Vec<NewJob>,
) -> Result<JobView, Failure> {
    let (id, ids) = match app.store.create_jobs(&parent, &children).await? {
        CreatedMany::Jobs(id, ids) => (id, ids),
        CreatedMany::Busy(vm, other) => {
            let name = children.iter().find(|child| child.vm == vm).map_or("", |child| &child.vm_name);
            return Err(Failure::found(title, busy_by(name, other)));
        }
    };
    let record =
        |(child, job): (_, NewJob)| JobRecord { id: child, job: NewJob { parent: Some(id), ..job }, figures: None };
    let records: Vec<JobRecord> = ids.into_iter().zip(children).map(record).collect();
    tracing::info!(job = id.0, vms = records.len(), by = parent.by, "Several moves were accepted");
    records.iter().for_each(log_accepted);
    app.jobs.enqueue(records);
    show_jobs::again(app, title, id).await
}

/// A parent job for `children`.
pub(super) fn parent(
    kind: JobKind,
    source: HostName,
    destination: HostName,
    children: &[NewJob],
    overcommit: bool,
    by: &str,
) -> NewJob {
    NewJob {
        kind,
        parent: None,
        vm: VmId(Uuid::nil()),
        vm_name: format!("{} VM{}", children.len(), if children.len() == 1 { "" } else { "s" }),
        source,
        destination,
        by: by.to_owned(),
        accepted_at_ms: now_ms(),
        plan: Parts { overcommit }.to_json(),
        findings: Vec::new(),
    }
}

fn log_accepted(record: &JobRecord) {
    tracing::info!(
        job = record.id.0,
        vm = record.job.vm_name,
        source = record.job.source.name,
        destination = record.job.destination.name,
        by = record.job.by,
        "A move was accepted"
    );
}
