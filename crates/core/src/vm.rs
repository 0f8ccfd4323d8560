//! What is known of a VM: facts that a hypervisor driver reads from its definition and state.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{id::VmId, location::Location, units::ByteCount};

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Its vCPUs run.
    Running,
    /// Its guest crashed, and its process is kept as its definition asks (libvirt `on_crash` `preserve`, with a panic
    /// device).
    Crashed,
    /// Its guest suspended itself to memory, and has a process that waits to be woken (libvirt: pmsuspended).
    Suspended,
    /// It has a process whose vCPUs stand still, by an administrator's wish or an I/O error.
    Paused,
    /// It has a process that waits for an incoming migration, or is the paused copy that one left.
    Incoming,
    /// It has no process.
    ShutOff,
}

/// Why QEMU stopped a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Stall {
    /// The disks that could not be read or written, by their names in the definition.
    pub devices: Vec<String>,
    /// For want of room.
    pub full: bool,
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
    /// What it has of that now: its balloon holds the rest. An agent of an earlier version does not say.
    #[serde(default)]
    pub memory_now: Option<ByteCount>,
    /// The size of the huge pages that its memory is in; zero: what is usual on its host.
    #[serde(default)]
    pub huge_page: Option<ByteCount>,
    /// Every file the definition names: disks, media, NVRAM.
    pub files: Vec<VmFile<F>>,
    /// Snapshots that libvirt keeps for it.
    pub snapshots: u32,
    /// Checkpoints that libvirt keeps for it: from where incremental backups go on.
    #[serde(default)]
    pub checkpoints: u32,
    /// Devices of the host it uses (PCI, USB, interface or TPM passthrough): names as the definition writes them.
    pub host_devices: Vec<String>,
    /// Whether it has an emulated TPM.
    pub tpm: bool,
    /// Names of the bridges and libvirt networks its interfaces use.
    pub networks: Vec<String>,
    /// The machine type that its definition names: `pc-q35-10.0` of one that runs. An agent of an earlier version does not
    /// say.
    #[serde(default)]
    pub machine: Option<String>,
    /// Whether QEMU emulates its processors (libvirt's type `qemu`). An agent of an earlier version does not say.
    #[serde(default)]
    pub emulated: bool,
    /// Of one that is paused: that QEMU stopped it, since a disk could not be read or written. An agent of an earlier version
    /// does not say.
    #[serde(default)]
    pub stall: Option<Stall>,
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
    /// Whether QEMU reads and writes past its host's page cache (libvirt `cache='none'` or `'directsync'`).
    #[serde(default)]
    pub bypasses_cache: bool,
    /// What it needs besides: the files below an overlay, and the file that it is being copied to. Of a VM that is shut
    /// off the definition does not tell; then it is what the image's header says, as far as that could be read.
    #[serde(default = "Vec::new")]
    pub below: Vec<F>,
    /// What `place` is with every link and further mount followed, where that is another name. Only to know a file again:
    /// it is read and named by `place`.
    pub real: Option<F>,
    /// The same of `below`, of those that have another name.
    #[serde(default = "Vec::new")]
    pub real_below: Vec<F>,
    /// What a copy would not keep, or stands in its way.
    #[serde(default, rename = "oddities")]
    pub features: Vec<DiskFeature>,
    /// What is no file, in the definition's words: `block`, `network rbd`, `nvdimm`.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub kind: Option<NotAFile>,
}

/// What a VM gets of its host that is no file. In JSON it is text, in the words of the definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum NotAFile {
    /// `block`: a block device.
    Block,
    /// `volume`: one of a storage pool that cannot tell where it is.
    Volume,
    /// `network`, `network rbd`: a disk on the network, by this protocol.
    Network(Option<String>),
    /// `filesystem virtiofs`: a folder of the host, by this driver.
    Filesystem(String),
    /// `nvdimm`: memory that is kept in a file.
    Nvdimm,
    /// `cdrom block`, `floppy network https`: a medium in such a drive, and what it is.
    Medium(Drive, String),
    /// Any other type of a disk, such as `nvme`.
    Other(String),
}

/// A drive for media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// For CDs and DVDs.
    CdRom,
    /// For floppy disks.
    Floppy,
}

