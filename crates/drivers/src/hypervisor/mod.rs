//! The hypervisor of one host: the part of libvirt that Ferry needs.
//!
//! There is one trait for each purpose, so that a function's signature shows what it can do to a host; [`Hypervisor`]
//! combines them. [`libvirt::Libvirt`] is the real driver, [`fake`] the one for tests; both pass the suite in
//! [`conformance`]. All calls block.

mod block_copy;
pub mod conformance;
mod domains;
mod error;
pub mod fake;
mod files;
mod host;
pub mod libvirt;
mod migration;
mod power;
pub mod rpc;
mod xml;

pub(crate) use self::files::{files_below, has_a_place};
pub use self::{
    block_copy::{BlockCopy, DiskCopy, DiskCopyRequest, DiskSize},
    domains::{DomainEvent, Domains, EventSink},
    error::HypervisorError,
    files::{files_of, images_to_ask},
    host::{DISK_SOCKET, HostInfo, HypervisorHost, MEMORY_SOCKET, RPC_SOCKET, Sockets},
    migration::{DiskRefused, MigrateRequest, MigratedDisk, Migration, MigrationStats},
    power::Power,
};

/// The hypervisor of one host.
pub trait Hypervisor: HostInfo + Sockets + Domains + Power + Migration + BlockCopy {}

impl<T: HostInfo + Sockets + Domains + Power + Migration + BlockCopy> Hypervisor for T {}
