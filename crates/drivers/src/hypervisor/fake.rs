//! A hypervisor for tests: guests with memory, dirty rate and disks, and a fault plan.
//!
//! Fake hosts live in one process and share a [`World`], which records whether a VM ever ran twice. A move really uses
//! the session's sockets and libvirt's own calls, so the carriers and the RPC gate between the hosts are the real ones:
//!
//! ```text
//! source.rs       DIR/rpc.sock    ── carriers ──▶ HOST_DIR/libvirt-sock                    destination.rs
//!                 DIR/memory.sock ── carriers ──▶ reach(DIR/memory.sock) = HOST_DIR/NAME-memory.sock
//! ```
//! On real hosts both ends use the same path in two file systems. Fake hosts share one, so the destination listens at
//! [`Sockets::reach`](super::Sockets::reach) of that path, inside its own folder; NAME is the last component of the
//! session's folder.
//!
//! The fake behaves like libvirt in these respects: the copy arrives paused; the source's copy waits for the reply to
//! Finish, ends when it arrives, and continues when it is lost; a copy whose RPC channel ends before Finish is dropped,
//! and one whose channel ends after Finish stays; the definition stays at the source; both ends have the statistics of
//! the move. Time is virtual: the number of passes over memory depends only on the guest's dirty ratio.

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
    network::HostAddress,
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
                addresses: Vec::new(),
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

    /// The plan of faults on this host.
    pub fn faults(&self) -> &Faults {
        &self.host.faults
    }

    /// Changes the host's description.
    pub fn set_host(&self, change: impl FnOnce(&mut HypervisorHost)) {
        change(&mut self.host.state().facts);
    }

    /// Sets the addresses of the host, which has none at first. All of 127.0.0.0/8 can be listened at in a test.
    pub fn set_addresses(&self, addresses: Vec<HostAddress>) {
        self.host.state().addresses = addresses;
    }

    /// Defines a guest without starting it. Its disks are created, empty, if they are files that do not exist.
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

    /// Makes a file a volume, `pool/volume`, of a storage pool of this host. A guest with a file of that name and of
    /// kind `volume` uses it.
    pub fn add_volume(&self, name: impl Into<PathBuf>, file: impl Into<PathBuf>) {
        self.host.state().volumes.insert(name.into(), file.into());
    }

    /// Changes the definition by which a running VM starts next, as `virsh edit` does. A pivot does not change that
    /// definition.
    pub fn edit(&self, vm: VmId, change: impl FnOnce(&mut VmFacts<PathBuf>)) {
        let mut state = self.host.state();
        let Some(mut facts) = state.vms.get(&vm).map(|entry| entry.facts.clone()) else { return };
        change(&mut facts);
        state.edited.insert(vm, facts);
    }

    /// Sets how much a moving VM has written to its disks that is not copied yet; holds until the next call.
    pub fn write_to_disks(&self, vm: VmId, dirty: ByteCount) {
        if let Some(outgoing) = self.host.state().vms.get_mut(&vm).and_then(|entry| entry.outgoing.as_mut()) {
            outgoing.dirty_disks = dirty;
        }
    }

    /// The downtime limit of a VM that is being moved.
    pub fn downtime_limit(&self, vm: VmId) -> Option<Duration> {
        self.host.state().vms.get(&vm)?.outgoing.as_ref().map(|outgoing| outgoing.downtime_limit)
    }

    /// Pauses a running VM, as an administrator or an I/O error would. Does nothing if it does not run.
    pub fn pause(&self, vm: VmId) {
        self.host.shift(vm, |process| process.if_running(Process::Paused));
    }

    /// Stops a running VM because of an I/O error on a disk, or for lack of space. Does nothing if it does not run.
    pub fn stall(&self, vm: VmId, device: &str, full: bool) {
        let stall = Stall { devices: vec![device.to_owned()], full };
        if let Some(entry) = self.host.state().vms.get_mut(&vm) {
            entry.facts.stall = Some(stall);
        }
        self.pause(vm);
    }

    /// Makes the hypervisor report a running VM as stopped by a disk error: it learned too late of an error that is
    /// over.
    pub fn hear_late(&self, vm: VmId, device: &str) {
        if let Some(entry) = self.host.state().vms.get_mut(&vm) {
            entry.facts.stall = Some(Stall { devices: vec![device.to_owned()], full: false });
            entry.runs_unseen = true;
        }
    }

    /// Crashes the guest of a running VM and keeps its process. Does nothing if it does not run.
    pub fn panic(&self, vm: VmId) {
        self.host.shift(vm, |process| process.if_running(Process::Crashed));
    }

    /// Suspends the guest of a running VM to memory. Does nothing if it does not run.
    pub fn suspend(&self, vm: VmId) {
        self.host.shift(vm, |process| process.if_running(Process::Suspended));
    }

    /// Ends the VM's process, as the guest or an administrator would.
    pub fn crash(&self, vm: VmId) {
        self.host.shift(vm, |_| Process::Off);
    }

    /// Ends every connection to the fake daemon, and accepts none until it is reachable again. VMs continue.
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
            // The connection may be closed already.
            let _ = caller.shutdown(Shutdown::Both);
        }
        watches.values().for_each(|sink| sink(DomainEvent::ConnectionLost));
    }

    /// From now on, a move that fails in its hand-over fails because the daemon was restarted: it knows no migration
    /// then, and neither resumes nor ends the source's copy.
    pub fn forget_migrations(&self) {
        self.host.state().forgets_migrations = true;
    }

    /// Checksum of a VM's memory while it has a complete process; changes while the VM runs and is moved.
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
