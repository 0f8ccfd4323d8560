//! Moves, of every kind, as one host is asked about its part.
//!
//! ```text
//! check ─▶ prepare ─▶ perform ─▶ report… ─┬─ the point of no return ─▶ resume | define ─▶ confirm ─┬─▶ release
//!                                         └─ before it: abort ─────────────────────────────────────┘
//! ```

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::prepare::{
    CheckOffline, DestinationReady, DiskArrival, OfflineReady, PrepareDestination, PrepareSource, PrepareStorage,
    ReceiveOffline, SendOffline, SourceReady,
};
use crate::{
    files::DiskProgress,
    finding::Finding,
    id::{Generation, JobId, VmId},
    job::{Figures, Progress},
    migration::Presence,
};

/// Whether new files can be made. Answered with what each copy takes, where the host knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "snake_case")]
pub enum Check {
    /// For disks that come along with a running VM.
    LiveDestination {
        /// The VM.
        vm: VmId,
        /// Its disks.
        disks: Vec<DiskArrival>,
    },
    /// For a VM that is shut off.
    OfflineDestination(CheckOffline),
    /// For disks that move on the host.
    Storage(PrepareStorage),
}

/// Makes a host ready for its part.
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

/// What a host answers that is ready: [`Part::Ready`] of what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Ready {
    /// It listens for a running VM.
    LiveDestination(DestinationReady),
    /// It is connected, and holds the running VM.
    LiveSource(SourceReady),
    /// It listens for a VM that is shut off.
    OfflineDestination(OfflineReady),
    /// It is ready, and this is how it stands.
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

/// What is asked of a host that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Verb {
    /// The source, or the host that moves its own disks: begin. Answered when it was started.
    Perform,
    /// The destination of a live move: run the VM. The verdict said that it is the destination's.
    Resume,
    /// The destination of an offline move: define the VM. The point of no return.
    Define,
    /// The source of a live move: end the process that libvirt left of the VM. The verdict said that it is the destination's.
    EndCopy,
    /// End it before the point of no return; refused with `job.past-pivot` after it.
    Abort,
    /// End a successful move: definition, old files, autostart.
    Confirm(ConfirmRequest),
}

/// What the end of a successful move needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmRequest {
    /// Destination only: whether the host starts the VM at boot from now on.
    pub autostart: bool,
    /// Source only: whether the old files of disks that moved along stay. A server of an earlier version does not say.
    #[serde(default)]
    pub keep_source: bool,
}

/// Which end of a move a host is. The only one of a move of disks is the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sends the VM.
    Source,
    /// Receives it.
    Destination,
}

/// How far one end of a move is.
///
/// ```text
/// source:       Prepared → Performing → Delivered → Confirmed
/// destination:  Prepared → Performing → Delivered → Resumed → Confirmed
///                     └──────────┴─→ Failed | Aborted
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is ready.
    Prepared,
    /// The VM's state, or its files, are on their way.
    Performing,
    /// Live: the Finish reply was delivered to the source's libvirtd; the point of no return is behind us. Storage: every disk uses
    /// its new file. Offline, source: all was sent. Offline, destination: it has the VM.
    Delivered,
    /// Live, destination: the VM runs here.
    Resumed,
    /// Source: definition and old files are gone, or stay by request. Destination: autostart is set.
    Confirmed,
    /// It ended before the point of no return, by an error. Storage: which disks were moved says the report.
    Failed,
    /// It ended before the point of no return, by request.
    Aborted,
}

/// How one end of a move stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
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
    /// Live: whether the Finish reply is known to have reached the source's libvirtd.
    pub finish_delivered: bool,
    /// Live, destination: this host's agent has ended the copy here, complete or not, or is about to. Somebody else has not.
    #[serde(default)]
    pub gave_up: bool,
    /// Live: what this host says of the VM, asked when the report was made.
    pub presence: Presence,
    /// Live, source: how far the memory is.
    pub progress: Option<Progress>,
    /// How far each disk or file is, as far as this end knows.
    #[serde(default)]
    pub disks: Vec<DiskProgress>,
    /// What it took, as far as this end knows; zero: not known here. Live: the source knows bytes and iterations, the destination
    /// the downtime.
    pub figures: Figures,
    /// What somebody should know of how it ended, as files that stay.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Why it failed: what was attempted, on what, with the chain of causes, and where the VM is.
    pub error: Option<String>,
}

impl Report {
    /// How far a host is, of which nothing else is known.
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
