//! Where files may be on this host, and what is there. Every function here blocks for a bounded time.

use std::{fs, path::Path, thread};

use ferry_core::{
    api::agent::DiskSize,
    files::space::copy_takes,
    finding::{Action, Finding, FindingId, Message},
    id::VmId,
    location::Location,
    place::{DirectoryListing, OfferedPlace},
    share::AttachedShare,
    units::ByteCount,
    vm::{DiskFormat, FileRole},
};
use ferry_drivers::{
    hypervisor::HypervisorError,
    image,
    places::{QemuUser, Roots},
};

use crate::{
    Agent, AgentError,
    files::chain::{chain_takes, holds_no_snapshots},
};

/// Shares queried for their space at once: each query is a process and a login.
const ASKED_AT_ONCE: usize = 8;

/// The only access to files of this host.
///
/// # Errors
/// If the agent is not enrolled: then the host has no id.
pub fn roots(agent: &Agent) -> Result<Roots, AgentError> {
    let host = *agent.enrolment.watch_host().borrow();
    let host = host.ok_or_else(|| {
        let finding = Finding::blocks(FindingId::AuthKey, "agent", Message::NoServer, Action::AddHost);
        AgentError::refused(403, finding)
    })?;
    Ok(Roots::new(host, agent.config.storage_roots.clone(), agent.shares.roots()))
}

/// What the host offers: its storage roots, then its shares, in the order in which they were attached.
///
/// # Errors
/// Those of [`roots`].
pub fn offered(agent: &Agent) -> Result<Vec<OfferedPlace>, AgentError> {
    let roots = roots(agent)?;
    let local = roots.local().map(|location| match roots.space(&location) {
        Ok(space) => OfferedPlace { location, space, trouble: None, finding: None },
        Err(error) => {
            OfferedPlace { location, space: None, trouble: Some(error.to_string()), finding: Some(error.finding()) }
        }
    });
    let mut places: Vec<OfferedPlace> = local.collect();
    let shares = agent.shares.watch().borrow().clone();
    for some in shares.chunks(ASKED_AT_ONCE) {
        let asked = thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|share| scope.spawn(|| offered_share(agent, share))).collect();
            asked.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Vec<_>>()
        });
        places.extend(asked);
    }
    Ok(places)
}

/// A share with a problem is not queried for its space: that would take seconds.
fn offered_share(agent: &Agent, share: &AttachedShare) -> OfferedPlace {
    let space = match share.trouble {
        None => agent.shares.space(share.id).ok().flatten(),
        Some(_) => None,
    };
    let location = Location::Share { share: share.id, path: String::new() };
    OfferedPlace { location, space, trouble: share.trouble.clone(), finding: share.finding.clone() }
}

/// Lists a directory.
///
/// # Errors
/// `place.outside`, `place.missing`, `place.not-a-directory`, `place.unreadable`, or the problem of its share.
pub fn list(agent: &Agent, location: &Location) -> Result<DirectoryListing, AgentError> {
    let roots = roots(agent)?;
    match location {
        Location::Local { .. } => Ok(roots.list(location)?),
        Location::Share { share, .. } => {
            agent.shares.check(*share)?;
            let listing = roots.list(location)?;
            // Some mounts do not report their space, but their file server does.
            let space = agent.shares.space(*share)?;
            Ok(DirectoryListing { space, ..listing })
        }
    }
}

/// Sizes of the files of a running VM that can be migrated with it: writable disks, and UEFI variables. For a disk, the
/// space that a copy of its whole chain occupies.
///
/// # Errors
/// If the host has no such VM, or it is not running; `vm.snapshot` for an image that contains snapshots.
pub fn disks(agent: &Agent, vm: VmId) -> Result<Vec<DiskSize>, AgentError> {
    let facts = agent.hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
    let mut sizes = Vec::new();
    for file in &facts.files {
        let device = file.device.clone();
        match file.role {
            FileRole::Disk if !file.read_only => {
                holds_no_snapshots(file, &facts.name)?;
                let size = agent.hypervisor.disk_size(vm, &device)?;
                let allocated = copy_takes(size.virtual_size, chain_takes(file, size.allocated), false);
                sizes.push(DiskSize { device, virtual_size: size.virtual_size, allocated });
            }
            FileRole::Nvram => {
                let virtual_size = nvram_size(&file.place, file.format)?;
                sizes.push(DiskSize { device, virtual_size, allocated: virtual_size });
            }
            FileRole::Disk | FileRole::Media | FileRole::Boot | FileRole::NotAFile => {}
        }
    }
    Ok(sizes)
}

/// The size, as the guest sees it, of the device for UEFI variables.
fn nvram_size(path: &Path, format: Option<DiskFormat>) -> Result<ByteCount, AgentError> {
    let fault = |source| AgentError::File { path: path.to_owned(), source };
    match format {
        Some(DiskFormat::Qcow2) => Ok(image::header(path).map_err(fault)?.unwrap_or_default().virtual_size),
        Some(DiskFormat::Raw) | None => Ok(ByteCount(path.metadata().map_err(fault)?.len())),
    }
}

/// Checks that a directory exists, is inside of where files may be, and can hold files that QEMU writes.
///
/// # Errors
/// As [`list`], and `place.not-writable`.
pub fn check(agent: &Agent, location: &Location) -> Result<(), AgentError> {
    let roots = roots(agent)?;
    if let Location::Share { share, .. } = location {
        agent.shares.check(*share)?;
    }
    let conf = fs::read_to_string(&agent.config.qemu_conf).unwrap_or_default();
    Ok(roots.check_writable(location, QemuUser::of_conf(&conf))?)
}
