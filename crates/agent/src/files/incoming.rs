//! Files of incoming disks: checked, created before the VM arrives, and removed if it does not.

use ferry_core::{
    api::agent::DiskArrival,
    files::{
        DiskProgress, DiskStage,
        plan::is_libvirts_nvram,
        space::{arrives_thick, copy_takes},
    },
    id::VmId,
    units::ByteCount,
    vm::NVRAM,
};
use ferry_drivers::{file, identity::InUse, image};

use super::{
    host_storage::HostStorage,
    new_file::{FileIdentity, IncomingDisk, MadeFile},
    partial::PartialCopies,
    space::Needs,
};
use crate::{AgentError, refusal::exists};

/// Limit of disks of one VM: more than any has.
const DISKS_MAX: usize = 64;

/// Where the files will be, if nothing prevents it. Changes nothing: other VMs' partial copies count as free space if
/// removing them would suffice. Blocks.
///
/// # Errors
/// `file.exists`, `file.space`, or a location that is outside of where files may be or does not answer.
pub(crate) fn checked(
    storage: &HostStorage,
    vm: VmId,
    wanted: &[DiskArrival],
    partials: &PartialCopies,
) -> Result<Vec<IncomingDisk>, AgentError> {
    let (incoming_disks, needs) = placed(storage, vm, wanted, partials)?;
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
    wanted: &[DiskArrival],
    partials: &PartialCopies,
) -> Result<Vec<IncomingDisk>, AgentError> {
    let incoming_disks = checked(storage, vm, wanted, partials)?;
    let missing = placed(storage, vm, wanted, partials)?.1.missing(storage);
    if missing.is_empty() {
        return Ok(incoming_disks);
    }
    for (device, bytes) in missing {
        partials.make_room(vm, device, bytes);
    }
    // Ask the file system again whether there is enough space now.
    let (incoming_disks, needs) = placed(storage, vm, wanted, partials)?;
    needs.are_met(storage)?;
    Ok(incoming_disks)
}

/// Where the files will be, and the space they need.
fn placed(
    storage: &HostStorage,
    vm: VmId,
    wanted: &[DiskArrival],
    partials: &PartialCopies,
) -> Result<(Vec<IncomingDisk>, Needs), AgentError> {
    if wanted.len() > DISKS_MAX {
        return Err(AgentError::failed(format!("No VM has more than {DISKS_MAX} disks")));
    }
    let mut needs = Needs::default();
    let mut incoming_disks: Vec<IncomingDisk> = Vec::with_capacity(wanted.len());
    for disk in wanted {
        let path = storage.path(&disk.device, &disk.to)?;
        let held = partials.held(vm, disk, &path);
        let takes = copy_takes(disk.virtual_size, disk.allocated, arrives_thick(disk.format, &disk.to));
        // No disk is put where libvirt itself puts UEFI variables, and these are small.
        if disk.device != NVRAM || !path.to_str().is_some_and(is_libvirts_nvram) {
            needs.add(storage, &disk.to, ByteCount(takes.0.saturating_sub(held.0)))?;
        }
        if path.symlink_metadata().is_ok() || incoming_disks.iter().any(|other| other.path == path) {
            return Err(exists(&path));
        }
        let (device, format, virtual_size) = (disk.device.clone(), disk.format, disk.virtual_size);
        incoming_disks.push(IncomingDisk {
            device,
            path,
            format,
            virtual_size,
            made: false,
            identity: FileIdentity::Path,
            from_partial: None,
        });
    }
    Ok((incoming_disks, needs))
}

/// Creates one file, thin and empty; returns its identity. Blocks.
///
/// # Errors
/// `file.exists`, with the existing file untouched; the file system's, with nothing left behind.
pub(crate) fn make(incoming_disk: &IncomingDisk, owner: (u32, u32)) -> Result<FileIdentity, AgentError> {
    image::create(&incoming_disk.path, incoming_disk.format, incoming_disk.virtual_size, owner).map_err(|source| {
        if source.kind() == std::io::ErrorKind::AlreadyExists {
            return exists(&incoming_disk.path);
        }
        AgentError::File { path: incoming_disk.path.clone(), source }
    })?;
    Ok(FileIdentity::of(&incoming_disk.path).unwrap_or_default())
}

/// Removes one file of this attempt, or keeps it as a partial copy. A file that is in use or was replaced stays.
/// Blocks.
///
/// # Errors
/// If it is unknown whether the file is ours, or it cannot be removed.
pub(crate) fn remove_one(
    vm: VmId,
    incoming_disk: &IncomingDisk,
    used: &InUse,
    partials: &PartialCopies,
) -> Result<(), AgentError> {
    let IncomingDisk { path, identity, format, virtual_size, .. } = incoming_disk;
    let made = MadeFile { path, identity: *identity, format: *format, virtual_size: *virtual_size };
    made.remove(used, || partials.keep(vm, incoming_disk))
}

/// The space that the files occupy now that the disks have arrived. Blocks.
pub(crate) fn arrived(incoming_disks: &[IncomingDisk]) -> Vec<DiskProgress> {
    let one = |incoming_disk: &IncomingDisk| DiskProgress {
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
        vm::DiskFormat,
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
        let old = IncomingDisk {
            device: "vda".into(),
            path: file,
            format: DiskFormat::Raw,
            virtual_size: ByteCount::mib(8),
            made: true,
            identity: FileIdentity::default(),
            from_partial: None,
        };
        assert!(partials.keep(VmId(Uuid::from_u128(8)), &old));
        let kept = || {
            let names = std::fs::read_dir(folder.path()).expect("there").flatten().map(|entry| entry.file_name());
            names.filter(|name| name.to_string_lossy().ends_with(".ferry-seed")).count()
        };
        let wanted = [DiskArrival {
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
            let found = checked(&storage, vm, &wanted, &partials).map(|incoming_disks| incoming_disks.len());
            assert_eq!(found.is_ok(), fits, "{found:?}");
            let made = with_room(&storage, vm, &wanted, &partials).map_err(|error| error.to_string());
            assert!(fits == made.is_ok() && (fits || made.is_err_and(|said| said.contains("job 7"))));
            assert_eq!(kept(), 1);
        }
    }

    fn make_file(path: &std::path::Path) {
        std::fs::File::create(path).expect("made").write_all_at(&vec![7; 8 << 20], 0).expect("written");
    }

    /// More than any file system has.
    fn reserve(to: &Location) -> Reserved {
        Reserved { job: JobId(7), to: to.clone(), still: ByteCount(1 << 60) }
    }
}
