//! Facts about a host.

use serde::{Deserialize, Serialize};

use crate::{finding::Finding, network::HostAddress, units::ByteCount};

/// The facts that an agent reports about its host. They change rarely, except `memory_free`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostFacts {
    /// The kernel's host name.
    pub hostname: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// libvirt's host UUID: two hosts with the same one cannot migrate to each other.
    pub hypervisor_uuid: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory.
    pub memory_total: ByteCount,
    /// Memory that a new VM could take now (`MemAvailable`).
    pub memory_free: ByteCount,
    /// Huge pages, by size. An agent of an earlier version omits the field.
    #[serde(default)]
    pub huge_pages: Vec<HugePages>,
    /// libvirt's version, `11.3.0`.
    pub libvirt_version: String,
    /// QEMU's version, `10.0.2`.
    pub qemu_version: String,
    /// The agent program's version.
    pub agent_version: String,
    /// The agent API versions that the agent speaks, oldest first.
    pub api_versions: Vec<u32>,
    /// The addresses at which other hosts may reach it, at most 32, in the kernel's order. An agent of an earlier version
    /// omits the field, and uses no migration networks.
    #[serde(default)]
    pub addresses: Option<Vec<HostAddress>>,
    /// Problems of the host's set-up; each names the fix.
    pub findings: Vec<Finding>,
}

/// The kernel's pool of huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HugePages {
    /// Size of one page.
    pub size: ByteCount,
    /// The number of pages that are free and not reserved.
    pub free: u64,
    /// Whether this is the default size, for VMs whose definition names none.
    pub usual: bool,
}
