//! Bodies of the server's REST API, version 1 (`/api/v1`).
//!
//! ```text
//! GET    /api/v1/hosts                              → [HostView]
//! POST   /api/v1/hosts                AddHost       → HostView            (201)
//! GET    /api/v1/hosts/{host}                       → HostView
//! PATCH  /api/v1/hosts/{host}         SetHost       → HostView
//! DELETE /api/v1/hosts/{host}                                             (204)
//! GET    /api/v1/hosts/{host}/places?location=      → PlacesView          (what it offers, or what is in a directory)
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
//! POST   /api/v1/vms/{vm}/shutdown                  → VmView              (the guest was asked)
//! GET    /api/v1/vms/{vm}/hosts                     → [Candidate]
//! POST   /api/v1/vms/{vm}/migrate     MigrateVm     → JobView (202), or Candidate (200) with `dry_run`
//! POST   /api/v1/vms/{vm}/storage     MoveStorage   → JobView (202), or StoragePlan (200) with `dry_run`
//! POST   /api/v1/migrations           MigrateMany   → JobView (202): a parent of moves
//! GET    /api/v1/jobs?since_ms=&limit=              → [JobView]           (newest first, without their logs)
//! GET    /api/v1/jobs/{job}                         → JobView
//! POST   /api/v1/jobs/{job}/cancel                  → JobView
//! POST   /api/v1/jobs/{job}/restart                 → JobView             (failed or cancelled: another attempt)
//! POST   /api/v1/jobs/{job}/retry                   → JobView             (stuck: try now)
//! POST   /api/v1/jobs/{job}/undo                    → JobView             (take back what was done)
//! POST   /api/v1/jobs/{job}/dismiss                 → JobView             (accept what is)
//! GET    /api/v1/audit?since_ms=&after=             → AuditPage           (jobs that ended, oldest first)
//! GET    /api/v1/events                             → text/event-stream of Event, resumable by Last-Event-ID
//! ```
//! `{vm}` is a name, a UUID, or `HOST/NAME` (percent-encoded); an ambiguous name is refused with the list.
//! `{host}` and `{share}` are names or ids; `location` is `/directory` or `\\server.domain\share\directory`. Every call
//! carries `Authorization: Bearer TOKEN`. A POST may carry `Idempotency-Key`: the same key with the same body gets the
//! first answer again.

use serde::{Deserialize, Serialize};

use crate::{
    admission::{Limits, Slot},
    api::agent::ShareCredentials,
    files::{DiskMove, DiskProgress},
    finding::Finding,
    host::HostFacts,
    id::{HostId, JobId, ShareId, VmId},
    job::{Figures, JobKind, MoveKind, OnStall, Progress},
    location::Location,
    migration::{Phase, Step},
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
    /// How it is called in Ferry: letters, digits, `-`, `_`, `.`; up to 64.
    #[cfg_attr(feature = "schema", schema(pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$", min_length = 1, max_length = 64))]
    pub name: String,
    /// `ADDRESS:PORT` of its agent.
    pub address: String,
    /// What `ferry-agent setup` printed.
    pub token: String,
}

/// A host, as the inventory has it.
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
    /// What its agent said last.
    pub facts: Option<HostFacts>,
    /// Names and ids of VMs on it.
    pub vms: Vec<VmRow>,
    /// Shares attached on it.
    pub shares: Vec<AttachedShare>,
    /// How many moves it takes part in at once.
    pub limits: Limits,
    /// Nothing is placed there.
    pub maintenance: bool,
    /// Moves in progress, in and out, and those that wait.
    pub moves: Vec<MoveOnHost>,
    /// Its storage locations, in the order in which they were added. A server of an earlier version has none.
    #[serde(default)]
    pub storage_locations: Vec<StorageLocation>,
}

/// A directory that a host offers first for the files of VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StorageLocation {
    /// Where it is.
    pub location: Location,
    /// As an administrator writes it: a UNC path, or an absolute path of the host.
    pub path: String,
    /// Whether the share it lies on can be used on the host now; `None` if so, else why not.
    pub trouble: Option<String>,
}

/// Adds a storage location to a host; at most 32.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AddStorageLocation {
    /// `/directory` or `\\server.domain\share\directory`. Text, so that a refusal can name what is wrong with it.
    pub location: String,
}

/// Where files may be on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum PlacesView {
    /// No location was asked for: what the host offers.
    Offered {
        /// Its storage roots, then its shares.
        places: Vec<PlaceView>,
    },
    /// What is in a directory.
    Directory {
        /// The directory.
        location: Location,
        /// As an administrator writes it.
        path: String,
        /// Its content.
        listing: DirectoryListing,
    },
}

/// A place that a host offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PlaceView {
    /// As an administrator writes it.
    pub path: String,
    /// The share's name; `None`: a storage root of the host.
    pub share: Option<String>,
    /// What the host's agent says.
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
    /// Whether the VM comes; else it goes.
    pub incoming: bool,
    /// The other host.
    pub other: String,
    /// Where it stands.
    pub phase: Phase,
}

