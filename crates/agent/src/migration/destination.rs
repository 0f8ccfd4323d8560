//! The destination's side: accepts the source's connections, lets libvirt's calls through the gate, and runs the VM when
//! it has been handed over. Mirror of `source.rs`.
//!
//! ```text
//! Prepared ─first channel▶ Performing ─hand-over told by the source▶ Delivered ─resume▶ Resumed
//!                              └─ the source gave up, or abort ─▶ Failed | Aborted: the VM runs at the source
//! ```
//! libvirt alone would run the VM twice when the reply to its Finish call is lost. So the VM arrives paused, and is
//! resumed here: at once when the source's carrier saw the reply delivered, or when the server, having asked both
//! hosts, says that the VM is here. Otherwise it stays paused. One whose process does not get its disks here is not taken
//! over at all: `takeover.rs`.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::Stage,
    finding::{Finding, FindingId},
    id::VmId,
    vm::NVRAM,
};
use ferry_drivers::hypervisor::{
    DISK_SOCKET, MEMORY_SOCKET,
    rpc::{Bound, Gate, Refusal, Tap},
};
use ferry_trust::{Clients, KeyPair, server_config};
use ferry_wire::{
    WireError,
    channel::{Inspect, Options, carry},
    control::{Control, ControlSender, Message},
    hello::Channel,
    meter::Meter,
    nbd::{self, Held, Keeper, NbdMeter, seed::SeedKey},
    session::{Acceptor, Connection, SessionKey, widen, widen_local},
    traffic::Traffic,
    window::WINDOW_BYTES_MIN,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixStream,
    sync::{mpsc, watch},
};
use tracing::{error, info, warn};

use super::{
    arrivals::Arrival,
    carrier::{Board, blocking, channel_ended, past_pivot},
    journal::{Journal, Task},
    seeds,
    takeover::relay,
};
use crate::{AgentError, config::Config, error::chain};

/// How long after one that failed a resume is tried again: libvirt may be restarting, or a file server away. Twice as long
/// each time.
const RESUME_PAUSE_FIRST: Duration = Duration::from_millis(250);
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long whoever asks for a resume waits for it. It is tried on after that.
const RESUME_ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Pieces of what a file holds that wait for the source: each is of 64 MiB of data at the most.
const TOLD_PIECES: usize = 4;
/// How often what the guest writes meanwhile is written out.
const WRITE_OUT_EVERY: Duration = Duration::from_secs(1);
/// Refused calls that wait to be answered. libvirt asks one thing after the other.
const REFUSALS_MAX: usize = 4;
/// libvirt's replies that wait for the source: a few of some hundred bytes.
const REPLIES_BYTES: usize = 64 << 10;

pub(super) struct Destination {
    shared: Arc<Shared>,
    address: String,
}

pub(super) struct Shared {
    pub(super) board: Arc<Board>,
    pub(super) bound: Bound,
    downtime_limit: Duration,
    meter: Arc<Meter>,
    traffic: Arc<Traffic>,
    stopped_at: Mutex<Option<Instant>>,
    ran_at: Mutex<Option<Instant>>,
    pub(super) resuming: tokio::sync::Mutex<()>,
    /// Disks that come along, in the order in which their channels come.
    arrivals: Vec<Arrival>,
    /// What is known of their files, until it is used: once.
    held: Mutex<Vec<Option<Held>>>,
    /// Whether what comes is written out already.
    writes_out: AtomicBool,
    /// To the source.
    control: Mutex<Option<ControlSender>>,
    /// Whether the channels are to end.
    cut: watch::Sender<bool>,
}

