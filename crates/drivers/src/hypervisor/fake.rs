//! A hypervisor for tests: guests with memory, dirty rate and disks, and a fault plan.
//!
//! Fake hosts live in one process and share a [`World`], which tells afterwards whether a VM ever ran twice. A move
//! really goes through the sockets of the session, with libvirt's own calls, so the carriers and the RPC gate
//! between them are the real ones:
//!
//! ```text
//! source.rs       DIR/rpc.sock    ── carriers ──▶ HOST_DIR/libvirt-sock                    destination.rs
//!                 DIR/memory.sock ── carriers ──▶ reach(DIR/memory.sock) = HOST_DIR/NAME-memory.sock
//! ```
//! On real hosts both ends use the same path in two file systems. Fake hosts share one, so the destination listens
//! at [`Hypervisor::reach`] of that path, inside its own folder; NAME is the last part of the session's folder.
//!
//! What the fake keeps of libvirt: the copy arrives paused; the source's copy waits for the reply to Finish, ends
//! when it comes and runs again when it is lost; a copy whose RPC channel ends before Finish is dropped, one after
//! Finish stays; the definition stays at the source; both ends know what the move took. Time is virtual: how often memory is passed over depends on the
//! guest's dirty ratio alone.

mod copies;
mod destination;
mod faults;
mod guest;
mod source;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ferry_core::{
    api::agent::Role,
    id::VmId,
    migration::Presence,
    units::ByteCount,
    vm::{FileRole, Stall, VmFacts, VmFile, VmState},
};
use uuid::Uuid;

use self::faults::Struck;
use self::guest::Memory;
pub use self::{
    faults::{Faults, Hold, Point},
    guest::FakeGuest,
    world::{Moment, World},
};
use super::{
    DiskCopy, DiskCopyRequest, DiskRefused, DiskSize, DomainEvent, EventSink, Hypervisor, HypervisorError,
    HypervisorHost, MigrateRequest, MigrationStats, files_below, has_a_place, images_to_ask,
};
use super::{
    definition::{self, Form, Volume},
    rpc::{Bound, definition::check_definition},
};

/// Name of the fake daemon's socket in the host's folder.
const RPC_SOCKET_NAME: &str = "libvirt-sock";

/// What QEMU says when another process has a disk.
const LOCKED: &str = "Failed to get \"write\" lock";

/// A fake host. Dropping it ends its daemon.
#[derive(Debug)]
pub struct FakeHypervisor {
    host: Arc<Host>,
    socket: UnixListener,
    listener: Option<JoinHandle<()>>,
}

/// What the threads of one fake host share.
struct Host {
    name: String,
    dir: PathBuf,
    world: World,
    faults: Faults,
    closing: AtomicBool,
    state: Mutex<State>,
    /// Signalled whenever a VM's process or an incoming copy changes.
    changed: Condvar,
}

struct State {
    reachable: bool,
    facts: HypervisorHost,
    vms: BTreeMap<VmId, Vm>,
    /// Definitions that were edited while their VMs run.
    edited: BTreeMap<VmId, VmFacts<PathBuf>>,
    /// What storage pools have, by `pool/volume`.
    volumes: BTreeMap<PathBuf, PathBuf>,
    watches: BTreeMap<u64, Arc<EventSink>>,
    watches_begun: u64,
    forgets_migrations: bool,
    /// Connections of other daemons.
    callers: Vec<UnixStream>,
}

struct Vm {
    facts: VmFacts<PathBuf>,
    guest: FakeGuest,
    process: Process,
    /// It runs, and is taken for one that an error stopped.
    runs_unseen: bool,
    /// It is off since its guest shut itself down.
    shut_down: bool,
    outgoing: Option<Outgoing>,
    /// By the disk's name.
    copies: BTreeMap<String, copies::Copy>,
    completed: Option<MigrationStats>,
}

/// A VM's process.
enum Process {
    Off,
    Running(Memory),
    Paused(Memory),
    /// Everything is sent; the outcome is not known.
    HandedOver(Memory),
    /// The hand-over failed, and the other copy's locks keep it from running.
    Stopped(Memory),
    /// As handed over, and the daemon was restarted meanwhile: it knows of no migration.
    Left(Memory),
    /// An incoming copy that is not whole yet.
    Receiving(Arc<destination::Incoming>),
    /// An incoming copy that is whole: Finish did not come yet.
    Received(Memory),
    /// An incoming copy after Finish.
    Arrived(Memory),
    /// Its guest crashed.
    Crashed(Memory),
    /// Its guest suspended itself to memory.
    Suspended(Memory),
}

