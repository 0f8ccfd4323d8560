//! What makes a host ready for its part of a move, by the kind of move and the end, and what it answers.
//!
//! An agent writes these down as they are ([`super::moves`] says what is asked then).

use serde::{Deserialize, Serialize};

use crate::{
    files::{DiskMove, FileMove},
    id::{SessionId, ShareId, VmId},
    job::OnStall,
    location::Location,
    pin::{Pin, Secret},
    units::ByteCount,
    vm::DiskFormat,
};

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

/// The source has connected and holds the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReady {
    /// Whether the host started the VM at boot, asked when it was held: libvirt tells nobody when that is set.
    pub autostart: bool,
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
