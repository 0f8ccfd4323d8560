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

mod hosts;
mod jobs;
mod shares;
mod vms;

pub use hosts::{
    AddHost, AddStorageLocation, DrainHost, HostView, MoveOnHost, PlaceView, PlacesView, SetHost, StorageLocation,
    VmRow,
};
pub use jobs::{AuditPage, AuditRecord, ChildView, Event, JobView, LogLine, Place, StepState, StepView, WaitView};
pub use shares::{AddShare, AttachShare, ShareOnHost, ShareView};
pub use vms::{Candidate, MigrateMany, MigrateVm, MoveDisk, MoveStorage, PlannedDisk, StoragePlan, VmView};