impl Destination {
    /// Listens for the source's carrier.
    pub(super) async fn start(config: &Config, journal: &Journal, board: Arc<Board>) -> Result<Self, AgentError> {
        let Task::Destination { request: task, roots, arrivals } = &journal.task else {
            return Err(AgentError::Carrier("The journal is not one of a destination".to_owned()));
        };
        let key = KeyPair::load_or_create(&config.key_path())?;
        let tls = server_config(&key, Clients::Only(task.source_pin))?;
        let ports = config
            .ports()
            .ok_or_else(|| AgentError::Carrier(format!("data_ports = {:?} is no range", config.data_ports)))?;
        let session = SessionKey { session: task.session, secret: task.secret };
        let acceptor = Acceptor::bind(config.data_address, ports, tls, session).await.map_err(|error| {
            AgentError::Carrier(format!(
                "No port of {} is free at {}: {}",
                config.data_ports,
                config.data_address,
                chain(&error)
            ))
        })?;
        let address = acceptor.address().to_string();
        let shared = Arc::new(Shared {
            bound: Bound {
                vm: task.vm,
                name: task.vm_name.clone(),
                roots: roots.clone(),
                memory_socket: journal.socket_dir.join(MEMORY_SOCKET),
                disk_socket: journal.socket_dir.join(DISK_SOCKET),
                // UEFI variables come with the memory, not as a disk.
                disks: arrivals.iter().map(|arrival| arrival.device.clone()).filter(|name| name != NVRAM).collect(),
            },
            downtime_limit: Duration::from_millis(u64::from(task.downtime_limit_ms)),
            board,
            meter: Arc::default(),
            traffic: Arc::default(),
            stopped_at: Mutex::new(None),
            ran_at: Mutex::new(None),
            resuming: tokio::sync::Mutex::new(()),
            held: Mutex::new(arrivals.iter().map(known_at_first).collect()),
            arrivals: arrivals.clone(),
            writes_out: AtomicBool::default(),
            control: Mutex::default(),
            cut: watch::Sender::new(false),
        });
        shared.board.spawn(accept(acceptor, Arc::clone(&shared)));
        Ok(Self { shared, address })
    }

    /// Where the source's carrier shall connect.
    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    /// Runs the VM: the server asked both hosts, and the VM is here. It is tried until it runs; an error says only that it
    /// does not yet.
    pub(super) async fn resume_by_verdict(&self) -> Result<(), Box<Finding>> {
        let (board, name) = (&self.shared.board, &self.shared.bound.name);
        let shared = Arc::clone(&self.shared);
        board.spawn(async move { resume(&shared, None).await });
        let over = board.wait_for(|known| matches!(known.stage, Stage::Resumed | Stage::Aborted));
        let _ = tokio::time::timeout(RESUME_ANSWER_WITHIN, over).await;
        let known = board.known();
        if known.stage == Stage::Resumed {
            return Ok(());
        }
        Err(not_resumed(board.vm, name, known.stage, known.error))
    }

    /// Ends it before the point of no return. The agent destroys the copy afterwards.
    pub(super) fn abort(&self) -> Result<(), Box<Finding>> {
        let board = &self.shared.board;
        // One change with the look: a resume comes before it or not at all.
        let mut late = false;
        board.change(|known| {
            late = known.state.finish_delivered || known.state.resumed;
            let ends = !late && known.stage != Stage::Aborted;
            if ends {
                known.stage = Stage::Aborted;
            }
            ends
        });
        if late {
            return Err(past_pivot(board.vm));
        }
        // Channels end, and with them whatever libvirt still does for this migration.
        board.end_tasks();
        Ok(())
    }
}

async fn accept(mut acceptor: Acceptor, shared: Arc<Shared>) {
    while let Some((channel, peer)) = acceptor.accept().await {
        let shared = Arc::clone(&shared);
        let board = Arc::clone(&shared.board);
        let window_max = acceptor.window_max();
        match channel {
            Channel::Control => {
                board.spawn(hear(Control::start(peer), shared));
            }
            Channel::Rpc => {
                board.change(|known| {
                    let begins = known.stage == Stage::Prepared;
                    if begins {
                        known.stage = Stage::Performing;
                    }
                    begins
                });
                board.spawn(carry_rpc(peer, shared));
            }
            Channel::Memory(index) => {
                board.spawn(carry_memory(index, peer, window_max, shared));
            }
            Channel::Disk(_) if shared.bound.disks.is_empty() => warn!("a disk channel came, and none is expected"),
            Channel::Disk(index) => {
                board.spawn(carry_disk(index, peer, window_max, shared));
            }
            Channel::Seed(index) => {
                board.spawn(tell_seed(index, peer, shared));
            }
        }
    }
}