/// A migration that leaves this host.
#[derive(Default)]
struct Outgoing {
    stats: MigrationStats,
    /// Bytes of disks that were sent.
    disks: ByteCount,
    /// Bytes of disks that the guest wrote and that are not copied yet.
    dirty_disks: ByteCount,
    downtime_limit: Duration,
    abort: bool,
    /// Whether it is too late to abort.
    committed: bool,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("name", &self.name).field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl FakeHypervisor {
    /// A host without VMs, 4 CPUs and 16 GiB, whose daemon listens in `dir`: a folder of its own, with a short path.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn new(name: &str, dir: impl Into<PathBuf>, world: &World) -> io::Result<Self> {
        let dir = dir.into();
        let socket = UnixListener::bind(dir.join(RPC_SOCKET_NAME))?;
        let facts = HypervisorHost {
            uuid: Uuid::new_v4().to_string(),
            cpus: 4,
            memory_total: ByteCount::gib(16),
            libvirt_version: "11.3.0".to_owned(),
            qemu_version: "10.0.2".to_owned(),
            confined_by: Vec::new(),
        };
        let host = Arc::new(Host {
            name: name.to_owned(),
            dir,
            world: world.clone(),
            faults: Faults::default(),
            closing: AtomicBool::new(false),
            state: Mutex::new(State {
                reachable: true,
                facts,
                vms: BTreeMap::new(),
                edited: BTreeMap::new(),
                volumes: BTreeMap::new(),
                watches: BTreeMap::new(),
                watches_begun: 0,
                forgets_migrations: false,
                callers: Vec::new(),
            }),
            changed: Condvar::new(),
        });
        let daemon = Arc::clone(&host);
        let taker = socket.try_clone()?;
        let listener = thread::Builder::new()
            .name(format!("{name}-libvirtd"))
            .spawn(move || destination::listen(&daemon, &taker))?;
        Ok(Self { host, socket, listener: Some(listener) })
    }

    /// What shall go wrong here.
    pub fn faults(&self) -> &Faults {
        &self.host.faults
    }

    /// Changes what the host says of itself.
    pub fn set_host(&self, change: impl FnOnce(&mut HypervisorHost)) {
        change(&mut self.host.state().facts);
    }

    /// Defines a guest, which does not run yet. Its disks are created, empty, if they are files that do not exist.
    ///
    /// # Errors
    /// A disk cannot be created.
    pub fn define(&self, guest: FakeGuest) -> io::Result<VmId> {
        for file in guest.facts.files.iter().filter(|file| file.role != FileRole::NotAFile) {
            if let Some(folder) = file.place.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::OpenOptions::new().create(true).append(true).open(&file.place)?;
        }
        let vm = guest.facts.id;
        self.host.state().vms.insert(vm, Vm::off(guest));
        self.host.notify(DomainEvent::Changed(vm));
        Ok(vm)
    }

    /// Makes a file a volume, `pool/volume`, of a storage pool of this host. A guest with a file of that name and of kind
    /// `volume` uses it.
    pub fn add_volume(&self, name: impl Into<PathBuf>, file: impl Into<PathBuf>) {
        self.host.state().volumes.insert(name.into(), file.into());
    }

    /// Changes the definition by which a running VM starts next, as `virsh edit` does. A pivot leaves it alone.
    pub fn edit(&self, vm: VmId, change: impl FnOnce(&mut VmFacts<PathBuf>)) {
        let mut state = self.host.state();
        let Some(mut facts) = state.vms.get(&vm).map(|entry| entry.facts.clone()) else { return };
        change(&mut facts);
        state.edited.insert(vm, facts);
    }

    /// What a VM that is being moved has written to its disks and is not copied yet, until it is another time.
    pub fn write_to_disks(&self, vm: VmId, dirty: ByteCount) {
        if let Some(outgoing) = self.host.state().vms.get_mut(&vm).and_then(|entry| entry.outgoing.as_mut()) {
            outgoing.dirty_disks = dirty;
        }
    }