impl Drive {
    const ALL: [Self; 2] = [Self::CdRom, Self::Floppy];

    /// As libvirt has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CdRom => "cdrom",
            Self::Floppy => "floppy",
        }
    }

    /// The drive that a definition calls so.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|drive| drive.name() == name)
    }
}

impl From<String> for NotAFile {
    fn from(text: String) -> Self {
        match (text.as_str(), text.split_once(' ')) {
            ("block", _) => Self::Block,
            ("volume", _) => Self::Volume,
            ("nvdimm", _) => Self::Nvdimm,
            ("network", _) => Self::Network(None),
            (_, Some(("network", protocol))) => Self::Network(Some(protocol.to_owned())),
            (_, Some(("filesystem", driver))) => Self::Filesystem(driver.to_owned()),
            (_, Some((drive, medium))) => match Drive::of(drive) {
                Some(drive) => Self::Medium(drive, medium.to_owned()),
                None => Self::Other(text),
            },
            (_, None) => Self::Other(text),
        }
    }
}

impl From<NotAFile> for String {
    fn from(kind: NotAFile) -> Self {
        kind.to_string()
    }
}

impl fmt::Display for NotAFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block => f.write_str("block"),
            Self::Volume => f.write_str("volume"),
            Self::Nvdimm => f.write_str("nvdimm"),
            Self::Network(None) => f.write_str("network"),
            Self::Network(Some(protocol)) => write!(f, "network {protocol}"),
            Self::Filesystem(driver) => write!(f, "filesystem {driver}"),
            Self::Medium(drive, medium) => write!(f, "{} {medium}", drive.name()),
            Self::Other(kind) => f.write_str(kind),
        }
    }
}

/// Something about a disk that a copy would not keep, or that stands in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskFeature {
    /// Its image is encrypted: QEMU copies what the guest sees.
    Encrypted,
    /// What the guest writes is forgotten at its end (libvirt `<transient/>`).
    Transient,
    /// It is being copied to another file.
    Copied,
    /// It is a part of its image (libvirt `<slices>`).
    Sliced,
    /// It keeps its data in another file than its image (libvirt `<dataStore>`).
    DataFile,
}

/// How a device of UEFI variables is called.
pub const NVRAM: &str = "nvram";

impl<F> VmFile<F> {
    /// A file of which nothing else is said. An error stops the VM: that only a disk's definition can change.
    pub fn new(role: FileRole, device: impl Into<String>, place: F) -> Self {
        Self {
            role,
            device: device.into(),
            place,
            read_only: false,
            shareable: false,
            has_backing: false,
            stops_on_error: true,
            format: None,
            unmaps: false,
            detects_zeroes: false,
            bypasses_cache: false,
            below: Vec::new(),
            real: None,
            real_below: Vec::new(),
            features: Vec::new(),
            kind: None,
        }
    }
}

impl<F: PartialEq> VmFile<F> {
    /// Whether the VM needs what is at a place for this, by whichever of its names.
    pub fn uses(&self, place: &F) -> bool {
        self.place == *place
            || self.real.as_ref() == Some(place)
            || self.below.contains(place)
            || self.real_below.contains(place)
    }

    /// Whether the VM needs another file for this, by whichever of the names of both.
    pub fn needs(&self, other: &Self) -> bool {
        self.uses_either(&other.place, other.real.as_ref())
    }

    /// Whether the VM needs a file for this that has one or two names.
    pub fn uses_either(&self, place: &F, real: Option<&F>) -> bool {
        self.uses(place) || real.is_some_and(|real| self.uses(real))
    }

    /// Whether a copy would not keep this, or it stands in its way.
    pub fn has(&self, feature: DiskFeature) -> bool {
        self.features.contains(&feature)
    }

    /// Whether it is a medium in a drive, a file or not.
    pub fn is_medium(&self) -> bool {
        self.role == FileRole::Media || matches!(self.kind, Some(NotAFile::Medium(..)))
    }

