//! Copies of a running VM's disks to other files of its host.

use std::path::PathBuf;

use ferry_core::{id::VmId, units::ByteCount, vm::DiskFormat};

use super::HypervisorError;

/// What a copy of a running VM's disk to another file needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCopyRequest {
    /// The VM.
    pub vm: VmId,
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// The file: there already, empty, with exactly the disk's virtual size.
    pub to: PathBuf,
    /// How that file is laid out.
    pub format: DiskFormat,
    /// Cap on what is read, bytes per second.
    pub bandwidth_bytes_per_s: Option<u64>,
}

/// How far a copy of a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCopy {
    /// The file it goes to.
    pub to: PathBuf,
    /// Bytes of the disk that were looked at; never more than `total`.
    pub copied: ByteCount,
    /// Bytes to look at: at least the disk's virtual size, more while the guest writes.
    pub total: ByteCount,
    /// Every write goes to both files from now on, and the copy holds all that was there before.
    pub ready: bool,
}

/// Sizes of a disk of a running VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSize {
    /// What the guest sees.
    pub virtual_size: ByteCount,
    /// What the image takes on its file system, as far as that tells.
    pub allocated: ByteCount,
}

/// Copies disks of running VMs and has the VMs use the copies.
pub trait BlockCopy: Send + Sync + 'static {
    /// Sizes of a disk of a running VM.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`] if there is no such disk.
    fn disk_size(&self, vm: VmId, device: &str) -> Result<DiskSize, HypervisorError>;

    /// Begins to copy a running VM's disk to another file; the VM goes on with the old one. Ok promises that the copy
    /// goes on until [`BlockCopy::pivot_disk`], [`BlockCopy::abandon_disk_copy`], an error or the VM's end, also while
    /// libvirt is restarted.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`] (also if the disk is being copied already).
    fn copy_disk(&self, request: &DiskCopyRequest) -> Result<(), HypervisorError>;

    /// How far the copy of a disk is; `None` if there is none (any more).
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Unreachable`].
    fn disk_copy(&self, vm: VmId, device: &str) -> Result<Option<DiskCopy>, HypervisorError>;

    /// Makes the VM use the copy instead of the old file, now and at its next start. Ok promises that the old file is
    /// not written any more.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`] if the copy is not ready; which file the VM uses is to be asked with
    /// [`Domains::vm`](super::Domains::vm).
    fn pivot_disk(&self, vm: VmId, device: &str) -> Result<(), HypervisorError>;

    /// Ends the copy of a disk; the VM uses the old file. Ok if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`].
    fn abandon_disk_copy(&self, vm: VmId, device: &str) -> Result<(), HypervisorError>;
}