/// Sets what an administrator decides of a host; what is left out stays. Takes effect at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SetHost {
    /// Live moves at once, in and out together, 1 to 64.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 64))]
    pub live_limit: Option<u32>,
    /// Storage moves at once, in and out together, 1 to 64.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1, maximum = 64))]
    pub storage_limit: Option<u32>,
}

/// Moves every running VM away from a host, and keeps it free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DrainHost {
    /// All of them to this host; else each to the host that has most memory free.
    #[serde(default)]
    pub destination: Option<String>,
    /// Disks that the destination does not reach go to this folder of it; else to its first storage location, if it has one.
    #[serde(default)]
    pub storage: Option<String>,
    /// The memory of the destinations may not do, counting what other moves were promised: that is taken.
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
    /// How it is called in Ferry.
    #[cfg_attr(feature = "schema", schema(pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$", min_length = 1, max_length = 64))]
    pub name: String,
    /// `\\server.domain\share`, `nfs://server.domain/export` or `/path`. Text, so that a refusal can name what is wrong
    /// with it. Called `unc` between processes: earlier versions know no other name.
    #[serde(rename = "unc")]
    pub source: String,
}

/// Attaches a share on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AttachShare {
    /// Who logs in. The server passes them on and keeps nothing of them.
    pub credentials: Option<ShareCredentials>,
    /// The administrator's own mount, to be adopted.
    pub at: Option<String>,
}

/// A share, as the inventory has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareView {
    /// Its id.
    pub id: ShareId,
    /// Its name.
    pub name: String,
    /// What stands behind it: `\\server.domain\share`, `nfs://server.domain/export` or `/path`.
    #[serde(rename = "unc")]
    pub source: ShareSource,
    /// Hosts that have it attached.
    pub hosts: Vec<ShareOnHost>,
}

/// A share on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareOnHost {
    /// The host's name.
    pub host: String,
    /// What its agent says.
    pub attached: AttachedShare,
}

/// A VM, as the inventory has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmView {
    /// The name of the host it is on.
    pub host: String,
    /// What that host says.
    pub facts: VmFacts,
    /// The job that moves it now.
    pub job: Option<JobId>,
    /// What is odd about it.
    pub findings: Vec<Finding>,
}

/// One host as the destination of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Candidate {
    /// The host's name.
    pub host: String,
    /// What kind of move it would be; `None`: it cannot work.
    pub kind: Option<MoveKind>,
    /// Why, in one sentence.
    pub why: String,
    /// What blocks it, and what should be known.
    pub findings: Vec<Finding>,
}

/// Moves a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MigrateVm {
    /// The destination's name or id.
    pub destination: String,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// QEMU switches over when the rest fits into this. Milliseconds, 10 to 10,000; default 300.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 10, maximum = 10000))]
    pub downtime_limit_ms: Option<u32>,
    /// Cap on what is sent, bytes per second: of memory, and, before that, of each disk that moves along by itself.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1048576))]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// The time limit of the move, from libvirt's migrate call. Milliseconds; default one hour.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1000, maximum = 604800000))]
    pub timeout_ms: Option<u64>,
    /// What becomes of it when it does not converge.
    #[serde(default)]
    pub on_stall: OnStall,
    /// Where disks go that the destination does not reach: a folder, as a path on the destination or
    /// `\\server.domain\share\folder`. `None`: only the disks that are named move along.
    #[serde(default)]
    pub storage: Option<String>,
    /// Disks that move along in any case, go elsewhere, or get another format.
    #[serde(default)]
    pub disks: Vec<MoveDisk>,
    /// The old files of what moved along stay.
    #[serde(default)]
    pub keep_source: bool,
    /// The VM is shut off and moves so, with its files. Refused for a VM that runs; never chosen for one.
    #[serde(default)]
    pub offline: bool,
    /// The destination's memory may not do, counting what other moves were promised: that is taken.
    #[serde(default)]
    pub overcommit: bool,
}

/// Moves disks of a running VM to other files of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MoveStorage {
    /// Where every disk goes that is not named in `disks`: a folder, as a path on the host or `\\server.domain\share\folder`.
    /// `None`: only the disks that are named move.
    #[serde(default)]
    pub to: Option<String>,
    /// Disks that go elsewhere, or in another format.
    #[serde(default)]
    pub disks: Vec<MoveDisk>,
    /// The old files stay.
    #[serde(default)]
    pub keep_source: bool,
    /// Each folder that is named becomes a storage location of the host, if it is none yet.
    #[serde(default)]
    pub add_default: bool,
    /// Cap on what is read, bytes per second, for all disks together.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(minimum = 1048576))]
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// Where one disk goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MoveDisk {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// A folder, or a file that ends in `.raw`, `.img` or `.qcow2`; `None`: as for the others.
    #[serde(default)]
    pub to: Option<String>,
    /// `None`: as it is laid out now.
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
    /// What blocks it, and what should be known.
    pub findings: Vec<Finding>,
}

