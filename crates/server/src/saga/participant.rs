//! One host of an attempt as sagas see it: the requests, and the meaning of the answers.
//!
//! Sagas know neither agents nor routes. [`super::agent`] asks the agents of real hosts; the simulation and the sweep
//! ask models.

use std::{future::Future, time::Duration};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{
        ConfirmRequest, DestinationReady, IncomingDisk, OfflineReady, PrepareDestination, PrepareSource,
        PrepareStorage, ReceiveOffline, Report, SendOffline,
    },
    files::{DiskMove, FileMove},
    finding::{Command, Finding, FindingId, Message, Messages},
    id::VmId,
    job_text::JobText,
    network::Route,
    pin::Pin,
    vm::VmState,
};

use super::executor::StepFailed;
use crate::{failure::describe, preflight::offline::Sized};

/// The answer to a request that returns the host's report.
pub(crate) type Reported = Result<Report, ClientError>;

/// The requests that are the same for every kind of move. Every request may be repeated.
pub(crate) trait Participant: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;
    /// The key of its agent.
    fn pin(&self) -> Pin;
    /// Starts the move, or finds it started.
    fn perform(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
    /// The report, once its sequence is above `after`, or once `wait` has passed. 404: the host does not know the
    /// attempt.
    fn report(&self, attempt: Attempt, after: u64, wait: Duration) -> impl Future<Output = Reported> + Send;
    /// Ends the host's part before the point of no return; refused with `job.past-pivot` after it.
    fn abort(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
    /// Completes a successful move on this host: definition, old files, autostart.
    fn confirm(&self, attempt: Attempt, body: &ConfirmRequest) -> impl Future<Output = Reported> + Send;
    /// Removes everything that belongs to the attempt.
    fn release(&self, attempt: Attempt) -> impl Future<Output = Result<(), ClientError>> + Send;
}

/// The requests of a live move.
pub(crate) trait LiveParticipant: Participant {
    /// The migrated disks in the form that the destination expects, with the sizes that the source reports now.
    fn incoming(
        &self,
        vm: VmId,
        disks: &[DiskMove],
    ) -> impl Future<Output = Result<Vec<IncomingDisk>, Vec<Finding>>> + Send;
    /// Prepares the destination.
    fn prepare_destination(
        &self,
        attempt: Attempt,
        body: &PrepareDestination,
    ) -> impl Future<Output = Result<DestinationReady, ClientError>> + Send;
    /// Prepares the source. Ok: whether it started the VM at boot.
    fn prepare_source(
        &self,
        attempt: Attempt,
        body: &PrepareSource,
    ) -> impl Future<Output = Result<bool, ClientError>> + Send;
    /// Resumes the VM at the destination, after the verdict was that the destination has it.
    fn resume(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
    /// Ends the process of the VM that libvirt left at the source, after the verdict was that the destination has the
    /// VM.
    fn end_copy(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
    /// Makes the host refresh its observation, and returns the state of a VM there; `None`: the host does not have it.
    fn state_of(&self, vm: VmId) -> impl Future<Output = Result<Option<VmState>, ClientError>> + Send;
}

/// The requests of a storage move.
pub(crate) trait StorageParticipant: Participant {
    /// Checks whether the move is possible. Changes nothing.
    fn check(&self, body: &PrepareStorage) -> impl Future<Output = Result<(), ClientError>> + Send;
    /// Creates the new files.
    fn prepare(&self, attempt: Attempt, body: &PrepareStorage) -> impl Future<Output = Reported> + Send;
}

/// The requests of an offline move.
pub(crate) trait OfflineParticipant: Participant {
    /// The files that move, with the sizes that the source reports now.
    fn sizes(&self, vm: VmId, files: &[FileMove]) -> impl Future<Output = Result<Sized, Vec<Finding>>> + Send;
    /// Prepares the destination.
    fn prepare_destination(
        &self,
        attempt: Attempt,
        body: &ReceiveOffline,
    ) -> impl Future<Output = Result<OfflineReady, ClientError>> + Send;
    /// Prepares the source: the VM is held.
    fn prepare_source(&self, attempt: Attempt, body: &SendOffline) -> impl Future<Output = Reported> + Send;
    /// Gives the VM to the destination: the point of no return.
    fn define(&self, attempt: Attempt) -> impl Future<Output = Reported> + Send;
}

/// The failure of a step that a host refused or did not answer.
pub(super) fn failed(host: &impl Participant, error: &ClientError) -> StepFailed {
    StepFailed(describe(host.name(), error))
}

/// The failure of a source that could not be prepared. One that did not reach the destination in their migration network
/// is told by the names of both.
pub(super) fn not_prepared<P: Participant>(
    (source, destination): (&P, &P),
    route: Option<Route>,
    error: &ClientError,
) -> StepFailed {
    let findings = error.problem().map(|problem| problem.findings.as_slice()).unwrap_or_default();
    let silent = findings.iter().find(|finding| finding.id == FindingId::HostNetwork).map(|finding| {
        if let Message::NetworkSilent { reason, .. } = &finding.message {
            reason.clone()
        } else {
            finding.message.to_string()
        }
    });
    let (Some(route), Some(reason)) = (route, silent) else { return failed(source, error) };
    let (here, there) = (route.source.to_string(), route.destination.to_string());
    let found = Message::NetworkSilentBetween {
        source: format!("{} ({here})", source.name()),
        destination: format!("{} ({there})", destination.name()),
        network: route.network.to_string(),
        reason,
    };
    let fix = Command::CheckNetwork { source: source.name().to_owned(), here, there };
    StepFailed(JobText::FoundWithFix { found: found.into(), fix: Box::new(fix.into()) })
}

/// The failure of a step because of findings.
pub(super) fn messages(findings: &[Finding]) -> StepFailed {
    let found = Messages(findings.iter().map(|finding| finding.message.clone()).collect());
    StepFailed(JobText::Found { found })
}

/// Why a host ended the move.
pub(super) fn ended_by(report: &Report, host: &str) -> JobText {
    match &report.error {
        Some(error) => JobText::Text { text: error.clone() },
        None => JobText::EndedBy { host: host.to_owned() },
    }
}

/// For requests that remove something: an agent that does not know the attempt has nothing to remove.
pub(super) fn gone_or(host: &impl Participant, answer: Result<(), ClientError>) -> Result<(), StepFailed> {
    match answer {
        Err(error) if !is_unknown(&error) => Err(failed(host, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Ends an attempt before the point of no return, and removes what the host has of it.
pub(super) async fn take_back(host: &impl Participant, attempt: Attempt) -> Result<(), StepFailed> {
    gone_or(host, host.abort(attempt).await.map(drop))?;
    gone_or(host, host.release(attempt).await)
}

/// Whether the agent does not know the attempt.
pub(super) fn is_unknown(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.status == 404)
}
