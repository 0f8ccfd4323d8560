//! Bodies of the agent's control API, version 1.
//!
//! Only the server that the agent is enrolled with may call it (mutual TLS, pinned keys; another key gets 403).
//!
//! ```text
//! POST   /v1/enrol                                   EnrolRequest        → HostFacts   (before enrolment, or same server again)
//! GET    /v1/host                                                        → HostFacts
//! GET    /v1/observe?incarnation=&generation=&wait_ms=                   → Observation (long poll)
//! PUT    /v1/shares/{share}                          AttachRequest       → AttachedShare
//! DELETE /v1/shares/{share}
//! PUT    /v1/shares/{share}/token/{name}             ShareToken          writes a token file on the share
//! GET    /v1/shares/{share}/token/{name}                                 → ShareToken
//! DELETE /v1/shares/{share}/token/{name}
//! PUT    /v1/shares/{share}/locks/{name}             LockStep            → 204               (one step of a trial of QEMU's locks)
//! DELETE /v1/shares/{share}/locks/{name}                                                     ends a trial, whatever came of it
//! GET    /v1/places                                                      → [OfferedPlace]  (storage roots and shares)
//! GET    /v1/directory?on=local&host=&path= | ?on=share&share=&path=     → DirectoryListing (the query is a Location)
//! PUT    /v1/directory/check                         Location            → 204               (QEMU can write files there)
//! PUT    /v1/vms/{vm}/power                          PowerRequest
//! GET    /v1/vms/{vm}/disks                              → [DiskSize]         (of the disks that are files, while it runs)
//! PUT    /v1/vms/{vm}/arrivals/check                 [DiskArrival]       → 204               (changes nothing but old seeds)
//! PUT    /v1/migrations/{job}/{generation}/destination  PrepareDestination → DestinationReady
//! PUT    /v1/migrations/{job}/{generation}/source       PrepareSource      → SourceReady
//! PUT    /v1/migrations/{job}/{generation}/perform                       → MigrationReport   (returns when started)
//! GET    /v1/migrations/{job}/{generation}?after=&wait_ms=               → MigrationReport   (long poll on `sequence`)
//! PUT    /v1/migrations/{job}/{generation}/resume                        → MigrationReport   (destination; verdict said Destination)
//! PUT    /v1/migrations/{job}/{generation}/end-copy                      → MigrationReport   (source; verdict said Destination)
//! PUT    /v1/migrations/{job}/{generation}/abort                         → MigrationReport   (before the point of no return)
//! PUT    /v1/migrations/{job}/{generation}/confirm   ConfirmRequest      → MigrationReport
//! DELETE /v1/migrations/{job}/{generation}                               → 204               (release)
//! GET    /v1/vms/{vm}/files?only=                        → [FileSize]         (while it is shut off)
//! PUT    /v1/offline-moves/check                     CheckOffline        → 204               (destination; changes nothing)
//! PUT    /v1/offline-moves/{job}/{generation}/destination  ReceiveOffline → OfflineReady
//! PUT    /v1/offline-moves/{job}/{generation}/source       SendOffline    → OfflineReport     (the VM is held)
//! PUT    /v1/offline-moves/{job}/{generation}/perform                    → OfflineReport     (source; returns when started)
//! GET    /v1/offline-moves/{job}/{generation}?after=&wait_ms=            → OfflineReport     (long poll on `sequence`)
//! PUT    /v1/offline-moves/{job}/{generation}/define                     → OfflineReport     (destination; the point of no return)
//! PUT    /v1/offline-moves/{job}/{generation}/abort                      → OfflineReport     (before the point of no return)
//! PUT    /v1/offline-moves/{job}/{generation}/confirm ConfirmRequest     → OfflineReport
//! DELETE /v1/offline-moves/{job}/{generation}                            → 204
//! PUT    /v1/storage-moves/check                     PrepareStorage      → [ByteCount]       (allocated, by disk; changes nothing)
//! PUT    /v1/storage-moves/{job}/{generation}        PrepareStorage      → StorageReport
//! PUT    /v1/storage-moves/{job}/{generation}/perform                    → StorageReport     (returns when started)
//! GET    /v1/storage-moves/{job}/{generation}?after=&wait_ms=            → StorageReport     (long poll on `sequence`)
//! PUT    /v1/storage-moves/{job}/{generation}/abort                      → StorageReport     (before the first switch-over)
//! PUT    /v1/storage-moves/{job}/{generation}/confirm ConfirmStorage     → StorageReport
//! DELETE /v1/storage-moves/{job}/{generation}                            → 204               (release)
//! ```
//! Repeating a request is safe; one with an older generation is refused with `request.stale` (409).

use serde::{Deserialize, Serialize};

