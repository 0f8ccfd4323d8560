//! The moves that this host takes part in: finds the kind that a request is about, and does what all kinds have in
//! common.

use std::{sync::Arc, time::Duration};

use ferry_core::{
    api::agent::{Check, Prepare, Ready, Report, Verb},
    id::{Generation, HostId, JobId},
    units::ByteCount,
};
use uuid::Uuid;

use crate::{
    Agent, AgentError,
    attempt::participant::Participant,
    blocking::{blocking, within},
    files::host_storage::HostStorage,
    observer::WAIT_MAX,
    places,
    refusal::unknown,
};

/// How long a request may wait for file systems: slightly less than the server waits for it.
const ANSWER_WAIT: Duration = Duration::from_secs(80);

impl Agent {
    fn kinds(&self) -> [Arc<dyn Participant>; 3] {
        [self.migrations.clone(), self.storage.clone(), self.offline.clone()]
    }

    /// The kind of move that knows a job.
    fn kind(&self, job: JobId) -> Option<Arc<dyn Participant>> {
        self.kinds().into_iter().find(|kind| kind.knows(job))
    }

    /// Runs a request for a job under its lock, to its end. Its caller waits no longer than for file systems.
    async fn serialized<T: Send + 'static>(
        &self,
        job: JobId,
        request: impl Future<Output = Result<T, AgentError>> + Send + 'static,
    ) -> Result<T, AgentError> {
        within(ANSWER_WAIT, "A file system of this host", self.locks.serialized(job, request)).await
    }

    /// The space that each copy would occupy, as far as this host knows, if nothing prevents the move. Changes nothing
    /// except old partial copies.
    ///
    /// # Errors
    /// What prevents it.
    pub(crate) async fn check(self: &Arc<Self>, check: Check) -> Result<Vec<ByteCount>, AgentError> {
        let storage = self.host_storage(None)?;
        let agent = Arc::clone(self);
        let checked = blocking(move || match check {
            Check::LiveDestination { vm, disks } => {
                agent.migrations.check_incoming(&storage, vm, &disks).map(|()| Vec::new())
            }
            Check::OfflineDestination(request) => agent.offline.check(&request, &storage).map(|()| Vec::new()),
            Check::Storage(request) => agent.storage.check(&request, &storage),
        });
        within(ANSWER_WAIT, "A file system of this host", checked).await
    }

    /// Prepares this host for its part.
    ///
    /// # Errors
    /// `request.stale`, `job.open`, or what prevents it; nothing is left behind then.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        job: JobId,
        generation: Generation,
        part: Prepare,
    ) -> Result<Ready, AgentError> {
        let storage = self.host_storage(Some(job))?;
        let agent = Arc::clone(self);
        let prepare = async move {
            // The space belongs to the request until its files are recorded.
            let _claim = Arc::clone(&storage.claim);
            Ok(match part {
                Prepare::LiveDestination(request) => Ready::LiveDestination(
                    Arc::clone(&agent.migrations).prepare_destination(job, generation, request, storage).await?,
                ),
                Prepare::LiveSource(request) => {
                    Ready::LiveSource(agent.migrations.prepare_source(job, generation, request, &storage.shares).await?)
                }
                Prepare::OfflineDestination(request) => Ready::OfflineDestination(
                    Arc::clone(&agent.offline).prepare_destination(job, generation, request, storage).await?,
                ),
                Prepare::OfflineSource(request) => Ready::Reported(Box::new(
                    Arc::clone(&agent.offline).prepare_source(job, generation, request, storage).await?,
                )),
                Prepare::Storage(request) => Ready::Reported(Box::new(
                    blocking(move || agent.storage.prepare(job, generation, request, &storage)).await?,
                )),
            })
        };
        self.serialized(job, Box::pin(prepare)).await
    }

    /// Performs an action on a prepared host.
    ///
    /// # Errors
    /// `job.unknown`, `request.stale`, or why it failed.
    pub async fn act(self: &Arc<Self>, job: JobId, generation: Generation, verb: Verb) -> Result<Report, AgentError> {
        let agent = Arc::clone(self);
        let act = async move {
            let kind = agent.kind(job).ok_or_else(|| unknown(job, generation))?;
            let report = kind.act(job, generation, verb).await?;
            if matches!(verb, Verb::Define | Verb::Confirm(_)) {
                // libvirt sends no event when autostart is set or a VM uses another file.
                agent.observer.refresh().await;
            }
            Ok(report)
        };
        self.serialized(job, act).await
    }

    /// The report of a part, as soon as it is newer than `after`, or after `wait` (at most 30 s).
    ///
    /// # Errors
    /// `job.unknown`, `request.stale`.
    pub(crate) async fn report(
        &self,
        job: JobId,
        generation: Generation,
        after: u64,
        wait: Duration,
    ) -> Result<Report, AgentError> {
        let kind = self.kind(job).ok_or_else(|| unknown(job, generation))?;
        kind.report(job, generation, after, wait.min(WAIT_MAX)).await
    }

    /// Forgets a part. Ok if it is not known.
    ///
    /// # Errors
    /// What could not be reverted.
    pub(crate) async fn release(self: &Arc<Self>, job: JobId, generation: Generation) -> Result<(), AgentError> {
        let agent = Arc::clone(self);
        let release = async move {
            match agent.kind(job) {
                Some(kind) => kind.release(job, generation).await?,
                None => agent.ended.remember(job, generation)?,
            }
            agent.observer.refresh().await;
            Ok(())
        };
        self.serialized(job, release).await
    }

    /// This host's storage, and the reservations of other copies, for a job that creates files. Does not access a file
    /// system: the code that checks space does so, on its own thread. Space is promised to the request as long as the
    /// claim in the result lives.
    fn host_storage(self: &Arc<Self>, job: Option<JobId>) -> Result<HostStorage, AgentError> {
        let host = *self.enrolment.watch_host().borrow();
        let kinds = self.kinds();
        let reserved = Box::new(move || {
            let all = kinds.iter().flat_map(|kind| kind.reserved());
            all.filter(|reserved| Some(reserved.job) != job).collect()
        });
        Ok(HostStorage {
            places: self.shares.places(host.unwrap_or(HostId(Uuid::nil()))),
            roots: places::roots(self)?,
            shares: Arc::clone(&self.shares),
            qemu_conf: self.config.qemu_conf.clone(),
            reserved,
            claim: self.claims.claim(job),
        })
    }
}
