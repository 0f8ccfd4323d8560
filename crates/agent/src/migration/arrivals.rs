//! The files that disks get which come along with a VM: checked, made before it comes, and removed if it does not.

use std::path::PathBuf;

use ferry_core::{
    api::agent::{ArrivalFile, DiskArrival},
    files::{
        DiskProgress, DiskStage,
        plan::is_libvirts_nvram,
        space::{arrives_thick, copy_takes},
    },
    finding::{Finding, FindingId},
    id::VmId,
    units::ByteCount,
    vm::{DiskFormat, NVRAM},
};
use ferry_drivers::{file, identity::InUse, image};
use serde::{Deserialize, Serialize};

use super::{
    mark::{Made, Mark},
    seeds::{Seeds, Sown},
};
use crate::{
    AgentError,
    storage::{Needs, Reach},
};

/// Disks of one VM: more than it has.
const DISKS_MAX: usize = 64;

/// A disk that comes, and its file on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// The disk's name in the definition.
    pub device: String,
    /// The file.
    pub path: PathBuf,
    /// How it is laid out.
    pub format: DiskFormat,
    /// What the guest sees.
    pub virtual_size: ByteCount,
    /// This attempt made the file: it may remove it.
    pub made: bool,
    /// How the file is known again.
    #[serde(default)]
    pub mark: Mark,
    /// The file was an unfinished copy: what it holds need not be sent.
    #[serde(default)]
    pub sown: Option<Sown>,
}

impl Arrival {
    /// Whether a file of this attempt is or may be there.
    pub(super) fn is_left(&self) -> bool {
        self.made || self.mark == Mark::Making
    }

    /// As the source's agent is told.
    pub(super) fn file(&self) -> ArrivalFile {
        let (device, path) = (self.device.clone(), self.path.display().to_string());
        ArrivalFile { device, path, format: self.format, sown: self.sown.is_some() }
    }
}

/// Where the files will be, if nothing stands against them. Changes nothing: seeds of others count as room where removing
/// them would make enough. Blocks.
///
/// # Errors
/// `file.exists`, `file.space`, or a place that is outside of where files may be or does not answer.
pub fn checked(reach: &Reach, vm: VmId, wanted: &[DiskArrival], seeds: &Seeds) -> Result<Vec<Arrival>, AgentError> {
    let (arrivals, needs) = placed(reach, vm, wanted, seeds)?;
    if !needs.missing(reach).iter().all(|(device, bytes)| seeds.removable(vm, *device) >= *bytes) {
        needs.are_met(reach)?;
    }
    Ok(arrivals)
}

/// As [`checked`], and removes seeds of others where their room is needed. Blocks.
///
/// # Errors
/// As [`checked`], and when no room could be made.
pub(super) fn with_room(
    reach: &Reach,
    vm: VmId,
    wanted: &[DiskArrival],
    seeds: &Seeds,
) -> Result<Vec<Arrival>, AgentError> {
    let arrivals = checked(reach, vm, wanted, seeds)?;
    let missing = placed(reach, vm, wanted, seeds)?.1.missing(reach);
    if missing.is_empty() {
        return Ok(arrivals);
    }
    for (device, bytes) in missing {
        seeds.make_room(vm, device, bytes);
    }
    // Whether there is room now is asked of the file system.
    let (arrivals, needs) = placed(reach, vm, wanted, seeds)?;
    needs.are_met(reach)?;
    Ok(arrivals)
}

/// Where the files will be, and what they need.
fn placed(reach: &Reach, vm: VmId, wanted: &[DiskArrival], seeds: &Seeds) -> Result<(Vec<Arrival>, Needs), AgentError> {
    if wanted.len() > DISKS_MAX {
        return Err(AgentError::Carrier(format!("No VM has more than {DISKS_MAX} disks")));
    }
    let mut needs = Needs::default();
    let mut arrivals: Vec<Arrival> = Vec::with_capacity(wanted.len());
    for disk in wanted {
        let path = reach.places.path(&disk.to).ok_or_else(|| {
            refused(
                FindingId::FilePlace,
                &disk.device,
                format!("The place of disk {} cannot be reached on this host", disk.device),
                "See what the host reaches with `ferry host show`",
            )
        })?;
        let held = seeds.held(vm, disk, &path);
        let takes = copy_takes(disk.virtual_size, disk.allocated, arrives_thick(disk.format, &disk.to));
        // Where libvirt itself puts UEFI variables no disk is put, and they are small.
        if disk.device != NVRAM || !path.to_str().is_some_and(is_libvirts_nvram) {
            needs.add(reach, &disk.to, ByteCount(takes.0.saturating_sub(held.0)))?;
        }
        if path.symlink_metadata().is_ok() || arrivals.iter().any(|other| other.path == path) {
            return Err(exists(&path));
        }
        let (device, format, virtual_size) = (disk.device.clone(), disk.format, disk.virtual_size);
        arrivals.push(Arrival { device, path, format, virtual_size, made: false, mark: Mark::Path, sown: None });
    }
    Ok((arrivals, needs))
}