async fn hear(mut control: Control, shared: Arc<Shared>) {
    let sender = control.sender();
    *shared.control.lock().expect("nobody panics while holding it") = Some(sender.clone());
    while let Some(message) = control.receive().await {
        match message {
            Message::Stopped => {
                *shared.stopped_at.lock().expect("nobody panics while holding it") = Some(Instant::now());
            }
            Message::HandedOver => {
                shared.board.spawn(handed_over(Arc::clone(&shared), sender.clone()));
            }
            Message::GaveUp { reason } => {
                shared.board.tell(|known| {
                    if known.stage == Stage::Performing || known.stage == Stage::Prepared {
                        known.stage = Stage::Failed;
                        known.error = Some(format!("The source gave up: {reason}"));
                    }
                });
            }
            Message::Running | Message::Ping { .. } | Message::Pong { .. } | Message::Unknown => {}
        }
    }
    let board = &shared.board;
    if matches!(board.known().stage, Stage::Prepared | Stage::Performing) {
        // Not a failure by itself: the hand-over may have happened. Who has the VM is asked of both hosts. With its
        // connection libvirt ends a copy that is not complete, and gives its memory back: a source without power will not.
        warn!(
            "the control connection from the source is gone; a complete copy stays paused here until it is known who has it"
        );
        board.tell(|known| known.error = Some("The connection to the source's carrier is gone".to_owned()));
        shared.cut.send_replace(true);
    }
}

async fn handed_over(shared: Arc<Shared>, control: ControlSender) {
    // On a thread of its own: a test that pauses it here must not pause the control socket with it.
    #[cfg(feature = "failpoints")]
    let _ = tokio::task::spawn_blocking(|| {
        fail::fail_point!("before-resume");
    })
    .await;
    resume(&shared, Some(&control)).await;
}

/// Why a VM that was handed over does not run yet.
fn not_resumed(vm: VmId, name: &str, stage: Stage, error: Option<String>) -> Box<Finding> {
    let reason = error.unwrap_or_else(|| format!("this end of the move is {stage:?}"));
    Box::new(Finding::blocks(
        FindingId::VmNotResumed,
        vm,
        format!("VM {name} is at the destination alone, and cannot run there yet: {reason}"),
        format!(
            "Mend what is said there: it is tried until the VM runs. Or give up what it has in memory with \
             `virsh destroy {name}` on the destination: it is shut off there then, with its disks"
        ),
    ))
}

/// Runs the VM, if nothing else does already. From the first line on it is never destroyed here.
async fn resume(shared: &Shared, control: Option<&ControlSender>) {
    let board = &shared.board;
    let begun = {
        let _no_take_over = shared.resuming.lock().await;
        // One change with the look: an abort comes before it or not at all.
        board.change(|known| {
            let begins = known.stage != Stage::Aborted && !known.state.finish_delivered;
            if begins {
                known.state.finish_delivered = true;
                known.stage = Stage::Delivered;
            }
            begins
        })
    };
    if !begun {
        return;
    }
    // The guest stands still: what is written down is written beside the call, not before it. Should this process die
    // in between, libvirt says that the VM runs, or it is still paused and the hand-over is known at the source.
    tokio::join!(run(shared), board.write_down());
    let stopped = *shared.stopped_at.lock().expect("nobody panics while holding it");
    let ran = *shared.ran_at.lock().expect("nobody panics while holding it");
    // The message took half a round trip; the guest stood still meanwhile.
    let travel = control.map_or(Duration::ZERO, |control| control.round_trip() / 2);
    let downtime = stopped.zip(ran).map(|(stopped, ran)| ran.saturating_duration_since(stopped) + travel);
    let downtime_ms = downtime.map_or(0, |downtime| downtime.as_millis() as u64);
    info!(vm = %board.vm, downtime_ms, "the VM runs here");
    let wire = ferry_core::units::ByteCount(shared.meter.wire());
    board.tell(|known| {
        known.stage = Stage::Resumed;
        known.error = None;
        known.state.resumed = true;
        known.state.figures.downtime_ms = downtime_ms;
        known.state.figures.wire = wire;
    });
    if let Some(control) = control {
        control.send_now(Message::Running);
    }
    let vm = board.vm;
    let stats = blocking(&board.hypervisor, move |hypervisor| hypervisor.completed_stats(vm)).await.ok().flatten();
    board.tell(|known| known.state.figures.qemu_downtime_ms = stats.map_or(0, |stats| stats.downtime_ms));
    board.write_down().await;
}

