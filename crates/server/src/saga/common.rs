//! What the sagas of all kinds share: how a saga is created for a job, and steps that are the same in each.

use ferry_core::{
    finding::{Finding, Message, Messages, Severity},
    job_text::JobText,
    migration::{Contents, Step, steps},
};

use super::{
    executor::{Entry, StepFailed},
    participant::messages,
    site::Site,
};
use crate::{
    jobs::running::Running,
    plan::Kept,
    store::{HostName, JobRecord},
};

/// Reads a job's plan.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn plan<P: Kept>(record: &JobRecord) -> Result<P, JobText> {
    P::from_json(&record.job.plan).map_err(|error| JobText::PlanUnreadable { error: error.to_string() })
}

/// The steps of a plan, each of which is in its saga's table.
///
/// # Errors
/// One is not.
pub(super) fn steps_of<S, const LENGTH: usize>(
    plan: Contents,
    table: &[Entry<S>; LENGTH],
) -> Result<Vec<Step>, JobText> {
    let steps = steps(plan);
    if !Entry::has_all(table, &steps) {
        return Err(JobText::PlanHasOtherSteps);
    }
    Ok(steps)
}

/// A host of a job.
///
/// # Errors
/// It is not in the inventory any more.
pub(super) fn host<S: Site>(site: &S, name: &HostName) -> Result<S::Host, JobText> {
    let removed = || Messages(vec![Message::HostRemoved { host: name.name.clone() }]);
    site.host(name).ok_or_else(|| JobText::Found { found: removed() })
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
        job => Err(StepFailed(JobText::ReservedBy { job, vm: record.job.vm_name.clone() })),
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
pub(super) async fn note(site: &impl Site, running: &Running, record: &JobRecord, notes: Vec<JobText>) {
    if !notes.is_empty() {
        running.kept(|| site.note(record.id, &notes)).await;
    }
}
