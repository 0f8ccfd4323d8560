//! The hypervisor of one host: what Ferry needs of libvirt, and nothing else.
//!
//! [`libvirt::Libvirt`] is the real driver, [`fake`] the one for tests; [`conformance`] is what both
//! keep.

pub mod conformance;
mod definition;
pub mod fake;
pub mod libvirt;
pub mod rpc;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use ferry_core::{
    api::agent::Role,
    id::VmId,
    migration::Presence,
    units::ByteCount,
    vm::{DiskFormat, FileRole, VmFacts, VmFile},
};
use thiserror::Error;

use self::rpc::Bound;
use crate::image;

/// How long the headers of images may take that are asked what lies below them: their file server may be away.
const BELOW_WITHIN: Duration = Duration::from_secs(20);

/// Name of the socket in a session's folder that carries libvirt's RPC channel.
pub const RPC_SOCKET: &str = "rpc.sock";
/// Name of the socket in a session's folder that carries memory and device state.
pub const MEMORY_SOCKET: &str = "memory.sock";

/// Name of the socket in a session's folder that carries disks: one connection for each, in the definition's order.
pub const DISK_SOCKET: &str = "disks.sock";

/// What can go wrong. Each variant is something that a caller treats differently.
#[derive(Debug, Error)]
pub enum HypervisorError {
    /// The host has no such VM.
    #[error("The host has no VM {0}")]
    NoVm(VmId),
    /// libvirt does not answer.
    #[error("libvirt on this host does not answer: {0}")]
    Unreachable(String),
    /// The operation was ended by [`Hypervisor::abort_migration`].
    #[error("{what}: ended by request")]
    Aborted {
        /// What was attempted, on what.
        what: String,
    },
    /// libvirt refused or failed it.
    #[error("{what}: {reason}")]
    Failed {
        /// What was attempted, on what.
        what: String,
        /// libvirt's words.
        reason: String,
    },
    /// The definition is not what it must be for the operation.
    #[error("The definition of VM {vm} cannot be used: {reason}")]
    Definition {
        /// The VM.
        vm: VmId,
        /// What is wrong with it.
        reason: String,
    },
}

/// What the hypervisor says of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HypervisorHost {
    /// libvirt's host UUID.
    pub uuid: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Physical memory.
    pub memory_total: ByteCount,
    /// libvirt's version, `11.3.0`.
    pub libvirt_version: String,
    /// QEMU's version, `10.0.2`.
    pub qemu_version: String,
    /// What libvirt confines its VMs with, in its own words: `apparmor`, `selinux`.
    pub confined_by: Vec<String>,
}

/// What happened to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainEvent {
    /// Its vCPUs were stopped because its state is being handed over.
    StoppedForMigration(VmId),
    /// Anything else about it changed.
    Changed(VmId),
    /// The hypervisor is gone, and with it this watch: nothing more will be reported. Watch again, and look at all.
    ConnectionLost,
}

/// What a migration needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrateRequest {
    /// The VM.
    pub vm: VmId,
    /// Folder of the session's sockets, the same path at both ends.
    pub socket_dir: PathBuf,
    /// Folders of the source and what they are called at the destination; files elsewhere are an error.
    pub translate: Vec<(PathBuf, PathBuf)>,
    /// Whether the destination keeps a definition.
    pub persistent: bool,
    /// QEMU switches over when the rest fits into this.
    pub downtime_limit: Duration,
    /// Cap on what QEMU sends, bytes per second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// QEMU slows the guest's vCPUs more and more if its memory does not converge.
    pub auto_converge: bool,
    /// Disks that move along, before memory.
    pub disks: Vec<DiskAlong>,
    /// Whether it was shown that both hosts reach the same files, so that the source's libvirt need not know it.
    pub vouched: bool,
}

/// A disk that moves along with its VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskAlong {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// Its file at the destination: there already, empty or a seed, with exactly the disk's virtual size.
    pub path: PathBuf,
    /// How that file is laid out.
    pub format: DiskFormat,
}