    /// For how long the rest of the memory may take of a VM that is being moved.
    pub fn downtime_limit(&self, vm: VmId) -> Option<Duration> {
        self.host.state().vms.get(&vm)?.outgoing.as_ref().map(|outgoing| outgoing.downtime_limit)
    }

    /// Pauses a running VM, as an administrator or an I/O error would. Nothing happens if it does not run.
    pub fn pause(&self, vm: VmId) {
        self.host.shift(vm, |process| match process {
            Process::Running(memory) => Process::Paused(memory),
            other => other,
        });
    }

    /// Stops a running VM since a disk could not be read or written, or for want of room. Nothing happens if it does not
    /// run.
    pub fn stall(&self, vm: VmId, device: &str, full: bool) {
        let stall = Stall { devices: vec![device.to_owned()], full };
        if let Some(entry) = self.host.state().vms.get_mut(&vm) {
            entry.facts.stall = Some(stall);
        }
        self.pause(vm);
    }

    /// A running VM is taken for one that an error of a disk stopped: the hypervisor heard late of one that is over.
    pub fn hear_late(&self, vm: VmId, device: &str) {
        if let Some(entry) = self.host.state().vms.get_mut(&vm) {
            entry.facts.stall = Some(Stall { devices: vec![device.to_owned()], full: false });
            entry.runs_unseen = true;
        }
    }

    /// The guest of a running VM crashes, and its process is kept. Nothing happens if it does not run.
    pub fn panic(&self, vm: VmId) {
        self.host.shift(vm, |process| match process {
            Process::Running(memory) => Process::Crashed(memory),
            other => other,
        });
    }

    /// The guest of a running VM suspends itself to memory. Nothing happens if it does not run.
    pub fn suspend(&self, vm: VmId) {
        self.host.shift(vm, |process| match process {
            Process::Running(memory) => Process::Suspended(memory),
            other => other,
        });
    }

    /// The guest, or somebody, ends the VM's process.
    pub fn crash(&self, vm: VmId) {
        self.host.shift(vm, |_| Process::Off);
    }

    /// Ends every connection to the fake daemon and takes no new ones until it is reachable again. VMs go on.
    pub fn set_reachable(&self, reachable: bool) {
        let mut state = self.host.state();
        state.reachable = reachable;
        if reachable {
            return;
        }
        let watches = std::mem::take(&mut state.watches);
        let callers = std::mem::take(&mut state.callers);
        drop(state);
        for caller in callers {
            // One that is closed already is what we want.
            let _ = caller.shutdown(Shutdown::Both);
        }
        watches.values().for_each(|sink| sink(DomainEvent::ConnectionLost));
    }

    /// From now on a move that fails in its hand-over fails since the daemon was restarted: it knows of no migration then,
    /// and neither runs the source's copy nor ends it.
    pub fn forget_migrations(&self) {
        self.host.state().forgets_migrations = true;
    }

    /// Checksum of a VM's memory while it has a process that is whole; changes while it runs and is moved.
    pub fn memory_checksum(&self, vm: VmId) -> Option<u64> {
        match &self.host.state().vms.get(&vm)?.process {
            Process::Off | Process::Receiving(_) => None,
            Process::Running(memory)
            | Process::Paused(memory)
            | Process::Stopped(memory)
            | Process::HandedOver(memory)
            | Process::Left(memory)
            | Process::Received(memory)
            | Process::Arrived(memory)
            | Process::Crashed(memory)
            | Process::Suspended(memory) => Some(guest::checksum(&memory.bytes)),
        }
    }
}

impl Drop for FakeHypervisor {
    fn drop(&mut self) {
        self.host.closing.store(true, Ordering::Relaxed);
        self.set_reachable(false);
        end_listener(&self.socket);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// Makes `accept` return, also when the socket's path is gone.
fn end_listener(listener: &UnixListener) {
    // A listening socket is shut down like any other. One that ended already is what we want.
    if let Ok(socket) = listener.try_clone() {
        let _ = UnixStream::from(OwnedFd::from(socket)).shutdown(Shutdown::Both);
    }
}

impl Host {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while holding it")
    }

    /// The state, if the daemon answers and the plan lets the call through.
    fn call(&self, point: Point, what: impl Fn() -> String) -> Result<MutexGuard<'_, State>, HypervisorError> {
        match self.faults.meet(point) {
            Ok(()) => {}
            Err(Struck::Failed(reason)) => return Err(HypervisorError::Failed { what: what(), reason }),
            Err(Struck::Cut) => return Err(HypervisorError::Unreachable("the connection broke".to_owned())),
        }
        let state = self.state();
        if state.reachable { Ok(state) } else { Err(HypervisorError::Unreachable("it is not running".to_owned())) }
    }

