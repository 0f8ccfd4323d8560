//! A running VM's way to another host.

use std::{path::PathBuf, time::Duration};

use ferry_core::{id::VmId, units::ByteCount, vm::DiskFormat};

use super::HypervisorError;

/// What a migration needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrateRequest {
    /// The VM.
    pub vm: VmId,
    /// Folder of the session's sockets, the same path at both ends.
    pub socket_dir: PathBuf,
    /// Folders of the source and what they are called at the destination; files elsewhere are an error.
    pub translate: Vec<(PathBuf, PathBuf)>,
    /// Whether the destination keeps a definition.
    pub persistent: bool,
    /// QEMU switches over when the rest fits into this.
    pub downtime_limit: Duration,
    /// Cap on what QEMU sends, bytes per second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// QEMU slows the guest's vCPUs more and more if its memory does not converge.
    pub auto_converge: bool,
    /// Disks that move along, before memory.
    pub disks: Vec<MigratedDisk>,
    /// Whether it was shown that both hosts reach the same files, so that the source's libvirt need not know it.
    pub vouched: bool,
}

/// A disk that moves to the other host with its running VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigratedDisk {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// Its file at the destination: there already, empty or a seed, with exactly the disk's virtual size.
    pub path: PathBuf,
    /// How that file is laid out.
    pub format: DiskFormat,
}

/// What libvirt counts of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationStats {
    /// Guest memory.
    pub memory_total: ByteCount,
    /// What is still to be sent.
    pub memory_remaining: ByteCount,
    /// What was sent.
    pub memory_processed: ByteCount,
    /// Bytes per second.
    pub rate_bytes_per_s: u64,
    /// Bytes per second that the guest dirties.
    pub dirty_bytes_per_s: u64,
    /// Passes over memory.
    pub iteration: u32,
    /// Milliseconds, QEMU's figure.
    pub downtime_ms: u64,
}

/// A disk that a VM's process does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRefused {
    /// The disk's name in the definition, `vda`; empty if the file is none of a disk's own.
    pub device: String,
    /// Its file.
    pub path: PathBuf,
    /// The hypervisor's words.
    pub reason: String,
}

/// Moves running VMs between hosts. [`Migration::migrate`] is the one call of a hypervisor that takes long.
pub trait Migration: Send + Sync + 'static {
    /// Moves a running VM through the sockets of the request, peer to peer: first the disks that move along, then
    /// memory. Blocks until libvirt's call ends. Ok promises that the source's copy is gone and the destination holds a
    /// complete, paused one.
    ///
    /// # Errors
    /// After an error, who has the VM is to be asked with [`Domains::presence`](super::Domains::presence) at both ends.
    fn migrate(&self, request: &MigrateRequest) -> Result<(), HypervisorError>;

    /// How far a running migration is; `None` if there is none, also of a VM that the host does not know or that has no
    /// process.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`], [`HypervisorError::Failed`]: there may be one.
    fn migration_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError>;

    /// How far one disk of a running migration is: bytes looked at, and bytes to look at; `None` if it is not known.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn migrated_disk(&self, vm: VmId, device: &str) -> Result<Option<(ByteCount, ByteCount)>, HypervisorError>;

    /// Changes how long the VM may stand still at the end of its running migration.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`], also if there is none.
    fn set_downtime_limit(&self, vm: VmId, limit: Duration) -> Result<(), HypervisorError>;

    /// What the last migration took, while the host still knows the VM.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn completed_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError>;

    /// Ends a running migration. Ok if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`] after the point of no return.
    fn abort_migration(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Destination, once [`Arrived`](ferry_core::migration::Presence::Arrived): sees that the VM's process has its disks,
    /// without which it cannot run, and has it try once more to get those that it has not. Gives the disks that it does not
    /// get: none if it has all, or if the hypervisor cannot tell (QEMU before 10.0). The VM stays paused.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Unreachable`], [`HypervisorError::Failed`]: it is not known.
    fn ensure_disks(&self, vm: VmId) -> Result<Vec<DiskRefused>, HypervisorError>;
}
