//! Facts about a VM, which a hypervisor driver reads from its definition and state.

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
    /// Its guest crashed, and its process is kept because its definition asks for that (libvirt `on_crash` `preserve`,
    /// with a panic device).
    Crashed,
    /// Its guest suspended itself to memory; its process waits to be woken (libvirt: pmsuspended).
    Suspended,
    /// It has a process whose vCPUs are stopped, by an administrator or after an I/O error.
    Paused,
    /// It has a process that waits for an incoming migration, or is the paused copy that a migration left.
    Incoming,
    /// It has no process.
    ShutOff,
}

/// Why QEMU stopped a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Stall {
    /// The disks with I/O errors, by their names in the definition.
    pub devices: Vec<String>,
    /// Whether the reason was lack of space.
    pub full: bool,
}

/// A VM as one host reports it. `F` is the type of file locations: a path inside `drivers`, a [`Location`] above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmFacts<F = Location> {
    /// libvirt's domain UUID.
    pub id: VmId,
    /// libvirt's domain name.
    pub name: String,
    /// Whether it runs.
    pub state: VmState,
    /// Whether the host keeps a definition of it (libvirt: persistent), from which it can be started again.
    pub persistent: bool,
    /// Whether the host starts it at boot.
    pub autostart: bool,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory the guest may use.
    pub memory: ByteCount,
    /// The part of it that the guest has now; its balloon holds the rest. An agent of an earlier version omits the
    /// field.
    #[serde(default)]
    pub memory_now: Option<ByteCount>,
    /// The size of the huge pages that back its memory; zero: the host's default size.
    #[serde(default)]
    pub huge_page: Option<ByteCount>,
    /// Every file the definition names: disks, media, NVRAM.
    pub files: Vec<VmFile<F>>,
    /// The number of libvirt snapshots.
    pub snapshots: u32,
    /// The number of libvirt checkpoints, from which incremental backups continue.
    #[serde(default)]
    pub checkpoints: u32,
    /// Host devices that it uses (PCI, USB, interface or TPM passthrough): names as in the definition.
    pub host_devices: Vec<String>,
    /// Whether it has an emulated TPM.
    pub tpm: bool,
    /// Names of the bridges and libvirt networks that its interfaces use.
    pub networks: Vec<String>,
    /// The machine type in its definition, for a running VM for instance `pc-q35-10.0`. An agent of an earlier version
    /// omits the field.
    #[serde(default)]
    pub machine: Option<String>,
    /// Whether QEMU emulates its processors (libvirt's type `qemu`). An agent of an earlier version omits the field.
    #[serde(default)]
    pub emulated: bool,
    /// For a paused VM: set if QEMU stopped it because of an I/O error. An agent of an earlier version omits the field.
    #[serde(default)]
    pub stall: Option<Stall>,
}

/// One file of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmFile<F = Location> {
    /// Its role in the VM.
    pub role: FileRole,
    /// The device's name in the guest definition (`vda`), or `nvram`, `kernel`, `initrd`, `dtb`.
    pub device: String,
    /// Where it is.
    pub place: F,
    /// Whether the guest cannot write it.
    pub read_only: bool,
    /// Whether several VMs may use it at once (libvirt `<shareable/>`).
    pub shareable: bool,
    /// Whether it has a backing chain (an overlay over another file).
    pub has_backing: bool,
    /// The definition's policy for I/O errors: `stop` hides them from the guest.
    pub stops_on_error: bool,
    /// The image format; `None` if the definition does not state it, or states one that Ferry does not make.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// Whether QEMU frees unused blocks (libvirt `discard='unmap'`). Without it, a raw image that is copied into
    /// becomes as large as its disk.
    #[serde(default)]
    pub unmaps: bool,
    /// Whether QEMU detects zeroes in written data (libvirt `detect_zeroes`). Without it, copied zeroes occupy space
    /// unless the file they come from reports them as holes.
    #[serde(default)]
    pub detects_zeroes: bool,
    /// Whether QEMU reads and writes past its host's page cache (libvirt `cache='none'` or `'directsync'`).
    #[serde(default)]
    pub bypasses_cache: bool,
    /// Further files it needs: those below an overlay, and the target of a running copy. For a VM that is shut off, the
    /// definition does not list them; then they come from the image's header, as far as it could be read.
    #[serde(default = "Vec::new")]
    pub below: Vec<F>,
    /// `place` with all links and nested mounts resolved, if that differs. Only used to recognise a file: it is read
    /// and reported by `place`.
    pub real: Option<F>,
    /// The same for those of `below` that have another name.
    #[serde(default = "Vec::new")]
    pub real_below: Vec<F>,
    /// Features that a copy would lose, or that prevent a copy.
    #[serde(default, rename = "oddities")]
    pub features: Vec<DiskFeature>,
    /// For a device that is not a file, its kind in the definition's words: `block`, `network rbd`, `nvdimm`.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub kind: Option<NotAFile>,
}

