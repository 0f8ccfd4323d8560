//! The requests to one host about its part in a move of any kind.
//!
//! ```text
//! check ─▶ prepare ─▶ perform ─▶ report… ─┬─ the point of no return ─▶ resume | define ─▶ confirm ─┬─▶ release
//!                                         └─ before it: abort ─────────────────────────────────────┘
//! ```

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::prepare::{
    CheckOffline, DestinationReady, IncomingDisk, OfflineReady, PrepareDestination, PrepareSource, PrepareStorage,
    ReceiveOffline, SendOffline, SourceReady,
};
use crate::{
    files::DiskProgress,
    finding::Finding,
    id::{Generation, JobId, VmId},
    job::{Figures, Progress},
    migration::Presence,
};

/// Asks whether new files can be created. The answer is the space that each copy needs, if the host knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "snake_case")]
pub enum Check {
    /// For the migrated disks of a running VM.
    LiveDestination {
        /// The VM.
        vm: VmId,
        /// Its disks.
        disks: Vec<IncomingDisk>,
    },
    /// For an offline move.
    OfflineDestination(CheckOffline),
    /// For disks that move on the host.
    Storage(PrepareStorage),
}

/// Prepares a host for its part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "snake_case")]
pub enum Prepare {
    /// Receives a running VM.
    LiveDestination(PrepareDestination),
    /// Sends a running VM.
    LiveSource(PrepareSource),
    /// Receives a VM that is shut off.
    OfflineDestination(ReceiveOffline),
    /// Sends a VM that is shut off.
    OfflineSource(SendOffline),
    /// Moves disks of a running VM to other files of the host.
    Storage(PrepareStorage),
}

/// The answer of a prepared host: [`Part::Ready`] of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Ready {
    /// It listens for a running VM.
    LiveDestination(DestinationReady),
    /// It is connected, and holds the running VM.
    LiveSource(SourceReady),
    /// It listens for a VM that is shut off.
    OfflineDestination(OfflineReady),
    /// It is prepared; this is its report.
    Reported(Box<Report>),
}

/// One of the bodies of [`Prepare`].
pub trait Part: Clone + Into<Prepare> {
    /// The answer.
    type Ready: DeserializeOwned;
}

macro_rules! part {
    ($body:ident, $variant:ident, $ready:ty) => {
        impl From<$body> for Prepare {
            fn from(body: $body) -> Self {
                Self::$variant(body)
            }
        }

        impl Part for $body {
            type Ready = $ready;
        }
    };
}

part!(PrepareDestination, LiveDestination, DestinationReady);
part!(PrepareSource, LiveSource, SourceReady);
part!(ReceiveOffline, OfflineDestination, OfflineReady);
part!(SendOffline, OfflineSource, Report);
part!(PrepareStorage, Storage, Report);

/// An action of a prepared host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// The source, or the host that moves its own disks: begin. Answered when the move has started.
    Perform,
    /// The destination of a live move: resume the VM. The verdict was that the destination has it.
    Resume,
    /// The destination of an offline move: define the VM. The point of no return.
    Define,
    /// The source of a live move: end the process of the VM that libvirt left. The verdict was that the destination has
    /// the VM.
    EndCopy,
    /// End the move before the point of no return; refused with `job.past-pivot` after it.
    Abort,
    /// Complete a successful move: definition, old files, autostart.
    Confirm(ConfirmRequest),
}

/// What a host needs in order to complete a successful move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmRequest {
    /// Destination only: whether the host starts the VM at boot from now on.
    pub autostart: bool,
    /// Source only: whether the old files of migrated disks stay. Absent from servers of an earlier version.
    #[serde(default)]
    pub keep_source: bool,
}

/// The end of a move that a host is. In a storage move, the only host is the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sends the VM.
    Source,
    /// Receives it.
    Destination,
}

/// The progress of one end of a move.
///
/// ```text
/// source:       Prepared → Performing → Delivered → Confirmed
/// destination:  Prepared → Performing → Delivered → Resumed → Confirmed
///                     └──────────┴─→ Failed | Aborted
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is prepared.
    Prepared,
    /// The VM's state, or its files, are being sent.
    Performing,
    /// Live: the Finish reply was delivered to the source's libvirtd, which is past the point of no return. Storage:
    /// every disk uses its new file. Offline, source: everything was sent. Offline, destination: it has the VM.
    Delivered,
    /// Live, destination: the VM runs here.
    Resumed,
    /// Source: definition and old files are removed, or stay on request. Destination: autostart is set.
    Confirmed,
    /// It ended before the point of no return because of an error. Storage: the report names the disks that have moved.
    Failed,
    /// It ended before the point of no return on request.
    Aborted,
}

/// The report of one end of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The job.
    pub job: JobId,
    /// Its attempt.
    pub generation: Generation,
    /// The end of the move.
    pub role: Role,
    /// Rises with each change of this report; `GET …?after=` waits for a larger one.
    pub sequence: u64,
    /// The stage.
    pub stage: Stage,
    /// Live: whether the Finish reply is known to have reached the source's libvirtd.
    pub finish_delivered: bool,
    /// Live, destination: this host's agent has ended the copy here, complete or not, or is about to. False if somebody
    /// else ended it.
    #[serde(default)]
    pub gave_up: bool,
    /// Live: the state of the VM on this host when the report was made.
    pub presence: Presence,
    /// Live, source: the progress of the memory.
    pub progress: Option<Progress>,
    /// The progress of each disk or file, as far as this end knows.
    #[serde(default)]
    pub disks: Vec<DiskProgress>,
    /// Measured figures, as far as this end knows; zero: not known here. Live: the source knows bytes and iterations,
    /// the destination the downtime.
    pub figures: Figures,
    /// What the user should know about the result, such as files that stay.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Why it failed: what was attempted, on what, with the chain of causes, and where the VM is.
    pub error: Option<String>,
}

impl Report {
    /// A report with nothing but a stage.
    pub fn new(job: JobId, generation: Generation, role: Role, sequence: u64, stage: Stage) -> Self {
        Self {
            job,
            generation,
            role,
            sequence,
            stage,
            finish_delivered: false,
            gave_up: false,
            presence: Presence::Unknown,
            progress: None,
            disks: Vec::new(),
            figures: Figures::default(),
            findings: Vec::new(),
            error: None,
        }
    }
}
