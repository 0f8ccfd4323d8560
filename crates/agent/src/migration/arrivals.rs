//! The files that disks get which come along with a VM: checked, made before it comes, and removed if it does not.

use std::path::PathBuf;

use ferry_core::{
    api::agent::{ArrivalFile, DiskArrival},
    finding::{Finding, FindingId},
    id::VmId,
    storage::{DiskProgress, DiskStage, arrives_thick, copy_takes, is_libvirts_nvram},
    units::ByteCount,
    vm::{DiskFormat, NVRAM},
};
use ferry_drivers::{hypervisor::Hypervisor, image};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::seeds::{Seeds, Sown};
use crate::{
    AgentError, files,
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
    /// The file was an unfinished copy: what it holds need not be sent.
    #[serde(default)]
    pub sown: Option<Sown>,
}

impl Arrival {
    /// As the source's agent is told.
    pub(super) fn file(&self) -> ArrivalFile {
        let (device, path) = (self.device.clone(), self.path.display().to_string());
        ArrivalFile { device, path, format: self.format, sown: self.sown.is_some() }
    }
}

/// Where the files will be, if nothing stands against them. Changes nothing. Blocks.
///
/// # Errors
/// `file.exists`, `file.space`, or a place that is outside of where files may be or does not answer.
pub fn checked(reach: &Reach, vm: VmId, wanted: &[DiskArrival], seeds: &Seeds) -> Result<Vec<Arrival>, AgentError> {
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
        let held = seeds.held(vm, disk);
        let takes = copy_takes(disk.virtual_size, disk.allocated, arrives_thick(disk.format, &disk.to));
        // Where libvirt itself puts UEFI variables no disk is put, and they are small.
        if disk.device != NVRAM || !path.to_str().is_some_and(is_libvirts_nvram) {
            needs.add(reach, &disk.to, ByteCount(takes.0.saturating_sub(held.0)))?;
        }
        if path.symlink_metadata().is_ok() || arrivals.iter().any(|other| other.path == path) {
            return Err(exists(&path));
        }
        let (device, format, virtual_size) = (disk.device.clone(), disk.format, disk.virtual_size);
        arrivals.push(Arrival { device, path, format, virtual_size, made: false, sown: None });
    }
    match needs.are_met(reach) {
        Err(error) if !seeds.make_room() => Err(error),
        // What is left of other attempts stands in nobody's way.
        Err(_) => checked(reach, vm, wanted, seeds),
        Ok(()) => Ok(arrivals),
    }
}

/// Makes one file, thin and empty. Blocks.
///
/// # Errors
/// `file.exists`, with what is there untouched; the file system's, with nothing left.
pub(super) fn make(arrival: &Arrival, owner: (u32, u32)) -> Result<(), AgentError> {
    image::create(&arrival.path, arrival.format, arrival.virtual_size, owner).map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => exists(&arrival.path),
        _ => AgentError::File { path: arrival.path.clone(), source },
    })
}

/// Removes what was made and no VM uses, or keeps it as seeds. Blocks.
///
/// # Errors
/// When it is not known what is in use, or a file cannot be removed.
pub(crate) fn remove(
    vm: VmId,
    arrivals: &[Arrival],
    hypervisor: &dyn Hypervisor,
    seeds: Option<&Seeds>,
) -> Result<(), AgentError> {
    if !arrivals.iter().any(|arrival| arrival.made) {
        return Ok(());
    }
    let used = hypervisor.files_in_use()?;
    for arrival in arrivals.iter().filter(|arrival| arrival.made) {
        if used.contains(&arrival.path) {
            warn!(file = %arrival.path.display(), "a new file stays: a VM uses it");
            continue;
        }
        if let Some(sown) = &arrival.sown {
            files::remove(&sown.index)?;
        }
        if seeds.is_some_and(|seeds| seeds.keep(vm, arrival)) {
            continue;
        }
        image::remove(&arrival.path).map_err(|source| AgentError::File { path: arrival.path.clone(), source })?;
    }
    Ok(())
}

/// What the files take now that the disks are here.
pub(super) fn arrived(arrivals: &[Arrival]) -> Vec<DiskProgress> {
    let one = |arrival: &Arrival| DiskProgress {
        device: arrival.device.clone(),
        stage: DiskStage::Moved,
        copied: arrival.virtual_size,
        total: arrival.virtual_size,
        allocated_after: image::allocated(&arrival.path).unwrap_or_default(),
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