/// Asks libvirt to run the VM until it does: it is the only copy, and does not wait for a server that is away or gave up.
async fn run(shared: &Shared) {
    let (board, vm) = (&shared.board, shared.board.vm);
    let resume = || blocking(&board.hypervisor, move |hypervisor| hypervisor.resume(vm));
    until_done(resume, |error| {
        let reason = chain(&error);
        let news = board.change(|known| {
            let news = known.error.as_ref() != Some(&reason);
            known.error = Some(reason.clone());
            news
        });
        if news {
            warn!(%vm, reason, "the VM could not be resumed; it is tried until it runs");
        }
    })
    .await;
    *shared.ran_at.lock().expect("nobody panics while holding it") = Some(Instant::now());
}

/// Tries until it is done, however long that takes; tells of each failure.
async fn until_done<E, F: Future<Output = Result<(), E>>>(attempt: impl Fn() -> F, failed: impl Fn(E)) {
    let mut pause = RESUME_PAUSE_FIRST;
    while let Err(error) = attempt().await {
        failed(error);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RESUME_PAUSE_MAX);
    }
}

/// libvirt's calls, through the gate, to the local libvirtd, and its replies, past the take-over, to the source.
async fn carry_rpc(peer: Connection, shared: Arc<Shared>) {
    let socket = shared.board.hypervisor.rpc_socket();
    let Some(local) = connect(socket).await else { return };
    let tap = Arc::new(Mutex::new(Tap::default()));
    let (refuse, refusals) = mpsc::channel(REFUSALS_MAX);
    let gate = GateKeeper { gate: Gate::new(shared.bound.clone()), tap: Arc::clone(&tap), refuse };
    let options = Options {
        inbound: Some(Box::new(gate)),
        window_max: WINDOW_BYTES_MIN,
        ..Options::new(shared.downtime_limit, Arc::default())
    };
    let (reader, writer) = local.into_split();
    let (to_source, replies) = tokio::io::duplex(REPLIES_BYTES);
    let relay = async {
        match relay(reader, refusals, to_source, tap, &shared).await {
            // The other direction may not have ended.
            Ok(()) => std::future::pending().await,
            Err(error) => Err(WireError::Local(error)),
        }
    };
    let carried = async {
        tokio::select! {
            outcome = carry(peer, replies, writer, options) => outcome,
            outcome = relay => outcome,
        }
    };
    until_cut("rpc", &shared, carried).await;
}

/// Carries a channel until it ends, or the channels are to end.
async fn until_cut(name: &str, shared: &Shared, carried: impl Future<Output = Result<(), WireError>>) {
    let mut cut = shared.cut.subscribe();
    tokio::select! {
        outcome = carried => drop(channel_ended(name, outcome)),
        // The sender lives as long as what it is a part of.
        _ = cut.wait_for(|cut| *cut) => warn!(channel = name, "the channel was ended with the move"),
    }
}

/// For a channel of memory or of a disk.
fn bulk_options(peer: &Connection, window_max: u64, shared: &Shared) -> Options {
    widen(peer);
    let traffic = Arc::clone(&shared.traffic);
    Options { traffic, window_max, ..Options::new(shared.downtime_limit, Arc::clone(&shared.meter)) }
}