/// What libvirt counts of a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationStats {
    /// Guest memory.
    pub memory_total: ByteCount,
    /// What is still to be sent.
    pub memory_remaining: ByteCount,
    /// What was sent.
    pub memory_processed: ByteCount,
    /// Bytes per second.
    pub rate_bytes_per_s: u64,
    /// Bytes per second that the guest dirties.
    pub dirty_bytes_per_s: u64,
    /// Passes over memory.
    pub iteration: u32,
    /// Milliseconds, QEMU's figure.
    pub downtime_ms: u64,
}

/// What a copy of a running VM's disk to another file needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCopyRequest {
    /// The VM.
    pub vm: VmId,
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// The file: there already, empty, with exactly the disk's virtual size.
    pub to: PathBuf,
    /// How that file is laid out.
    pub format: DiskFormat,
    /// Cap on what is read, bytes per second.
    pub bandwidth_bytes_per_s: Option<u64>,
}

/// How far a copy of a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCopy {
    /// The file it goes to.
    pub to: PathBuf,
    /// Bytes of the disk that were looked at; never more than `total`.
    pub copied: ByteCount,
    /// Bytes to look at: at least the disk's virtual size, more while the guest writes.
    pub total: ByteCount,
    /// Every write goes to both files from now on, and the copy holds all that was there before.
    pub ready: bool,
}

/// Sizes of a disk of a running VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSize {
    /// What the guest sees.
    pub virtual_size: ByteCount,
    /// What the image takes on its file system, as far as that tells.
    pub allocated: ByteCount,
}

/// A disk that a VM's process does not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRefused {
    /// The disk's name in the definition, `vda`; empty if the file is none of a disk's own.
    pub device: String,
    /// Its file.
    pub path: PathBuf,
    /// The hypervisor's words.
    pub reason: String,
}

/// Where events go. Called from a thread of the driver; must not block.
pub type EventSink = Box<dyn Fn(DomainEvent) + Send + Sync>;

