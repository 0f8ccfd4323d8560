//! What a kind of move does about attempts, as the frame asks it. Whoever asks holds the job's lock, but for a report.

use std::{pin::Pin, sync::Arc, time::Duration};

use ferry_core::{
    api::agent::{Report, Verb},
    finding::{Finding, FindingId},
    id::{Generation, JobId},
};

use crate::{AgentError, files::claims::Reserved};

/// An answer that takes its time.
pub(crate) type Pending<T> = Pin<Box<dyn Future<Output = Result<T, AgentError>> + Send>>;

/// One kind of move. Every request may be repeated; that about an attempt which is not known is refused with `job.unknown`, about one
/// that is not the newest with `request.stale`.
pub(crate) trait Participant: Send + Sync {
    /// Whether an attempt of the job is its own.
    fn knows(&self, job: JobId) -> bool;

    /// Room that files which come will still take. Blocks for a bounded time.
    fn reserved(&self) -> Vec<Reserved>;

    /// How it stands, as soon as that is newer than `after`, or after `wait`.
    fn report(self: Arc<Self>, job: JobId, generation: Generation, after: u64, wait: Duration) -> Pending<Report>;

    /// Does what is asked of a host that is ready.
    fn act(self: Arc<Self>, job: JobId, generation: Generation, verb: Verb) -> Pending<Report>;

    /// Forgets it; what it made and cannot be needed goes. Ok if it is not known, and it is not taken up afterwards.
    fn release(self: Arc<Self>, job: JobId, generation: Generation) -> Pending<()>;
}

/// A verb that this kind of move does not have.
pub(crate) fn not_a_verb(job: JobId, verb: Verb) -> AgentError {
    let message = format!("This host has no part in job {job} of which {verb:?} could be asked");
    let fix = "Use a server of the same version as the agent";
    AgentError::refused(422, Finding::blocks(FindingId::RequestInvalid, job, message, fix))
}
