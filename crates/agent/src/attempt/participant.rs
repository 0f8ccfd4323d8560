//! The interface of a kind of move towards the framework. The caller holds the job's lock, except for a report.

use std::{pin::Pin, sync::Arc, time::Duration};

use ferry_core::{
    api::agent::{Report, Verb},
    finding::{ByHand, Finding, FindingId, Message},
    id::{Generation, JobId},
};

use crate::{AgentError, files::claims::Reserved};

/// An answer that takes some time.
pub(crate) type Pending<T> = Pin<Box<dyn Future<Output = Result<T, AgentError>> + Send>>;

/// One kind of move. Every request may be repeated; a request for an unknown attempt is refused with `job.unknown`, one
/// for an attempt that is not the newest with `request.stale`.
pub(crate) trait Participant: Send + Sync {
    /// Whether the job has an attempt of this kind here.
    fn knows(&self, job: JobId) -> bool;

    /// Space that incoming files will still occupy. Blocks for a bounded time.
    fn reserved(&self) -> Vec<Reserved>;

    /// The report of an attempt, as soon as it is newer than `after`, or after `wait`.
    fn report(self: Arc<Self>, job: JobId, generation: Generation, after: u64, wait: Duration) -> Pending<Report>;

    /// Performs an action on a prepared host.
    fn act(self: Arc<Self>, job: JobId, generation: Generation, verb: Verb) -> Pending<Report>;

    /// Forgets an attempt; files that it made and nobody needs are removed. Ok if the attempt is not known; it is not
    /// accepted afterwards.
    fn release(self: Arc<Self>, job: JobId, generation: Generation) -> Pending<()>;
}

/// A verb that this kind of move does not have.
pub(crate) fn not_a_verb(job: JobId, verb: Verb) -> AgentError {
    let message = Message::NotAVerb { job, verb: format!("{verb:?}") };
    AgentError::refused(422, Finding::blocks(FindingId::RequestInvalid, job, message, ByHand::SameServer))
}