use crate::{
    files::{DiskMove, DiskProgress, FileMove},
    finding::Finding,
    host::HostFacts,
    id::{Generation, HostId, Incarnation, JobId, SessionId, ShareId, VmId},
    job::{Figures, OnStall, Progress},
    location::Location,
    migration::Presence,
    pin::{Pin, Secret},
    share::AttachedShare,
    share_source::ShareSource,
    units::ByteCount,
    vm::{DiskFormat, VmFacts},
};

/// The versions of the control API that this program speaks, oldest first.
pub const API_VERSIONS: [u32; 1] = [1];

/// The header that says which life of the server asks: a number that rises at each of its starts. An agent refuses a
/// request of an earlier life than the newest that it heard of. A request without it is not compared.
pub const EPOCH_HEADER: &str = "ferry-epoch";

/// Proof that the administrator of the host wants this server. The server's key is that of its TLS connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The one-use secret of the enrolment token.
    pub secret: Secret,
    /// The id that the server gives this host; the agent names its local files by it.
    pub host: HostId,
}

/// What an agent sees. Always whole: a host has few VMs, and a whole one cannot be applied wrongly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// This life of the agent.
    pub incarnation: Incarnation,
    /// Rises with each change inside this life.
    pub generation: Generation,
    /// The host.
    pub host: HostFacts,
    /// Every VM the host's libvirt knows.
    pub vms: Vec<VmFacts<Location>>,
    /// Every share attached here.
    pub shares: Vec<AttachedShare>,
}

/// How a share is to be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// What to reach. Called `unc` between processes: earlier versions know no other name.
    #[serde(rename = "unc")]
    pub source: ShareSource,
    /// Who logs in, if the agent is to mount an SMB share. Needed also for an adopted mount when the share is to be probed.
    pub credentials: Option<ShareCredentials>,
    /// The administrator's own mount of it, to be adopted. A share that is a path is adopted there, or where its name says.
    pub at: Option<String>,
}

/// Who logs in to a file server. Kept by the agent in a file that only root reads.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ShareCredentials {
    /// User, `DOMAIN\user` allowed.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for ShareCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShareCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Content of a token file, by which two mounts are shown to be of one share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareToken {
    /// Up to 64 letters and digits.
    pub content: String,
}

/// A step of the trial whether QEMU's locks let a VM be handed over on a share: two hosts take them on a scratch image in
/// the order in which the QEMUs of a hand-over do.
///
/// ```text
/// source        Hold ─────────────────── LetGo ────────── Check
///                open, locked, written    write, close     reads what the destination wrote
/// destination            Open ────────────────── Take
///                         open beside it          lock, read, write
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockStep {
    /// The source makes the image, and QEMU's tool opens, locks and writes it, as a running VM's QEMU has it.
    Hold,
    /// The destination opens the image without a lock, as an incoming VM's QEMU does.
    Open,
    /// The source's QEMU writes once more, now that the file is open on two hosts, and closes it.
    LetGo,
    /// The destination takes the locks that a running VM's QEMU has, reads what the source wrote last, and writes.
    Take,
    /// The source reads what the destination wrote.
    Check,
}

/// What a VM shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Run.
    Start,
    /// Ask the guest to shut itself down.
    Shutdown,
}

/// Start or shut down a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerRequest {
    /// What it shall do.
    pub power: Power,
}

/// Make ready to receive a VM: starts a carrier that listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareDestination {
    /// The attempt on the wire.
    pub session: SessionId,
    /// Known to both agents of this session only.
    pub secret: Secret,
    /// The source agent's key.
    pub source_pin: Pin,
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// Shares its files lie on: each must be attached here.
    pub shares: Vec<ShareId>,
    /// Whether the host shall keep a definition (false for VMs that a cluster starts).
    pub persistent: bool,
    /// Switchover is sized for this. Milliseconds.
    pub downtime_limit_ms: u32,
    /// Disks that move along: their new files are made here. A server of an earlier version does not say.
    #[serde(default)]
    pub disks: Vec<DiskArrival>,
}

/// A disk of a running VM and its sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSize {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// What the guest sees.
    pub virtual_size: ByteCount,
    /// What the image takes on its file system, as far as that tells.
    pub allocated: ByteCount,
}

/// A disk that comes from another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskArrival {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// The file it gets here; must not be there before.
    pub to: Location,
    /// How that file is laid out.
    pub format: DiskFormat,
    /// What the guest sees: the new file's exact virtual size.
    pub virtual_size: ByteCount,
    /// What the old file takes: so much and a little more must be free here.
    pub allocated: ByteCount,
}

/// The new file of a disk at the destination. Passed from agent to agent, never stored or shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalFile {
    /// The disk's name in the definition.
    pub device: String,
    /// The file.
    pub path: String,
    /// How it is laid out.
    pub format: DiskFormat,
    /// It is an unfinished copy of the disk: the destination tells what it holds, on a channel of its own.
    #[serde(default)]
    pub sown: bool,
}

