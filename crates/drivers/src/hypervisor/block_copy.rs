//! Copies of a running VM's disks to other files of its host.

use std::path::PathBuf;

use ferry_core::{id::VmId, units::ByteCount, vm::DiskFormat};

use super::HypervisorError;

/// A request to copy a running VM's disk to another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCopyRequest {
    /// The VM.
    pub vm: VmId,
    /// The disk's name in the definition, for instance `vda`.
    pub device: String,
    /// The target file. It must exist, empty, with exactly the disk's virtual size.
    pub to: PathBuf,
    /// The format of the target file.
    pub format: DiskFormat,
    /// Limit of bytes read per second.
    pub bandwidth_bytes_per_s: Option<u64>,
}

/// Progress of a disk copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCopy {
    /// The target file.
    pub to: PathBuf,
    /// Bytes of the disk that were examined; never more than `total`.
    pub copied: ByteCount,
    /// Bytes to examine: at least the disk's virtual size, more while the guest writes.
    pub total: ByteCount,
    /// From now on every write goes to both files, and the copy contains everything written before.
    pub ready: bool,
}

/// Sizes of a disk of a running VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSize {
    /// The virtual size, which the guest sees.
    pub virtual_size: ByteCount,
    /// The allocated size of the image, as far as its file system reports it.
    pub allocated: ByteCount,
}

/// Copies disks of running VMs and pivots the VMs to the copies.
pub trait BlockCopy: Send + Sync + 'static {
    /// Sizes of a disk of a running VM.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`]; [`HypervisorError::Failed`] if there is no such disk.
    fn disk_size(&self, vm: VmId, device: &str) -> Result<DiskSize, HypervisorError>;

    /// Begins to copy a running VM's disk to another file; the VM continues with the old one. Ok promises that the copy
    /// continues until [`BlockCopy::pivot_disk`], [`BlockCopy::abandon_disk_copy`], an error or the VM's end, even
    /// while libvirt is restarted.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`]; [`HypervisorError::Failed`], also if the disk is already being copied.
    fn copy_disk(&self, request: &DiskCopyRequest) -> Result<(), HypervisorError>;

    /// The progress of a disk's copy; `None` if there is no copy, or none any more.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Unreachable`].
    fn disk_copy(&self, vm: VmId, device: &str) -> Result<Option<DiskCopy>, HypervisorError>;

    /// Makes the VM use the copy instead of the old file, now and at its next start. Ok promises that the old file is
    /// no longer written.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`] if the copy is not ready. After an error, ask [`Domains::vm`](super::Domains::vm)
    /// which file the VM uses.
    fn pivot_disk(&self, vm: VmId, device: &str) -> Result<(), HypervisorError>;

    /// Ends the copy of a disk; the VM uses the old file. Ok if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`].
    fn abandon_disk_copy(&self, vm: VmId, device: &str) -> Result<(), HypervisorError>;
}
