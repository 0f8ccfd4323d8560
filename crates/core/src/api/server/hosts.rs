//! Hosts, and the places on them.

use serde::{Deserialize, Serialize};

use crate::{
    admission::Limits,
    finding::Finding,
    host::HostFacts,
    id::{HostId, JobId, VmId},
    location::Location,
    migration::Phase,
    network::MigrationNetworks,
    pin::Pin,
    place::{DirectoryListing, OfferedPlace},
    share::AttachedShare,
    transfer::{HostTransfer, Preset},
    units::ByteCount,
    vm::VmState,
};

/// Adds a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AddHost {
    /// Its name in Ferry: letters, digits, `-`, `_`, `.`; up to 64.
    #[cfg_attr(feature = "schema", schema(pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$", min_length = 1, max_length = 64))]
    pub name: String,
    /// `ADDRESS:PORT` of its agent.
    pub address: String,
    /// The token that `ferry-agent setup` printed.
    pub token: String,
}

/// A host in the inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostView {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: String,
    /// `ADDRESS:PORT` of its agent.
    pub address: String,
    /// Its agent's key.
    pub pin: Pin,
    /// Whether its agent answered the last call.
    pub reachable: bool,
    /// Unix milliseconds of the last answer.
    pub seen_at_ms: Option<u64>,
    /// The facts that its agent reported last.
    pub facts: Option<HostFacts>,
    /// Names and ids of the VMs on it.
    pub vms: Vec<VmRow>,
    /// Shares attached on it.
    pub shares: Vec<AttachedShare>,
    /// How many moves it takes part in at the same time.
    pub limits: Limits,
    /// How the bytes of its moves travel. A server of an earlier version omits the field.
    #[serde(default)]
    pub transfer: HostTransfer,
    /// The subnets in which its moves travel, in order of preference; empty: its agent's configuration says where. A
    /// server of an earlier version omits the field.
    #[serde(default)]
    pub migration_networks: MigrationNetworks,
    /// Whether it is in maintenance: no VM is placed there.
    pub maintenance: bool,
    /// Moves in progress, incoming and outgoing, and those that wait.
    pub moves: Vec<MoveOnHost>,
    /// Its storage locations, in the order in which they were added. A server of an earlier version omits the field.
    #[serde(default)]
    pub storage_locations: Vec<StorageLocation>,
}

/// A directory that is offered first for VM files on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StorageLocation {
    /// Where it is.
    pub location: Location,
    /// Its path, as an administrator writes it: a UNC path, or an absolute path of the host.
    pub path: String,
    /// Why the share it lies on cannot be used on the host now; `None` if it can.
    pub trouble: Option<String>,
    /// `trouble` as a finding. A server of an earlier version omits the field.
    #[serde(default)]
    pub finding: Option<Finding>,
}

/// Adds a storage location to a host; at most 32.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AddStorageLocation {
    /// `/directory` or `\\server.domain\share\directory`. A string, so that a refusal can explain what is wrong with
    /// it.
    pub location: String,
}

/// Where files may be on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum PlacesView {
    /// No location was given: the places that the host offers.
    Offered {
        /// Its storage roots, then its shares.
        places: Vec<PlaceView>,
    },
    /// The content of a directory.
    Directory {
        /// The directory.
        location: Location,
        /// Its path, as an administrator writes it.
        path: String,
        /// Its content.
        listing: DirectoryListing,
    },
}

/// A place that a host offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PlaceView {
    /// Its path, as an administrator writes it.
    pub path: String,
    /// The share's name; `None`: a storage root of the host.
    pub share: Option<String>,
    /// The place as the host's agent reports it.
    pub offered: OfferedPlace,
    /// The other hosts that have the same share attached.
    pub also_on: Vec<String>,
}

/// A move that a host takes part in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MoveOnHost {
    /// The job.
    pub job: JobId,
    /// The VM's name.
    pub vm_name: String,
    /// Whether the VM arrives at this host; otherwise it leaves.
    pub incoming: bool,
    /// The other host.
    pub other: String,
    /// Its phase.
    pub phase: Phase,
}

/// Changes settings of a host; omitted fields keep their value. Takes effect at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SetHost {
    /// Limit of concurrent live moves, incoming and outgoing together, 1 to 64.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 64))]
    pub live_limit: Option<u32>,
    /// Limit of concurrent storage moves, incoming and outgoing together, 1 to 64.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 64))]
    pub storage_limit: Option<u32>,
    /// How the bytes of its moves travel, unless a move requests otherwise.
    #[serde(default)]
    pub performance: Option<Preset>,
    /// The most bytes of memory per second that a move may send from or to it: 0 for no limit, otherwise at least 1 MiB.
    #[serde(default)]
    pub memory_bandwidth_bytes_per_s: Option<u64>,
    /// The same for the disks of a move, all together.
    #[serde(default)]
    pub storage_bandwidth_bytes_per_s: Option<u64>,
    /// The subnets in which its moves travel, in order of preference, at most 8; empty: its agent's configuration says
    /// where. Moves use no other network than the first in which both hosts have an address.
    #[serde(default)]
    pub migration_networks: Option<MigrationNetworks>,
}

/// Moves every running VM off a host and puts it into maintenance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DrainHost {
    /// The destination of all VMs; `None`: each goes to the host with most free memory.
    #[serde(default)]
    pub destination: Option<String>,
    /// A folder of the destination for disks that it cannot reach; `None`: its first storage location, if it has one.
    #[serde(default)]
    pub storage: Option<String>,
    /// Accepts that the destinations may have too little memory, counting what was promised to other moves.
    #[serde(default)]
    pub overcommit: bool,
}

/// A VM in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmRow {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub state: VmState,
    /// Memory.
    pub memory: ByteCount,
}