/// The destination listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationReady {
    /// `ADDRESS:PORT` of the destination's carrier.
    pub carrier: String,
    /// The destination's mount point of each share, for the translation of the definition at the source.
    pub mounts: Vec<ShareMount>,
    /// Folder of the session's sockets: the same path is used at both ends.
    pub socket_dir: String,
    /// The new files of the disks that move along. An agent of an earlier version makes none.
    #[serde(default)]
    pub files: Vec<ArrivalFile>,
}

/// The source has connected and holds the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReady {
    /// Whether the host started the VM at boot, asked when it was held: libvirt tells nobody when that is set.
    pub autostart: bool,
}

/// Where a host has mounted a share. Passed from agent to agent, never stored or shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMount {
    /// The share.
    pub share: ShareId,
    /// The directory.
    pub path: String,
}

/// Make ready to send a VM: starts a carrier that connects, holds the VM, clears autostart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareSource {
    /// The attempt on the wire.
    pub session: SessionId,
    /// Known to both agents of this session only.
    pub secret: Secret,
    /// The destination agent's key.
    pub destination_pin: Pin,
    /// What the destination answered.
    pub destination: DestinationReady,
    /// The VM.
    pub vm: VmId,
    /// QEMU switches over when the rest fits into this. Milliseconds.
    pub downtime_limit_ms: u32,
    /// Cap on what QEMU sends, bytes per second; `None`: no cap.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// The time limit of the move. Milliseconds.
    pub timeout_ms: u64,
    /// What becomes of it when it does not converge. A server of an earlier version does not say.
    #[serde(default)]
    pub on_stall: OnStall,
    /// Disks that move along, with the files they use here. A server of an earlier version does not say.
    #[serde(default)]
    pub disks: Vec<DiskMove>,
    /// It was shown that every share the VM goes on using is the same for both hosts. A server of an earlier version does
    /// not say.
    #[serde(default)]
    pub shares_proven: bool,
}

/// What the end of a successful move needs: given to the destination and to the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmRequest {
    /// Destination only: whether the host starts the VM at boot from now on.
    pub autostart: bool,
    /// Source only: whether the old files of disks that moved along stay. A server of an earlier version does not say.
    #[serde(default)]
    pub keep_source: bool,
}

/// Which end of a migration a report is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sends the VM.
    Source,
    /// Receives it.
    Destination,
}

/// How far one end of a migration is.
///
/// ```text
/// source:       Prepared → Performing → Delivered → Confirmed
/// destination:  Prepared → Performing → Delivered → Resumed → Confirmed
///                     └──────────┴─→ Failed | Aborted
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The carrier stands.
    Prepared,
    /// The VM's state is on its way.
    Performing,
    /// The Finish reply was delivered to the source's libvirtd: the point of no return is behind us.
    Delivered,
    /// Destination: the VM runs here.
    Resumed,
    /// Source: the definition is gone. Destination: autostart is set.
    Confirmed,
    /// It ended before the point of no return, by an error.
    Failed,
    /// It ended before the point of no return, by request.
    Aborted,
}

/// How one end of a migration stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// The job.
    pub job: JobId,
    /// Its attempt.
    pub generation: Generation,
    /// Which end.
    pub role: Role,
    /// Rises with each change of this report; `GET …?after=` waits for a larger one.
    pub sequence: u64,
    /// How far it is.
    pub stage: Stage,
    /// Whether the Finish reply is known to have reached the source's libvirtd.
    pub finish_delivered: bool,
    /// Destination: this host's agent has ended the copy here, complete or not, or is about to. Somebody else has not.
    #[serde(default)]
    pub gave_up: bool,
    /// What this host says of the VM, asked when the report was made.
    pub presence: Presence,
    /// Source: how much is done.
    pub progress: Option<Progress>,
    /// Source: how far the disks are that move along.
    #[serde(default)]
    pub disks: Vec<DiskProgress>,
    /// What it took, as far as this end knows: the source knows bytes and iterations, the destination the downtime.
    pub figures: Figures,
    /// What somebody should know of what stays; told when the move is confirmed.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Why it failed: what was attempted, on what, with the chain of causes, and where the VM is.
    pub error: Option<String>,
}

/// Make ready to move disks of a running VM to other files of its host: creates the new files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareStorage {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// Each disk once.
    pub disks: Vec<DiskMove>,
    /// Cap on what is read, bytes per second, for all disks together; `None`: no cap.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// The whole VM moves, not chosen disks: a copy of its definition is kept beside its first disk.
    #[serde(default)]
    pub whole: bool,
}

/// What the end of a storage move needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmStorage {
    /// Whether the old files stay.
    pub keep_source: bool,
}