/// Makes one file, thin and empty; gives how it is known again. Blocks.
///
/// # Errors
/// `file.exists`, with what is there untouched; the file system's, with nothing left.
pub(super) fn make(arrival: &Arrival, owner: (u32, u32)) -> Result<Mark, AgentError> {
    image::create(&arrival.path, arrival.format, arrival.virtual_size, owner).map_err(|source| {
        match source.kind() {
            std::io::ErrorKind::AlreadyExists => exists(&arrival.path),
            _ => AgentError::File { path: arrival.path.clone(), source },
        }
    })?;
    Ok(Mark::of(&arrival.path).unwrap_or_default())
}

/// Removes one file of this attempt, or keeps it as a seed; leaves what is in use, and what is another file by now. Blocks.
///
/// # Errors
/// When it is not known whether it is ours, or it cannot be removed.
pub(crate) fn remove_one(vm: VmId, arrival: &Arrival, used: &InUse, seeds: &Seeds) -> Result<(), AgentError> {
    let Arrival { path, mark, format, virtual_size, .. } = arrival;
    let made = Made { path, mark: *mark, format: *format, virtual_size: *virtual_size };
    made.remove(used, || seeds.keep(vm, arrival))
}

/// What the files take now that the disks are here. Blocks.
pub(super) fn arrived(arrivals: &[Arrival]) -> Vec<DiskProgress> {
    let one = |arrival: &Arrival| DiskProgress {
        device: arrival.device.clone(),
        stage: DiskStage::Moved,
        copied: arrival.virtual_size,
        total: arrival.virtual_size,
        allocated_after: file::allocated(&arrival.path).unwrap_or_default(),
        ..DiskProgress::default()
    };
    arrivals.iter().map(one).collect()
}

pub(crate) fn exists(path: &std::path::Path) -> AgentError {
    refused(
        FindingId::FileExists,
        path.display(),
        format!("{} is there already", path.display()),
        "Remove it if nothing needs it, or choose another place",
    )
}

fn refused(id: FindingId, object: impl std::fmt::Display, message: String, fix: &str) -> AgentError {
    AgentError::refused(409, Finding::blocks(id, object, message, fix))
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
        shares::Shares,
        storage::{Claims, Reserved},
    };

    #[test]
    fn a_lack_of_room_that_seeds_do_not_end_is_refused_and_costs_none_of_them() {
        let (folder, host) = (tempfile::tempdir().expect("a folder"), HostId(Uuid::from_u128(1)));
        let config =
            Config { state_dir: folder.path().to_owned(), ..Config::new("127.0.0.1:0".parse().expect("an address")) };
        let seeds = Seeds::load(&config).expect("loaded");
        let at = |name: &str| Location::Local { host, path: folder.path().join(name).display().to_string() };
        let file = folder.path().join("old.raw");
        make_file(&file);
        let old = Arrival {
            device: "vda".into(),
            path: file,
            format: DiskFormat::Raw,
            virtual_size: ByteCount::mib(8),
            made: true,
            mark: Mark::default(),
            sown: None,
        };
        assert!(seeds.keep(VmId(Uuid::from_u128(8)), &old));
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
        let reach = |reserved: Vec<Reserved>| Reach {
            places: Places::new(host, Vec::new()),
            roots: Roots::new(host, vec![folder.path().to_owned()], Vec::new()),
            shares: Arc::new(Shares::load(&config, driver.clone()).expect("loaded")),
            qemu_conf: qemu_conf.clone(),
            reserved: Box::new(move || reserved.clone()),
            claim: claims.claim(None),
        };
        let vm = VmId(Uuid::from_u128(9));
        for (reserved, fits) in [(Vec::new(), true), (vec![reserve(&at("other.raw"))], false)] {
            let reach = reach(reserved);
            let found = checked(&reach, vm, &wanted, &seeds).map(|arrivals| arrivals.len());
            assert_eq!(found.is_ok(), fits, "{found:?}");
            let made = with_room(&reach, vm, &wanted, &seeds).map_err(|error| error.to_string());
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
