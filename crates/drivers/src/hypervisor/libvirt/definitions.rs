//! Reads VMs' definitions without waiting for busy VMs.
//!
//! libvirt (11.3, `qemuDomainGetXMLDesc`) returns a definition only when it may begin a query job on the VM. That is
//! not possible while the VM is received, started or written into a snapshot: the caller then waits for up to 30 s,
//! even if the VM is long gone. A host with one such VM must still report its other VMs. A VM's state is always
//! available at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread,
    time::Duration,
};

use ferry_core::{
    id::VmId,
    vm::{Stall, VmFacts, VmFile, VmState},
};

use super::{
    faults::{failed, there},
    ffi::{Connection, Domain, Fault, PausedReason, PowerState, Xml},
};
use crate::hypervisor::{
    HypervisorError,
    xml::{edit::resolved, facts::parse},
};

/// How long one VM may delay a query of all VMs.
const READ_WITHIN: Duration = Duration::from_millis(500);
/// Limit of reads that wait for busy VMs. libvirt serves five calls of a connection at once; two stay free for others.
const WAITING_MAX: usize = 3;

/// The VMs' definitions when they were last readable.
#[derive(Default)]
pub(super) struct Definitions(Arc<Mutex<State>>);

/// A VM and libvirt's number of its process: the next process of the same VM may answer while this one does not.
type Process = (VmId, Option<u32>);

#[derive(Default)]
struct State {
    known: BTreeMap<VmId, VmFacts<PathBuf>>,
    /// VMs whose definition a thread waits for.
    waiting: BTreeSet<Process>,
}

impl Definitions {
    /// Facts of every domain that still exists. A busy one delays the call by [`READ_WITHIN`], for at most
    /// [`WAITING_MAX`] of them; its last known definition is used.
    pub(super) fn read(
        &self,
        connection: &Arc<Connection>,
        domains: Vec<Domain>,
    ) -> Result<Vec<VmFacts<PathBuf>>, HypervisorError> {
        let mut all = Vec::with_capacity(domains.len());
        for domain in domains {
            all.extend(self.read_one(connection, domain)?);
        }
        self.state().known.retain(|vm, _| all.iter().any(|facts| facts.id == *vm));
        Ok(all)
    }

    fn read_one(
        &self,
        connection: &Arc<Connection>,
        domain: Domain,
    ) -> Result<Option<VmFacts<PathBuf>>, HypervisorError> {
        let Some((id, power)) = there(identity(&domain))? else { return Ok(None) };
        if arrives(power, &domain) {
            let last = self.state().known.get(&id).cloned();
            return filled(&domain, last.map_or_else(|| bare(&domain, id), Ok)?, power);
        }
        let (asked, connection) = (domain.clone(), Arc::clone(connection));
        match self.within((id, domain.process()), move || text(&connection, &asked, Xml::Live)) {
            Some(Ok(xml)) => {
                let facts = parse(&xml)?;
                self.state().known.insert(id, facts.clone());
                filled(&domain, facts, power)
            }
            Some(Err(fault)) if fault.is_no_domain() => Ok(None),
            outcome @ (Some(Err(_)) | None) => {
                let last = self.state().known.get(&id).cloned();
                match outcome {
                    Some(Err(fault)) if last.is_none() => {
                        tracing::warn!(vm = %id, error = fault.message, "The VM's definition cannot be read: it is left out");
                    }
                    // libvirt holds a VM that is being moved or started for up to 30 s; it is told of when it answers.
                    None if last.is_none() => {
                        tracing::info!(vm = %id, "The VM is busy and its definition is not known yet: it is left out");
                    }
                    Some(_) | None => {}
                }
                Ok(last.map(|facts| filled(&domain, facts, power)).transpose()?.flatten())
            }
        }
    }

    /// The result of `read`; `None` if it takes longer than [`READ_WITHIN`] or too many reads are waiting. The thread
    /// ends when libvirt gives up.
    fn within<T: Send + 'static>(&self, key: Process, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        {
            let mut state = self.state();
            if state.waiting.len() >= WAITING_MAX || !state.waiting.insert(key) {
                return None;
            }
        }
        let (answer, answered) = mpsc::sync_channel(1);
        let state = Arc::clone(&self.0);
        let reader = thread::Builder::new().name("definition".to_owned()).spawn(move || {
            let read = read();
            // Before the result is sent, because its receiver may read again at once.
            lock(&state).waiting.remove(&key);
            let _ = answer.send(read);
        });
        if reader.is_err() {
            self.state().waiting.remove(&key);
            return None;
        }
        answered.recv_timeout(READ_WITHIN).ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no thread panics while holding this lock")
}

/// A definition in which volumes of storage pools are replaced by their files, as far as libvirt knows them: without a
/// storage driver or with an inactive pool, they stay unchanged.
pub(super) fn text(connection: &Connection, domain: &Domain, form: Xml) -> Result<String, Fault> {
    let place = |pool: &str, volume: &str| match connection.volume(pool, volume) {
        Ok(found) => Some(found),
        Err(fault) => {
            tracing::debug!(pool, volume, reason = fault.message, "Where a volume is could not be told");
            None
        }
    };
    Ok(resolved(&domain.xml(form)?, place))
}

