//! VMs, and requests to move them.

use serde::{Deserialize, Serialize};

use crate::{
    files::DiskMove,
    finding::{Finding, Message},
    id::JobId,
    job::{MoveKind, OnStall},
    network::Route,
    transfer::{Preset, Transfer},
    units::ByteCount,
    vm::{DiskFormat, VmFacts},
};

/// A VM in the inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmView {
    /// The name of the host that has it.
    pub host: String,
    /// The facts that this host reported.
    pub facts: VmFacts,
    /// The job that is moving it now.
    pub job: Option<JobId>,
    /// Problems of this VM.
    pub findings: Vec<Finding>,
}

/// One host, judged as the destination of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Candidate {
    /// The host's name.
    pub host: String,
    /// The kind of move that is possible; `None`: no move is possible.
    pub kind: Option<MoveKind>,
    /// The reason, in one sentence in English.
    pub why: String,
    /// The same, as data.
    #[serde(default, rename = "says", skip_serializing_if = "Option::is_none")]
    pub sentence: Option<Message>,
    /// What prevents the move, and what the user should know.
    pub findings: Vec<Finding>,
    /// How its bytes would travel; only where a single move was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// Where its bytes would travel; `None`: the hosts have no migration networks, or none that connects them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
}

/// Moves a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MigrateVm {
    /// The destination's name or id.
    pub destination: String,
    /// Only report what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// QEMU switches over when the rest can be sent within this time. Milliseconds, 10 to 10,000; default 300.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 10, maximum = 10000))]
    pub downtime_limit_ms: Option<u32>,
    /// Limits the bytes sent per second: of memory and, before memory, of all migrated disks together. Hosts may be set
    /// to less.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1048576))]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// A limit for the migrated disks alone, in place of `bandwidth_bytes_per_s`.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1048576))]
    pub storage_bandwidth_bytes_per_s: Option<u64>,
    /// How its bytes travel; `None`: compressed if both hosts are set to it.
    #[serde(default)]
    pub performance: Option<Preset>,
    /// The time limit of the move, from libvirt's migrate call. Milliseconds; default one hour.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1000, maximum = 604800000))]
    pub timeout_ms: Option<u64>,
    /// What to do if the move does not converge.
    #[serde(default)]
    pub on_stall: OnStall,
    /// A folder for disks that the destination cannot reach: a path on the destination or
    /// `\\server.domain\share\folder`. `None`: only the disks named in `disks` are migrated.
    #[serde(default)]
    pub storage: Option<String>,
    /// Disks to migrate in any case, to another place than the others, or in another format.
    #[serde(default)]
    pub disks: Vec<MoveDisk>,
    /// Keep the old files of migrated disks.
    #[serde(default)]
    pub keep_source: bool,
    /// Moves a VM that is shut off, with its files. Refused for a running VM, and never chosen automatically.
    #[serde(default)]
    pub offline: bool,
    /// Accepts that the destination may have too little memory, counting what was promised to other moves.
    #[serde(default)]
    pub overcommit: bool,
}

/// Moves disks of a running VM to other files of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MoveStorage {
    /// A folder for every disk that `disks` does not name: a path on the host or `\\server.domain\share\folder`.
    /// `None`: only the disks named in `disks` move.
    #[serde(default)]
    pub to: Option<String>,
    /// Disks that move to another place than the others, or in another format.
    #[serde(default)]
    pub disks: Vec<MoveDisk>,
    /// Keep the old files.
    #[serde(default)]
    pub keep_source: bool,
    /// Adds each folder named in the request to the host's storage locations, unless it is one already.
    #[serde(default)]
    pub add_default: bool,
    /// Limits the bytes read per second, for all disks together.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1048576))]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Only report what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// The destination of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MoveDisk {
    /// The disk's name in the definition, for instance `vda`.
    pub device: String,
    /// A folder, or a file that ends in `.raw`, `.img` or `.qcow2`; `None`: the same folder as for the other disks.
    #[serde(default)]
    pub to: Option<String>,
    /// The format of the copy; `None`: the present format.
    #[serde(default)]
    pub format: Option<DiskFormat>,
}

/// What a storage move would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StoragePlan {
    /// The host's name.
    pub host: String,
    /// Each disk that would move.
    pub disks: Vec<PlannedDisk>,
    /// What prevents the move, and what the user should know.
    pub findings: Vec<Finding>,
}

/// What a storage move would do with one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PlannedDisk {
    /// The old and the new file.
    pub disk: DiskMove,
    /// Bytes to copy; `None` if they were not determined because a finding prevents the move.
    pub allocated: Option<ByteCount>,
}

/// Moves several VMs to one host. Either all moves are accepted or none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MigrateMany {
    /// The VMs, 1 to 1000: names, UUIDs, or `HOST/NAME`.
    #[cfg_attr(feature = "schema", schema(min_items = 1, max_items = 1000))]
    pub vms: Vec<String>,
    /// Destination and options, the same for all VMs. `dry_run` is refused.
    pub how: MigrateVm,
}
