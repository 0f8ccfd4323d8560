//! Stable ids of kinds of findings.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! finding_ids {
    ($($(#[$more:meta])* $variant:ident = $text:literal: $doc:literal,)*) => {
        /// The stable id of a kind of finding. Text form: `area.what`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum FindingId {
            $(#[doc = $doc] #[serde(rename = $text)] $(#[$more])* $variant,)*
        }

        // Derived, it would name the variants.
        #[cfg(feature = "schema")]
        impl utoipa::PartialSchema for FindingId {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let ids = Self::ALL.iter().map(|id| id.as_str());
                let text = utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String);
                text.description(Some("The stable id of a kind of finding")).enum_values(Some(ids)).build().into()
            }
        }

        #[cfg(feature = "schema")]
        impl utoipa::ToSchema for FindingId {}

        impl FindingId {
            /// Every id there is, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The text form.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }
        }
    };
}

finding_ids! {
    VmUnknown = "vm.unknown": "No VM of that name or UUID is in the inventory.",
    VmAmbiguous = "vm.ambiguous": "Several VMs have that name.",
    VmNotRunning = "vm.not-running": "The VM is shut off, and a live move was asked for.",
    VmRunning = "vm.running": "The VM is not shut off, and an offline move was asked for.",
    VmPaused = "vm.paused": "The VM is paused, and a live move was asked for.",
    VmCrashed = "vm.crashed": "The VM's guest crashed, and its process is kept.",
    VmSuspended = "vm.suspended": "The VM's guest suspended itself to memory.",
    VmAlreadyThere = "vm.already-there": "The VM already runs on the destination.",
    VmRunsTwice = "vm.runs-twice": "The same UUID runs on two hosts.",
    VmBusy = "vm.busy": "Another job moves this VM.",
    VmSnapshot = "vm.snapshot": "The VM has snapshots, which a live move cannot take along.",
    VmCheckpoint = "vm.checkpoint": "The VM has checkpoints of incremental backups, which do not move along.",
    VmTpm = "vm.tpm-stays": "The VM's emulated TPM keeps its state where it is.",
    VmLocalMedia = "vm.local-media": "An inserted medium lies on the source host only.",
    VmHostDevice = "vm.host-device": "The VM uses a device of its host.",
    VmNameTaken = "vm.name-taken": "Another VM on the destination has this name.",
    // As agents of the version before say it.
    #[serde(alias = "host.setup")]
    VmNotResumed = "vm.not-resumed": "The VM was handed over and could not be run at the destination yet.",
    VmUuidTaken = "vm.uuid-taken": "The destination already has a VM of this UUID.",
    VmMachine = "vm.machine-type": "The destination's QEMU is older than the machine type of the VM.",
    DiskNotShared = "disk.not-shared": "A file of the VM does not lie on a share that both hosts reach.",
    DiskUnsafe = "disk.unsafe-settings": "A disk setting risks data when the share fails.",
    DiskUnknown = "disk.unknown": "The VM has no disk of that name.",
    DiskShareable = "disk.shareable": "The disk is shared between VMs, and cannot be moved while they run.",
    DiskReadOnly = "disk.read-only": "The disk or medium is read only: it stays where it is.",
    DiskNotAFile = "disk.not-a-file": "The disk is no file: Ferry does not move it.",
    DiskTwice = "disk.twice": "Two disks or VMs use the same file.",
    DiskMovedMeanwhile = "disk.moved-meanwhile": "The disk uses another file than when the move was asked for.",
    DiskThick = "disk.thick": "The copy would take the disk's whole virtual size.",
    DiskFlattened = "disk.flattened": "The disk is an overlay; its copy holds the whole chain.",
    DiskNvram = "disk.nvram": "UEFI variables cannot be moved on one host while the VM runs.",
    DiskEncrypted = "disk.encrypted": "The disk's image is encrypted.",
    DiskBusy = "disk.busy": "Something else copies the disk.",
    DiskOdd = "disk.odd": "A setting of the disk would be lost with a copy.",
    FileExists = "file.exists": "A file is there already; Ferry overwrites none.",
    FilePlace = "file.place": "The place cannot be used on the host.",
    FileSpace = "file.space": "The file system has not enough free space.",
    FileKept = "file.kept": "A file stays that the move would have removed.",
    DefinitionNotKept = "definition.not-kept": "No copy of the definition could be kept beside the disks.",
    HostUnknown = "host.unknown": "No host of that name is in the inventory.",
    HostUnreachable = "host.unreachable": "The host's agent does not answer.",
    HostTwice = "host.added-twice": "A host with this machine id or libvirt host UUID is already there.",
    HostBusy = "host.busy": "The host still takes part in a job.",
    HostMaintenance = "host.maintenance": "The host is in maintenance: nothing is placed there.",
    HostNone = "host.none": "No other host can take the VM.",
    HostMemory = "host.memory": "The destination has not enough memory for the VM beside what other moves were promised.",
    HostSharedFilesystems = "host.shared-filesystems": "libvirt on the host does not know that the share root, or a path that shall be a share, is shared.",
    HostRelease = "host.release": "libvirt on the host is too old for this move.",
    HostHook = "host.hook": "The hook script that vetoes a second start is missing or not effective.",
    HostConfinement = "host.confinement": "What confines VMs on the host does not let them use the sockets of moves.",
    HostDamaged = "host.damaged-file": "A file of the host's agent was damaged, and is put aside: what it said is not known there any more.",
    HostNetwork = "host.network": "No migration network connects the two hosts.",
    HostVersion = "host.version": "The host's agent speaks no protocol version that this server speaks.",
    ShareUnknown = "share.unknown": "No share of that name is in the inventory.",
    ShareTwice = "share.added-twice": "The share is already in the inventory.",
    ShareInUse = "share.in-use": "A VM's file or a storage location lies on the share.",
    ShareNotAttached = "share.not-attached": "The share is not attached on a host that needs it.",
    ShareNotSame = "share.not-same": "Two different shares stand behind one name.",
    ShareNotQualified = "share.not-qualified": "The share's server is named without a domain.",
    ShareForm = "share.form": "The text names no share.",
    ShareDialect = "share.dialect": "The server speaks no SMB 3 dialect.",
    SharePassword = "share.password": "The file server refused the user or password.",
    ShareUnreachable = "share.unreachable": "The file server does not answer.",
    ShareLocks = "share.locks": "QEMU's locks do not work on the share as it is mounted: a VM that is moved could not go on.",
    ShareSoft = "share.soft": "The share is mounted so that guests see errors while its file server is away.",
    ShareMount = "share.mount": "The share could not be mounted, or the adopted path is not a mount of it.",
    PlaceForm = "place.form": "The text is neither an absolute path nor a path on a share.",
    PlaceOutside = "place.outside": "The path leads out of the host's storage roots and shares.",
    PlaceMissing = "place.missing": "The host has no such directory.",
    PlaceNotADirectory = "place.not-a-directory": "The path is of something else than a directory.",
    PlaceUnreadable = "place.unreadable": "The host could not read the directory.",
    PlaceNotWritable = "place.not-writable": "QEMU's user could not write a file in the directory.",
    StorageUnknown = "storage.unknown": "The host has no such storage location.",
    StorageTooMany = "storage.too-many": "The host has as many storage locations as it may have.",
    AuthToken = "auth.token": "The call carries no valid token.",
    AuthKey = "auth.key": "The key is not the one this agent is enrolled with.",
    AuthEnrolment = "auth.enrolment": "The enrolment token is wrong or was used before.",
    RequestInvalid = "request.invalid": "The request is not well formed.",
    RequestStale = "request.stale": "The request is older than one that was already taken.",
    RequestIdempotency = "request.idempotency": "The idempotency key was used before with another request.",
    JobUnknown = "job.unknown": "No job of that number is known.",
    JobEnded = "job.ended": "The job has already ended.",
    JobOpen = "job.open": "The job has not ended.",
    JobPastPivot = "job.past-pivot": "The VM, or a disk of it, has switched over; the move can no longer be cancelled.",
    JobUndecided = "job.undecided": "It is not known yet which host has the VM.",
    JobUnreadable = "job.unreadable": "What is stored of the job cannot be read.",
}

impl fmt::Display for FindingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_of_the_version_before_says_of_a_vm_that_it_cannot_run_is_understood() {
        assert_eq!(serde_json::from_str::<FindingId>("\"host.setup\"").expect("read"), FindingId::VmNotResumed);
        assert_eq!(serde_json::to_string(&FindingId::VmNotResumed).expect("text"), "\"vm.not-resumed\"");
    }

    #[test]
    fn every_id_is_unique_and_explained_in_the_docs() {
        let page = include_str!("../../../../docs/findings.md");
        let rows = page.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, FindingId::ALL.len());
        for id in FindingId::ALL {
            let row = format!("| `{id}` | {} |", id.meaning());
            assert_eq!(page.matches(&row).count(), 1, "{row}");
        }
    }
}
