//! VMs and hosts for table tests; by default, nothing prevents a request.

use uuid::Uuid;

use crate::{
    api::agent::API_VERSIONS,
    host::HostFacts,
    id::{ShareId, VmId},
    share::{AttachMode, AttachedShare, FileSystem},
    units::ByteCount,
    vm::{DiskFormat, FileRole, VmFacts, VmFile, VmState},
};

/// A raw disk at `place`.
pub(crate) fn disk<F>(device: &str, place: F) -> VmFile<F> {
    VmFile {
        format: Some(DiskFormat::Raw),
        unmaps: true,
        detects_zeroes: true,
        bypasses_cache: true,
        ..VmFile::new(FileRole::Disk, device, place)
    }
}

/// A persistent, running VM.
pub(crate) fn vm(id: u128, files: Vec<VmFile>) -> VmFacts {
    VmFacts {
        state: VmState::Running,
        persistent: true,
        vcpus: 1,
        memory: ByteCount::gib(1),
        machine: Some("pc-q35-10.0".into()),
        ..VmFacts::new(VmId(Uuid::from_u128(id)), "web01", files)
    }
}

/// A host with 4 GiB free.
pub(crate) fn host(name: &str) -> HostFacts {
    HostFacts {
        hostname: name.into(),
        machine_id: name.into(),
        hypervisor_uuid: name.into(),
        cpus: 2,
        memory_total: ByteCount::gib(8),
        memory_free: ByteCount::gib(4),
        huge_pages: Vec::new(),
        libvirt_version: "11.3.0".into(),
        qemu_version: "10.0.2".into(),
        agent_version: "0.1.0".into(),
        api_versions: API_VERSIONS.to_vec(),
        addresses: Some(Vec::new()),
        findings: Vec::new(),
    }
}

/// A usable share that Ferry mounted.
pub(crate) fn attached(id: u128) -> AttachedShare {
    AttachedShare {
        id: ShareId(Uuid::from_u128(id)),
        source: "\\\\fs1.ferry.lab\\vms".parse().expect("well formed"),
        mode: AttachMode::Mounted,
        trouble: None,
        finding: None,
        free: None,
        total: None,
        soft: false,
        server_locks: false,
        at: None,
        file_system: Some(FileSystem { kind: "cifs".into(), fixed_owner: true }),
    }
}
