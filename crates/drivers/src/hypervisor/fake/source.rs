//! The source's end of a fake move: libvirt's client calls, and memory that the guest keeps changing.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ferry_core::{id::VmId, release::knows_shared_filesystems, units::ByteCount};

use super::{
    faults::{Point, Struck},
    guest::{self, PAGE_BYTES},
    host::{Host, Outgoing, Process},
    incoming::{MEMORY_END, MEMORY_MAGIC},
};
use crate::hypervisor::{
    DISK_SOCKET, HypervisorError, MEMORY_SOCKET, MigrateRequest, MigrationStats, RPC_SOCKET,
    rpc::{
        FLAG_LIVE, FLAG_NON_SHARED_DISK, FLAG_PAUSED, FLAG_PEER2PEER, FLAG_PERSIST_DEST, FLAG_UNSAFE, FinishCall,
        PrepareCall,
        message::{
            AUTH_LIST, CLOSE, FINISH, Header, Kind, LengthError, OPEN, PREPARE, REGISTER_CLOSE_CALLBACK,
            REMOTE_PROGRAM, STATUS_OK, SUPPORTS_FEATURE, Splitter, UNREGISTER_CLOSE_CALLBACK,
        },
        xdr::{Reader, TypedParameter, Writer},
    },
    xml::edit::{Form, translate},
};

/// Virtual link speed: with the downtime limit it determines when the rest is small enough. No real time passes.
const LINK_BYTES_PER_S: f64 = (1 << 20) as f64;
/// Factor by which the guest is slowed after each pass without convergence.
const SLOWER: f64 = 0.7;
/// Pages that are sent between two checks for an abort.
const PAGES_PER_BATCH: usize = 64;
/// `VIR_DRV_FEATURE_MIGRATION_PARAMS`
const FEATURE_MIGRATION_PARAMS: u32 = 13;

/// Why a move ended early.
enum Trouble {
    Aborted,
    Failed(String),
}

impl Trouble {
    fn because(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Failed(format!("{what}: {error}"))
    }
}

impl Struck {
    fn into_trouble(self) -> Trouble {
        match self {
            Self::Failed(reason) => Trouble::Failed(reason),
            Self::Cut => Trouble::Failed("the channel broke".to_owned()),
        }
    }
}

/// The two definitions of a moving VM, as the destination sees them.
struct Definitions {
    name: String,
    live: String,
    persistent: Option<String>,
    /// Migrated disks, with their files on this host.
    disks: Vec<(String, PathBuf)>,
}

pub(super) fn migrate(host: &Arc<Host>, request: &MigrateRequest) -> Result<(), HypervisorError> {
    let vm = request.vm;
    let what = format!("Could not migrate VM {vm}");
    let definitions = begin(host, request, &what)?;
    let outcome = perform(host, request, &definitions);
    let outgoing = host.state().vms.get_mut(&vm).and_then(|entry| entry.outgoing.take());
    match outcome {
        Ok(()) => {
            if let (Some(entry), Some(outgoing)) = (host.state().vms.get_mut(&vm), outgoing) {
                entry.completed = Some(outgoing.stats);
            }
            host.shift(vm, |_| Process::Off);
            Ok(())
        }
        Err(trouble) => {
            // As libvirt does: whatever happened at the destination, a source that did not receive the reply to Finish
            // continues, unless locks prevent it.
            let is_locked = host.world.is_locked_for(vm, &host.name);
            let forgets = host.state().forgets_migrations;
            host.shift(vm, |process| {
                let Process::HandedOver(memory) = process else { return process };
                match (forgets, is_locked) {
                    (true, _) => Process::Left(memory),
                    (false, true) => Process::Stopped(memory),
                    (false, false) => Process::Running(memory),
                }
            });
            Err(match trouble {
                Trouble::Aborted => HypervisorError::Aborted { what },
                Trouble::Failed(reason) => HypervisorError::Failed { what, reason },
            })
        }
    }
}

