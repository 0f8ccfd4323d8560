//! The host itself: what it is, and where its hypervisor's sockets are.

use std::path::{Path, PathBuf};

use ferry_core::units::ByteCount;

use super::HypervisorError;

/// Name of the socket in a session's folder that carries libvirt's RPC channel.
pub const RPC_SOCKET: &str = "rpc.sock";
/// Name of the socket in a session's folder that carries memory and device state.
pub const MEMORY_SOCKET: &str = "memory.sock";
/// Name of the socket in a session's folder that carries disks: one connection for each, in the definition's order.
pub const DISK_SOCKET: &str = "disks.sock";

/// What the hypervisor says of its host.
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
    /// What libvirt confines its VMs with, in its own words: `apparmor`, `selinux`.
    pub confined_by: Vec<String>,
}

/// What the hypervisor says of its host.
pub trait HostInfo: Send + Sync + 'static {
    /// The host.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn host(&self) -> Result<HypervisorHost, HypervisorError>;

    /// The user and group ids that the VMs' processes run as. They must be able to bind and to connect in a
    /// session's folder.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn process_owner(&self) -> Result<(u32, u32), HypervisorError>;
}

/// Where the hypervisor and its VMs listen. Real hosts have a file system each; several fake ones share one.
pub trait Sockets: Send + Sync + 'static {
    /// The socket at which the local libvirt takes management calls.
    fn rpc_socket(&self) -> PathBuf;

    /// Where this process finds a socket at which a VM of this host listens, given the path in the session's folder.
    /// The same path, unless several fake hosts share one file system.
    fn reach(&self, socket: &Path) -> PathBuf {
        socket.to_owned()
    }
}
