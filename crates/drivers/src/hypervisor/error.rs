//! What can go wrong with a hypervisor.

use ferry_core::id::VmId;
use thiserror::Error;

/// What can go wrong. Each variant is something that a caller treats differently.
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
        /// What was attempted, on what.
        what: String,
    },
    /// libvirt refused or failed it.
    #[error("{what}: {reason}")]
    Failed {
        /// What was attempted, on what.
        what: String,
        /// libvirt's words.
        reason: String,
    },
    /// The definition is not what it must be for the operation.
    #[error("The definition of VM {vm} cannot be used: {reason}")]
    Definition {
        /// The VM.
        vm: VmId,
        /// What is wrong with it.
        reason: String,
    },
}
