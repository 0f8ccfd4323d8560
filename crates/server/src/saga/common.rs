//! What the sagas of all kinds share: how a saga is created for a job, and steps that are the same in each.

use ferry_core::{
    finding::{Finding, Severity},
    migration::Step,
};

use super::{
    executor::{Entry, StepFailed},
    participant::messages,
    site::Site,
};
use crate::{
    jobs::running::Running,
    plan::{Kept, steps_of},
    store::{HostName, JobRecord},
};

/// Reads a job's plan.
///
/// # Errors
/// A message, if it cannot be read.
pub(super) fn plan<P: Kept>(record: &JobRecord) -> Result<P, String> {
    P::from_json(&record.job.plan).map_err(|error| format!("its plan is unreadable: {error}"))
}

/// The steps of a job, after a check that the saga's table has each of them.
///
/// # Errors
/// A message, if the table lacks one.
pub(super) fn steps<S, const LENGTH: usize>(
    record: &JobRecord,
    table: &[Entry<S>; LENGTH],
) -> Result<Vec<Step>, String> {
    let steps = steps_of(record);
    if !Entry::has_all(table, &steps) {
        return Err("its plan has a step that no move of its kind has".to_owned());
    }
    Ok(steps)
}

/// A host of a job.
///
/// # Errors
/// A message, if it is no longer in the inventory.
pub(super) fn host<S: Site>(site: &S, name: &HostName) -> Result<S::Host, String> {
    site.host(name).ok_or_else(|| format!("host {} is not in the inventory", name.name))
}

/// Checks whether findings let the job continue.
///
/// # Errors
/// The blocking findings, without the warnings.
pub(super) fn nothing_blocks(found: &[Finding]) -> Result<(), StepFailed> {
    let blocking: Vec<Finding> = found.iter().filter(|finding| finding.severity == Severity::Blocks).cloned().collect();
    if blocking.is_empty() { Ok(()) } else { Err(messages(&blocking)) }
}

/// Reserves the VM for the job.
pub(super) async fn reserve(site: &impl Site, running: &Running, record: &JobRecord) -> Result<(), StepFailed> {
    match running.kept(|| site.reserve(record.job.vm, record.id)).await {
        job if job == record.id => Ok(()),
        other => Err(StepFailed(format!("Job {other} has reserved VM {}", record.job.vm_name))),
    }
}

/// Ends the job's reservation of the VM.
pub(super) async fn unreserve(site: &impl Site, running: &Running, record: &JobRecord) -> Result<(), StepFailed> {
    running.kept(|| site.unreserve(record.id)).await;
    Ok(())
}

/// Stores the plan with everything that was learned since.
pub(super) async fn keep_plan(site: &impl Site, running: &Running, record: &JobRecord, plan: &impl Kept) {
    let plan = plan.to_json();
    running.kept(|| site.put_plan(record.id, &plan)).await;
}

/// Adds notes for people to the job's log.
pub(super) async fn note(site: &impl Site, running: &Running, record: &JobRecord, notes: Vec<String>) {
    if !notes.is_empty() {
        running.kept(|| site.note(record.id, &notes)).await;
    }
}
