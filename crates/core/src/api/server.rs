//! Bodies of the server's REST API, version 1 (`/api/v1`).
//!
//! ```text
//! GET    /api/v1/hosts                              → [HostView]
//! POST   /api/v1/hosts                AddHost       → HostView            (201)
//! GET    /api/v1/hosts/{host}                       → HostView
//! PATCH  /api/v1/hosts/{host}         SetHost       → HostView
//! DELETE /api/v1/hosts/{host}                                             (204)
//! GET    /api/v1/hosts/{host}/places?location=      → PlacesView          (places offered, or a directory's content)
//! PUT    /api/v1/hosts/{host}/storage-locations     AddStorageLocation → HostView
//! DELETE /api/v1/hosts/{host}/storage-locations?location=              → HostView
//! POST   /api/v1/hosts/{host}/drain   DrainHost     → JobView (202): a parent of moves; then maintenance
//! POST   /api/v1/hosts/{host}/resume                → HostView            (maintenance ends)
//! GET    /api/v1/shares                             → [ShareView]
//! POST   /api/v1/shares               AddShare      → ShareView           (201)
//! GET    /api/v1/shares/{share}                     → ShareView
//! DELETE /api/v1/shares/{share}                                           (204)
//! PUT    /api/v1/shares/{share}/hosts/{host}  AttachShare → ShareView
//! DELETE /api/v1/shares/{share}/hosts/{host}              → ShareView
//! GET    /api/v1/vms                                → [VmView]
//! GET    /api/v1/vms/{vm}                           → VmView
//! POST   /api/v1/vms/{vm}/start                     → VmView
//! POST   /api/v1/vms/{vm}/shutdown                  → VmView              (the request was sent to the guest)
//! GET    /api/v1/vms/{vm}/hosts                     → [Candidate]
//! POST   /api/v1/vms/{vm}/migrate     MigrateVm     → JobView (202), or Candidate (200) with `dry_run`
//! POST   /api/v1/vms/{vm}/storage     MoveStorage   → JobView (202), or StoragePlan (200) with `dry_run`
//! POST   /api/v1/migrations           MigrateMany   → JobView (202): a parent of moves
//! GET    /api/v1/jobs?since_ms=&limit=              → [JobView]           (newest first, without their logs)
//! GET    /api/v1/jobs/{job}                         → JobView
//! POST   /api/v1/jobs/{job}/cancel                  → JobView
//! POST   /api/v1/jobs/{job}/restart                 → JobView             (failed or cancelled: another attempt)
//! POST   /api/v1/jobs/{job}/retry                   → JobView             (stuck: try now)
//! POST   /api/v1/jobs/{job}/undo                    → JobView             (undo the steps done so far)
//! POST   /api/v1/jobs/{job}/dismiss                 → JobView             (accept the current state)
//! GET    /api/v1/audit?since_ms=&after=             → AuditPage           (jobs that ended, oldest first)
//! GET    /api/v1/events                             → text/event-stream of Event, resumable by Last-Event-ID
//! ```
//! `{vm}` is a name, a UUID, or `HOST/NAME` (percent-encoded); an ambiguous name is refused with the list of matches.
//! `{host}` and `{share}` are names or ids; `location` is `/directory` or `\\server.domain\share\directory`. Every call
//! carries `Authorization: Bearer TOKEN`. A POST may carry `Idempotency-Key`: a repeated request with the same key and
//! body gets the first response again.

use serde::{Deserialize, Serialize};

use crate::{
    admission::{Limits, Slot},
    api::agent::ShareCredentials,
    files::{DiskMove, DiskProgress},
    finding::{Finding, Message},
    host::HostFacts,
    id::{HostId, JobId, ShareId, VmId},
    job::{Figures, JobKind, MoveKind, OnStall, Progress},
    job_text::JobText,
    location::Location,
    migration::{JobAction, Phase, Step},
    pin::Pin,
    place::{DirectoryListing, OfferedPlace},
    share::AttachedShare,
    share_source::ShareSource,
    units::ByteCount,
    vm::{DiskFormat, VmFacts, VmState},
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

/// Adds a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AddShare {
    /// Its name in Ferry.
    #[cfg_attr(feature = "schema", schema(pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$", min_length = 1, max_length = 64))]
    pub name: String,
    /// `\\server.domain\share`, `nfs://server.domain/export` or `/path`. A string, so that a refusal can explain what
    /// is wrong with it. Named `unc` between processes, because earlier versions know no other name.
    #[serde(rename = "unc")]
    pub source: String,
}

/// Attaches a share on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AttachShare {
    /// The user to log in as. The server passes the credentials on and stores none of them.
    pub credentials: Option<ShareCredentials>,
    /// An existing mount of the administrator, to be adopted.
    pub at: Option<String>,
}

/// A share in the inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareView {
    /// Its id.
    pub id: ShareId,
    /// Its name.
    pub name: String,
    /// Its source: `\\server.domain\share`, `nfs://server.domain/export` or `/path`.
    #[serde(rename = "unc")]
    pub source: ShareSource,
    /// The hosts that have it attached.
    pub hosts: Vec<ShareOnHost>,
}

/// A share on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareOnHost {
    /// The host's name.
    pub host: String,
    /// The share as the host's agent reports it.
    pub attached: AttachedShare,
}

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub says: Option<Message>,
    /// What prevents the move, and what the user should know.
    pub findings: Vec<Finding>,
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
    /// Limits the bytes sent per second: of memory and, before memory, of each migrated disk separately.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1048576))]
    pub bandwidth_bytes_per_s: Option<u64>,
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

