//! State shared by the threads of one fake host: its VMs, with their processes.

use std::{
    collections::BTreeMap,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic::AtomicBool},
    time::Duration,
};

use ferry_core::{
    id::VmId,
    network::HostAddress,
    units::ByteCount,
    vm::{NotAFile, VmFacts, VmState},
};

use super::{
    copies::Copy,
    faults::{Faults, Point, Struck},
    guest::{self, FakeGuest, Memory},
    incoming::Incoming,
    world::World,
};
use crate::hypervisor::{
    DomainEvent, EventSink, HypervisorError, HypervisorHost, MigrationStats,
    xml::{
        edit::{Volume, resolved},
        facts::parse,
    },
};

/// QEMU's message when another process has a disk.
pub(super) const LOCKED: &str = "Failed to get \"write\" lock";

/// State shared by the threads of one fake host.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) world: World,
    pub(super) faults: Faults,
    pub(super) closing: AtomicBool,
    pub(super) state: Mutex<State>,
    /// Signalled when a VM's process or an incoming copy changes.
    pub(super) changed: Condvar,
}

pub(super) struct State {
    pub(super) reachable: bool,
    pub(super) facts: HypervisorHost,
    pub(super) addresses: Vec<HostAddress>,
    pub(super) vms: BTreeMap<VmId, Vm>,
    /// Definitions that were edited while their VMs run.
    pub(super) edited: BTreeMap<VmId, VmFacts<PathBuf>>,
    /// Volumes of storage pools, by `pool/volume`.
    pub(super) volumes: BTreeMap<PathBuf, PathBuf>,
    pub(super) watches: BTreeMap<u64, Arc<EventSink>>,
    pub(super) watches_begun: u64,
    pub(super) forgets_migrations: bool,
    /// Connections of other daemons.
    pub(super) callers: Vec<UnixStream>,
}

pub(super) struct Vm {
    pub(super) facts: VmFacts<PathBuf>,
    pub(super) guest: FakeGuest,
    pub(super) process: Process,
    /// It runs, but is reported as stopped by an error.
    pub(super) runs_unseen: bool,
    /// It is off because its guest shut itself down.
    pub(super) shut_down: bool,
    pub(super) outgoing: Option<Outgoing>,
    /// By the disk's name.
    pub(super) copies: BTreeMap<String, Copy>,
    pub(super) completed: Option<MigrationStats>,
}

/// A VM's process.
pub(super) enum Process {
    Off,
    Running(Memory),
    Paused(Memory),
    /// Everything is sent; the outcome is unknown.
    HandedOver(Memory),
    /// The hand-over failed, and the locks of the other copy prevent it from running.
    Stopped(Memory),
    /// As handed over, but the daemon was restarted meanwhile and knows no migration.
    Left(Memory),
    /// An incoming copy that is incomplete.
    Receiving(Arc<Incoming>),
    /// A complete incoming copy, before Finish.
    Received(Memory),
    /// An incoming copy after Finish.
    Arrived(Memory),
    /// Its guest crashed.
    Crashed(Memory),
    /// Its guest suspended itself to memory.
    Suspended(Memory),
}

impl Process {
    /// What becomes of one that runs; of another nothing does.
    pub(super) fn if_running(self, into: impl FnOnce(Memory) -> Self) -> Self {
        if let Self::Running(memory) = self { into(memory) } else { self }
    }
}

/// A migration that leaves this host.
#[derive(Default)]
pub(super) struct Outgoing {
    pub(super) stats: MigrationStats,
    /// Bytes of disks that were sent.
    pub(super) disks: ByteCount,
    /// Bytes of disks that the guest wrote and that are not copied yet.
    pub(super) dirty_disks: ByteCount,
    pub(super) downtime_limit: Duration,
    pub(super) abort: bool,
    /// Whether it is too late to abort.
    pub(super) committed: bool,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("name", &self.name).field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Host {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while holding this lock")
    }

