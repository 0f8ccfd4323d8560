//! A VM's process: begun, run, ended.

use ferry_core::id::VmId;

use super::HypervisorError;

/// Starts, runs and ends the processes of VMs.
pub trait Power: Send + Sync + 'static {
    /// Starts a VM that has a definition and no process. Ok if it runs already.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`] (also by the hook's veto).
    fn start(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Asks the guest to shut itself down; returns when it was asked.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`].
    fn shutdown(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Runs a paused VM. Ok if it runs already.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`]: also if its guest crashed or suspended itself.
    fn resume(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Has a VM be known to run that runs, and of which it is said that it stands still since a disk failed
    /// ([`stall`](ferry_core::vm::VmFacts::stall)); whether it was such a one. To be known, it stands still for a moment.
    ///
    /// QEMU (since 10.0) tells of a disk's errors once a second at most: of one that comes within a second of another, it
    /// tells late, when the VM may run again. libvirt takes the VM for paused from then on, and resuming it does not
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