/// QEMU takes any connection for its main channel: exactly one is made for each that the source's side opened.
async fn carry_memory(index: u16, peer: Connection, window_max: u64, shared: Arc<Shared>) {
    let Some(local) = connect(shared.board.hypervisor.reach(&shared.bound.memory_socket)).await else { return };
    info!(index, "memory begins to arrive");
    widen_local(&local);
    let (reader, writer) = local.into_split();
    let options = bulk_options(&peer, window_max, &shared);
    until_cut("memory", &shared, carry(peer, reader, writer, options)).await;
}

/// What comes for a disk waits in this host's page cache. It is written out as it comes, from the first byte: QEMU flushes
/// a disk before it says that it is in sync, and again while the guest stands still, and that has little to do then. Ends
/// before the guest stands still.
async fn write_out(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(WRITE_OUT_EVERY).await;
        let stopped = shared.stopped_at.lock().expect("nobody panics while holding it").is_some();
        if stopped || shared.board.known().stage != Stage::Performing {
            return;
        }
        let paths: Vec<PathBuf> = shared.arrivals.iter().map(|arrival| arrival.path.clone()).collect();
        // One after the other and one at a time. What goes wrong is found by QEMU, too, which does something about it.
        let written = tokio::task::spawn_blocking(move || {
            paths.iter().for_each(|path| drop(std::fs::File::open(path).and_then(|file| file.sync_data())));
        });
        let _ = written.await;
    }
}

/// QEMU's server for disks takes one connection for each.
async fn carry_disk(index: u16, peer: Connection, window_max: u64, shared: Arc<Shared>) {
    let Some(local) = connect(shared.board.hypervisor.reach(&shared.bound.disk_socket)).await else { return };
    info!(index, "a disk begins to arrive");
    widen_local(&local);
    if !shared.writes_out.swap(true, Ordering::SeqCst) {
        shared.board.spawn(write_out(Arc::clone(&shared)));
    }
    let (reader, writer) = local.into_split();
    let mut options = bulk_options(&peer, window_max, &shared);
    let spared: Arc<NbdMeter> = Arc::default();
    let files = Files { place: None, shared: Arc::clone(&shared) };
    let (requests, replies) = nbd::destination(files, Arc::clone(&spared));
    options.inbound = Some(Box::new(requests));
    options.outbound = Some(Box::new(replies));
    until_cut("disk", &shared, carry(peer, reader, writer, options)).await;
    info!(
        index,
        zero_bytes = spared.elided_bytes(),
        held_bytes = spared.referenced_bytes(),
        mismatches = spared.mismatches(),
        "what was not written anew of a disk"
    );
}

/// What is known of a file before anybody looked into it.
fn known_at_first(arrival: &Arrival) -> Option<Held> {
    Some(match &arrival.sown {
        None => Held::Zeroes,
        Some(sown) => Held::Seed { key: SeedKey(sown.key.0), data: None },
    })
}

/// Which of the disks is behind an export: the one that its name tells, or else the only one of its size. The order in
/// which channels come tells nothing: of two disks of one size either may be behind it. `None` if it is not known.
fn which(arrivals: &[Arrival], export: &str, size_bytes: u64) -> Option<usize> {
    let has_size = |arrival: &Arrival| arrival.virtual_size.0 == size_bytes;
    if let Some(device) = device_of(export) {
        return arrivals.iter().position(|arrival| arrival.device == device && has_size(arrival));
    }
    let mut of_size = arrivals.iter().enumerate().filter(|(_, arrival)| has_size(arrival));
    match (of_size.next(), of_size.next()) {
        (Some((place, _)), None) => Some(place),
        (None, _) | (Some(_), Some(_)) => None,
    }
}

