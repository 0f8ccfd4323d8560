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
//! at [`Sockets::reach`](super::Sockets::reach) of that path, inside its own folder; NAME is the last part of the session's folder.
//!
//! What the fake keeps of libvirt: the copy arrives paused; the source's copy waits for the reply to Finish, ends
//! when it comes and runs again when it is lost; a copy whose RPC channel ends before Finish is dropped, one after
//! Finish stays; the definition stays at the source; both ends know what the move took. Time is virtual: how often memory is passed over depends on the
//! guest's dirty ratio alone.

mod block_copy;
mod copies;
mod destination;
mod domains;
mod faults;
mod guest;
mod host;
mod incoming;
mod migration;
mod power;
mod source;
mod world;

use std::{
    collections::BTreeMap,
    io,
    net::Shutdown,
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ferry_core::{
    id::VmId,
    units::ByteCount,
    vm::{FileRole, Stall, VmFacts},
};
use uuid::Uuid;

pub use self::{
    faults::{Faults, Hold, Point},
    guest::FakeGuest,
    world::{Moment, World},
};
use self::{
    host::{Host, Process, State, Vm},
    incoming::end_listener,
};
use super::{DomainEvent, HypervisorHost};

/// Name of the fake daemon's socket in the host's folder.
const RPC_SOCKET_NAME: &str = "libvirt-sock";

/// A fake host. Dropping it ends its daemon.
#[derive(Debug)]
pub struct FakeHypervisor {
    host: Arc<Host>,
    socket: UnixListener,
    listener: Option<JoinHandle<()>>,
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
