//! Refusals shared by several kinds of moves.

use std::path::Path;

use ferry_core::{
    finding::{Finding, FindingId},
    id::{Generation, JobId, VmId},
};

use crate::AgentError;

/// The reason why a request is refused (409), and what to do.
pub(crate) fn refused(
    id: FindingId,
    object: impl std::fmt::Display,
    message: impl Into<String>,
    fix: impl Into<String>,
) -> AgentError {
    AgentError::refused(409, Finding::blocks(id, object, message, fix))
}

/// A new file would replace an existing one.
pub(crate) fn exists(path: &Path) -> AgentError {
    refused(
        FindingId::FileExists,
        path.display(),
        format!("{} is there already", path.display()),
        "Remove it if nothing needs it, or choose another place",
    )
}

/// The destination already has the definition of the incoming VM.
pub(crate) fn uuid_taken(vm: VmId, name: &str) -> AgentError {
    refused(
        FindingId::VmUuidTaken,
        vm,
        format!("The destination already has a VM of UUID {vm}: {name}"),
        "Remove its definition there with `virsh undefine`, if it is a leftover",
    )
}

/// The request belongs to an attempt that is not the newest.
pub(crate) fn stale(job: JobId, asked: Generation, known: Generation) -> AgentError {
    refused(
        FindingId::RequestStale,
        job,
        format!("The request is of attempt {asked} of job {job}, and attempt {known} is known here"),
        "Nothing: an older life of the server asked",
    )
}

/// The attempt is not known to this host.
pub(crate) fn unknown(job: JobId, generation: Generation) -> AgentError {
    let message = format!("This host takes no part in attempt {generation} of job {job}");
    let fix = "Look at the job with `ferry job show`; restart it if it has failed";
    AgentError::refused(404, Finding::blocks(FindingId::JobUnknown, job, message, fix))
}

/// The abort came too late.
pub(crate) fn past_pivot(vm: VmId) -> Box<Finding> {
    Box::new(Finding::blocks(
        FindingId::JobPastPivot,
        vm,
        format!("VM {vm} has switched over to the destination; the move can no longer be cancelled"),
        "Let it finish, then move the VM back",
    ))
}