/// The disk that libvirt means by the name of an export, if that tells: `drive-virtio-disk` and its number (libvirt 11.3,
/// `qemuAliasDiskDriveFromDisk`). Names of disks on other buses tell where they are plugged in.
fn device_of(export: &str) -> Option<String> {
    let mut number: u32 = export.strip_prefix("drive-virtio-disk")?.parse().ok()?;
    // vda to vdz, vdaa and so on.
    let mut letters = Vec::new();
    loop {
        letters.push(b'a' + (number % 26) as u8);
        number = match number / 26 {
            0 => break,
            rest => rest - 1,
        };
    }
    letters.reverse();
    Some(format!("vd{}", String::from_utf8(letters).expect("they are letters")))
}

/// The files of disks that come along, for one channel.
struct Files {
    /// Of the disk, once the export tells.
    place: Option<usize>,
    shared: Arc<Shared>,
}

impl Keeper for Files {
    fn held(&mut self, export: &str, size_bytes: u64) -> Held {
        let Some(place) = which(&self.shared.arrivals, export, size_bytes) else {
            warn!(export, size_bytes, "which disk is behind this export is not known: all of it is written");
            return Held::Unknown;
        };
        self.place = Some(place);
        let mut held = self.shared.held.lock().expect("nobody panics while holding it");
        let held = held.get_mut(place).and_then(Option::take);
        info!(export, disk = self.shared.arrivals[place].device, known = held.is_some(), "a disk's copy begins");
        held.unwrap_or_default()
    }

    fn changed(&mut self, offset: u64) {
        let device =
            self.place.and_then(|place| self.shared.arrivals.get(place)).map_or("", |arrival| arrival.device.as_str());
        error!(disk = device, offset, "the unfinished copy was changed while it was used");
        let reason =
            format!("The unfinished copy of disk {device} was changed meanwhile: something else writes to its file");
        let control = self.shared.control.lock().expect("nobody panics while holding it").clone();
        if let Some(control) = control {
            control.send_now(Message::GaveUp { reason: reason.clone() });
        }
        self.shared.board.tell(|known| known.error = Some(reason));
    }
}

/// Tells the source what the file of a disk holds, while it is read.
async fn tell_seed(index: u16, mut peer: Connection, shared: Arc<Shared>) {
    let place = usize::from(index);
    let Some(arrival) = shared.arrivals.get(place).cloned() else { return };
    let Some(sown) = &arrival.sown else { return };
    let (key, disk, begun) = (SeedKey(sown.key.0), arrival.device.clone(), Instant::now());
    let (told, mut to_tell) = mpsc::channel(TOLD_PIECES);
    let known = Arc::clone(&shared);
    let reading = tokio::task::spawn_blocking(move || {
        let found = |data| {
            let mut held = known.held.lock().expect("nobody panics while holding it");
            // Unless its copy began already.
            if let Some(Some(held)) = held.get_mut(place) {
                *held = Held::Seed { key, data: Some(data) };
            }
        };
        seeds::look(&arrival.path, arrival.format, key, found, |piece| told.blocking_send(piece).is_ok())
    });
    let mut bytes = 0;
    let telling = async {
        while let Some(piece) = to_tell.recv().await {
            bytes += piece.len();
            peer.write_all(&piece).await?;
            peer.flush().await?;
        }
        peer.shutdown().await
    };
    let outcome = telling.await;
    // Nobody listens any more: the file is not read to its end.
    drop(to_tell);
    let read = reading.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    match outcome.and(read) {
        Ok(()) => info!(disk, bytes, took_ms = begun.elapsed().as_millis() as u64, "the source knows what is here"),
        Err(error) => warn!(disk, bytes, %error, "the source is not told all of what is here"),
    }
}

async fn connect(socket: PathBuf) -> Option<UnixStream> {
    match UnixStream::connect(&socket).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            error!(socket = %socket.display(), %error, "the local socket could not be reached");
            None
        }
    }
}

/// Calls of the source's libvirtd, on their way in.
struct GateKeeper {
    gate: Gate,
    tap: Arc<Mutex<Tap>>,
    /// Replies to what is refused, on their way to the source.
    refuse: mpsc::Sender<Vec<u8>>,
}