    /// What is no file, for people.
    pub fn what(&self) -> String {
        match &self.kind {
            Some(NotAFile::Block) => "a block device".to_owned(),
            Some(NotAFile::Volume) => "a volume that no storage pool of its host can tell the place of".to_owned(),
            Some(kind @ NotAFile::Network(_)) => format!("a network disk ({kind})"),
            Some(NotAFile::Nvdimm) => "a memory device kept in a file (nvdimm)".to_owned(),
            Some(kind @ NotAFile::Filesystem(_)) => format!("a folder of its host ({kind})"),
            Some(kind @ (NotAFile::Medium(..) | NotAFile::Other(_))) => format!("of type {kind}"),
            None => "a block device or a network disk".to_owned(),
        }
    }

    /// Every place that it needs.
    pub fn places(&self) -> impl Iterator<Item = &F> {
        std::iter::once(&self.place).chain(&self.below)
    }
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
    /// A disk, or what else guests get of a host, that is not a file: a block device, a network disk, a folder. `place`
    /// holds its name.
    NotAFile,
}

impl<F> VmFacts<F> {
    /// A VM that is shut off, with these files, and of which nothing else is said.
    pub fn new(id: VmId, name: impl Into<String>, files: Vec<VmFile<F>>) -> Self {
        Self {
            id,
            name: name.into(),
            state: VmState::ShutOff,
            persistent: false,
            autostart: false,
            vcpus: 0,
            memory: ByteCount(0),
            memory_now: None,
            huge_page: None,
            files,
            snapshots: 0,
            checkpoints: 0,
            host_devices: Vec::new(),
            tpm: false,
            networks: Vec::new(),
            machine: None,
            emulated: false,
            stall: None,
        }
    }

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
                    below: file.below.into_iter().map(&mut rewrite).collect(),
                    real: file.real.map(&mut rewrite),
                    real_below: file.real_below.into_iter().map(&mut rewrite).collect(),
                    features: file.features,
                    kind: file.kind,
                    read_only: file.read_only,
                    shareable: file.shareable,
                    has_backing: file.has_backing,
                    stops_on_error: file.stops_on_error,
                    format: file.format,
                    unmaps: file.unmaps,
                    detects_zeroes: file.detects_zeroes,
                    bypasses_cache: file.bypasses_cache,
                })
                .collect(),
            id: self.id,
            name: self.name,
            state: self.state,
            persistent: self.persistent,
            autostart: self.autostart,
            vcpus: self.vcpus,
            memory: self.memory,
            memory_now: self.memory_now,
            huge_page: self.huge_page,
            snapshots: self.snapshots,
            checkpoints: self.checkpoints,
            host_devices: self.host_devices,
            tpm: self.tpm,
            networks: self.networks,
            machine: self.machine,
            emulated: self.emulated,
            stall: self.stall,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_file_is_told_in_the_words_of_its_definition() {
        for (text, kind, medium, what) in [
            ("block", NotAFile::Block, false, "a block device"),
            ("network", NotAFile::Network(None), false, "a network disk (network)"),
            ("network rbd", NotAFile::Network(Some("rbd".into())), false, "a network disk (network rbd)"),
            ("nvdimm", NotAFile::Nvdimm, false, "a memory device kept in a file (nvdimm)"),
            (
                "filesystem virtiofs",
                NotAFile::Filesystem("virtiofs".into()),
                false,
                "a folder of its host (filesystem virtiofs)",
            ),
            ("cdrom block", NotAFile::Medium(Drive::CdRom, "block".into()), true, "of type cdrom block"),
            (
                "floppy network https",
                NotAFile::Medium(Drive::Floppy, "network https".into()),
                true,
                "of type floppy network https",
            ),
            ("nvme", NotAFile::Other("nvme".into()), false, "of type nvme"),
        ] {
            let file = VmFile { kind: Some(kind), ..VmFile::new(FileRole::NotAFile, "vda", ()) };
            assert_eq!(serde_json::to_value(&file).expect("JSON")["kind"], text);
            assert_eq!((file.is_medium(), file.what().as_str()), (medium, what), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_text_of_what_is_no_file_reads_back(
            text in "(block|volume|network|filesystem|nvdimm|cdrom|floppy|[a-z]{0,5})( [a-z ]{0,8})?"
        ) {
            prop_assert_eq!(NotAFile::from(text.clone()).to_string(), text);
        }
    }
}
