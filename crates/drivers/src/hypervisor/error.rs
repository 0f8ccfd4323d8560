//! Errors of a hypervisor.

use ferry_core::id::VmId;
use thiserror::Error;

/// An error of a hypervisor. Each variant is something that a caller treats differently.
#[derive(Debug, Error)]
pub enum HypervisorError {
    /// The host has no such VM.
    #[error("The host has no VM {0}")]
    NoVm(VmId),
    /// libvirt does not answer.
    #[error("libvirt on this host does not answer: {0}")]
    Unreachable(String),
    /// The operation was ended by [`super::Migration::abort_migration`].
    #[error("{what}: ended by request")]
    Aborted {
        /// What was attempted, and on which object.
        what: String,
    },
    /// libvirt refused the operation, or it failed.
    #[error("{what}: {reason}")]
    Failed {
        /// What was attempted, and on which object.
        what: String,
        /// libvirt's message.
        reason: String,
    },
    /// The definition is unsuitable for the operation.
    #[error("The definition of VM {vm} cannot be used: {reason}")]
    Definition {
        /// The VM.
        vm: VmId,
        /// What is wrong with it.
        reason: String,
    },
}
