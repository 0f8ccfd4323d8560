//! Refusals shared by several kinds of moves.

use std::path::Path;

use ferry_core::{
    finding::{Action, ByHand, Command, Finding, FindingId, Fix, Message},
    id::{Generation, JobId, VmId},
};

use crate::AgentError;

/// The reason why a request is refused (409), and what to do.
pub(crate) fn refused(
    id: FindingId,
    object: impl std::fmt::Display,
    message: Message,
    fix: impl Into<Fix>,
) -> AgentError {
    AgentError::refused(409, Finding::blocks(id, object, message, fix))
}

/// A new file would replace an existing one.
pub(crate) fn exists(path: &Path) -> AgentError {
    let message = Message::FileIsThere { file: path.display().to_string() };
    refused(FindingId::FileExists, path.display(), message, ByHand::RemoveIfUnneeded)
}

/// The destination already has the definition of the incoming VM.
pub(crate) fn uuid_taken(vm: VmId, name: &str) -> AgentError {
    let message = Message::DefinitionThere { uuid: vm.to_string(), name: name.to_owned() };
    refused(FindingId::VmUuidTaken, vm, message, Command::Undefine)
}

/// The request belongs to an attempt that is not the newest.
pub(crate) fn stale(job: JobId, asked: Generation, known: Generation) -> AgentError {
    refused(FindingId::RequestStale, job, Message::StaleAttempt { job, asked, known }, ByHand::OlderServerAsked)
}

/// The attempt is not known to this host.
pub(crate) fn unknown(job: JobId, generation: Generation) -> AgentError {
    let message = Message::AttemptUnknown { job, asked: generation };
    AgentError::refused(404, Finding::blocks(FindingId::JobUnknown, job, message, Action::ShowJob))
}

/// The abort came too late.
pub(crate) fn past_pivot(vm: VmId) -> Box<Finding> {
    let message = Message::SwitchedOver { vm: vm.to_string() };
    Box::new(Finding::blocks(FindingId::JobPastPivot, vm, message, ByHand::LetItFinish))
}
