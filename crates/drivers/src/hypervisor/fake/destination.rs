//! The destination's end of a fake move: the daemon's calls, and the socket for a copy's memory.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use ferry_core::{
    id::VmId,
    vm::{FileRole, VmFacts},
};

use super::{
    faults::{Point, Struck},
    guest::{FakeGuest, Memory},
    host::{Host, Process, State, Vm},
    incoming::{Disks, Incoming},
};
use crate::hypervisor::{
    DomainEvent, MigrationStats,
    rpc::{
        FLAG_NON_SHARED_DISK, FLAG_PAUSED, FLAG_PERSIST_DEST, FinishCall, PrepareCall,
        message::{FINISH, Header, Kind, LengthError, PREPARE, REMOTE_PROGRAM, STATUS_OK, SUPPORTS_FEATURE, Splitter},
        text_parameter,
        xdr::{TypedValue, Writer},
    },
    xml::facts::parse,
};

/// How long Finish waits for memory that is still arriving.
const ARRIVAL_MAX: Duration = Duration::from_secs(30);
/// Accepts connections of other daemons until the host closes.
pub(super) fn listen(host: &Arc<Host>, socket: &UnixListener) {
    loop {
        let accepted = socket.accept();
        if host.closing.load(Ordering::Relaxed) {
            return;
        }
        let Ok((stream, _)) = accepted else { continue };
        let mut state = host.state();
        if !state.reachable {
            continue;
        }
        if let Ok(clone) = stream.try_clone() {
            state.callers.push(clone);
        }
        drop(state);
        let daemon = Arc::clone(host);
        thread::spawn(move || {
            let mut session = Session { host: daemon, prepared: None, finished: false };
            session.serve(stream);
            session.end();
        });
    }
}

/// One connection from another daemon.
struct Session {
    host: Arc<Host>,
    prepared: Option<VmId>,
    finished: bool,
}

/// Why a call fails.
enum Refused {
    Error(String),
    Cut,
}

impl From<Struck> for Refused {
    fn from(struck: Struck) -> Self {
        match struck {
            Struck::Failed(reason) => Self::Error(reason),
            Struck::Cut => Self::Cut,
        }
    }
}

impl Session {
    fn serve(&mut self, mut stream: UnixStream) {
        let mut splitter = Splitter::default();
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let mut calls = Vec::new();
            let well_formed = splitter.push::<LengthError>(&buffer[..length], |message| {
                if (message.header.program, message.header.kind) == (REMOTE_PROGRAM, Kind::Call) {
                    calls.push((message.header, message.body.to_vec()));
                }
                Ok(())
            });
            for (header, body) in calls {
                let reply = match self.answer(header, &body) {
                    Ok(body) => header.reply(STATUS_OK).message(&body),
                    Err(Refused::Error(reason)) => header.refusal_reply(&reason),
                    Err(Refused::Cut) => return drop(stream.shutdown(Shutdown::Both)),
                };
                if stream.write_all(&reply).is_err() {
                    return;
                }
            }
            if well_formed.is_err() {
                return;
            }
        }
    }

    /// If the channel ends before Finish, the copy is dropped; afterwards it stays.
    fn end(&mut self) {
        if let Some(vm) = self.prepared.filter(|_| !self.finished) {
            drop_copy(&self.host, vm);
        }
    }

    fn answer(&mut self, header: Header, body: &[u8]) -> Result<Vec<u8>, Refused> {
        let unreadable = |_| Refused::Error("cannot decode the message".to_owned());
        match header.procedure {
            PREPARE => {
                self.host.faults.meet(Point::Prepare)?;
                let call = PrepareCall::parse(body).map_err(unreadable)?;
                self.prepared = Some(prepare(&self.host, &call).map_err(Refused::Error)?);
                Ok(Writer::new().opaque(b"").optional_text(None).finish())
            }
            FINISH => {
                let call = FinishCall::parse(body).map_err(unreadable)?;
                let vm = self.prepared.ok_or_else(|| Refused::Error("no migration is in progress".to_owned()))?;
                let taken = self.finish(vm, &call);
                self.finished = true;
                if let Err(refused) = taken {
                    drop_copy(&self.host, vm);
                    return Err(refused);
                }
                self.host.faults.meet(Point::FinishReply)?;
                let name = text_parameter(&call.parameters, "destination_name").unwrap_or_default();
                Ok(Writer::new().text(name).raw(vm.0.as_bytes()).i32(1).opaque(b"").finish())
            }
            SUPPORTS_FEATURE => Ok(Writer::new().u32(1).finish()),
            _ => Ok(Vec::new()),
        }
    }

    fn finish(&self, vm: VmId, call: &FinishCall) -> Result<(), Refused> {
        if call.cancelled {
            return Err(Refused::Error("migration was cancelled".to_owned()));
        }
        self.host.faults.meet(Point::TakeOver)?;
        let lost = || Refused::Error(format!("no domain with matching uuid '{vm}'"));
        let receiving =
            |state: &mut State| state.vms.get(&vm).is_some_and(|entry| matches!(entry.process, Process::Receiving(_)));
        let (mut state, _) = self
            .host
            .changed
            .wait_timeout_while(self.host.state(), ARRIVAL_MAX, receiving)
            .expect("no thread panics while holding this lock");
        let entry = state.vms.get_mut(&vm).ok_or_else(lost)?;
        if !matches!(entry.process, Process::Received(_)) {
            return Err(lost());
        }
        if call.flags & FLAG_PERSIST_DEST != 0 {
            entry.facts.persistent = true;
        }
        drop(state);
        self.host.shift(
            vm,
            |process| {
                if let Process::Received(memory) = process { Process::Arrived(memory) } else { process }
            },
        );
        Ok(())
    }
}

