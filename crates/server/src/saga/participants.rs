//! Both ends of one attempt to move a VM, and what is asked of their agents.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use ferry_client::{
    ClientError,
    agent::{AgentClient, Attempt},
};
use ferry_core::{
    api::agent::MigrationReport,
    id::{HostId, JobId, VmId},
    migration::{LogEvent, newest_attempt},
    vm::VmState,
};
use futures_util::future::{BoxFuture, FutureExt as _, join_all};

use super::executor::Log;
use crate::{inventory::Inventory, jobs::running::Running};

/// What is asked of an agent while it is decided who has the VM.
pub(super) trait MoveAgent: Sync {
    /// As [`AgentClient::perform`].
    fn perform(&self, attempt: Attempt) -> impl Future<Output = Result<MigrationReport, ClientError>> + Send;
    /// As [`AgentClient::report`].
    fn report(
        &self,
        attempt: Attempt,
        after: u64,
        wait: Duration,
    ) -> impl Future<Output = Result<MigrationReport, ClientError>> + Send;
    /// As [`AgentClient::abort`].
    fn abort(&self, attempt: Attempt) -> impl Future<Output = Result<MigrationReport, ClientError>> + Send;
    /// As [`AgentClient::resume`].
    fn resume(&self, attempt: Attempt) -> impl Future<Output = Result<MigrationReport, ClientError>> + Send;
    /// As [`AgentClient::end_copy`].
    fn end_copy(&self, attempt: Attempt) -> impl Future<Output = Result<MigrationReport, ClientError>> + Send;
    /// As [`AgentClient::release`].
    fn release(&self, attempt: Attempt) -> impl Future<Output = Result<(), ClientError>> + Send;
    /// What the host has of a VM when it looks now; `None`: nothing.
    fn state_of(&self, vm: VmId) -> impl Future<Output = Result<Option<VmState>, ClientError>> + Send;
}

impl MoveAgent for AgentClient {
    async fn perform(&self, attempt: Attempt) -> Result<MigrationReport, ClientError> {
        Self::perform(self, attempt).await
    }

    async fn report(&self, attempt: Attempt, after: u64, wait: Duration) -> Result<MigrationReport, ClientError> {
        Self::report(self, attempt, after, wait).await
    }

    async fn abort(&self, attempt: Attempt) -> Result<MigrationReport, ClientError> {
        Self::abort(self, attempt).await
    }

    async fn resume(&self, attempt: Attempt) -> Result<MigrationReport, ClientError> {
        Self::resume(self, attempt).await
    }

    async fn end_copy(&self, attempt: Attempt) -> Result<MigrationReport, ClientError> {
        Self::end_copy(self, attempt).await
    }

    async fn release(&self, attempt: Attempt) -> Result<(), ClientError> {
        Self::release(self, attempt).await
    }

    async fn state_of(&self, vm: VmId) -> Result<Option<VmState>, ClientError> {
        let observation = self.look().await?;
        Ok(observation.vms.iter().find(|facts| facts.id == vm).map(|facts| facts.state))
    }
}

/// What a host, by its name, has of a VM.
pub(super) type Told = (String, Result<Option<VmState>, ClientError>);

/// Hosts that are neither end of the move.
pub(super) trait Others: Sync {
    /// What each has of a VM when it looks now.
    fn state_of(&self, vm: VmId) -> BoxFuture<'_, Vec<Told>>;
}

/// Every host of the inventory but the ends.
pub(super) struct OtherHosts<'a> {
    pub(super) inventory: &'a Inventory,
    pub(super) participants: [HostId; 2],
}

impl Others for OtherHosts<'_> {
    fn state_of(&self, vm: VmId) -> BoxFuture<'_, Vec<Told>> {
        let others = self.inventory.hosts().into_iter().filter(|host| !self.participants.contains(&host.record.id));
        let asked = others.map(|host| async move { (host.name().to_owned(), host.agent.state_of(vm).await) });
        join_all(asked).boxed()
    }
}

/// What is kept of what the hosts of an attempt said, for as long as it lasts.
pub(super) trait Memory: Sync {
    /// Whether a complete copy was seen at the destination, of which nobody knows that Ferry has ended it.
    fn arrived(&self) -> BoxFuture<'_, bool>;
    /// Keeps that one was seen. On the disk when it returns; once is enough.
    fn keep_arrived(&self) -> BoxFuture<'_, ()>;
}

/// In the log of the job.
pub(super) struct Logged<'a, L> {
    pub(super) log: &'a L,
    pub(super) job: JobId,
    pub(super) running: &'a Running,
    /// Whether the destination has ended its copy for Ferry, and forgotten the attempt since.
    pub(super) ended_there: AtomicBool,
}

impl<'a, L> Logged<'a, L> {
    pub(super) fn new(log: &'a L, job: JobId, running: &'a Running) -> Self {
        Self { log, job, running, ended_there: AtomicBool::new(false) }
    }
}

impl<L: Log> Memory for Logged<'_, L> {
    fn arrived(&self) -> BoxFuture<'_, bool> {
        async {
            let log = self.running.kept(|| self.log.events(self.job)).await;
            !self.ended_there.load(Ordering::SeqCst) && newest_attempt(&log).contains(&LogEvent::Arrived)
        }
        .boxed()
    }

    fn keep_arrived(&self) -> BoxFuture<'_, ()> {
        async {
            let log = self.running.kept(|| self.log.events(self.job)).await;
            if !newest_attempt(&log).contains(&LogEvent::Arrived) {
                self.running.kept(|| self.log.append(self.job, &[LogEvent::Arrived])).await;
                self.running.changed();
            }
        }
        .boxed()
    }
}

/// One end.
#[derive(Debug)]
pub(super) struct Participant<'a, A> {
    /// The host's name.
    pub(super) name: &'a str,
    pub(super) agent: &'a A,
}

/// Both ends of one attempt.
pub(super) struct Participants<'a, A> {
    pub(super) vm: VmId,
    pub(super) attempt: Attempt,
    pub(super) source: Participant<'a, A>,
    pub(super) destination: Participant<'a, A>,
    pub(super) others: &'a dyn Others,
    pub(super) memory: &'a dyn Memory,
    pub(super) running: &'a Running,
}