/// Checks the VM, translates its definition and marks it as moving.
fn begin(host: &Host, request: &MigrateRequest, what: &str) -> Result<Definitions, HypervisorError> {
    let vm = request.vm;
    let refuse = |reason: &str| HypervisorError::Failed { what: what.to_owned(), reason: reason.to_owned() };
    let mut state = host.state();
    let xml = state.vms.get(&vm).map(|entry| guest::definition_xml(&entry.facts)).ok_or(HypervisorError::NoVm(vm))?;
    let xml = state.text(&xml);
    let knows_shared = knows_shared_filesystems(&state.facts.libvirt_version);
    let stays = |device: &str| !request.disks.iter().any(|disk| disk.device == device);
    let facts = state.resolved(state.vms.get(&vm).ok_or(HypervisorError::NoVm(vm))?.facts())?;
    let entry = state.vms.get_mut(&vm).ok_or(HypervisorError::NoVm(vm))?;
    if !matches!(entry.process, Process::Running(_)) {
        return Err(refuse("domain is not running"));
    }
    // Later releases are configured with the shared file systems.
    if !knows_shared && !request.vouched && facts.files.iter().any(|file| stays(&file.device)) {
        return Err(refuse("Unsafe migration: Migration without shared storage is unsafe"));
    }
    if entry.outgoing.is_some() {
        return Err(refuse("another migration job is already running for this domain"));
    }
    if !entry.facts.host_devices.is_empty() {
        return Err(refuse("cannot migrate a domain with host devices"));
    }
    let translated = |form| translate(&xml, vm, &request.translate, &request.disks, form);
    let live = translated(Form::Live)?;
    let persistent = if request.persistent { Some(translated(Form::Kept)?) } else { None };
    let file = |device: &str| facts.files.iter().find(|file| file.device == device).map(|file| file.place.clone());
    let disks: Option<Vec<_>> =
        request.disks.iter().map(|disk| Some((disk.device.clone(), file(&disk.device)?))).collect();
    let disks = disks.ok_or_else(|| refuse("disk target not found"))?;
    entry.outgoing = Some(Outgoing { downtime_limit: request.downtime_limit, ..Outgoing::default() });
    Ok(Definitions { name: entry.facts.name.clone(), persistent, live, disks })
}

fn perform(host: &Host, request: &MigrateRequest, definitions: &Definitions) -> Result<(), Trouble> {
    let memory_path = request.socket_dir.join(MEMORY_SOCKET);
    let disk_path = request.socket_dir.join(DISK_SOCKET);
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = FLAG_LIVE
        | FLAG_PEER2PEER
        | FLAG_PAUSED
        | flag(request.persistent, FLAG_PERSIST_DEST)
        | flag(request.vouched, FLAG_UNSAFE)
        | flag(!request.disks.is_empty(), FLAG_NON_SHARED_DISK);
    let uri = TypedParameter::text("migrate_uri", format!("unix://{}", memory_path.display()));
    let name = TypedParameter::text("destination_name", &definitions.name);
    let mut daemon = Caller::connect(&request.socket_dir.join(RPC_SOCKET))?;
    daemon.call(AUTH_LIST, &[])?;
    daemon.call(SUPPORTS_FEATURE, &Writer::new().u32(FEATURE_MIGRATION_PARAMS).finish())?;
    daemon.call(OPEN, &Writer::new().optional_text(Some("qemu:///system")).u32(0).finish())?;
    daemon.call(REGISTER_CLOSE_CALLBACK, &[])?;
    let mut parameters = vec![TypedParameter::text("destination_xml", &definitions.live), uri.clone()];
    if !request.disks.is_empty() {
        parameters.push(TypedParameter::text("disks_uri", format!("unix://{}", disk_path.display())));
        parameters.extend(request.disks.iter().map(|disk| TypedParameter::text("migrate_disks", &disk.device)));
    }
    let prepare = PrepareCall { parameters, cookie: cookie(request.vm, &definitions.name, ""), flags };
    daemon.call(PREPARE, &prepare.body())?;
    let sent = definitions
        .disks
        .iter()
        .try_for_each(|(device, file)| send_disk(host, request.vm, device, file, &disk_path))
        .and_then(|()| send_memory(host, request, &memory_path));
    let finish = FinishCall {
        parameters: vec![name, uri],
        cookie: cookie(request.vm, &definitions.name, definitions.persistent.as_deref().unwrap_or_default()),
        flags,
        cancelled: sent.is_err(),
    };
    if let Err(trouble) = sent {
        // The destination drops its copy when this channel ends, if not before.
        let _ = daemon.call(FINISH, &finish.body());
        return Err(trouble);
    }
    match host.faults.meet(Point::Finish) {
        Ok(()) => {}
        Err(struck) => return Err(struck.into_trouble()),
    }
    commit(host, request.vm)?;
    daemon.call(FINISH, &finish.body())?;
    // The VM has moved. It does not matter whether these calls fail.
    let _ = daemon.call(UNREGISTER_CLOSE_CALLBACK, &[]).and_then(|_| daemon.call(CLOSE, &[]));
    Ok(())
}

fn cookie(vm: VmId, name: &str, inside: &str) -> Vec<u8> {
    let name = name.replace('&', "&amp;").replace('<', "&lt;");
    format!("<qemu-migration><name>{name}</name><uuid>{vm}</uuid>{inside}</qemu-migration>\0").into_bytes()
}

/// From here on, the move can no longer be aborted.
fn commit(host: &Host, vm: VmId) -> Result<(), Trouble> {
    let mut state = host.state();
    let outgoing = state.vms.get_mut(&vm).and_then(|entry| entry.outgoing.as_mut());
    let outgoing = outgoing.ok_or_else(|| Trouble::Failed("the VM ended".to_owned()))?;
    if outgoing.abort {
        return Err(Trouble::Aborted);
    }
    outgoing.committed = true;
    Ok(())
}

