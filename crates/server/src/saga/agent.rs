//! A host's agent as a [`Participant`]: the only place in which sagas call it.

use std::{sync::Arc, time::Duration};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{
        ConfirmRequest, ConfirmStorage, DestinationReady, DiskArrival, MigrationReport, OfflineReady, OfflineReport,
        OfflineStage, PrepareDestination, PrepareSource, PrepareStorage, ReceiveOffline, Role, SendOffline, Stage,
        StorageReport, StorageStage,
    },
    files::{DiskMove, FileMove},
    finding::Finding,
    id::VmId,
    job::{Figures, JobKind},
    pin::Pin,
    vm::VmState,
};

use super::participant::{LiveParticipant, OfflineParticipant, Participant, Report, Reported, StorageParticipant};
use crate::{
    inventory::Host,
    preflight::{live, offline},
};

/// The agent of a host, asked about moves of one kind.
#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) host: Arc<Host>,
    pub(crate) kind: JobKind,
}

impl Participant for Agent {
    fn name(&self) -> &str {
        self.host.name()
    }

    fn pin(&self) -> Pin {
        self.host.record.pin
    }

    async fn perform(&self, attempt: Attempt) -> Reported {
        let agent = &self.host.agent;
        match self.kind {
            JobKind::Storage => agent.perform_storage(attempt).await.map(of_storage),
            JobKind::Offline => agent.perform_offline(attempt).await.map(of_offline),
            JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
                agent.perform(attempt).await.map(of_live)
            }
        }
    }

    async fn report(&self, attempt: Attempt, after: u64, wait: Duration) -> Reported {
        let agent = &self.host.agent;
        match self.kind {
            JobKind::Storage => agent.report_storage(attempt, after, wait).await.map(of_storage),
            JobKind::Offline => agent.report_offline(attempt, after, wait).await.map(of_offline),
            JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
                agent.report(attempt, after, wait).await.map(of_live)
            }
        }
    }

    async fn abort(&self, attempt: Attempt) -> Reported {
        let agent = &self.host.agent;
        match self.kind {
            JobKind::Storage => agent.abort_storage(attempt).await.map(of_storage),
            JobKind::Offline => agent.abort_offline(attempt).await.map(of_offline),
            JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
                agent.abort(attempt).await.map(of_live)
            }
        }
    }

    async fn confirm(&self, attempt: Attempt, body: &ConfirmRequest) -> Reported {
        let agent = &self.host.agent;
        match self.kind {
            JobKind::Storage => {
                let body = ConfirmStorage { keep_source: body.keep_source };
                agent.confirm_storage(attempt, &body).await.map(of_storage)
            }
            JobKind::Offline => agent.confirm_offline(attempt, body).await.map(of_offline),
            JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
                agent.confirm(attempt, body).await.map(of_live)
            }
        }
    }

    async fn release(&self, attempt: Attempt) -> Result<(), ClientError> {
        let agent = &self.host.agent;
        match self.kind {
            JobKind::Storage => agent.release_storage(attempt).await,
            JobKind::Offline => agent.release_offline(attempt).await,
            JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => agent.release(attempt).await,
        }
    }
}

impl LiveParticipant for Agent {
    async fn incoming(&self, vm: VmId, disks: &[DiskMove]) -> Result<Vec<DiskArrival>, Vec<Finding>> {
        live::arrivals(&self.host, vm, disks).await
    }

    async fn prepare_destination(
        &self,
        attempt: Attempt,
        body: &PrepareDestination,
    ) -> Result<DestinationReady, ClientError> {
        self.host.agent.prepare_destination(attempt, body).await
    }

    async fn prepare_source(&self, attempt: Attempt, body: &PrepareSource) -> Result<bool, ClientError> {
        self.host.agent.prepare_source(attempt, body).await.map(|ready| ready.autostart)
    }

    async fn resume(&self, attempt: Attempt) -> Reported {
        self.host.agent.resume(attempt).await.map(of_live)
    }

    async fn end_copy(&self, attempt: Attempt) -> Reported {
        self.host.agent.end_copy(attempt).await.map(of_live)
    }

    async fn state_of(&self, vm: VmId) -> Result<Option<VmState>, ClientError> {
        let observation = self.host.agent.look().await?;
        Ok(observation.vms.iter().find(|facts| facts.id == vm).map(|facts| facts.state))
    }
}

impl StorageParticipant for Agent {
    async fn check(&self, body: &PrepareStorage) -> Result<(), ClientError> {
        self.host.agent.check_storage(body).await.map(drop)
    }

    async fn prepare(&self, attempt: Attempt, body: &PrepareStorage) -> Reported {
        self.host.agent.prepare_storage(attempt, body).await.map(of_storage)
    }
}

impl OfflineParticipant for Agent {
    async fn sizes(&self, vm: VmId, files: &[FileMove]) -> Result<offline::Sized, Vec<Finding>> {
        offline::sizes(&self.host, vm, files).await
    }

    async fn prepare_destination(&self, attempt: Attempt, body: &ReceiveOffline) -> Result<OfflineReady, ClientError> {
        self.host.agent.receive_offline(attempt, body).await
    }

    async fn prepare_source(&self, attempt: Attempt, body: &SendOffline) -> Reported {
        self.host.agent.send_offline(attempt, body).await.map(of_offline)
    }

    async fn define(&self, attempt: Attempt) -> Reported {
        self.host.agent.define_offline(attempt).await.map(of_offline)
    }
}

fn of_live(report: MigrationReport) -> Report {
    Report {
        presence: report.presence,
        finish_delivered: report.finish_delivered,
        gave_up: report.gave_up,
        progress: report.progress,
        disks: report.disks,
        figures: report.figures,
        findings: report.findings,
        error: report.error,
        ..Report::new(report.role, report.sequence, report.stage)
    }
}

fn of_storage(report: StorageReport) -> Report {
    let stage = match report.stage {
        StorageStage::Prepared => Stage::Prepared,
        StorageStage::Copying | StorageStage::Switching => Stage::Performing,
        StorageStage::Moved => Stage::Delivered,
        StorageStage::Confirmed => Stage::Confirmed,
        StorageStage::Failed => Stage::Failed,
        StorageStage::Aborted => Stage::Aborted,
    };
    Report {
        disks: report.disks,
        findings: report.findings,
        error: report.error,
        ..Report::new(Role::Source, report.sequence, stage)
    }
}

fn of_offline(report: OfflineReport) -> Report {
    let stage = match (report.stage, report.role) {
        (OfflineStage::Prepared, _) => Stage::Prepared,
        (OfflineStage::Copying, _) | (OfflineStage::Copied, Role::Destination) => Stage::Performing,
        (OfflineStage::Copied, Role::Source) | (OfflineStage::Defined, Role::Destination) => Stage::Delivered,
        (OfflineStage::Confirmed, _) => Stage::Confirmed,
        // A source that has the VM defined has not moved it.
        (OfflineStage::Failed, _) | (OfflineStage::Defined, Role::Source) => Stage::Failed,
        (OfflineStage::Aborted, _) => Stage::Aborted,
    };
    Report {
        disks: report.files,
        figures: Figures { sent: report.wire, wire: report.wire, disk_wire: report.wire, ..Figures::default() },
        remarks: report.remarks,
        error: report.error,
        ..Report::new(report.role, report.sequence, stage)
    }
}
