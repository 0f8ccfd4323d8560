//! Disks that come with a running VM: whether their files can be made, and what they occupy when the VM has arrived.

use std::path::PathBuf;

use ferry_core::{
    api::agent::{IncomingDisk, IncomingDiskFile},
    files::{
        DiskProgress, DiskStage,
        plan::is_libvirts_nvram,
        space::{arrives_thick, copy_takes},
    },
    id::VmId,
    units::ByteCount,
    vm::{DiskFormat, NVRAM},
};
use ferry_drivers::file;
use serde::{Deserialize, Serialize};

use super::{
    host_storage::HostStorage,
    new_file::{Lifecycle, Naming, NewFile},
    partial::PartialCopies,
    space::Needs,
};
use crate::{AgentError, refusal::exists};

/// Limit of disks of one VM: more than any has.
const DISKS_MAX: usize = 64;

/// An incoming disk, and its file on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingImage {
    /// The disk's name in the definition.
    pub device: String,
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// The virtual size.
    pub virtual_size: ByteCount,
    /// How far the file is.
    #[serde(flatten)]
    pub lifecycle: Lifecycle,
}

impl IncomingImage {
    /// Whether a file of this attempt exists or may exist.
    pub(crate) fn is_left(&self) -> bool {
        self.lifecycle != Lifecycle::Planned
    }

    /// The file.
    pub(crate) fn new_file(&self) -> NewFile<'_> {
        let Self { device, path, format, virtual_size, lifecycle } = self;
        let (format, virtual_size, lifecycle) = (*format, *virtual_size, *lifecycle);
        NewFile { device, path, format, virtual_size, naming: Naming::Final, lifecycle }
    }

    /// The file as reported to the source's agent.
    pub(crate) fn file(&self) -> IncomingDiskFile {
        let (device, path) = (self.device.clone(), self.path.display().to_string());
        IncomingDiskFile { device, path, format: self.format, from_partial: self.lifecycle.partial().is_some() }
    }
}

/// Where the files will be, if nothing prevents it. Changes nothing: other VMs' partial copies count as free space if
/// removing them would suffice. Blocks.
///
/// # Errors
/// `file.exists`, `file.space`, or a location that is outside of where files may be or does not answer.
pub(crate) fn checked(
    storage: &HostStorage,
    vm: VmId,
    requested: &[IncomingDisk],
    partials: &PartialCopies,
) -> Result<Vec<IncomingImage>, AgentError> {
    let (incoming_disks, needs) = placed(storage, vm, requested, partials)?;
    if !needs.missing(storage).iter().all(|(device, bytes)| partials.removable(vm, *device) >= *bytes) {
        needs.are_met(storage)?;
    }
    Ok(incoming_disks)
}

/// As [`checked`], but removes other VMs' partial copies if their space is needed. Blocks.
///
/// # Errors
/// As [`checked`], and if not enough space could be freed.
pub(crate) fn with_room(
    storage: &HostStorage,
    vm: VmId,
    requested: &[IncomingDisk],
    partials: &PartialCopies,
) -> Result<Vec<IncomingImage>, AgentError> {
    let incoming_disks = checked(storage, vm, requested, partials)?;
    let missing = placed(storage, vm, requested, partials)?.1.missing(storage);
    if missing.is_empty() {
        return Ok(incoming_disks);
    }
    for (device, bytes) in missing {
        partials.make_room(vm, device, bytes);
    }
    // Ask the file system again whether there is enough space now.
    let (incoming_disks, needs) = placed(storage, vm, requested, partials)?;
    needs.are_met(storage)?;
    Ok(incoming_disks)
}

/// Where the files will be, and the space they need.
fn placed(
    storage: &HostStorage,
    vm: VmId,
    requested: &[IncomingDisk],
    partials: &PartialCopies,
) -> Result<(Vec<IncomingImage>, Needs), AgentError> {
    if requested.len() > DISKS_MAX {
        return Err(AgentError::failed(format!("No VM has more than {DISKS_MAX} disks")));
    }
    let mut needs = Needs::default();
    let mut incoming_disks: Vec<IncomingImage> = Vec::with_capacity(requested.len());
    for disk in requested {
        let (device, path) = (disk.device.clone(), storage.path(&disk.device, &disk.to)?);
        let IncomingDisk { format, virtual_size, .. } = *disk;
        let incoming_disk = IncomingImage { device, path, format, virtual_size, lifecycle: Lifecycle::Planned };
        let held = partials.allocated(vm, &incoming_disk.new_file());
        let path = &incoming_disk.path;
        let takes = copy_takes(virtual_size, disk.allocated, arrives_thick(format, &disk.to));
        // No disk is put where libvirt itself puts UEFI variables, and these are small.
        if disk.device != NVRAM || !path.to_str().is_some_and(is_libvirts_nvram) {
            needs.add(storage, &disk.to, ByteCount(takes.0.saturating_sub(held.0)))?;
        }
        if path.symlink_metadata().is_ok() || incoming_disks.iter().any(|other| other.path == *path) {
            return Err(exists(path));
        }
        incoming_disks.push(incoming_disk);
    }
    Ok((incoming_disks, needs))
}