/// What a storage move would do with one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PlannedDisk {
    /// From where to where.
    pub disk: DiskMove,
    /// What would be copied; `None` if it was not asked because something blocks the move.
    pub allocated: Option<ByteCount>,
}

/// Moves several VMs to one host. All are accepted, or none is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MigrateMany {
    /// The VMs, 1 to 1000: names, UUIDs, or `HOST/NAME`.
    #[cfg_attr(feature = "schema", schema(min_items = 1, max_items = 1000))]
    pub vms: Vec<String>,
    /// Where to and how; the same for each. `dry_run` is refused.
    pub how: MigrateVm,
}

/// What a waiting job waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct WaitView {
    /// Its place in the queue, from 1.
    pub position: u32,
    /// Slots that are not free.
    pub places: Vec<Place>,
}

/// A slot that is not free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Place {
    /// Of this host.
    pub host: String,
    /// Which kind.
    pub slot: Slot,
    /// Jobs that have them, or that were passed so often that they keep one free for themselves.
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
    /// Where it stands.
    pub phase: Phase,
    /// Where the VM is.
    pub summary: String,
}

/// What is kept of jobs that ended: some of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// Oldest first.
    pub records: Vec<AuditRecord>,
    /// Ask for more with `after=` this; `None`: that was all.
    pub next: Option<JobId>,
}

/// What is kept of a job that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// The job.
    pub job: JobId,
    /// The job that it was a part of.
    pub parent: Option<JobId>,
    /// Who asked.
    pub by: String,
    /// When. Unix milliseconds.
    pub accepted_at_ms: u64,
    /// Unix milliseconds.
    pub ended_at_ms: u64,
    /// What.
    pub kind: JobKind,
    /// The VM.
    pub vm: Option<VmId>,
    /// Its name, or how many VMs.
    pub vm_name: String,
    /// From.
    pub source: String,
    /// To.
    pub destination: String,
    /// How bytes travelled: `standard` is as they are, over TCP.
    pub preset: String,
    /// How it ended.
    pub outcome: Phase,
    /// Attempts that began.
    pub attempts: u32,
    /// Bytes on the wire.
    pub wire: Option<ByteCount>,
    /// Milliseconds.
    pub downtime_ms: Option<u64>,
    /// What is different now, and where.
    pub changes: Vec<String>,
    /// Why it did not succeed, and where the VM is.
    pub summary: String,
    /// Whether it was asked to go on although the destination's memory may not do.
    #[serde(default)]
    pub overcommit: bool,
}

/// How one step of a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Its turn has not come.
    Waiting,
    /// It is going on.
    Running,
    /// It is done.
    Done,
    /// It went wrong.
    Failed,
    /// It was taken back.
    Undone,
    /// Taking it back went wrong.
    UndoFailed,
}

/// One step of a job, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StepView {
    /// Which.
    pub step: Step,
    /// For people.
    pub title: String,
    /// How it stands.
    pub state: StepState,
    /// Unix milliseconds.
    pub started_at_ms: Option<u64>,
    /// Unix milliseconds.
    pub ended_at_ms: Option<u64>,
    /// What went wrong.
    pub message: Option<String>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The job that it is a part of.
    pub parent: Option<JobId>,
    /// Its parts, if its work is done by jobs of their own.
    pub children: Vec<ChildView>,
    /// The VM; `None` for a job with parts.
    pub vm: Option<VmId>,
    /// The VM's name, or how many VMs.
    pub vm_name: String,
    /// The source's name; empty for several.
    pub source: String,
    /// The destination's name; empty for several.
    pub destination: String,
    /// The number of its attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// What it waits for while it is queued.
    pub waits: Option<WaitView>,
    /// Where it stands.
    pub phase: Phase,
    /// Where the VM is, and what to do if somebody has to; one or two sentences.
    pub summary: String,
    /// Who asked for it.
    pub by: String,
    /// Unix milliseconds.
    pub accepted_at_ms: u64,
    /// Unix milliseconds.
    pub ended_at_ms: Option<u64>,
    /// Its steps, in order.
    pub steps: Vec<StepView>,
    /// How far it is, while memory moves.
    pub progress: Option<Progress>,
    /// Each disk that moves, while the job goes on and after.
    #[serde(default)]
    pub disks: Vec<DiskProgress>,
    /// What it took, when it is done.
    pub figures: Option<Figures>,
    /// What preflight found.
    pub findings: Vec<Finding>,
    /// Its log, oldest first; up to 1,000 lines. Empty in lists.
    pub log: Vec<LogLine>,
}

/// One line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// What happened.
    pub message: String,
}

/// Something changed. The SSE `id:` is its sequence number; `event:` is the variant's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum Event {
    /// A job's state or progress.
    Job(Box<JobView>),
    /// A host, its VMs or shares: ask again for what you show of it.
    Host {
        /// Its name.
        name: String,
    },
    /// Events were lost between `Last-Event-ID` and now: ask again for everything.
    Reset,
}
