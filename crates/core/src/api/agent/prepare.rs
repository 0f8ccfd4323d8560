//! What prepares a host for its part of a move, by kind of move and end, and the host's answers.
//!
//! Agents store these as they are ([`super::moves`] contains the later requests).

use serde::{Deserialize, Serialize};

use crate::{
    files::{DiskMove, FileMove},
    id::{SessionId, ShareId, VmId},
    job::OnStall,
    location::Location,
    network::Route,
    pin::{Pin, Secret},
    transfer::Preset,
    units::ByteCount,
    vm::DiskFormat,
};

/// Prepares a host to receive a VM: starts a carrier that listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareDestination {
    /// The session of the attempt.
    pub session: SessionId,
    /// A secret that only both agents of this session know.
    pub secret: Secret,
    /// The source agent's pin.
    pub source_pin: Pin,
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// Shares that hold files of the VM: each must be attached here.
    pub shares: Vec<ShareId>,
    /// Whether the host must keep a persistent definition (false for VMs that a cluster starts).
    pub persistent: bool,
    /// The limit for the downtime of the switchover, in milliseconds.
    pub downtime_limit_ms: u32,
    /// Migrated disks: their new files are created here. Absent from servers of an earlier version.
    #[serde(default)]
    pub disks: Vec<IncomingDisk>,
    /// Where the bytes travel; `None`: the destination listens at the address of its agent's configuration. Sent only to
    /// agents that report their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
}

/// A disk that comes from another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingDisk {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// The disk's file on this host; it must not exist yet.
    pub to: Location,
    /// The format of that file.
    pub format: DiskFormat,
    /// The exact virtual size of the new file, as the guest sees it.
    pub virtual_size: ByteCount,
    /// The space that the old file occupies: this much and a little more must be free here.
    pub allocated: ByteCount,
}

/// The new file of a disk at the destination. Passed from agent to agent, never stored or shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingDiskFile {
    /// The disk's name in the definition.
    pub device: String,
    /// The file.
    pub path: String,
    /// Its format.
    pub format: DiskFormat,
    /// Whether it is a partial copy of the disk: then the destination reports its content on a separate channel.
    #[serde(default, rename = "sown")]
    pub from_partial: bool,
}

/// The destination listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationReady {
    /// `ADDRESS:PORT` of the destination's carrier.
    pub carrier: String,
    /// The destination's mount point of each share, for the translation of the definition at the source.
    pub mounts: Vec<ShareMount>,
    /// Folder of the session's sockets: both ends use the same path.
    pub socket_dir: String,
    /// The new files of the migrated disks. An agent of an earlier version creates none.
    #[serde(default)]
    pub files: Vec<IncomingDiskFile>,
}

/// Where a host has mounted a share. Passed from agent to agent, never stored or shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMount {
    /// The share.
    pub share: ShareId,
    /// The directory.
    pub path: String,
}

/// Prepares a host to send a VM: starts a carrier that connects, holds the VM, and clears autostart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareSource {
    /// The session of the attempt.
    pub session: SessionId,
    /// A secret that only both agents of this session know.
    pub secret: Secret,
    /// The destination agent's pin.
    pub destination_pin: Pin,
    /// The destination's answer.
    pub destination: DestinationReady,
    /// The VM.
    pub vm: VmId,
    /// QEMU switches over when the remaining data can be sent within this time, in milliseconds.
    pub downtime_limit_ms: u32,
    /// Limit of the rate at which QEMU sends, in bytes per second; `None`: no limit.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Limit of the rate at which the carrier sends all disks together, in bytes per second. Absent from servers of an
    /// earlier version.
    #[serde(default)]
    pub disk_bandwidth_bytes_per_s: Option<u64>,
    /// How the bytes travel. Absent from servers of an earlier version, which know no other way.
    #[serde(default = "standard")]
    pub performance: Preset,
    /// The time limit of the move, in milliseconds.
    pub timeout_ms: u64,
    /// What happens if it does not converge. Absent from servers of an earlier version.
    #[serde(default)]
    pub on_stall: OnStall,
    /// Migrated disks, with their files on this host. Absent from servers of an earlier version.
    #[serde(default)]
    pub disks: Vec<DiskMove>,
    /// Whether it was proven that both hosts mounted the same share, for every share that the VM continues to use.
    /// Absent from servers of an earlier version.
    #[serde(default)]
    pub shares_proven: bool,
    /// Where the bytes travel; `None`: the destination listens at the address of its agent's configuration. Sent only to
    /// agents that report their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
}