    /// Replaces a VM's process, keeps the world's record and tells the watches. Nothing happens if there is no VM.
    fn shift(&self, vm: VmId, change: impl FnOnce(Process) -> Process) {
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
        // A VM without definition is gone when its process is.
        if matches!(entry.process, Process::Off) && !entry.facts.persistent {
            state.vms.remove(&vm);
        }
        drop(state);
        self.changed.notify_all();
        self.notify(if ran && handed_over { DomainEvent::StoppedForMigration(vm) } else { DomainEvent::Changed(vm) });
    }

    fn notify(&self, event: DomainEvent) {
        let sinks: Vec<_> = self.state().watches.values().cloned().collect();
        sinks.iter().for_each(|sink| sink(event));
    }

    /// Where a VM here listens instead of at `socket`.
    fn reach(&self, socket: &Path) -> PathBuf {
        let name = |path: Option<&Path>| {
            path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        self.dir.join(format!("{}-{}", name(socket.parent()), name(Some(socket))))
    }
}

impl State {
    /// A definition with every volume named by what it is.
    fn text(&self, xml: &str) -> String {
        definition::resolved(xml, |pool, volume| {
            let file = self.volumes.get(&Path::new(pool).join(volume))?;
            Some(Volume::File(file.clone()))
        })
    }