/// The hypervisor of one host. All calls block; the long one is [`Hypervisor::migrate`].
pub trait Hypervisor: Send + Sync + 'static {
    /// The host.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn host(&self) -> Result<HypervisorHost, HypervisorError>;

    /// Every VM the host knows.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn vms(&self) -> Result<Vec<VmFacts<PathBuf>>, HypervisorError>;

    /// One VM; `None` if the host does not know it.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn vm(&self, vm: VmId) -> Result<Option<VmFacts<PathBuf>>, HypervisorError>;

    /// Every file that a VM of this host needs now or at its next start, with what lies below its disks, for whoever
    /// removes files: fails rather than leave one out, and may wait for a VM that is busy. A VM that is being received
    /// is left out: another host gave its files up for it. [`Hypervisor::vms`] may tell what was so a moment ago.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`], [`HypervisorError::Failed`] for a VM that stays busy, or an image that cannot be
    /// read.
    fn files_in_use(&self) -> Result<BTreeSet<PathBuf>, HypervisorError>;

    /// What the host has of a VM that is being moved, seen from its `role`.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn presence(&self, vm: VmId, role: Role) -> Result<Presence, HypervisorError>;

    /// Reports events to `sink` until the returned guard is dropped.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn watch(&self, sink: EventSink) -> Result<Box<dyn Send>, HypervisorError>;

    /// Starts a VM that has a definition and no process. Ok if it runs already.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`] (also by the hook's veto).
    fn start(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Destination, once [`Presence::Arrived`]: sees that the VM's process has its disks, without which it cannot run,
    /// and has it try once more to get those that it has not. Gives the disks that it does not get: none if it has all, or
    /// if the hypervisor cannot tell (QEMU before 10.0). The VM stays paused.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Unreachable`], [`HypervisorError::Failed`]: it is not known.
    fn ensure_disks(&self, vm: VmId) -> Result<Vec<DiskRefused>, HypervisorError>;

    /// Asks the guest to shut itself down; returns when it was asked.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`].
    fn shutdown(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Runs a paused VM. Ok if it runs already.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`]: also if its guest crashed or suspended itself.
    fn resume(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Has a VM be known to run that runs, and of which it is said that it stands still since a disk failed
    /// ([`VmFacts::stall`]); whether it was such a one. To be known, it stands still for a moment.
    ///
    /// QEMU (since 10.0) tells of a disk's errors once a second at most: of one that comes within a second of another, it
    /// tells late, when the VM may run again. libvirt takes the VM for paused from then on, and resuming it does not
    /// change that.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Unreachable`], [`HypervisorError::Failed`].
    fn see_running(&self, vm: VmId) -> Result<bool, HypervisorError>;

    /// Ends a VM's process. Ok if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`].
    fn destroy(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Removes a VM's definition; its NVRAM file stays. Ok if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`].
    fn undefine(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// The definition that is kept of a VM that is shut off, with every file's path rewritten by `paths`: folders here, or
    /// files themselves, and what they are called elsewhere. The first that fits counts.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`]; [`HypervisorError::Definition`] naming the first file that lies in none of them;
    /// [`HypervisorError::Failed`] if the VM has a process or a saved state, or is not defined.
    fn definition(&self, vm: VmId, paths: &[(PathBuf, PathBuf)]) -> Result<String, HypervisorError>;

    /// The definition by which a VM starts next time, without passwords, for people and for Pacemaker.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`].
    fn kept_definition(&self, vm: VmId) -> Result<String, HypervisorError>;

    /// Keeps a definition that came from another host, once it was seen to be one of the VM that `bound` tells, with no
    /// path outside of its roots. May be repeated.
    ///
    /// # Errors
    /// [`HypervisorError::Definition`] if it is not; [`HypervisorError::Failed`], also if another VM has its name.
    fn define(&self, definition: &str, bound: &Bound) -> Result<(), HypervisorError>;

    /// Sets whether the host starts the VM at boot.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`].
    fn set_autostart(&self, vm: VmId, autostart: bool) -> Result<(), HypervisorError>;

    /// Moves a running VM through the sockets of the request, peer to peer: first the disks that move along, then
    /// memory. Blocks until libvirt's call ends. Ok promises that the source's copy is gone and the destination holds a
    /// complete, paused one.
    ///
    /// # Errors
    /// After an error, who has the VM is to be asked with [`Hypervisor::presence`] at both ends.
    fn migrate(&self, request: &MigrateRequest) -> Result<(), HypervisorError>;

    /// How far a running migration is; `None` if there is none, also of a VM that the host does not know or that has no
    /// process.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`], [`HypervisorError::Failed`]: there may be one.
    fn migration_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError>;

    /// How far one disk of a running migration is: bytes looked at, and bytes to look at; `None` if it is not known.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn disk_along(&self, vm: VmId, device: &str) -> Result<Option<(ByteCount, ByteCount)>, HypervisorError>;

    /// Changes how long the VM may stand still at the end of its running migration.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`], also if there is none.
    fn set_downtime_limit(&self, vm: VmId, limit: Duration) -> Result<(), HypervisorError>;

    /// What the last migration took, while the host still knows the VM.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn completed_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError>;

    /// Ends a running migration. Ok if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`] after the point of no return.
    fn abort_migration(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Sizes of a disk of a running VM.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`] if there is no such disk.
    fn disk_size(&self, vm: VmId, device: &str) -> Result<DiskSize, HypervisorError>;

    /// Begins to copy a running VM's disk to another file; the VM goes on with the old one. Ok promises that the copy
    /// goes on until [`Hypervisor::pivot_disk`], [`Hypervisor::abandon_disk_copy`], an error or the VM's end, also while
    /// libvirt is restarted.
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Failed`] (also if the disk is being copied already).
    fn copy_disk(&self, request: &DiskCopyRequest) -> Result<(), HypervisorError>;

    /// How far the copy of a disk is; `None` if there is none (any more).
    ///
    /// # Errors
    /// [`HypervisorError::NoVm`], [`HypervisorError::Unreachable`].
    fn disk_copy(&self, vm: VmId, device: &str) -> Result<Option<DiskCopy>, HypervisorError>;

    /// Makes the VM use the copy instead of the old file, now and at its next start. Ok promises that the old file is
    /// not written any more.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`] if the copy is not ready; which file the VM uses is to be asked with
    /// [`Hypervisor::vm`].
    fn pivot_disk(&self, vm: VmId, device: &str) -> Result<(), HypervisorError>;

    /// Ends the copy of a disk; the VM uses the old file. Ok if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`].
    fn abandon_disk_copy(&self, vm: VmId, device: &str) -> Result<(), HypervisorError>;

    /// The socket at which the local libvirt takes management calls.
    fn rpc_socket(&self) -> PathBuf;

    /// The user and group ids that the VMs' processes run as. They must be able to bind and to connect in a
    /// session's folder.
    ///
    /// # Errors
    /// [`HypervisorError::Unreachable`].
    fn process_owner(&self) -> Result<(u32, u32), HypervisorError>;

    /// Where this process finds a socket at which a VM of this host listens, given the path in the session's folder.
    /// The same path, unless several fake hosts share one file system.
    fn reach(&self, socket: &Path) -> PathBuf {
        socket.to_owned()
    }
}

/// Disk images that only their own headers tell what lies below: of those that are raw nothing does, whatever they begin
/// with. An overlay may also lie on a device.
pub fn images_to_ask<'a>(files: impl IntoIterator<Item = &'a VmFile<PathBuf>>) -> BTreeSet<PathBuf> {
    let may_have = |file: &&VmFile<PathBuf>| {
        let is_image = match file.role {
            FileRole::Disk => file.format != Some(DiskFormat::Raw),
            FileRole::NotAFile => file.kind.as_deref() == Some("block") && file.format == Some(DiskFormat::Qcow2),
            FileRole::Media => file.format == Some(DiskFormat::Qcow2),
            FileRole::Nvram | FileRole::Boot => false,
        };
        is_image && file.below.is_empty()
    };
    files.into_iter().filter(may_have).map(|file| file.place.clone()).collect()
}

/// Refuses a disk of which nobody can say where its file is. A medium is read only: no file that Ferry removes is one.
///
/// # Errors
/// [`HypervisorError::Failed`], naming the volume.
pub(crate) fn has_a_place(file: &VmFile<PathBuf>) -> Result<(), HypervisorError> {
    if file.kind.as_deref() != Some("volume") {
        return Ok(());
    }
    Err(HypervisorError::Failed {
        what: "Could not list the files of VMs".to_owned(),
        reason: format!(
            "disk {} of one is volume {}, of which no storage pool says where it is: start the pool, or undefine the VM",
            file.device,
            file.place.display()
        ),
    })
}

/// What lies below images, by their headers. Takes [`BELOW_WITHIN`] at most.
///
/// # Errors
/// [`HypervisorError::Failed`], naming the image.
pub(crate) fn files_below(images: BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>, HypervisorError> {
    let what = || "Could not read what lies below the disks of VMs".to_owned();
    let failed = |reason: String| HypervisorError::Failed { what: what(), reason };
    if images.is_empty() {
        return Ok(BTreeSet::new());
    }
    let (answer, answered) = mpsc::sync_channel(1);
    let read = move || {
        let mut found = BTreeSet::new();
        for path in &images {
            match image::below(path) {
                Ok(below) => found.extend(below),
                Err(error) => {
                    let _ = answer.send(Err(format!("{}: {error}", path.display())));
                    return;
                }
            }
        }
        let _ = answer.send(Ok(found));
    };
    let started: io::Result<_> = thread::Builder::new().name("images-below".to_owned()).spawn(read);
    started.map_err(|error| failed(error.to_string()))?;
    match answered.recv_timeout(BELOW_WITHIN) {
        Ok(outcome) => outcome.map_err(failed),
        Err(_) => Err(failed("the file system of one of them does not answer".to_owned())),
    }
}

/// The files that a definition names, in its order.
///
/// # Errors
/// [`HypervisorError::Definition`] if it is none.
pub fn files_of(definition: &str) -> Result<Vec<VmFile<PathBuf>>, HypervisorError> {
    Ok(definition::parse(definition)?.files)
}

/// What a path is called at the destination, by the first folder that holds it, or the first file that it is.
pub fn translated(path: &Path, folders: &[(PathBuf, PathBuf)]) -> Option<PathBuf> {
    let in_folder = |rest: &Path, there: &Path| match rest.as_os_str().is_empty() {
        true => there.to_owned(),
        false => there.join(rest),
    };
    folders.iter().find_map(|(here, there)| path.strip_prefix(here).ok().map(|rest| in_folder(rest, there)))
}
