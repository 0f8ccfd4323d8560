//! Bodies of the agent's control API.
//!
//! Only the server that the agent is enrolned with may call it (mutual TLS, pinned keys; another key gets 403). A path
//! begins with the version in which its route got its present form: version 2 merged the three sets of routes for moves
//! into one, and kept all other routes.
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
//! DELETE /v1/shares/{share}/locks/{name}                                                     ends a trial, whatever its result
//! GET    /v1/places                                                      → [OfferedPlace]  (storage roots and shares)
//! GET    /v1/directory?on=local&host=&path= | ?on=share&share=&path=     → DirectoryListing (the query is a Location)
//! PUT    /v1/directory/check                         Location            → 204               (QEMU can write files there)
//! PUT    /v1/vms/{vm}/power                          PowerRequest
//! GET    /v1/vms/{vm}/disks                              → [DiskSize]         (of the disks that are files, while it runs)
//! GET    /v1/vms/{vm}/files?only=                        → [FileSize]         (while it is shut off)
//! PUT    /v2/moves/check                             Check               → [ByteCount]       (changes nothing but old partial copies)
//! PUT    /v2/moves/{job}/{generation}                Prepare             → Ready
//! POST   /v2/moves/{job}/{generation}                Verb                → Report
//! GET    /v2/moves/{job}/{generation}?after=&wait_ms=                    → Report            (long poll on `sequence`)
//! DELETE /v2/moves/{job}/{generation}                                    → 204               (release)
//! ```
//! A host has only one part in a job, so a job and an attempt identify it. Requests may be repeated safely; a request
//! with an older generation is refused with `request.stale` (409).

mod moves;
mod prepare;
mod shares;
mod vms;

use serde::{Deserialize, Serialize};

pub use self::{
    moves::{Check, ConfirmRequest, Part, Prepare, Ready, Report, Role, Stage, Verb},
    prepare::{
        CheckOffline, DestinationReady, IncomingDisk, IncomingDiskFile, OfflineFile, OfflineReady, PrepareDestination,
        PrepareSource, PrepareStorage, ReceiveOffline, SendOffline, ShareMount, SourceReady,
    },
    shares::{AttachRequest, LockStep, ShareCredentials, ShareToken},
    vms::{DiskSize, FileSize, Power, PowerRequest},
};
use crate::{
    host::HostFacts,
    id::{Generation, HostId, Incarnation},
    location::Location,
    pin::Secret,
    share::AttachedShare,
    vm::VmFacts,
};

/// The version of the control API that this server speaks.
pub const API_VERSION: u32 = 2;

/// The versions that this agent speaks, oldest first: a server of the previous version may call it.
pub const API_VERSIONS: [u32; 2] = [1, API_VERSION];

/// The header that identifies the run of the calling server: a number that rises at each of its starts. An agent
/// refuses requests of runs before the newest one that it knows. Requests without the header are not compared.
pub const EPOCH_HEADER: &str = "ferry-epoch";

/// Proof that the host's administrator accepts this server. The server's key is that of its TLS connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The one-use secret of the enrolment token.
    pub secret: Secret,
    /// The id that the server gives this host; the agent names its local files after it.
    pub host: HostId,
}

/// What an agent reports. Always complete: a host has few VMs, and a complete report cannot be applied wrongly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// This run of the agent.
    pub incarnation: Incarnation,
    /// Rises with each change during this run.
    pub generation: Generation,
    /// The host.
    pub host: HostFacts,
    /// Every VM that the host's libvirt knows.
    pub vms: Vec<VmFacts<Location>>,
    /// Every share attached here.
    pub shares: Vec<AttachedShare>,
}