/// The space that the files occupy now that the disks have arrived. Blocks.
pub(crate) fn arrived(incoming_disks: &[IncomingImage]) -> Vec<DiskProgress> {
    let one = |incoming_disk: &IncomingImage| DiskProgress {
        device: incoming_disk.device.clone(),
        stage: DiskStage::Moved,
        copied: incoming_disk.virtual_size,
        total: incoming_disk.virtual_size,
        allocated_after: file::allocated(&incoming_disk.path).unwrap_or_default(),
        ..DiskProgress::default()
    };
    incoming_disks.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt as _, sync::Arc};

    use ferry_core::{
        id::{HostId, JobId},
        location::Location,
    };
    use ferry_drivers::{
        places::{Places, Roots},
        share::fake::{FakeFileServers, FakeShares},
    };
    use uuid::Uuid;

    use super::*;
    use crate::{
        config::Config,
        files::claims::{Claims, Reserved},
        shares::Shares,
    };

    #[test]
    fn a_lack_of_room_that_seeds_do_not_end_is_refused_and_costs_none_of_them() {
        let (folder, host) = (tempfile::tempdir().expect("a folder"), HostId(Uuid::from_u128(1)));
        let config =
            Config { state_dir: folder.path().to_owned(), ..Config::new("127.0.0.1:0".parse().expect("an address")) };
        let partials = PartialCopies::load(&config).expect("loaded");
        let at = |name: &str| Location::Local { host, path: folder.path().join(name).display().to_string() };
        let file = folder.path().join("old.raw");
        make_file(&file);
        let old = IncomingImage {
            device: "vda".into(),
            path: file,
            format: DiskFormat::Raw,
            virtual_size: ByteCount::mib(8),
            lifecycle: Lifecycle::Planned,
        };
        assert!(partials.keep(VmId(Uuid::from_u128(8)), &old.new_file()));
        let kept = || {
            let names = std::fs::read_dir(folder.path()).expect("there").flatten().map(|entry| entry.file_name());
            names.filter(|name| name.to_string_lossy().ends_with(".ferry-seed")).count()
        };
        let requested = [IncomingDisk {
            device: "vda".into(),
            to: at("new.raw"),
            format: DiskFormat::Raw,
            virtual_size: ByteCount::mib(8),
            allocated: ByteCount::mib(8),
        }];
        let driver = Arc::new(FakeShares::new(FakeFileServers::new()));
        let qemu_conf = folder.path().join("qemu.conf");
        std::fs::write(&qemu_conf, "user = \"+0\"\n").expect("written");
        let claims: Arc<Claims> = Arc::default();
        let storage = |reserved: Vec<Reserved>| HostStorage {
            places: Places::new(host, Vec::new()),
            roots: Roots::new(host, vec![folder.path().to_owned()], Vec::new()),
            shares: Arc::new(Shares::load(&config, driver.clone()).expect("loaded")),
            qemu_conf: qemu_conf.clone(),
            reserved: Box::new(move || reserved.clone()),
            claim: claims.claim(None),
        };
        let vm = VmId(Uuid::from_u128(9));
        for (reserved, fits) in [(Vec::new(), true), (vec![reserve(&at("other.raw"))], false)] {
            let storage = storage(reserved);
            let found = checked(&storage, vm, &requested, &partials).map(|incoming_disks| incoming_disks.len());
            assert_eq!(found.is_ok(), fits, "{found:?}");
            let made = with_room(&storage, vm, &requested, &partials).map_err(|error| error.to_string());
            assert!(fits == made.is_ok() && (fits || made.is_err_and(|error| error.contains("job 7"))));
            assert_eq!(kept(), 1);
        }
    }

    fn make_file(path: &std::path::Path) {
        std::fs::File::create(path).expect("made").write_all_at(&vec![7; 8 << 20], 0).expect("written");
    }

    /// More than any file system has.
    fn reserve(to: &Location) -> Reserved {
        Reserved { job: JobId(7), to: to.clone(), remaining: ByteCount(1 << 60) }
    }
}
