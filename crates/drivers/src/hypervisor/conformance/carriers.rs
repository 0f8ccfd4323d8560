//! Connects the two hosts of the suite: the simplest possible forwarding of a session's sockets.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::{
        fs::chown,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use ferry_core::id::VmId;

use super::site::{DEADLINE, Side, Site};
use crate::hypervisor::{
    DISK_SOCKET, MEMORY_SOCKET, MigratedDisk, RPC_SOCKET,
    rpc::{Gate, GatePolicy, Tap, definition::DefinitionPolicy},
};

/// Failures to inject on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// Nothing.
    None,
    /// The destination's reply to Finish does not arrive, and the RPC channel ends.
    LoseFinishReply,
    /// No memory is accepted from the source until it is released.
    HoldMemory,
    /// The memory channel ends after its first bytes.
    CutMemory,
}

/// Forwards one session's sockets until it is dropped.
pub struct Carriers(Arc<Way>);

struct Way {
    mishap: Mishap,
    /// The path where the source connects, and the path it is forwarded to.
    rpc: (PathBuf, PathBuf),
    memory: (PathBuf, PathBuf),
    disks: (PathBuf, PathBuf),
    folders: [PathBuf; 2],
    gate: Mutex<Gate>,
    tap: Mutex<Tap>,
    closing: AtomicBool,
    rpc_began: AtomicBool,
    memory_began: AtomicBool,
    finish_delivered: AtomicBool,
    memory_may_flow: (Mutex<bool>, Condvar),
    streams: Mutex<Vec<UnixStream>>,
}

impl Carriers {
    /// Listens at the source and forwards to the destination. `socket_dir` is created on both hosts.
    pub(super) fn begin(
        site: &Site<'_>,
        (vm, name): (VmId, &str),
        socket_dir: &Path,
        mishap: Mishap,
        disks: &[MigratedDisk],
    ) -> Self {
        let folder = |side: &Side<'_>| {
            let folder = (side.see)(socket_dir);
            std::fs::create_dir_all(&folder).expect("the run folder is writable");
            let (user, group) = side.hypervisor.process_owner().expect("reachable");
            chown(&folder, Some(user), Some(group)).expect("permitted");
            folder
        };
        let (memory_socket, disk_socket) = (socket_dir.join(MEMORY_SOCKET), socket_dir.join(DISK_SOCKET));
        let there = &site.destination;
        let at_source = |name| (site.source.see)(&socket_dir.join(name));
        let policy = GatePolicy {
            definition: DefinitionPolicy { vm, name: name.to_owned(), roots: vec![site.folder.1.clone()] },
            memory_socket: memory_socket.clone(),
            disk_socket: disk_socket.clone(),
            disks: disks.iter().map(|disk| disk.device.clone()).collect(),
        };
        let way = Arc::new(Way {
            mishap,
            rpc: (at_source(RPC_SOCKET), there.hypervisor.rpc_socket()),
            memory: (at_source(MEMORY_SOCKET), (there.see)(&there.hypervisor.reach(&memory_socket))),
            disks: (at_source(DISK_SOCKET), (there.see)(&there.hypervisor.reach(&disk_socket))),
            folders: [folder(&site.source), folder(there)],
            gate: Mutex::new(Gate::new(policy)),
            tap: Mutex::default(),
            closing: AtomicBool::new(false),
            rpc_began: AtomicBool::new(false),
            memory_began: AtomicBool::new(false),
            finish_delivered: AtomicBool::new(false),
            memory_may_flow: (Mutex::new(mishap != Mishap::HoldMemory), Condvar::new()),
            streams: Mutex::default(),
        });
        way.listen(&way.rpc, Way::carry_rpc);
        way.listen(&way.memory, Way::carry_memory);
        way.listen(&way.disks, Way::carry_disk);
        Self(way)
    }

    /// Whether the reply that gives the VM to the destination was written to the source.
    pub(super) fn finish_delivered(&self) -> bool {
        self.0.finish_delivered.load(Ordering::SeqCst)
    }

    pub(super) fn rpc_began(&self) -> bool {
        self.0.rpc_began.load(Ordering::SeqCst)
    }

    pub(super) fn memory_began(&self) -> bool {
        self.0.memory_began.load(Ordering::SeqCst)
    }

    pub(super) fn release_memory(&self) {
        *self.0.memory_may_flow.0.lock().expect("no thread panicked") = true;
        self.0.memory_may_flow.1.notify_all();
    }
}