/// The reason why a job waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WaitView {
    /// Its place in the queue, from 1.
    pub position: u32,
    /// The slots that are not free.
    pub places: Vec<Place>,
}

/// A slot that is not free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Place {
    /// The host that the slot belongs to.
    pub host: String,
    /// The kind of slot.
    pub slot: Slot,
    /// Jobs that occupy a slot, or that were passed so often that one is reserved for them.
    pub jobs: Vec<JobId>,
}

/// A part of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ChildView {
    /// Its number.
    pub id: JobId,
    /// The VM's name.
    pub vm_name: String,
    /// The source's name.
    pub source: String,
    /// The destination's name.
    pub destination: String,
    /// Its phase.
    pub phase: Phase,
    /// Where the VM is.
    pub summary: String,
    /// The same, as data.
    #[serde(default)]
    pub says: Vec<JobText>,
}

/// One page of the records of ended jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// Oldest first.
    pub records: Vec<AuditRecord>,
    /// Pass this as `after=` to get more; `None`: there are no more.
    pub next: Option<JobId>,
}

/// The record of a job that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// The job.
    pub job: JobId,
    /// The job that it was a part of.
    pub parent: Option<JobId>,
    /// Who requested it.
    pub by: String,
    /// When it was accepted. Unix milliseconds.
    pub accepted_at_ms: u64,
    /// When it ended. Unix milliseconds.
    pub ended_at_ms: u64,
    /// The kind of job.
    pub kind: JobKind,
    /// The VM.
    pub vm: Option<VmId>,
    /// The VM's name, or the number of VMs.
    pub vm_name: String,
    /// The source's name.
    pub source: String,
    /// The destination's name.
    pub destination: String,
    /// How bytes were encoded: `standard` means unchanged, over TCP.
    pub preset: String,
    /// How it ended.
    pub outcome: Phase,
    /// The number of attempts that began.
    pub attempts: u32,
    /// Bytes on the wire.
    pub wire: Option<ByteCount>,
    /// Downtime in milliseconds.
    pub downtime_ms: Option<u64>,
    /// What the job changed, and where.
    pub changes: Vec<String>,
    /// Why it did not succeed, and where the VM is.
    pub summary: String,
    /// Whether the user accepted that the destination may have too little memory.
    #[serde(default)]
    pub overcommit: bool,
}

/// The state of one step of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It has not begun.
    Waiting,
    /// It is in progress.
    Running,
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// It was undone.
    Undone,
    /// Undoing it failed.
    UndoFailed,
}

/// One step of a job, as shown to users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StepView {
    /// The step.
    pub step: Step,
    /// Its name to show to users.
    pub title: String,
    /// Its state.
    pub state: StepState,
    /// When it began. Unix milliseconds.
    pub started_at_ms: Option<u64>,
    /// When it ended. Unix milliseconds.
    pub ended_at_ms: Option<u64>,
    /// Why it failed, in English.
    pub message: Option<String>,
    /// The same, as data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub says: Option<JobText>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// What kind of job it is.
    pub kind: JobKind,
    /// The job that it is a part of.
    pub parent: Option<JobId>,
    /// Its parts, if other jobs do its work.
    pub children: Vec<ChildView>,
    /// The VM; `None` for a job with parts.
    pub vm: Option<VmId>,
    /// The VM's name, or the number of VMs.
    pub vm_name: String,
    /// The source's name; empty if there are several.
    pub source: String,
    /// The destination's name; empty if there are several.
    pub destination: String,
    /// The number of its attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// The reason why it waits, while it is queued.
    pub waits: Option<WaitView>,
    /// Its phase.
    pub phase: Phase,
    /// Where the VM is, and what the administrator has to do, if anything; one or two sentences, in English.
    pub summary: String,
    /// The sentences of `summary`, as data.
    #[serde(default)]
    pub says: Vec<JobText>,
    /// Who requested it.
    pub by: String,
    /// When it was accepted. Unix milliseconds.
    pub accepted_at_ms: u64,
    /// When it ended. Unix milliseconds.
    pub ended_at_ms: Option<u64>,
    /// Its steps, in order.
    pub steps: Vec<StepView>,
    /// Its progress while memory is sent.
    pub progress: Option<Progress>,
    /// Each disk that moves, during the job and afterwards.
    #[serde(default)]
    pub disks: Vec<DiskProgress>,
    /// What may be asked of it now, as far as its log tells: a host may know better.
    #[serde(default)]
    pub next: Vec<JobAction>,
    /// Its measurements, once it has succeeded.
    pub figures: Option<Figures>,
    /// The findings of preflight.
    pub findings: Vec<Finding>,
    /// Its log, oldest first; up to 1,000 lines. Empty in lists and events.
    pub log: Vec<LogLine>,
}

/// One line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// What happened, in English.
    pub message: String,
    /// The same, as data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub says: Option<JobText>,
}

/// A change. The SSE `id:` is its sequence number; `event:` is the variant's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// A job's state or progress.
    Job(Box<JobView>),
    /// A host, its VMs or its shares: query again what you show of it.
    Host {
        /// Its name.
        name: String,
    },
    /// Events between `Last-Event-ID` and now were lost: query everything again.
    Reset,
}
