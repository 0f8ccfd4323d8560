//! Steps that every kind of move has.

use super::{executor::StepFailed, site::Site};
use crate::{
    jobs::running::Running,
    store::{HostName, JobRecord},
};

/// A host of a job.
///
/// # Errors
/// A message, when it is not in the inventory any more.
pub(super) fn host<S: Site>(site: &S, record: &JobRecord, name: &HostName) -> Result<S::Host, String> {
    site.host(name, record.job.kind).ok_or_else(|| format!("host {} is not in the inventory", name.name))
}

/// Takes the VM for the job.
pub(super) async fn reserve(site: &impl Site, running: &Running, record: &JobRecord) -> Result<(), StepFailed> {
    match running.kept(|| site.reserve(record.job.vm, record.id)).await {
        job if job == record.id => Ok(()),
        other => Err(StepFailed(format!("Job {other} has reserved VM {}", record.job.vm_name))),
    }
}

/// Gives the job's VM free.
pub(super) async fn unreserve(site: &impl Site, running: &Running, record: &JobRecord) -> Result<(), StepFailed> {
    running.kept(|| site.unreserve(record.id)).await;
    Ok(())
}

/// Writes into the job's log what people should know of how it went.
pub(super) async fn note(site: &impl Site, running: &Running, record: &JobRecord, notes: Vec<String>) {
    if !notes.is_empty() {
        running.kept(|| site.note(record.id, &notes)).await;
    }
}
