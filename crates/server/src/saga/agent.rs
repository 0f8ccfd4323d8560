//! A host's agent as a [`Participant`]: sagas call agents only through this file.

use std::{sync::Arc, time::Duration};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{
        Check, ConfirmRequest, DestinationReady, IncomingDisk, OfflineReady, PrepareDestination, PrepareSource,
        PrepareStorage, ReceiveOffline, SendOffline, Verb,
    },
    files::{DiskMove, FileMove},
    finding::Finding,
    id::VmId,
    pin::Pin,
    vm::VmState,
};

use super::participant::{LiveParticipant, OfflineParticipant, Participant, Reported, StorageParticipant};
use crate::{
    inventory::Host,
    preflight::{live, offline},
};

/// The agent of a host.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) host: Arc<Host>,
}

impl Participant for Agent {
    fn name(&self) -> &str {
        self.host.name()
    }

    fn pin(&self) -> Pin {
        self.host.record.pin
    }

    async fn perform(&self, attempt: Attempt) -> Reported {
        self.host.agent.ask(attempt, Verb::Perform).await
    }

    async fn report(&self, attempt: Attempt, after: u64, wait: Duration) -> Reported {
        self.host.agent.report(attempt, after, wait).await
    }

    async fn abort(&self, attempt: Attempt) -> Reported {
        self.host.agent.ask(attempt, Verb::Abort).await
    }

    async fn confirm(&self, attempt: Attempt, body: &ConfirmRequest) -> Reported {
        self.host.agent.ask(attempt, Verb::Confirm(*body)).await
    }

    async fn release(&self, attempt: Attempt) -> Result<(), ClientError> {
        self.host.agent.release(attempt).await
    }
}

impl LiveParticipant for Agent {
    async fn incoming(&self, vm: VmId, disks: &[DiskMove]) -> Result<Vec<IncomingDisk>, Vec<Finding>> {
        live::incoming_disks(&self.host, vm, disks).await
    }

    async fn prepare_destination(
        &self,
        attempt: Attempt,
        body: &PrepareDestination,
    ) -> Result<DestinationReady, ClientError> {
        self.host.agent.prepare(attempt, body).await
    }

    async fn prepare_source(&self, attempt: Attempt, body: &PrepareSource) -> Result<bool, ClientError> {
        self.host.agent.prepare(attempt, body).await.map(|ready| ready.autostart)
    }

    async fn resume(&self, attempt: Attempt) -> Reported {
        self.host.agent.ask(attempt, Verb::Resume).await
    }

    async fn end_copy(&self, attempt: Attempt) -> Reported {
        self.host.agent.ask(attempt, Verb::EndCopy).await
    }

    async fn state_of(&self, vm: VmId) -> Result<Option<VmState>, ClientError> {
        let observation = self.host.agent.refresh().await?;
        Ok(observation.vms.iter().find(|facts| facts.id == vm).map(|facts| facts.state))
    }
}

impl StorageParticipant for Agent {
    async fn check(&self, body: &PrepareStorage) -> Result<(), ClientError> {
        self.host.agent.check(&Check::Storage(body.clone())).await.map(drop)
    }

    async fn prepare(&self, attempt: Attempt, body: &PrepareStorage) -> Reported {
        self.host.agent.prepare(attempt, body).await
    }
}

impl OfflineParticipant for Agent {
    async fn sizes(&self, vm: VmId, files: &[FileMove]) -> Result<offline::Sized, Vec<Finding>> {
        offline::sizes(&self.host, vm, files).await
    }

    async fn prepare_destination(&self, attempt: Attempt, body: &ReceiveOffline) -> Result<OfflineReady, ClientError> {
        self.host.agent.prepare(attempt, body).await
    }

    async fn prepare_source(&self, attempt: Attempt, body: &SendOffline) -> Reported {
        self.host.agent.prepare(attempt, body).await
    }

    async fn define(&self, attempt: Attempt) -> Reported {
        self.host.agent.ask(attempt, Verb::Define).await
    }
}