/// Sends a disk: its name, length and content; returns when the other end has written it.
fn send_disk(host: &Host, vm: VmId, device: &str, file: &Path, socket: &Path) -> Result<(), Trouble> {
    host.faults.meet(Point::MigratedDisk).map_err(Struck::into_trouble)?;
    let because = Trouble::because;
    let content = std::fs::read(file).map_err(because("cannot read the disk"))?;
    let mut stream = UnixStream::connect(socket).map_err(because("cannot connect to the disks' socket"))?;
    let mut opening = (device.len() as u64).to_be_bytes().to_vec();
    opening.extend(device.as_bytes());
    opening.extend((content.len() as u64).to_be_bytes());
    stream.write_all(&opening).map_err(because("cannot send a disk"))?;
    for part in content.chunks(1 << 20) {
        with_memory(host, vm, |_, outgoing| {
            outgoing.disks.0 += part.len() as u64;
        })?;
        stream.write_all(part).map_err(because("cannot send a disk"))?;
    }
    let mut answer = [0];
    stream.read_exact(&mut answer).map_err(because("the disk did not arrive"))
}

/// Sends memory in passes while the guest runs, stops the guest when the rest is small, and sends the rest.
fn send_memory(host: &Host, request: &MigrateRequest, path: &std::path::Path) -> Result<(), Trouble> {
    let mut stream = UnixStream::connect(path).map_err(Trouble::because("cannot connect to the memory socket"))?;
    let begun = Instant::now();
    let vm = request.vm;
    let limit_pages = |limit: Duration| ((LINK_BYTES_PER_S * limit.as_secs_f64()) as usize / PAGE_BYTES).max(1);
    let (pages, dirty_ratio) = with_memory(host, vm, |memory, _| (memory.pages(), memory.dirty_ratio))?;
    let mut opening = MEMORY_MAGIC.to_be_bytes().to_vec();
    opening.extend((pages as u64).to_be_bytes());
    opening.extend(dirty_ratio.to_bits().to_be_bytes());
    stream.write_all(&opening).map_err(Trouble::because("cannot send memory"))?;

    let mut pass = 1;
    let mut due: BTreeSet<usize> = (0..pages).collect();
    let mut slowed = 1.0;
    loop {
        host.faults.meet(Point::Pass(pass)).map_err(Struck::into_trouble)?;
        due = send_pass(host, vm, &mut stream, &due, Pass { number: pass, begun, slowed })?;
        pass += 1;
        if due.len() <= limit_pages(with_memory(host, vm, |_, outgoing| outgoing.downtime_limit)?) {
            break;
        }
        // QEMU begins to slow the guest after two passes without convergence.
        if request.auto_converge && pass > 3 {
            slowed *= SLOWER;
        }
    }
    let stopped = Instant::now();
    stop(host, vm)?;
    host.faults.meet(Point::Stopped).map_err(Struck::into_trouble)?;
    send_pass(host, vm, &mut stream, &due, Pass { number: pass, begun, slowed })?;
    let (sum, stats) = with_memory(host, vm, |memory, outgoing| {
        outgoing.stats.downtime_ms = stopped.elapsed().as_millis() as u64;
        (guest::checksum(&memory.bytes), outgoing.stats)
    })?;
    let mut ending = MEMORY_END.to_be_bytes().to_vec();
    for word in [sum].into_iter().chain(words_of(&stats)) {
        ending.extend(word.to_be_bytes());
    }
    stream.write_all(&ending).map_err(Trouble::because("cannot send memory"))?;
    stream.shutdown(Shutdown::Write).map_err(Trouble::because("cannot end the memory stream"))
}

/// A pass over memory.
#[derive(Clone, Copy)]
struct Pass {
    /// From 1.
    number: u32,
    /// When the first pass began.
    begun: Instant,
    /// The guest's relative speed; 1 is full speed.
    slowed: f64,
}

