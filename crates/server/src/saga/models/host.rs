//! A host of the model, as sagas see it. A request or its answer may be lost.

use std::time::Duration;

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{
        ConfirmRequest, DestinationReady, IncomingDisk, OfflineReady, PrepareDestination, PrepareSource,
        PrepareStorage, ReceiveOffline, Role, SendOffline,
    },
    files::{DiskMove, FileMove},
    finding::{Finding, FindingId},
    id::VmId,
    pin::Pin,
    units::ByteCount,
    vm::VmState,
};

use super::{
    super::participant::{LiveParticipant, OfflineParticipant, Participant, Reported, StorageParticipant},
    world::{Fault, LiveModel, Model, OfflineModel, Shared, away, die, lock, refused, server_goes_on},
};
use crate::preflight::offline::Sized as SizedFiles;

/// One host with its agent.
pub(in super::super) struct Host<M> {
    pub(super) world: Shared<M>,
    pub(super) role: Role,
}

impl<M: Model> Host<M> {
    async fn call<T>(
        &self,
        what: &'static str,
        act: impl FnOnce(&mut M) -> Result<T, ClientError> + Send,
    ) -> Result<T, ClientError> {
        // Lets another task of the server go first, now and then.
        tokio::task::yield_now().await;
        let fault = lock(&self.world).fault(self.role, what);
        match fault {
            Some(Fault::Refused) => return Err(refused(409, FindingId::JobOpen)),
            Some(Fault::Lost) => return Err(away()),
            Some(Fault::DiesBefore) => return die(&self.world).await,
            Some(Fault::AnswerLost | Fault::DiesAfter) | None => {}
        }
        let answer = {
            let mut world = lock(&self.world);
            let answer = act(&mut world);
            world.check();
            answer
        };
        tokio::task::yield_now().await;
        match fault {
            Some(Fault::AnswerLost) => Err(away()),
            Some(Fault::DiesAfter) => die(&self.world).await,
            Some(Fault::Refused | Fault::Lost | Fault::DiesBefore) | None => answer,
        }
    }

    async fn prepare_and_report(&self) -> Reported {
        let role = self.role;
        self.call("prepare", |world| {
            world.prepare(role)?;
            world.report(role)
        })
        .await
    }

    /// Queries the source before anything changes.
    async fn size<T: Send>(&self, files: T) -> Result<T, Vec<Finding>> {
        self.call("size", |_| Ok(files)).await.map_err(|_| Vec::new())
    }
}

impl<M: Model> Participant for Host<M> {
    fn name(&self) -> &str {
        match self.role {
            Role::Source => "kvm1",
            Role::Destination => "kvm2",
        }
    }

    fn pin(&self) -> Pin {
        Pin([0; 32])
    }

    async fn perform(&self, _: Attempt) -> Reported {
        self.call("perform", M::perform).await
    }

    async fn report(&self, _: Attempt, after: u64, wait: Duration) -> Reported {
        if !wait.is_zero() {
            for _ in 0..5 {
                if lock(&self.world).has_news(self.role, after) {
                    break;
                }
                tokio::time::sleep(wait / 5).await;
                server_goes_on(&self.world).await;
            }
        }
        let answer = self.call("report", |world| world.report(self.role)).await;
        if wait.is_zero() {
            lock(&self.world).reported(self.role, &answer);
        }
        answer
    }

    async fn abort(&self, _: Attempt) -> Reported {
        self.call("abort", |world| world.abort(self.role)).await
    }

    async fn confirm(&self, _: Attempt, body: &ConfirmRequest) -> Reported {
        self.call("confirm", |world| world.confirm(self.role, body)).await
    }

    async fn release(&self, _: Attempt) -> Result<(), ClientError> {
        self.call("release", |world| world.release(self.role)).await
    }
}

impl<M: LiveModel> LiveParticipant for Host<M> {
    async fn incoming(&self, _: VmId, disks: &[DiskMove]) -> Result<Vec<IncomingDisk>, Vec<Finding>> {
        let one = |disk: &DiskMove| IncomingDisk {
            device: disk.device.clone(),
            to: disk.to.clone(),
            format: disk.format,
            virtual_size: ByteCount(1),
            allocated: ByteCount(1),
        };
        self.size(disks.iter().map(one).collect()).await
    }

    async fn prepare_destination(&self, _: Attempt, _: &PrepareDestination) -> Result<DestinationReady, ClientError> {
        self.call("prepare", |world| world.prepare(Role::Destination)).await?;
        let (mounts, files) = (Vec::new(), Vec::new());
        Ok(DestinationReady { carrier: String::new(), mounts, socket_dir: String::new(), files })
    }

    async fn prepare_source(&self, _: Attempt, _: &PrepareSource) -> Result<bool, ClientError> {
        self.call("prepare", |world| world.prepare(Role::Source)).await
    }

    async fn resume(&self, _: Attempt) -> Reported {
        self.call("resume", M::resume).await
    }

    async fn end_copy(&self, _: Attempt) -> Reported {
        self.call("end the copy", M::end_copy).await
    }

    async fn state_of(&self, _: VmId) -> Result<Option<VmState>, ClientError> {
        self.call("look", |world| world.state_of(self.role)).await
    }
}

impl<M: Model> StorageParticipant for Host<M> {
    async fn check(&self, _: &PrepareStorage) -> Result<(), ClientError> {
        self.call("check", |_| Ok(())).await
    }

    async fn prepare(&self, _: Attempt, _: &PrepareStorage) -> Reported {
        self.prepare_and_report().await
    }
}

impl<M: OfflineModel> OfflineParticipant for Host<M> {
    async fn sizes(&self, _: VmId, _: &[FileMove]) -> Result<SizedFiles, Vec<Finding>> {
        self.size(SizedFiles::default()).await
    }

    async fn prepare_destination(&self, _: Attempt, _: &ReceiveOffline) -> Result<OfflineReady, ClientError> {
        self.call("prepare", |world| world.prepare(Role::Destination)).await?;
        let (address, mounts, paths) = (String::new(), Vec::new(), Vec::new());
        Ok(OfflineReady { address, mounts, paths, absent: Vec::new(), adopted: Vec::new() })
    }

    async fn prepare_source(&self, _: Attempt, _: &SendOffline) -> Reported {
        self.prepare_and_report().await
    }

    async fn define(&self, _: Attempt) -> Reported {
        self.call("define", M::define).await
    }
}