impl GateKeeper {
    /// Has the source's libvirtd told in its own words, and passes what it says to take its leave.
    ///
    /// # Errors
    /// The stream cannot be followed, or the source goes on with what is refused.
    fn tell(&mut self, refusal: Refusal, out: &mut Vec<u8>) -> Result<(), String> {
        let mut next = Some(refusal);
        while let Some(refusal) = next {
            let reason = chain(&refusal);
            error!(reason, "a call of the source's libvirtd is refused");
            if refusal.reply.is_empty() || self.refuse.try_send(refusal.reply).is_err() {
                return Err(reason);
            }
            next = self.gate.pass(&[], out).err();
        }
        Ok(())
    }
}

impl Inspect for GateKeeper {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let before = out.len();
        if let Err(refusal) = self.gate.pass(bytes, out) {
            self.tell(refusal, out)?;
        }
        // Before libvirt has them: its reply cannot come first.
        let mut tap = self.tap.lock().expect("nobody panics while holding it");
        tap.calls(&out[before..]).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::{units::ByteCount, vm::DiskFormat};

    use super::*;
    use crate::migration::mark::Mark;

    #[tokio::test(start_paused = true)]
    async fn a_vm_that_cannot_run_is_tried_for_as_long_as_that_is_so() {
        let begun = tokio::time::Instant::now();
        let (until, failures) = (Duration::from_secs(24 * 60 * 60), std::cell::Cell::new(0));
        let attempt = || async { if begun.elapsed() < until { Err("its disks are not there") } else { Ok(()) } };
        until_done(attempt, |_| failures.set(failures.get() + 1)).await;
        assert!(begun.elapsed() >= until && begun.elapsed() < until + RESUME_PAUSE_MAX, "{:?}", begun.elapsed());
        assert!((43_000..43_300).contains(&failures.get()), "{failures:?}: neither hastily nor rarely");
    }

    #[test]
    fn a_vm_that_cannot_be_run_yet_is_said_to_be_that() {
        for (error, reason) in [(Some("no lock".to_owned()), "no lock"), (None, "Aborted")] {
            let told = not_resumed(VmId(uuid::Uuid::nil()), "web01", Stage::Aborted, error);
            assert!(told.id == FindingId::VmNotResumed && told.message.ends_with(reason), "{told:?}");
        }
    }

    #[test]
    fn an_export_is_the_disk_that_its_name_tells_or_the_only_one_of_its_size_and_never_one_at_its_place() {
        let arrival = |device: &str, mib| Arrival {
            device: device.into(),
            path: PathBuf::from("/x"),
            format: DiskFormat::Raw,
            virtual_size: ByteCount::mib(mib),
            made: true,
            mark: Mark::default(),
            sown: None,
        };
        let arrivals =
            [arrival("vda", 64), arrival("vdc", 32), arrival("sda", 16), arrival("sdb", 8), arrival("sdc", 8)];
        for (export, mib, expected) in [
            ("drive-virtio-disk0", 64, Some(0)),
            ("drive-virtio-disk2", 32, Some(1)),
            ("drive-virtio-disk1", 32, None),
            ("drive-virtio-disk0", 65, None),
            ("drive-scsi0-0-0-0", 16, Some(2)),
            ("drive-ua-mine", 32, Some(1)),
            ("", 64, Some(0)),
            ("drive-scsi0-0-0-1", 8, None),
            ("drive-scsi0-0-0-2", 8, None),
            ("drive-scsi0-0-0-9", 9, None),
        ] {
            assert_eq!(which(&arrivals, export, mib << 20), expected, "{export} {mib}");
        }
        for (number, device) in [(0, "vda"), (25, "vdz"), (26, "vdaa"), (27, "vdab"), (701, "vdzz"), (702, "vdaaa")] {
            assert_eq!(device_of(&format!("drive-virtio-disk{number}")).as_deref(), Some(device));
        }
        assert_eq!((device_of("drive-virtio-disk"), device_of("drive-virtio-disk-1")), (None, None));
    }
}
