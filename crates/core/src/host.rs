//! What is known of a host.

use serde::{Deserialize, Serialize};

use crate::{finding::Finding, units::ByteCount};

/// What an agent says of its host. Changes rarely, except `memory_free`.
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
    /// Huge pages, by size. An agent of an earlier version does not say.
    #[serde(default)]
    pub huge_pages: Vec<HugePages>,
    /// libvirt's version, `11.3.0`.
    pub libvirt_version: String,
    /// QEMU's version, `10.0.2`.
    pub qemu_version: String,
    /// The agent program's version.
    pub agent_version: String,
    /// Versions of the agent API that it speaks, oldest first.
    pub api_versions: Vec<u32>,
    /// What is wrong with the host's set-up: each names the fix.
    pub findings: Vec<Finding>,
}

/// Huge pages of one size, as the kernel has set them aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HugePages {
    /// Of each.
    pub size: ByteCount,
    /// How many nobody uses, and the kernel has promised to nobody.
    pub free: u64,
    /// Whether VMs get this size that name none.
    pub usual: bool,
}