/// Ends a copy that was not taken over.
fn drop_copy(host: &Host, vm: VmId) {
    host.shift(vm, |process| match process {
        Process::Receiving(incoming) => {
            incoming.drop_it();
            Process::Off
        }
        Process::Off | Process::Received(_) => Process::Off,
        taken @ (Process::Running(_)
        | Process::Paused(_)
        | Process::HandedOver(_)
        | Process::Stopped(_)
        | Process::Left(_)
        | Process::Arrived(_)
        | Process::Crashed(_)
        | Process::Suspended(_)) => taken,
    });
}

/// Checks the definition of an arriving VM, and listens for its memory.
fn prepare(host: &Arc<Host>, call: &PrepareCall) -> Result<VmId, String> {
    if call.flags & FLAG_PAUSED == 0 {
        return Err("a fake copy arrives paused only".to_owned());
    }
    let field = |name| text_parameter(&call.parameters, name).ok_or_else(|| format!("parameter {name} is missing"));
    let facts = parse(field("destination_xml")?).map_err(|error| error.to_string())?;
    let vm = facts.id;
    let path = field("migrate_uri")?.strip_prefix("unix://").ok_or("the migration URI is not of a UNIX socket")?;
    check_newcomer(host, &facts)?;
    let socket = host.reach(Path::new(path));
    // As QEMU does: an existing path is replaced.
    let _ = std::fs::remove_file(&socket);
    let listener =
        UnixListener::bind(&socket).map_err(|error| format!("Failed to bind {}: {error}", socket.display()))?;
    let disks = listen_for_disks(host, call, &facts)?;
    let incoming = Arc::new(Incoming::new(listener, socket, disks));
    let mut state = host.state();
    let entry = state
        .vms
        .entry(vm)
        .or_insert_with(|| Vm::off(FakeGuest { facts: facts.clone(), ..FakeGuest::new(&facts.name, &[]) }));
    // The VM brings its own definition; Finish decides whether it is kept here.
    entry.facts = VmFacts { persistent: entry.facts.persistent, autostart: entry.facts.autostart, ..facts };
    entry.process = Process::Receiving(Arc::clone(&incoming));
    drop(state);
    let receiver = Arc::clone(host);
    if incoming.has_disks() {
        let incoming = Arc::clone(&incoming);
        thread::spawn(move || incoming.receive_disks());
    }
    thread::spawn(move || {
        let received = incoming.receive();
        incoming.close();
        arrived(&receiver, vm, &incoming, received);
    });
    host.notify(DomainEvent::Changed(vm));
    Ok(vm)
}

fn listen_for_disks(host: &Host, call: &PrepareCall, facts: &VmFacts<PathBuf>) -> Result<Option<Disks>, String> {
    if call.flags & FLAG_NON_SHARED_DISK == 0 {
        return Ok(None);
    }
    let uri = text_parameter(&call.parameters, "disks_uri").and_then(|uri| uri.strip_prefix("unix://"));
    let socket = host.reach(Path::new(uri.ok_or("the disks' URI is not of a UNIX socket")?));
    let _ = std::fs::remove_file(&socket);
    let listener =
        UnixListener::bind(&socket).map_err(|error| format!("Failed to bind {}: {error}", socket.display()))?;
    let named = |device: &str| {
        let value = TypedValue::Text(device.to_owned());
        call.parameters.iter().any(|parameter| parameter.field == "migrate_disks" && parameter.value == value)
    };
    let files = facts.files.iter().filter(|file| named(&file.device));
    let files = files.map(|file| (file.device.clone(), file.place.clone())).collect();
    Ok(Some(Disks { listener, socket, files }))
}

fn check_newcomer(host: &Host, facts: &VmFacts<PathBuf>) -> Result<(), String> {
    let state = host.state();
    for (id, entry) in &state.vms {
        let idle = matches!(entry.process, Process::Off);
        if *id == facts.id && !idle {
            return Err(format!("operation failed: domain '{}' is already active", facts.name));
        }
        if *id != facts.id && entry.facts.name == facts.name {
            return Err(format!("operation failed: domain '{}' already exists with uuid {id}", facts.name));
        }
    }
    let needed = facts.files.iter().filter(|file| !matches!(file.role, FileRole::NotAFile | FileRole::Nvram));
    match needed.into_iter().find(|file| !file.place.exists()) {
        None => Ok(()),
        Some(file) => Err(format!("Cannot access storage file '{}': No such file or directory", file.place.display())),
    }
}

/// The outcome of receiving a copy's memory.
fn arrived(host: &Host, vm: VmId, incoming: &Arc<Incoming>, received: io::Result<(Memory, MigrationStats)>) {
    if let (Ok((_, stats)), Some(entry)) = (&received, host.state().vms.get_mut(&vm)) {
        entry.completed = Some(*stats);
    }
    let mine = |process: &Process| matches!(process, Process::Receiving(found) if Arc::ptr_eq(found, incoming));
    host.shift(vm, |process| match received {
        Ok((memory, _)) if mine(&process) => Process::Received(memory),
        // As QEMU does: a process whose incoming stream breaks ends.
        Err(_) if mine(&process) => Process::Off,
        Ok(_) | Err(_) => process,
    });
}