/// A host device of a VM that is not a file. In JSON it is a string, in the definition's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum NotAFile {
    /// `block`: a block device.
    Block,
    /// `volume`: a volume of a storage pool that cannot report its path.
    Volume,
    /// `network`, `network rbd`: a disk on the network, by this protocol.
    Network(Option<String>),
    /// `filesystem virtiofs`: a host folder, by this driver.
    Filesystem(String),
    /// `nvdimm`: memory that is stored in a file.
    Nvdimm,
    /// `cdrom block`, `floppy network https`: a medium in such a drive, and its type.
    Medium(Drive, String),
    /// Any other disk type, such as `nvme`.
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

    /// libvirt's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CdRom => "cdrom",
            Self::Floppy => "floppy",
        }
    }

    /// The drive with this name in a definition.
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

/// A feature of a disk that a copy would lose, or that prevents a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskFeature {
    /// Its image is encrypted: QEMU copies the decrypted content.
    Encrypted,
    /// Guest writes are discarded when the VM ends (libvirt `<transient/>`).
    Transient,
    /// It is being copied to another file.
    Copied,
    /// It is a part of its image (libvirt `<slices>`).
    Sliced,
    /// Its data are in a separate file (libvirt `<dataStore>`).
    DataFile,
}

/// The device name of UEFI variables.
pub const NVRAM: &str = "nvram";

impl<F> VmFile<F> {
    /// A file with default properties. I/O errors stop the VM; only a disk's definition can change that.
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
    /// Whether the VM needs the file at `place` for this, by any of its names.
    pub fn uses(&self, place: &F) -> bool {
        self.place == *place
            || self.real.as_ref() == Some(place)
            || self.below.contains(place)
            || self.real_below.contains(place)
    }

    /// Whether the VM needs `other` for this, by any name of either.
    pub fn needs(&self, other: &Self) -> bool {
        self.uses_either(&other.place, other.real.as_ref())
    }

    /// Whether the VM needs a file with one or two names for this.
    pub fn uses_either(&self, place: &F, real: Option<&F>) -> bool {
        self.uses(place) || real.is_some_and(|real| self.uses(real))
    }

    /// Whether it has this feature.
    pub fn has(&self, feature: DiskFeature) -> bool {
        self.features.contains(&feature)
    }

    /// Whether it is a medium in a drive, whether a file or not.
    pub fn is_medium(&self) -> bool {
        self.role == FileRole::Media || matches!(self.kind, Some(NotAFile::Medium(..)))
    }

    /// All places that it needs.
    pub fn places(&self) -> impl Iterator<Item = &F> {
        std::iter::once(&self.place).chain(&self.below)
    }
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The disk's content and nothing else; thin if the file system supports holes.
    Raw,
    /// QEMU's own format: thin on every file system.
    Qcow2,
}

impl DiskFormat {
    /// The name that libvirt, QEMU and file names use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// The role of a file in its VM.
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
    /// A kernel, initrd or device tree that the hypervisor boots directly.
    Boot,
    /// A disk or other host resource that is not a file: a block device, a network disk, a folder. `place` contains its
    /// name.
    NotAFile,
}

impl<F> VmFacts<F> {
    /// A VM that is shut off, with these files and otherwise default properties.
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

    /// The same facts with every place converted by `rewrite`.
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
            let named = crate::immovable::what(&file).to_string();
            assert_eq!((file.is_medium(), named.as_str()), (medium, what), "{text}");
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
