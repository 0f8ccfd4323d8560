//! Where files may be on this host, and what is there. Everything here blocks, each for a bounded time.

use std::{fs, thread};

use ferry_core::{
    api::agent::DiskSize,
    finding::{Finding, FindingId},
    id::VmId,
    location::Location,
    place::{DirectoryListing, OfferedPlace},
    share::AttachedShare,
    vm::FileRole,
};
use ferry_drivers::{
    hypervisor::HypervisorError,
    places::{QemuUser, Roots},
};

use crate::{Agent, AgentError};

/// Shares that are asked for their space at once: each is a process and a login.
const ASKED_AT_ONCE: usize = 8;

/// The one way to files of this host.
///
/// # Errors
/// When the agent is enrolled with no server: then the host has no id.
pub fn roots(agent: &Agent) -> Result<Roots, AgentError> {
    let host = *agent.enrolment.watch_host().borrow();
    let host = host.ok_or_else(|| {
        let message = "The agent is enrolled with no server";
        let finding = Finding::blocks(FindingId::AuthKey, "agent", message, "Add the host with `ferry host add`");
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
        Ok(space) => OfferedPlace { location, space, trouble: None },
        Err(error) => OfferedPlace { location, space: None, trouble: Some(error.to_string()) },
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

/// A share that is in trouble is not asked for its space: that would take seconds.
fn offered_share(agent: &Agent, share: &AttachedShare) -> OfferedPlace {
    let space = match share.trouble {
        None => agent.shares.space(share.id).ok().flatten(),
        Some(_) => None,
    };
    let location = Location::Share { share: share.id, path: String::new() };
    OfferedPlace { location, space, trouble: share.trouble.clone() }
}

/// What is in a directory.
///
/// # Errors
/// `place.outside`, `place.missing`, `place.not-a-directory`, `place.unreadable`, or what is wrong with its share.
pub fn list(agent: &Agent, location: &Location) -> Result<DirectoryListing, AgentError> {
    let roots = roots(agent)?;
    match location {
        Location::Local { .. } => Ok(roots.list(location)?),
        Location::Share { share, .. } => {
            agent.shares.check(*share)?;
            let listing = roots.list(location)?;
            // Some mounts do not tell their space; their file server does.
            let space = agent.shares.space(*share)?;
            Ok(DirectoryListing { space, ..listing })
        }
    }
}

/// Sizes of the disks of a running VM that are files which it writes.
///
/// # Errors
/// When the host has no such VM, or it does not run.
pub fn disks(agent: &Agent, vm: VmId) -> Result<Vec<DiskSize>, AgentError> {
    let facts = agent.hypervisor.vm(vm)?.ok_or(HypervisorError::NoVm(vm))?;
    let mut sizes = Vec::new();
    for file in facts.files.iter().filter(|file| file.role == FileRole::Disk && !file.read_only) {
        let size = agent.hypervisor.disk_size(vm, &file.device)?;
        let (device, virtual_size, allocated) = (file.device.clone(), size.virtual_size, size.allocated);
        sizes.push(DiskSize { device, virtual_size, allocated });
    }
    Ok(sizes)
}

/// Makes sure that a directory exists, is inside of where files may be, and can hold files that QEMU writes.
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
