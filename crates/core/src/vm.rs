//! What is known of a VM: facts that a hypervisor driver reads from its definition and state.

use serde::{Deserialize, Serialize};

use crate::{id::VmId, location::Location, units::ByteCount};

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Its vCPUs run.
    Running,
    /// It has a process whose vCPUs stand still, by an administrator's wish or an I/O error.
    Paused,
    /// It has a process that waits for an incoming migration, or is the paused copy that one left.
    Incoming,
    /// It has no process.
    ShutOff,
}

/// A VM as one host has it. `F` says where a file is: a path below `drivers`, a [`Location`] above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmFacts<F = Location> {
    /// libvirt's domain UUID.
    pub id: VmId,
    /// libvirt's domain name.
    pub name: String,
    /// Whether it runs.
    pub state: VmState,
    /// Whether the host keeps a definition of it (libvirt: persistent), so that it can be started again.
    pub persistent: bool,
    /// Whether the host starts it at boot.
    pub autostart: bool,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory the guest may use.
    pub memory: ByteCount,
    /// Every file the definition names: disks, media, NVRAM.
    pub files: Vec<VmFile<F>>,
    /// Snapshots that libvirt keeps for it.
    pub snapshots: u32,
    /// Devices of the host it uses (PCI, USB passthrough): names as the definition writes them.
    pub host_devices: Vec<String>,
    /// Whether it has an emulated TPM.
    pub tpm: bool,
    /// Names of the bridges and libvirt networks its interfaces use.
    pub networks: Vec<String>,
}

/// One file of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmFile<F = Location> {
    /// What it is to the VM.
    pub role: FileRole,
    /// The device's name in the guest definition (`vda`), or `nvram`, `kernel`, `initrd`, `dtb`.
    pub device: String,
    /// Where it is.
    pub place: F,
    /// Whether the guest may write it.
    pub read_only: bool,
    /// Whether several VMs may use it at once (libvirt `<shareable/>`).
    pub shareable: bool,
    /// Whether it has a backing chain (an overlay over another file).
    pub has_backing: bool,
    /// What the definition says QEMU shall do on an I/O error: `stop` keeps the guest from seeing it.
    pub stops_on_error: bool,
    /// How the image is laid out; `None` if the definition does not say, or says something else than Ferry makes.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// Whether QEMU gives back what is not used (libvirt `discard='unmap'`): without it a raw image that something is
    /// copied into becomes as large as its disk.
    #[serde(default)]
    pub unmaps: bool,
    /// Whether QEMU looks for zeros in what is written (libvirt `detect_zeroes`): without it zeros that are copied take
    /// place, where the file they come from does not tell that they are holes.
    #[serde(default)]
    pub detects_zeroes: bool,
}

/// How a disk image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The disk's content and nothing else; thin where the file system keeps holes.
    Raw,
    /// QEMU's own format: thin on every file system.
    Qcow2,
}

impl DiskFormat {
    /// As libvirt, QEMU and file names have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What a file is to its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileRole {
    /// A disk image.
    Disk,
    /// A medium in a CD-ROM or floppy drive.
    Media,
    /// UEFI variables.
    Nvram,
    /// A kernel, an initrd or a device tree that the hypervisor boots directly.
    Boot,
    /// A disk that is not a file: a block device or a network disk. `place` holds its name.
    NotAFile,
}

impl<F> VmFacts<F> {
    /// The same facts with every place rewritten by `rewrite`.
    pub fn map_places<G>(self, mut rewrite: impl FnMut(F) -> G) -> VmFacts<G> {
        VmFacts {
            files: self
                .files
                .into_iter()
                .map(|file| VmFile {
                    role: file.role,
                    device: file.device,
                    place: rewrite(file.place),
                    read_only: file.read_only,
                    shareable: file.shareable,
                    has_backing: file.has_backing,
                    stops_on_error: file.stops_on_error,
                    format: file.format,
                    unmaps: file.unmaps,
                    detects_zeroes: file.detects_zeroes,
                })
                .collect(),
            id: self.id,
            name: self.name,
            state: self.state,
            persistent: self.persistent,
            autostart: self.autostart,
            vcpus: self.vcpus,
            memory: self.memory,
            snapshots: self.snapshots,
            host_devices: self.host_devices,
            tpm: self.tpm,
            networks: self.networks,
        }
    }
}
