//! The VMs that a host knows: their state, their files and their definitions.

use std::{collections::BTreeSet, path::PathBuf};

use ferry_core::{api::agent::Role, id::VmId, migration::Presence, vm::VmFacts};

use super::{HypervisorError, rpc::definition::DefinitionPolicy};

/// An event of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainEvent {
    /// Its vCPUs were stopped to hand over its state.
    StoppedForMigration(VmId),
    /// Anything else about it changed.
    Changed(VmId),
    /// The hypervisor is gone, and this watch with it: no further events follow. Start another watch and query all VMs.
    ConnectionLost,
}

/// The receiver of events. Called from a thread of the driver; must not block.
pub type EventSink = Box<dyn Fn(DomainEvent) + Send + Sync>;

/// Which VMs a host knows, and what it knows of them.
pub trait Domains: Send + Sync + 'static {
    /// All VMs that the host knows.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn vms(&self) -> Result<Vec<VmFacts<PathBuf>>, HypervisorError>;

    /// One VM; `None` if the host does not know it.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn vm(&self, vm: VmId) -> Result<Option<VmFacts<PathBuf>>, HypervisorError>;

    /// Every file that a VM of this host needs now or at its next start, including the files below its disks. Meant for
    /// callers that remove files: it fails rather than omit a file, and may wait for a busy VM. A VM that is being
    /// received is omitted, because another host gave up its files for it. [`Domains::vms`], in contrast, may return
    /// slightly old facts.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`]; [`HypervisorError::Failed`] if a VM stays busy, or an image cannot be read.
    fn files_in_use(&self) -> Result<BTreeSet<PathBuf>, HypervisorError>;

    /// The presence on this host of a VM that is being moved, given the host's `role`.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn presence(&self, vm: VmId, role: Role) -> Result<Presence, HypervisorError>;

    /// Reports events to `sink` until the returned guard is dropped.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn watch(&self, sink: EventSink) -> Result<Box<dyn Send>, HypervisorError>;

    /// The persistent definition of a VM that is shut off, with every file's path rewritten by `paths`: pairs of a
    /// folder or file here, and its path elsewhere. The first match counts.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`]; [`HypervisorError::Definition`], naming the first file without a match;
    /// [`HypervisorError::Failed`] if the VM has a process or a saved state, or is not defined.
    fn definition(&self, vm: VmId, paths: &[(PathBuf, PathBuf)]) -> Result<String, HypervisorError>;

    /// The definition by which a VM starts next time, without passwords, for users and for Pacemaker.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`].
    fn kept_definition(&self, vm: VmId) -> Result<String, HypervisorError>;

    /// Defines a VM by a definition from another host, after checking that it is the VM of `policy`, and that no path
    /// is outside of its roots. May be repeated.
    ///
    /// # Errors
    /// [`HypervisorError::Definition`] if the check fails; [`HypervisorError::Failed`], also if another VM has its
    /// name.
    fn define(&self, definition: &str, policy: &DefinitionPolicy) -> Result<(), HypervisorError>;

    /// Removes a VM's definition and keeps its NVRAM file. Ok if there is no definition.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`].
    fn undefine(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Sets whether the host starts the VM at boot.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`].
    fn set_autostart(&self, vm: VmId, autostart: bool) -> Result<(), HypervisorError>;
}
