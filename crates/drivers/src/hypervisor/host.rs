//! The host itself: its properties, and where its hypervisor's sockets are.

use std::path::{Path, PathBuf};

use ferry_core::{network::HostAddress, units::ByteCount};

use super::HypervisorError;
use crate::addresses;

/// Name of the socket in a session's folder that carries libvirt's RPC channel.
pub const RPC_SOCKET: &str = "rpc.sock";
/// Name of the socket in a session's folder that carries memory and device state.
pub const MEMORY_SOCKET: &str = "memory.sock";
/// Name of the socket in a session's folder that carries disks: one connection for each, in the definition's order.
pub const DISK_SOCKET: &str = "disks.sock";

/// The hypervisor's description of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HypervisorHost {
    /// libvirt's host UUID.
    pub uuid: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory.
    pub memory_total: ByteCount,
    /// libvirt's version, `11.3.0`.
    pub libvirt_version: String,
    /// QEMU's version, `10.0.2`.
    pub qemu_version: String,
    /// The security drivers with which libvirt confines its VMs, by libvirt's names: `apparmor`, `selinux`.
    pub confined_by: Vec<String>,
}

/// Queries the hypervisor about its host.
pub trait HostInfo: Send + Sync + 'static {
    /// The host.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn host(&self) -> Result<HypervisorHost, HypervisorError>;

    /// The addresses at which other hosts may reach the host, at most [`ADDRESSES_MAX`](ferry_core::network::ADDRESSES_MAX).
    /// Several fake hosts share those of one kernel.
    fn addresses(&self) -> Vec<HostAddress> {
        addresses::of_this_host()
    }

    /// The user and group ids of the VMs' processes. These processes must be able to bind and to connect sockets in a
    /// session's folder.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn process_owner(&self) -> Result<(u32, u32), HypervisorError>;
}

/// Where the hypervisor and its VMs listen. Real hosts have separate file systems; several fake hosts share one.
pub trait Sockets: Send + Sync + 'static {
    /// The socket on which the local libvirt accepts management calls.
    fn rpc_socket(&self) -> PathBuf;

    /// The path under which this process finds a socket of a VM on this host, given the path in the session's folder.
    /// It is the same path, unless several fake hosts share one file system.
    fn reach(&self, socket: &Path) -> PathBuf {
        socket.to_owned()
    }
}
