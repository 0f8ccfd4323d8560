//! The VMs that a host knows: their state, their files and their definitions.

use std::{collections::BTreeSet, path::PathBuf};

use ferry_core::{api::agent::Role, id::VmId, migration::Presence, vm::VmFacts};

use super::{HypervisorError, rpc::definition::DefinitionPolicy};

/// What happened to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainEvent {
    /// Its vCPUs were stopped because its state is being handed over.
    StoppedForMigration(VmId),
    /// Anything else about it changed.
    Changed(VmId),
    /// The hypervisor is gone, and with it this watch: nothing more will be reported. Watch again, and look at all.
    ConnectionLost,
}

/// Where events go. Called from a thread of the driver; must not block.
pub type EventSink = Box<dyn Fn(DomainEvent) + Send + Sync>;

/// What a host knows of its VMs, and which VMs it knows.
pub trait Domains: Send + Sync + 'static {
    /// Every VM the host knows.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn vms(&self) -> Result<Vec<VmFacts<PathBuf>>, HypervisorError>;

    /// One VM; `None` if the host does not know it.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn vm(&self, vm: VmId) -> Result<Option<VmFacts<PathBuf>>, HypervisorError>;

    /// Every file that a VM of this host needs now or at its next start, with what lies below its disks, for whoever
    /// removes files: fails rather than leave one out, and may wait for a VM that is busy. A VM that is being received
    /// is left out: another host gave its files up for it. [`Domains::vms`] may tell what was so a moment ago.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`], [`HypervisorError::Failed`] for a VM that stays busy, or an image that cannot be
    /// read.
    fn files_in_use(&self) -> Result<BTreeSet<PathBuf>, HypervisorError>;

    /// What the host has of a VM that is being moved, seen from its `role`.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn presence(&self, vm: VmId, role: Role) -> Result<Presence, HypervisorError>;

    /// Reports events to `sink` until the returned guard is dropped.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn watch(&self, sink: EventSink) -> Result<Box<dyn Send>, HypervisorError>;

    /// The definition that is kept of a VM that is shut off, with every file's path rewritten by `paths`: folders here, or
    /// files themselves, and what they are called elsewhere. The first that fits counts.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`]; [`HypervisorError::Definition`] naming the first file that lies in none of them;
    /// [`HypervisorError::Failed`] if the VM has a process or a saved state, or is not defined.
    fn definition(&self, vm: VmId, paths: &[(PathBuf, PathBuf)]) -> Result<String, HypervisorError>;

    /// The definition by which a VM starts next time, without passwords, for people and for Pacemaker.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`].
    fn kept_definition(&self, vm: VmId) -> Result<String, HypervisorError>;

    /// Keeps a definition that came from another host, once it was seen to be one of the VM that `policy` tells, with no
    /// path outside of its roots. May be repeated.
    ///
    /// # Errors
    /// [`HypervisorError::Definition`] if it is not; [`HypervisorError::Failed`], also if another VM has its name.
    fn define(&self, definition: &str, policy: &DefinitionPolicy) -> Result<(), HypervisorError>;

    /// Removes a VM's definition; its NVRAM file stays. Ok if there is none.
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