impl Drop for Carriers {
    fn drop(&mut self) {
        self.0.closing.store(true, Ordering::SeqCst);
        self.release_memory();
        for path in [&self.0.rpc.0, &self.0.memory.0, &self.0.disks.0] {
            // Wakes the listener. If it has already ended, nothing is left to wake.
            let _ = UnixStream::connect(path);
        }
        self.0.end();
        for folder in &self.0.folders {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

impl Way {
    /// Accepts connections at the first path and forwards each to the second.
    fn listen(self: &Arc<Self>, way: &(PathBuf, PathBuf), carry: fn(&Arc<Self>, UnixStream, UnixStream)) {
        let listener = UnixListener::bind(&way.0).expect("the session's folder is there");
        let (this, onward) = (Arc::clone(self), way.1.clone());
        thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                if this.closing.load(Ordering::SeqCst) {
                    return;
                }
                let far = match UnixStream::connect(&onward) {
                    Ok(far) => far,
                    Err(error) => panic!("cannot connect to {}: {error}", onward.display()),
                };
                let mut streams = this.streams.lock().expect("no thread panicked");
                streams.extend([&near, &far].map(|stream| stream.try_clone().expect("a descriptor")));
                drop(streams);
                carry(&this, near, far);
            }
        });
    }

    fn carry_rpc(self: &Arc<Self>, near: UnixStream, far: UnixStream) {
        self.rpc_began.store(true, Ordering::SeqCst);
        let this = Arc::clone(self);
        pump(&near, &far, move |bytes, far| {
            this.tap.lock().expect("no thread panicked").calls(bytes).expect("well formed");
            let mut out = Vec::new();
            this.gate.lock().expect("no thread panicked").pass(bytes, &mut out).expect("a plain move");
            far.write_all(&out).is_ok()
        });
        let this = Arc::clone(self);
        pump(&far, &near, move |bytes, near| {
            let mut out = Vec::new();
            let seen = this.tap.lock().expect("no thread panicked").replies(bytes, &mut out).expect("well formed");
            if seen.is_some() && this.mishap == Mishap::LoseFinishReply {
                this.end();
                return false;
            }
            let written = near.write_all(&out).is_ok();
            if written && seen.is_some_and(|reply| reply.destination_has_it) {
                this.finish_delivered.store(true, Ordering::SeqCst);
            }
            written
        });
    }

    fn carry_memory(self: &Arc<Self>, near: UnixStream, far: UnixStream) {
        self.memory_began.store(true, Ordering::SeqCst);
        let this = Arc::clone(self);
        pump(&near, &far, move |bytes, far| {
            let (may_flow, changed) = &this.memory_may_flow;
            let held = may_flow.lock().expect("no thread panicked");
            drop(changed.wait_timeout_while(held, DEADLINE, |may_flow| !*may_flow).expect("no thread panicked"));
            let written = far.write_all(bytes).is_ok();
            if this.mishap == Mishap::CutMemory {
                // Shuts down both directions, as a dying carrier does.
                let _ = far.shutdown(Shutdown::Both);
                return false;
            }
            written
        });
        pump(&far, &near, |bytes, near| near.write_all(bytes).is_ok());
    }

    fn carry_disk(self: &Arc<Self>, near: UnixStream, far: UnixStream) {
        pump(&near, &far, |bytes, far| far.write_all(bytes).is_ok());
        pump(&far, &near, |bytes, near| near.write_all(bytes).is_ok());
    }

    fn end(&self) {
        for stream in self.streams.lock().expect("no thread panicked").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Passes everything read from `from` to `each` until the end, or until `each` returns false; then shuts down `to`'s
/// direction.
fn pump(from: &UnixStream, to: &UnixStream, mut each: impl FnMut(&[u8], &mut UnixStream) -> bool + Send + 'static) {
    let mut from = from.try_clone().expect("a descriptor");
    let mut to = to.try_clone().expect("a descriptor");
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if !each(&buffer[..length], &mut to) {
                let _ = from.shutdown(Shutdown::Both);
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}