/// How far a storage move is.
///
/// ```text
/// Prepared → Copying → Switching → Moved → Confirmed
///               └──────────┴─→ Failed | Aborted (before the first disk was switched over)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageStage {
    /// The new files are there.
    Prepared,
    /// Disks are being copied.
    Copying,
    /// Every disk is ready, and one after the other is switched over.
    Switching,
    /// Every disk uses its new file.
    Moved,
    /// The old files are gone, or stay by request.
    Confirmed,
    /// It ended by an error; which disks were moved is in the report.
    Failed,
    /// It ended by request; no disk was moved by this attempt.
    Aborted,
}

/// How a storage move stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageReport {
    /// The job.
    pub job: JobId,
    /// Its attempt.
    pub generation: Generation,
    /// Rises with each change of this report; `GET …?after=` waits for a larger one.
    pub sequence: u64,
    /// How far it is.
    pub stage: StorageStage,
    /// Each disk.
    pub disks: Vec<DiskProgress>,
    /// Why it failed: what was attempted, on what, and why.
    pub error: Option<String>,
    /// What somebody should know of: files that stay though the move would have removed them.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// A file of a VM that is shut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSize {
    /// The device's name in the definition, or `nvram`, `kernel`, `initrd`, `dtb`.
    pub device: String,
    /// Its length.
    pub length: ByteCount,
    /// What it takes on its file system, as far as that tells.
    pub allocated: ByteCount,
}

/// A file that comes to another host with a VM that is shut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineFile {
    /// What moves, and where to.
    #[serde(flatten)]
    pub file: FileMove,
    /// Its length.
    pub length: ByteCount,
    /// What it takes at the source, as far as that tells.
    pub allocated: ByteCount,
}

/// Asks a destination whether files can come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckOffline {
    /// The VM, which must not be there.
    pub vm: VmId,
    /// Its files.
    pub files: Vec<OfflineFile>,
    /// Files that its definition names and that are not there yet.
    #[serde(default)]
    pub absent: Vec<FileMove>,
}

/// Makes a host ready to receive a VM that is shut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveOffline {
    /// The attempt on the wire.
    pub session: SessionId,
    /// Known to both agents of the session only.
    pub secret: Secret,
    /// The source agent's key.
    pub source_pin: Pin,
    /// The VM.
    pub vm: VmId,
    /// Its name, which the definition must have.
    pub vm_name: String,
    /// Shares that files of the VM lie on which stay.
    pub shares: Vec<ShareId>,
    /// Files that come.
    pub files: Vec<OfflineFile>,
    /// Files that the definition names and that are not there yet: UEFI variables, which libvirt makes at the first start.
    #[serde(default)]
    pub absent: Vec<FileMove>,
}

/// What the source needs to know of a destination that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineReady {
    /// Where it listens.
    pub address: String,
    /// Where it has the shares.
    pub mounts: Vec<ShareMount>,
    /// The new files in the order of the request.
    pub paths: Vec<String>,
    /// Where the files go that are not there yet, in the order of the request.
    #[serde(default)]
    pub absent: Vec<String>,
    /// Devices whose files are there already, for another VM that shares them: they are compared, not sent.
    #[serde(default)]
    pub adopted: Vec<String>,
}

/// Makes a host ready to send a VM that is shut off: from now on it is held against a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendOffline {
    /// The attempt on the wire.
    pub session: SessionId,
    /// Known to both agents of the session only.
    pub secret: Secret,
    /// The destination agent's key.
    pub destination_pin: Pin,
    /// What the destination said.
    pub destination: OfflineReady,
    /// The VM.
    pub vm: VmId,
    /// Files that go.
    pub files: Vec<OfflineFile>,
    /// Files that the definition names and that are not there yet.
    #[serde(default)]
    pub absent: Vec<FileMove>,
}

/// How far one end of an offline move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfflineStage {
    /// It is ready.
    Prepared,
    /// Files are copied.
    Copying,
    /// Every file and the definition are at the destination, compared and on disk.
    Copied,
    /// Destination: the VM is defined here. The point of no return.
    Defined,
    /// Source: definition and old files are gone. Destination: autostart is set.
    Confirmed,
    /// It ended before the point of no return.
    Failed,
    /// It was ended by request before the point of no return.
    Aborted,
}

/// How one end of an offline move stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineReport {
    /// Which end.
    pub role: Role,
    /// Rises with each change.
    pub sequence: u64,
    /// How far it is.
    pub stage: OfflineStage,
    /// How far each file is.
    pub files: Vec<DiskProgress>,
    /// Bytes of files that went over the wire.
    pub wire: ByteCount,
    /// Source: whether it started the VM at boot.
    pub autostart: bool,
    /// What went wrong.
    pub error: Option<String>,
    /// What people should know of how it ended.
    #[serde(default)]
    pub remarks: Vec<String>,
}
