//! One host of an attempt, as a saga knows it: what is asked of it, and what its answers mean.
//!
//! Sagas name no agent and no route. [`super::agent`] asks the agents of real hosts; the simulation and the sweep ask models.

use std::{future::Future, time::Duration};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{
        ConfirmRequest, DestinationReady, DiskArrival, OfflineReady, PrepareDestination, PrepareSource, PrepareStorage,
        ReceiveOffline, Report, SendOffline,
    },
    files::{DiskMove, FileMove},
    finding::Finding,
    id::VmId,
    pin::Pin,
    vm::VmState,
};

use super::executor::StepFailed;
use crate::{failure::describe, preflight::offline::Sized};

/// An answer that says how the host stands.
pub(crate) type Reported = Result<Report, ClientError>;

/// What is asked of a host in every kind of move. Every request may be repeated.
pub(crate) trait Participant: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;
    /// The key of its agent.
    fn pin(&self) -> Pin;
    /// Starts the move, or finds it started.
    fn perform(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
    /// How it stands, when its sequence is beyond `after` or `wait` is over. 404: it knows nothing of the attempt.
    fn report(&self, attempt: Attempt, after: u64, wait: Duration) -> impl Future<Output = Reported> + Send;
    /// Ends its part before the point of no return; refused with `job.past-pivot` after it.
    fn abort(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
    /// Ends a successful move there: definition, old files, autostart.
    fn confirm(&self, attempt: Attempt, body: &ConfirmRequest) -> impl Future<Output = Reported> + Send;
    /// Cleans everything of the attempt.
    fn release(&self, attempt: Attempt) -> impl Future<Output = Result<(), ClientError>> + Send;
}

/// What is asked of a host in a live move.
pub(crate) trait LiveParticipant: Participant {
    /// The disks that move along as the destination is to take them, with their sizes as the source says now.
    fn incoming(
        &self,
        vm: VmId,
        disks: &[DiskMove],
    ) -> impl Future<Output = Result<Vec<DiskArrival>, Vec<Finding>>> + Send;
    /// Makes the destination ready.
    fn prepare_destination(
        &self,
        attempt: Attempt,
        body: &PrepareDestination,
    ) -> impl Future<Output = Result<DestinationReady, ClientError>> + Send;
    /// Makes the source ready. Ok: whether it started the VM at boot.
    fn prepare_source(
        &self,
        attempt: Attempt,
        body: &PrepareSource,
    ) -> impl Future<Output = Result<bool, ClientError>> + Send;
    /// Runs the VM at the destination, after the verdict said that it is the destination's.
    fn resume(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
    /// Ends the process that libvirt left of the VM at the source, after the verdict said that it is the destination's.
    fn end_copy(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
    /// What the host has of a VM when it looks now; `None`: nothing.
    fn state_of(&self, vm: VmId) -> impl Future<Output = Result<Option<VmState>, ClientError>> + Send;
}

/// What is asked of a host in a move of disks.
pub(crate) trait StorageParticipant: Participant {
    /// Whether it can be done. Changes nothing.
    fn check(&self, body: &PrepareStorage) -> impl Future<Output = Result<(), ClientError>> + Send;
    /// Makes the new files.
    fn prepare(&self, attempt: Attempt, body: &PrepareStorage) -> impl Future<Output = Reported> + Send;
}

/// What is asked of a host in a move of a VM that is shut off.
pub(crate) trait OfflineParticipant: Participant {
    /// The files that move, with their sizes as the source says now.
    fn sizes(&self, vm: VmId, files: &[FileMove]) -> impl Future<Output = Result<Sized, Vec<Finding>>> + Send;
    /// Makes the destination ready.
    fn prepare_destination(
        &self,
        attempt: Attempt,
        body: &ReceiveOffline,
    ) -> impl Future<Output = Result<OfflineReady, ClientError>> + Send;
    /// Makes the source ready: the VM is held.
    fn prepare_source(&self, attempt: Attempt, body: &SendOffline) -> impl Future<Output = Reported> + Send;
    /// Gives the destination the VM: the point of no return.
    fn define(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
}

/// What a host said against a step.
pub(super) fn failed(host: &impl Participant, error: &ClientError) -> StepFailed {
    StepFailed(describe(host.name(), error))
}

/// What was found against a step.
pub(super) fn messages(findings: &[Finding]) -> StepFailed {
    let messages: Vec<String> = findings.iter().map(|finding| finding.message.to_string()).collect();
    StepFailed(messages.join("; "))
}

/// For what takes something away: an agent that knows nothing of the attempt has nothing of it.
pub(super) fn gone_or(host: &impl Participant, answer: Result<(), ClientError>) -> Result<(), StepFailed> {
    match answer {
        Err(error) if !is_unknown(&error) => Err(failed(host, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Ends an attempt before the point of no return, and cleans what the host has of it.
pub(super) async fn take_back(host: &impl Participant, attempt: Attempt) -> Result<(), StepFailed> {
    gone_or(host, host.abort(attempt).await.map(drop))?;
    gone_or(host, host.release(attempt).await)
}

/// Whether the agent knows nothing of the attempt.
pub(super) fn is_unknown(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.status == 404)
}