    /// Returns the state if the daemon is reachable and the fault plan lets the call through.
    pub(super) fn call(
        &self,
        point: Point,
        what: impl Fn() -> String,
    ) -> Result<MutexGuard<'_, State>, HypervisorError> {
        match self.faults.meet(point) {
            Ok(()) => {}
            Err(Struck::Failed(reason)) => return Err(HypervisorError::Failed { what: what(), reason }),
            Err(Struck::Cut) => return Err(HypervisorError::Unreachable("the connection broke".to_owned())),
        }
        let state = self.state();
        if state.reachable { Ok(state) } else { Err(HypervisorError::Unreachable("it is not running".to_owned())) }
    }

    /// Replaces a VM's process, updates the world's record and notifies the watches. Does nothing if there is no such
    /// VM.
    pub(super) fn shift(&self, vm: VmId, change: impl FnOnce(Process) -> Process) {
        let mut state = self.state();
        let Some(entry) = state.vms.get_mut(&vm) else { return };
        let ran = matches!(entry.process, Process::Running(_));
        entry.process = change(std::mem::replace(&mut entry.process, Process::Off));
        let runs = matches!(entry.process, Process::Running(_));
        entry.shut_down &= !runs;
        let handed_over = matches!(entry.process, Process::HandedOver(_));
        if ran != runs {
            self.world.note(vm, &self.name, runs);
        }
        let writes = match &entry.process {
            Process::Running(_)
            | Process::Paused(_)
            | Process::Arrived(_)
            | Process::Crashed(_)
            | Process::Suspended(_) => true,
            Process::Off
            | Process::Stopped(_)
            | Process::HandedOver(_)
            | Process::Left(_)
            | Process::Receiving(_)
            | Process::Received(_) => false,
        };
        self.world.note_writer(vm, &self.name, writes);
        if matches!(entry.process, Process::Off) {
            entry.copies.clear();
        }
        // A VM without a persistent definition is gone when its process ends.
        if matches!(entry.process, Process::Off) && !entry.facts.persistent {
            state.vms.remove(&vm);
        }
        drop(state);
        self.changed.notify_all();
        self.notify(if ran && handed_over { DomainEvent::StoppedForMigration(vm) } else { DomainEvent::Changed(vm) });
    }

    pub(super) fn notify(&self, event: DomainEvent) {
        let sinks: Vec<_> = self.state().watches.values().cloned().collect();
        sinks.iter().for_each(|sink| sink(event));
    }

    /// The path where a VM of this host listens instead of at `socket`.
    pub(super) fn reach(&self, socket: &Path) -> PathBuf {
        let name = |path: Option<&Path>| {
            path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        self.dir.join(format!("{}-{}", name(socket.parent()), name(Some(socket))))
    }
}

impl State {
    /// A definition with every volume replaced by its file.
    pub(super) fn text(&self, xml: &str) -> String {
        resolved(xml, |pool, volume| {
            let file = self.volumes.get(&Path::new(pool).join(volume))?;
            Some(Volume::File(file.clone()))
        })
    }

    /// Facts with every volume replaced by its file, read the same way as libvirt's.
    pub(super) fn resolved(&self, facts: VmFacts<PathBuf>) -> Result<VmFacts<PathBuf>, HypervisorError> {
        if facts.files.iter().all(|file| file.kind != Some(NotAFile::Volume)) {
            return Ok(facts);
        }
        let read = parse(&self.text(&guest::definition_xml(&facts)))?;
        Ok(VmFacts { files: read.files, ..facts })
    }
}

impl Vm {
    /// A guest that does not run.
    pub(super) fn off(guest: FakeGuest) -> Self {
        Self {
            facts: guest.facts.clone(),
            guest,
            process: Process::Off,
            runs_unseen: false,
            shut_down: false,
            outgoing: None,
            copies: BTreeMap::new(),
            completed: None,
        }
    }

    pub(super) fn facts(&self) -> VmFacts<PathBuf> {
        let state = match self.process {
            Process::Off => VmState::ShutOff,
            Process::Running(_) if self.runs_unseen => VmState::Paused,
            Process::Running(_) => VmState::Running,
            Process::Paused(_) | Process::Stopped(_) | Process::Arrived(_) => VmState::Paused,
            Process::Crashed(_) => VmState::Crashed,
            Process::Suspended(_) => VmState::Suspended,
            Process::HandedOver(_) | Process::Left(_) | Process::Receiving(_) | Process::Received(_) => {
                VmState::Incoming
            }
        };
        let stall = self.facts.stall.clone().filter(|_| self.runs_unseen || matches!(self.process, Process::Paused(_)));
        VmFacts { state, stall, ..self.facts.clone() }
    }
}

pub(super) fn no_vm(state: &mut State, vm: VmId) -> Result<&mut Vm, HypervisorError> {
    state.vms.get_mut(&vm).ok_or(HypervisorError::NoVm(vm))
}

pub(super) fn failed<T>(what: String, reason: &str) -> Result<T, HypervisorError> {
    Err(HypervisorError::Failed { what, reason: reason.to_owned() })
}