    /// Facts with every volume told by what it is, read as libvirt's are.
    fn resolved(&self, facts: VmFacts<PathBuf>) -> Result<VmFacts<PathBuf>, HypervisorError> {
        if facts.files.iter().all(|file| file.kind.as_deref() != Some("volume")) {
            return Ok(facts);
        }
        let read = definition::parse(&self.text(&guest::definition_xml(&facts)))?;
        Ok(VmFacts { files: read.files, ..facts })
    }
}

impl Vm {
    /// A guest that does not run.
    fn off(guest: FakeGuest) -> Self {
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

    fn facts(&self) -> VmFacts<PathBuf> {
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

fn no_vm(state: &mut State, vm: VmId) -> Result<&mut Vm, HypervisorError> {
    state.vms.get_mut(&vm).ok_or(HypervisorError::NoVm(vm))
}

fn failed<T>(what: String, reason: &str) -> Result<T, HypervisorError> {
    Err(HypervisorError::Failed { what, reason: reason.to_owned() })
}

impl Hypervisor for FakeHypervisor {
    fn host(&self) -> Result<HypervisorHost, HypervisorError> {
        Ok(self.host.call(Point::Host, || "Could not read the host".to_owned())?.facts.clone())
    }

    fn vms(&self) -> Result<Vec<VmFacts<PathBuf>>, HypervisorError> {
        let state = self.host.call(Point::Vms, || "Could not list VMs".to_owned())?;
        state.vms.values().map(|vm| state.resolved(vm.facts())).collect()
    }

    fn vm(&self, vm: VmId) -> Result<Option<VmFacts<PathBuf>>, HypervisorError> {
        let state = self.host.call(Point::Vms, || format!("Could not read VM {vm}"))?;
        state.vms.get(&vm).map(|vm| state.resolved(vm.facts())).transpose()
    }

    fn files_in_use(&self) -> Result<BTreeSet<PathBuf>, HypervisorError> {
        let state = self.host.call(Point::Vms, || "Could not list the files of VMs".to_owned())?;
        let all = state.vms.values().map(|vm| &vm.facts).chain(state.edited.values());
        let all = all.map(|facts| state.resolved(facts.clone())).collect::<Result<Vec<_>, _>>()?;
        drop(state);
        let files: Vec<_> = all.into_iter().flat_map(|facts| facts.files).collect();
        files.iter().try_for_each(has_a_place)?;
        let mut used: BTreeSet<PathBuf> = files.iter().flat_map(VmFile::places).cloned().collect();
        used.extend(files_below(images_to_ask(&files))?);
        Ok(used)
    }

    fn presence(&self, vm: VmId, role: Role) -> Result<Presence, HypervisorError> {
        let state = self.host.call(Point::Presence, || format!("Could not read the state of VM {vm}"))?;
        let shut_down = state.vms.get(&vm).is_some_and(|entry| entry.shut_down);
        Ok(match state.vms.get(&vm).map(|entry| &entry.process) {
            None => Presence::Absent,
            Some(Process::Off) if shut_down && role == Role::Source => Presence::Ended,
            Some(Process::Off) => Presence::Off,
            Some(Process::Running(_)) => Presence::Running,
            Some(Process::Paused(_)) => Presence::Paused,
            Some(Process::Stopped(_)) => Presence::Stopped,
            Some(Process::HandedOver(_)) => Presence::HandedOver,
            Some(Process::Left(_)) => Presence::Left,
            Some(Process::Receiving(_) | Process::Received(_)) => Presence::Receiving,
            Some(Process::Arrived(_)) => Presence::Arrived,
            Some(Process::Crashed(_) | Process::Suspended(_)) => Presence::Halted,
        })
    }

    fn watch(&self, sink: EventSink) -> Result<Box<dyn Send>, HypervisorError> {
        let mut state = self.host.call(Point::Watch, || "Could not watch".to_owned())?;
        state.watches_begun += 1;
        let number = state.watches_begun;
        state.watches.insert(number, Arc::new(sink));
        Ok(Box::new(WatchGuard { host: Arc::downgrade(&self.host), number }))
    }

    fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        let what = || format!("Could not start VM {vm}");
        let mut state = self.host.call(Point::Start, what)?;
        let entry = no_vm(&mut state, vm)?;
        match entry.process {
            Process::Off => {}
            Process::Running(_) => return Ok(()),
            Process::Paused(_)
            | Process::Stopped(_)
            | Process::HandedOver(_)
            | Process::Left(_)
            | Process::Receiving(_)
            | Process::Received(_)
            | Process::Arrived(_)
            | Process::Crashed(_)
            | Process::Suspended(_) => return failed(what(), "domain is already running"),
        }
        if self.host.world.is_locked_for(vm, &self.host.name) {
            return failed(what(), LOCKED);
        }
        let memory = Memory::fresh(vm, entry.guest.resident, entry.guest.dirty_ratio);
        drop(state);
        self.host.shift(vm, |_| Process::Running(memory));
        Ok(())
    }

    fn shutdown(&self, vm: VmId) -> Result<(), HypervisorError> {
        let what = || format!("Could not ask VM {vm} to shut down");
        let mut state = self.host.call(Point::Shutdown, what)?;
        if !matches!(no_vm(&mut state, vm)?.process, Process::Running(_)) {
            return failed(what(), "domain is not running");
        }
        drop(state);
        // Fake guests obey at once.
        self.crash(vm);
        if let Some(entry) = self.host.state().vms.get_mut(&vm) {
            entry.shut_down = true;
        }
        Ok(())
    }

    fn resume(&self, vm: VmId) -> Result<(), HypervisorError> {
        let what = || format!("Could not resume VM {vm}");
        let mut state = self.host.call(Point::Resume, what)?;
        match no_vm(&mut state, vm)?.process {
            Process::Running(_) => return Ok(()),
            Process::Paused(_) | Process::Stopped(_) | Process::Arrived(_)
                if self.host.world.is_locked_for(vm, &self.host.name) =>
            {
                return failed(what(), LOCKED);
            }
            Process::Paused(_) | Process::Stopped(_) | Process::Left(_) | Process::Arrived(_) => {
                no_vm(&mut state, vm)?.facts.stall = None;
            }
            Process::Off => return failed(what(), "domain is not running"),
            Process::Crashed(_) | Process::Suspended(_) => return failed(what(), "its guest does not run"),
            Process::HandedOver(_) | Process::Receiving(_) | Process::Received(_) => {
                return failed(what(), "domain is being migrated");
            }
        }
        drop(state);
        self.host.shift(vm, |process| match process {
            Process::Paused(memory) | Process::Stopped(memory) | Process::Left(memory) | Process::Arrived(memory) => {
                Process::Running(memory)
            }
            other => other,
        });
        Ok(())
    }

    fn ensure_disks(&self, vm: VmId) -> Result<Vec<DiskRefused>, HypervisorError> {
        let what = || format!("Could not see whether VM {vm} has its disks");
        let mut state = self.host.call(Point::EnsureDisks, what)?;
        let entry = no_vm(&mut state, vm)?;
        if matches!(entry.process, Process::Off) {
            return failed(what(), "domain is not running");
        }
        let refused = |file: &VmFile<PathBuf>| DiskRefused {
            device: file.device.clone(),
            path: file.place.clone(),
            reason: LOCKED.to_owned(),
        };
        let disks = entry.facts.files.iter().filter(|file| file.role == FileRole::Disk).map(refused).collect();
        let is_locked = self.host.world.is_locked_for(vm, &self.host.name);
        Ok(if is_locked { disks } else { Vec::new() })
    }

    fn see_running(&self, vm: VmId) -> Result<bool, HypervisorError> {
        let mut state = self.host.call(Point::SeeRunning, || format!("Could not see whether VM {vm} runs"))?;
        let entry = no_vm(&mut state, vm)?;
        let unseen = std::mem::take(&mut entry.runs_unseen) && matches!(entry.process, Process::Running(_));
        if unseen {
            entry.facts.stall = None;
        }
        drop(state);
        if unseen {
            self.host.shift(vm, |process| process);
        }
        Ok(unseen)
    }

    fn destroy(&self, vm: VmId) -> Result<(), HypervisorError> {
        let state = self.host.call(Point::Destroy, || format!("Could not end the process of VM {vm}"))?;
        let alive = state.vms.get(&vm).is_some_and(|entry| !matches!(entry.process, Process::Off));
        drop(state);
        if alive {
            self.crash(vm);
        }
        Ok(())
    }

    fn undefine(&self, vm: VmId) -> Result<(), HypervisorError> {
        let mut state = self.host.call(Point::Undefine, || format!("Could not remove the definition of VM {vm}"))?;
        let Some(entry) = state.vms.get_mut(&vm).filter(|entry| entry.facts.persistent) else { return Ok(()) };
        entry.facts.persistent = false;
        entry.facts.autostart = false;
        if matches!(entry.process, Process::Off) {
            state.vms.remove(&vm);
        }
        drop(state);
        self.host.notify(DomainEvent::Changed(vm));
        Ok(())
    }

    fn definition(&self, vm: VmId, paths: &[(PathBuf, PathBuf)]) -> Result<String, HypervisorError> {
        let what = || format!("Could not take the definition of VM {vm} along");
        let mut state = self.host.call(Point::Definition, what)?;
        let entry = no_vm(&mut state, vm)?;
        if !matches!(entry.process, Process::Off) {
            return failed(what(), "it is not shut off");
        }
        let xml = guest::definition_xml(&entry.facts);
        definition::translate(&state.text(&xml), vm, paths, &[], Form::Kept)
    }

    fn kept_definition(&self, vm: VmId) -> Result<String, HypervisorError> {
        let mut state = self.host.call(Point::Vms, || format!("Could not read the definition of VM {vm}"))?;
        let facts = no_vm(&mut state, vm)?.facts.clone();
        let xml = guest::definition_xml(state.edited.get(&vm).unwrap_or(&facts));
        Ok(state.text(&xml))
    }

    fn define(&self, definition: &str, bound: &Bound) -> Result<(), HypervisorError> {
        let what = || format!("Could not define VM {}", bound.name);
        let mut state = self.host.call(Point::Define, what)?;
        let bad = |reason: String| HypervisorError::Definition { vm: bound.vm, reason };
        check_definition(definition, bound).map_err(|error| bad(error.to_string()))?;
        let facts = VmFacts { persistent: true, ..definition::parse(definition)? };
        if state.vms.values().any(|other| other.facts.name == facts.name && other.facts.id != facts.id) {
            return failed(what(), "domain already exists with another UUID");
        }
        let guest = FakeGuest { facts: facts.clone(), ..FakeGuest::new(&facts.name, &[]) };
        state.vms.insert(bound.vm, Vm::off(guest));
        drop(state);
        self.host.notify(DomainEvent::Changed(bound.vm));
        Ok(())
    }

    fn set_autostart(&self, vm: VmId, autostart: bool) -> Result<(), HypervisorError> {
        let what = || format!("Could not set autostart of VM {vm}");
        let mut state = self.host.call(Point::SetAutostart, what)?;
        let entry = no_vm(&mut state, vm)?;
        if !entry.facts.persistent {
            return failed(what(), "cannot set autostart for transient domain");
        }
        entry.facts.autostart = autostart;
        Ok(())
    }

    fn migrate(&self, request: &MigrateRequest) -> Result<(), HypervisorError> {
        drop(self.host.call(Point::Migrate, || format!("Could not migrate VM {}", request.vm))?);
        source::migrate(&self.host, request)
    }

    fn migration_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError> {
        let state = self.host.call(Point::Vms, || format!("Could not read the migration of VM {vm}"))?;
        Ok(state.vms.get(&vm).and_then(|entry| entry.outgoing.as_ref()).map(|outgoing| outgoing.stats))
    }

    fn disk_along(&self, vm: VmId, _device: &str) -> Result<Option<(ByteCount, ByteCount)>, HypervisorError> {
        let what = || format!("Could not read how far the disks of VM {vm} are");
        let mut state = self.host.call(Point::Vms, what)?;
        let outgoing = state.vms.get_mut(&vm).and_then(|entry| entry.outgoing.as_ref());
        let total = |outgoing: &Outgoing| ByteCount(outgoing.disks.0 + outgoing.dirty_disks.0);
        Ok(outgoing.map(|outgoing| (outgoing.disks, total(outgoing))))
    }

    fn set_downtime_limit(&self, vm: VmId, limit: Duration) -> Result<(), HypervisorError> {
        let what = || format!("Could not set the downtime limit of VM {vm}");
        let mut state = self.host.call(Point::Vms, what)?;
        match no_vm(&mut state, vm)?.outgoing.as_mut() {
            None => failed(what(), "no migration job is running"),
            Some(outgoing) => {
                outgoing.downtime_limit = limit;
                Ok(())
            }
        }
    }

    fn completed_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError> {
        let state = self.host.call(Point::Vms, || format!("Could not read the migration of VM {vm}"))?;
        Ok(state.vms.get(&vm).and_then(|entry| entry.completed))
    }

    fn abort_migration(&self, vm: VmId) -> Result<(), HypervisorError> {
        let what = || format!("Could not end the migration of VM {vm}");
        let mut state = self.host.call(Point::Abort, what)?;
        match state.vms.get_mut(&vm).and_then(|entry| entry.outgoing.as_mut()) {
            None => Ok(()),
            Some(outgoing) if outgoing.committed => failed(what(), "it is too late"),
            Some(outgoing) => {
                outgoing.abort = true;
                Ok(())
            }
        }
    }

    fn disk_size(&self, vm: VmId, device: &str) -> Result<DiskSize, HypervisorError> {
        copies::size(&self.host, vm, device)
    }

    fn copy_disk(&self, request: &DiskCopyRequest) -> Result<(), HypervisorError> {
        copies::begin(&self.host, request)
    }

    fn disk_copy(&self, vm: VmId, device: &str) -> Result<Option<DiskCopy>, HypervisorError> {
        copies::look(&self.host, vm, device)
    }

    fn pivot_disk(&self, vm: VmId, device: &str) -> Result<(), HypervisorError> {
        copies::pivot(&self.host, vm, device)
    }

    fn abandon_disk_copy(&self, vm: VmId, device: &str) -> Result<(), HypervisorError> {
        let mut state =
            self.host.call(Point::Abort, || format!("Could not end the copy of disk {device} of VM {vm}"))?;
        if let Some(entry) = state.vms.get_mut(&vm) {
            entry.copies.remove(device);
        }
        Ok(())
    }

    fn rpc_socket(&self) -> PathBuf {
        self.host.dir.join(RPC_SOCKET_NAME)
    }

    fn process_owner(&self) -> Result<(u32, u32), HypervisorError> {
        // libvirt says it with the host.
        drop(self.host.call(Point::Host, || "Could not read who owns processes".to_owned())?);
        // Fake VMs are threads of this process.
        Ok((nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()))
    }

    fn reach(&self, socket: &Path) -> PathBuf {
        self.host.reach(socket)
    }
}

struct WatchGuard {
    host: Weak<Host>,
    number: u64,
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        if let Some(host) = self.host.upgrade() {
            // Not under the lock: the sink may hold the last handle of this host.
            let sink = host.state().watches.remove(&self.number);
            drop(sink);
        }
    }
}
