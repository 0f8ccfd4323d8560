//! What the models of the simulation and of the sweep have in common: a job, its plan, and answers of agents.

use ferry_client::ClientError;
use ferry_core::{
    api::problem::Problem,
    files::DiskMove,
    finding::{Finding, FindingId},
    id::{Generation, HostId, JobId, SessionId, VmId},
    job::{JobKind, OnStall},
    location::Location,
    memory::Need,
    pin::Secret,
    vm::DiskFormat,
};
use uuid::Uuid;

use crate::{
    plan::live::LivePlan,
    store::{HostName, JobRecord, NewJob},
};

/// The agent's answer is not there.
pub(super) fn away() -> ClientError {
    ClientError::Unreachable { peer: "the agent".into(), source: "it is away".into() }
}

/// The agent refuses.
pub(super) fn refused(status: u16, id: FindingId) -> ClientError {
    let finding = Finding::blocks(id, "job 1", "as the model has it", "nothing");
    ClientError::Refused(Box::new(Problem::refused(status, "refused", vec![finding])))
}

/// A disk that moves.
pub(super) fn disk() -> DiskMove {
    let place = |path: &str| Location::Local { host: HostId(Uuid::nil()), path: path.to_owned() };
    DiskMove { device: "vda".to_owned(), from: place("/old"), real: None, to: place("/new"), format: DiskFormat::Raw }
}

/// A live move, of these disks as well.
pub(super) fn live_plan(along: Vec<DiskMove>, autostart: bool) -> LivePlan {
    LivePlan {
        session: SessionId(Uuid::nil()),
        secret: Secret([0; 32]),
        generation: Generation(1),
        downtime_limit_ms: 300,
        bandwidth_bytes_per_s: None,
        timeout_ms: 1000,
        on_stall: OnStall::Abort,
        need: Need::default(),
        overcommit: false,
        persistent: true,
        autostart,
        shares: Vec::new(),
        along,
        keep_source: false,
        progress: Vec::new(),
    }
}

/// Job 1: a move from kvm1 to kvm2, or on kvm1.
pub(super) fn record(kind: JobKind, plan: String) -> JobRecord {
    let host = |number, name: &str| HostName { id: HostId(Uuid::from_u128(number)), name: name.to_owned() };
    let destination = if kind == JobKind::Storage { host(1, "kvm1") } else { host(2, "kvm2") };
    JobRecord {
        id: JobId(1),
        job: NewJob {
            kind,
            parent: None,
            vm: VmId(Uuid::nil()),
            vm_name: "web01".to_owned(),
            source: host(1, "kvm1"),
            destination,
            by: "admin".to_owned(),
            accepted_at_ms: 1,
            plan,
            findings: Vec::new(),
        },
        figures: None,
    }
}
