//! The model's jobs: one of each kind.

use ferry_core::{
    api::agent::PrepareStorage,
    files::{DiskMove, FileMove},
    id::{Generation, HostId, JobId, SessionId, VmId},
    job::{JobKind, OnStall},
    location::Location,
    memory::Need,
    pin::Secret,
    vm::{DiskFormat, FileRole},
};
use uuid::Uuid;

use crate::{
    plan::{Kept as _, live::LivePlan, offline::OfflinePlan, storage::StoragePlan},
    store::{HostName, JobRecord, NewJob},
};

/// A disk that moves.
fn disk(device: &str) -> DiskMove {
    let place = |path: &str| Location::Local { host: HostId(Uuid::nil()), path: path.to_owned() };
    DiskMove { device: device.to_owned(), from: place("/old"), real: None, to: place("/new"), format: DiskFormat::Raw }
}

/// The plan of a live move with these migrated disks.
fn live_plan(migrated: Vec<DiskMove>, autostart: bool) -> LivePlan {
    LivePlan {
        session: SessionId(Uuid::nil()),
        secret: Secret([0; 32]),
        generation: Generation(1),
        downtime_limit_ms: 300,
        bandwidth_bytes_per_s: None,
        transfer: None,
        timeout_ms: 1000,
        on_stall: OnStall::Abort,
        need: Need::default(),
        overcommit: false,
        persistent: true,
        autostart,
        shares: Vec::new(),
        migrated,
        keep_source: false,
        progress: Vec::new(),
        route: None,
    }
}

fn offline_plan(autostart: bool) -> OfflinePlan {
    let DiskMove { device, from, real, to, .. } = disk("vda");
    let file = FileMove { device, role: FileRole::Disk, from, real, to, shareable: false, kept: false };
    OfflinePlan {
        session: SessionId(Uuid::nil()),
        secret: Secret([0; 32]),
        generation: Generation(1),
        files: vec![file],
        shares: Vec::new(),
        keep_source: false,
        autostart,
        progress: Vec::new(),
        route: None,
    }
}

fn storage_plan() -> StoragePlan {
    let request = PrepareStorage {
        vm: VmId(Uuid::nil()),
        vm_name: "web01".to_owned(),
        disks: vec![disk("vda"), disk("vdb")],
        bandwidth_bytes_per_s: None,
        whole: false,
    };
    StoragePlan { generation: Generation(1), request, keep_source: false, disks: Vec::new() }
}

/// Job 1: a move from kvm1 to kvm2, or on kvm1. `autostart`: whether the source was already seen to start the VM at
/// boot.
pub(in super::super) fn job(kind: JobKind, autostart: bool) -> JobRecord {
    let plan = match kind {
        JobKind::Live => live_plan(Vec::new(), autostart).to_json(),
        JobKind::LiveVsm => live_plan(vec![disk("vda")], autostart).to_json(),
        JobKind::Offline => offline_plan(autostart).to_json(),
        JobKind::Storage => storage_plan().to_json(),
        JobKind::Several | JobKind::Drain => panic!("{kind:?} is done by other jobs"),
    };
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
