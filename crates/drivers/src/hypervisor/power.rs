//! Starting, resuming and ending a VM's process.

use ferry_core::id::VmId;

use super::HypervisorError;

/// Starts, resumes and ends the processes of VMs.
pub trait Power: Send + Sync + 'static {
    /// Starts a VM that has a definition and no process. Ok if it already runs.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`]; [`HypervisorError::Failed`], also if the hook vetoes the start.
    fn start(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Asks the guest to shut itself down; returns once the request is sent.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`].
    fn shutdown(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Resumes a paused VM. Ok if it already runs.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`]; [`HypervisorError::Failed`], also if its guest crashed or suspended itself.
    fn resume(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Corrects the hypervisor's record of a running VM that is reported as stopped by a disk error
    /// ([`stall`](ferry_core::vm::VmFacts::stall)). Returns whether the VM was in this state. The VM is paused for a
    /// moment.
    ///
    /// QEMU (since 10.0) reports disk errors once a second at most: an error within a second of another is reported
    /// late, possibly when the VM runs again. From then on libvirt takes the VM for paused, and resuming it does not
    /// change that.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Unreachable`], [`HypervisorError::Failed`].
    fn see_running(&self, vm: VmId) -> Result<bool, HypervisorError>;

    /// Ends a VM's process. Ok if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`].
    fn destroy(&self, vm: VmId) -> Result<(), HypervisorError>;
}