fn standard() -> Preset {
    Preset::Standard
}

/// The source has connected and holds the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReady {
    /// Whether the host started the VM at boot. Read when the VM was held, because libvirt sends no event when this
    /// setting changes.
    pub autostart: bool,
}

/// Prepares a move of a running VM's disks to other files of the host: creates the new files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareStorage {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub vm_name: String,
    /// The disks, each once.
    pub disks: Vec<DiskMove>,
    /// Limit of the rate at which all disks together are read, in bytes per second; `None`: no limit.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Whether the whole VM moves, not only chosen disks: then a copy of its definition is kept beside its first disk.
    #[serde(default)]
    pub whole: bool,
}

/// A file that moves to another host with a VM that is shut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineFile {
    /// The file, and where it goes.
    #[serde(flatten)]
    pub file: FileMove,
    /// Its length.
    pub length: ByteCount,
    /// The space that it occupies at the source, as far as the file system reports.
    pub allocated: ByteCount,
}

/// Asks a destination whether it can receive files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckOffline {
    /// The VM, which must not be defined there.
    pub vm: VmId,
    /// Its files.
    pub files: Vec<OfflineFile>,
    /// Files that its definition names and that do not exist yet.
    #[serde(default)]
    pub absent: Vec<FileMove>,
}

/// Prepares a host to receive a VM that is shut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveOffline {
    /// The session of the attempt.
    pub session: SessionId,
    /// A secret that only both agents of this session know.
    pub secret: Secret,
    /// The source agent's pin.
    pub source_pin: Pin,
    /// The VM.
    pub vm: VmId,
    /// Its name, which must be that of the definition.
    pub vm_name: String,
    /// Shares with files of the VM that stay there.
    pub shares: Vec<ShareId>,
    /// The incoming files.
    pub files: Vec<OfflineFile>,
    /// Files that the definition names and that do not exist yet: UEFI variables, which libvirt creates at the first
    /// start.
    #[serde(default)]
    pub absent: Vec<FileMove>,
    /// Where the bytes travel; `None`: the destination listens at the address of its agent's configuration. Sent only to
    /// agents that report their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
}

/// The answer of a prepared destination, for the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfflineReady {
    /// The address at which it listens.
    pub address: String,
    /// Where it has mounted the shares.
    pub mounts: Vec<ShareMount>,
    /// The new files, in the order of the request.
    pub paths: Vec<String>,
    /// The paths of the files that do not exist yet, in the order of the request.
    #[serde(default)]
    pub absent: Vec<String>,
    /// Devices whose files already exist there, because another VM shares them: they are compared, not sent.
    #[serde(default)]
    pub adopted: Vec<String>,
}

/// Prepares a host to send a VM that is shut off: from now on the VM is held against a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendOffline {
    /// The session of the attempt.
    pub session: SessionId,
    /// A secret that only both agents of this session know.
    pub secret: Secret,
    /// The destination agent's pin.
    pub destination_pin: Pin,
    /// The destination's answer.
    pub destination: OfflineReady,
    /// The VM.
    pub vm: VmId,
    /// The files to send.
    pub files: Vec<OfflineFile>,
    /// Files that the definition names and that do not exist yet.
    #[serde(default)]
    pub absent: Vec<FileMove>,
    /// Where the bytes travel; `None`: the destination listens at the address of its agent's configuration. Sent only to
    /// agents that report their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
}