/// Facts of one domain; waits for its definition if it is busy with anything but its arrival. `None` if it is gone.
pub(super) fn read_now(connection: &Connection, domain: &Domain) -> Result<Option<VmFacts<PathBuf>>, HypervisorError> {
    let Some((id, power)) = there(identity(domain))? else { return Ok(None) };
    if arrives(power, domain) {
        return filled(domain, bare(domain, id)?, power);
    }
    let Some(xml) = there(text(connection, domain, Xml::Live))? else { return Ok(None) };
    filled(domain, parse(&xml)?, power)
}

/// The files in a VM's running definition and in its persistent one. Waits for a VM that is being started. A VM that is
/// being received has none yet.
#[allow(clippy::type_complexity, reason = "two lists of the same")]
pub(super) fn files_now(
    connection: &Connection,
    domain: &Domain,
) -> Result<(Vec<VmFile<PathBuf>>, Vec<VmFile<PathBuf>>), HypervisorError> {
    let nothing = (Vec::new(), Vec::new());
    let Some((_, power)) = there(identity(domain))? else { return Ok(nothing) };
    // Another host gave up its files for it, and those must not be removed here.
    if power == PowerState::Paused(PausedReason::Migration) {
        return Ok(nothing);
    }
    let files = |form| -> Result<Vec<_>, HypervisorError> {
        let xml = there(text(connection, domain, form))?;
        Ok(xml.map(|xml| parse(&xml)).transpose()?.map(|facts| facts.files).unwrap_or_default())
    };
    let Some(persistent) = there(domain.persistent())? else { return Ok(nothing) };
    let running = if power == PowerState::Off && persistent { Vec::new() } else { files(Xml::Live)? };
    let kept = if persistent { files(Xml::Inactive)? } else { Vec::new() };
    Ok((running, kept))
}

fn identity(domain: &Domain) -> Result<(VmId, PowerState), Fault> {
    Ok((domain.id()?, domain.state()?))
}

/// Whether libvirt is starting a process for it, receives it, or has just handed it over: until that is over, its
/// definition is not available.
fn arrives(power: PowerState, domain: &Domain) -> bool {
    match power {
        PowerState::Paused(PausedReason::Migration | PausedReason::StartingUp) => true,
        // A VM without a process and without a persistent definition is about to get a process.
        PowerState::Off => domain.persistent().is_ok_and(|persistent| !persistent),
        PowerState::Running
        | PowerState::Crashed
        | PowerState::Suspended
        | PowerState::Paused(PausedReason::Other | PausedReason::ByQemu | PausedReason::NotRunAgain) => false,
    }
}

/// What is known of a VM without its definition.
fn bare(domain: &Domain, id: VmId) -> Result<VmFacts<PathBuf>, HypervisorError> {
    let name = domain.name().map_err(failed("Could not read a VM's name"))?;
    Ok(VmFacts { state: VmState::Incoming, ..VmFacts::new(id, name, Vec::new()) })
}

/// Adds the facts that are not in the definition; `None` if the domain is gone.
fn filled(
    domain: &Domain,
    mut facts: VmFacts<PathBuf>,
    power: PowerState,
) -> Result<Option<VmFacts<PathBuf>>, HypervisorError> {
    facts.state = match power {
        _ if arrives(power, domain) => VmState::Incoming,
        PowerState::Running => VmState::Running,
        PowerState::Paused(_) => VmState::Paused,
        PowerState::Crashed => VmState::Crashed,
        PowerState::Suspended => VmState::Suspended,
        PowerState::Off => VmState::ShutOff,
    };
    // A transient VM has neither.
    facts.persistent = domain.persistent().unwrap_or(false);
    facts.autostart = domain.autostart().unwrap_or(false);
    // An error here does not mean that there are none.
    let counted = domain.snapshots().and_then(|snapshots| Ok((snapshots, domain.checkpoints()?)));
    let Some((snapshots, checkpoints)) = there(counted)? else { return Ok(None) };
    (facts.snapshots, facts.checkpoints) = (snapshots, checkpoints);
    facts.stall = if power == PowerState::Paused(PausedReason::ByQemu) { stall(domain) } else { None };
    Ok(Some(facts))
}

/// The disks that stopped the VM. None, if the VM continues or ends during the query.
fn stall(domain: &Domain) -> Option<Stall> {
    let errors = domain.disk_errors().ok().filter(|errors| !errors.is_empty())?;
    let full = errors.iter().any(|(_, full)| *full);
    Some(Stall { devices: errors.into_iter().map(|(device, _)| device).collect(), full })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_busy_vm_keeps_nobody_and_is_not_asked_again_meanwhile() {
        let definitions = Definitions::default();
        let process = |number: u32| (VmId(Uuid::from_u128(1)), Some(number));
        let mut held = Vec::new();
        for number in 0..WAITING_MAX as u32 {
            let (release, held_back) = mpsc::channel::<()>();
            let busy = definitions.within(process(number), move || held_back.recv().is_ok());
            assert!(busy.is_none(), "it does not answer");
            assert!(definitions.within(process(number), || ()).is_none(), "it is asked already");
            held.push(release);
        }
        assert!(definitions.within(process(9), || ()).is_none(), "the connection is left some room");
        drop(held.pop());
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while definitions.within(process(9), || ()).is_none() {
            assert!(std::time::Instant::now() < deadline, "the place of one that answered is free");
        }
        drop(held);
    }
}