/// Sends the pages that are due and returns those that the guest wrote meanwhile.
fn send_pass(
    host: &Host,
    vm: VmId,
    stream: &mut UnixStream,
    due: &BTreeSet<usize>,
    pass: Pass,
) -> Result<BTreeSet<usize>, Trouble> {
    let mut dirtied = BTreeSet::new();
    let mut left: VecDeque<usize> = due.iter().copied().collect();
    while !left.is_empty() {
        let batch: Vec<usize> = left.drain(..left.len().min(PAGES_PER_BATCH)).collect();
        let mut bytes = Vec::with_capacity(batch.len() * (PAGE_BYTES + 8));
        with_memory(host, vm, |memory, _| {
            for page in &batch {
                bytes.extend((*page as u64).to_be_bytes());
                bytes.extend(memory.page(*page));
            }
        })?;
        stream.write_all(&bytes).map_err(Trouble::because("cannot send memory"))?;
        // The guest writes while a batch is sent, unless it is paused.
        let mut state = host.state();
        if let Some(entry) = state.vms.get_mut(&vm) {
            if let Process::Running(memory) = &mut entry.process {
                dirtied.extend(memory.dirty((batch.len() as f64 * pass.slowed) as usize));
            }
            let total = if let Process::Running(memory) | Process::HandedOver(memory) = &entry.process {
                memory.bytes.len()
            } else {
                0
            };
            if let Some(outgoing) = &mut entry.outgoing {
                count(&mut outgoing.stats, batch.len(), left.len() + dirtied.len(), total, pass.number, pass.begun);
            }
        }
    }
    Ok(dirtied)
}

fn count(stats: &mut MigrationStats, sent: usize, left: usize, total: usize, pass: u32, begun: Instant) {
    let elapsed = begun.elapsed();
    let bytes = |pages: usize| ByteCount((pages * PAGE_BYTES) as u64);
    stats.memory_total = ByteCount(total as u64);
    stats.memory_processed = ByteCount(stats.memory_processed.0 + bytes(sent).0);
    stats.memory_remaining = bytes(left);
    stats.iteration = pass;
    stats.rate_bytes_per_s = (stats.memory_processed.0 as f64 / elapsed.as_secs_f64().max(1e-6)) as u64;
}

/// Statistics, as they are sent to the destination.
fn words_of(stats: &MigrationStats) -> [u64; 5] {
    [
        stats.memory_total.0,
        stats.memory_processed.0,
        stats.rate_bytes_per_s,
        u64::from(stats.iteration),
        stats.downtime_ms,
    ]
}

fn stop(host: &Host, vm: VmId) -> Result<(), Trouble> {
    with_memory(host, vm, |_, _| ())?;
    host.shift(vm, |process| process.if_running(Process::HandedOver));
    Ok(())
}

/// Calls `read` with the memory of a VM that is being moved, unless the move must end.
fn with_memory<T>(host: &Host, vm: VmId, read: impl FnOnce(&guest::Memory, &mut Outgoing) -> T) -> Result<T, Trouble> {
    let mut state = host.state();
    let entry = state.vms.get_mut(&vm).ok_or_else(|| Trouble::Failed("the VM ended".to_owned()))?;
    let (Process::Running(memory) | Process::HandedOver(memory), Some(outgoing)) =
        (&entry.process, &mut entry.outgoing)
    else {
        return Err(Trouble::Failed("the VM ended or was paused".to_owned()));
    };
    if outgoing.abort {
        return Err(Trouble::Aborted);
    }
    Ok(read(memory, outgoing))
}

/// A client of another host's daemon.
struct Caller {
    stream: UnixStream,
    splitter: Splitter,
    serial: u32,
}

impl Caller {
    fn connect(path: &std::path::Path) -> Result<Self, Trouble> {
        let stream = UnixStream::connect(path).map_err(Trouble::because("unable to connect to server"))?;
        Ok(Self { stream, splitter: Splitter::default(), serial: 0 })
    }

    /// Makes a call and waits for the reply's body.
    fn call(&mut self, procedure: u32, body: &[u8]) -> Result<Vec<u8>, Trouble> {
        self.serial += 1;
        let header = Header::call(procedure, self.serial);
        self.stream.write_all(&header.message(body)).map_err(Trouble::because("the RPC channel broke"))?;
        let mut buffer = [0; 16 << 10];
        loop {
            let length = self.stream.read(&mut buffer).map_err(Trouble::because("the RPC channel broke"))?;
            if length == 0 {
                return Err(Trouble::Failed("the RPC channel ended".to_owned()));
            }
            let mut reply = None;
            let serial = self.serial;
            self.splitter
                .push::<LengthError>(&buffer[..length], |message| {
                    let found = message.header;
                    if (found.program, found.kind, found.serial) == (REMOTE_PROGRAM, Kind::Reply, serial) {
                        reply = Some((found.status, message.body.to_vec()));
                    }
                    Ok(())
                })
                .map_err(|error| Trouble::Failed(error.to_string()))?;
            match reply {
                None => {}
                Some((STATUS_OK, body)) => return Ok(body),
                Some((_, body)) => return Err(Trouble::Failed(error_text(&body))),
            }
        }
    }
}

/// The message of an error reply.
fn error_text(body: &[u8]) -> String {
    let mut reader = Reader::new(body);
    let text = reader
        .i32()
        .and_then(|_| reader.i32())
        .and_then(|_| reader.optional_text().map(|text| text.map(str::to_owned)));
    text.ok().flatten().unwrap_or_else(|| "an unknown error".to_owned())
}
