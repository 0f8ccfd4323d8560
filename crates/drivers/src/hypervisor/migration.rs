//! Live migration of a running VM to another host.

use std::{path::PathBuf, time::Duration};

use ferry_core::{id::VmId, units::ByteCount, vm::DiskFormat};

use super::HypervisorError;

/// A request to migrate a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrateRequest {
    /// The VM.
    pub vm: VmId,
    /// Folder of the session's sockets, the same path at both ends.
    pub socket_dir: PathBuf,
    /// Folders of the source, and their paths at the destination; files elsewhere are an error.
    pub translate: Vec<(PathBuf, PathBuf)>,
    /// Whether the destination keeps a definition.
    pub persistent: bool,
    /// QEMU switches over when the rest can be sent within this time.
    pub downtime_limit: Duration,
    /// Limit of bytes that QEMU sends per second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Whether QEMU throttles the guest's vCPUs if its memory does not converge.
    pub auto_converge: bool,
    /// Disks to migrate before memory.
    pub disks: Vec<MigratedDisk>,
    /// Whether both hosts proved to reach the same files, so that the check by the source's libvirt can be disabled.
    pub vouched: bool,
}

/// A disk that moves to the other host with its running VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigratedDisk {
    /// The disk's name in the definition, for instance `vda`.
    pub device: String,
    /// Its file at the destination. It must exist, either empty or as a partial copy, with exactly the disk's virtual
    /// size.
    pub path: PathBuf,
    /// The format of that file.
    pub format: DiskFormat,
}

/// libvirt's statistics of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationStats {
    /// Total guest memory.
    pub memory_total: ByteCount,
    /// Memory that is still to be sent.
    pub memory_remaining: ByteCount,
    /// Memory that was sent.
    pub memory_processed: ByteCount,
    /// Bytes sent per second.
    pub rate_bytes_per_s: u64,
    /// Bytes per second that the guest dirties.
    pub dirty_bytes_per_s: u64,
    /// Passes over memory.
    pub iteration: u32,
    /// Downtime in milliseconds, QEMU's figure.
    pub downtime_ms: u64,
}

/// A disk that a VM's process could not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRefused {
    /// The disk's name in the definition, for instance `vda`; empty if the file does not belong to one disk.
    pub device: String,
    /// Its file.
    pub path: PathBuf,
    /// The hypervisor's message.
    pub reason: String,
}

/// Moves running VMs between hosts. [`Migration::migrate`] is the only call of a hypervisor that takes long.
pub trait Migration: Send + Sync + 'static {
    /// Moves a running VM through the sockets of the request, peer to peer: first its migrated disks, then memory.
    /// Blocks until libvirt's call ends. Ok promises that the source's copy is gone and that the destination has a
    /// complete, paused one.
    ///
    /// # Errors
    /// After an error, ask [`Domains::presence`](super::Domains::presence) at both ends who has the VM.
    fn migrate(&self, request: &MigrateRequest) -> Result<(), HypervisorError>;

    /// The statistics of a running migration; `None` if there is none, also for a VM that the host does not know or
    /// that has no process.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`], [`HypervisorError::Failed`]: there may be a migration.
    fn migration_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError>;

    /// The progress of one disk of a running migration: bytes examined, and bytes to examine; `None` if unknown.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn migrated_disk(&self, vm: VmId, device: &str) -> Result<Option<(ByteCount, ByteCount)>, HypervisorError>;

    /// Changes how long the VM may be paused at the end of its running migration.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`], also if there is no migration.
    fn set_downtime_limit(&self, vm: VmId, limit: Duration) -> Result<(), HypervisorError>;

    /// The statistics of the last migration, while the host still knows the VM.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn completed_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError>;

    /// Ends a running migration. Ok if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`] after the point of no return.
    fn abort_migration(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Destination, once [`Arrived`](ferry_core::migration::Presence::Arrived): checks that the VM's process has its
    /// disks, without which the VM cannot run, and makes it try once more to get missing ones. Returns the disks that
    /// it cannot get: none if it has all, or if the hypervisor cannot report this (QEMU before 10.0). The VM stays
    /// paused.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Unreachable`], [`HypervisorError::Failed`]: the result is unknown.
    fn ensure_disks(&self, vm: VmId) -> Result<Vec<DiskRefused>, HypervisorError>;
}
