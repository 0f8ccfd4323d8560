//! The source's side: connects to the destination, makes libvirt's migrate call, and tells when the VM was stopped and
//! when the hand-over was delivered. Mirror of `destination.rs`.
//!
//! ```text
//! Prepared ─perform▶ Performing ─Finish reply written to libvirtd▶ Delivered
//!                        └─ error or abort before that ─▶ Failed | Aborted: the VM runs here
//! ```

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, atomic::{AtomicBool, Ordering}},
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::Stage,
    finding::Finding,
    id::VmId,
    job::Progress,
    units::ByteCount,
};
use ferry_drivers::hypervisor::{
    DomainEvent, HypervisorError, MEMORY_SOCKET, MigrateRequest, MigrationStats, RPC_SOCKET,
    rpc::{FinishReply, Tap},
};
use ferry_trust::{KeyPair, client_config};
use ferry_wire::{
    channel::{Inspect, Options, carry},
    control::{Control, ControlSender, Message},
    hello::Channel,
    meter::Meter,
    session::{Dialer, SessionKey},
};
use tokio::{net::UnixListener, sync::Notify};
use tracing::{error, info, warn};

use super::{
    carrier::{Board, blocking, channel_ended, past_pivot},
    journal::{Journal, Task},
};
use crate::{AgentError, config::Config, error::chain, files};

/// How often progress is asked of libvirt.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long libvirt's migrate call may take to end after it was aborted.
const ABORT_DEADLINE: Duration = Duration::from_secs(40);

pub(super) struct Source {
    shared: Arc<Shared>,
}

struct Shared {
    board: Arc<Board>,
    request: MigrateRequest,
    timeout: Duration,
    dialer: Dialer,
    meter: Arc<Meter>,
    control: ControlSender,
    begun: AtomicBool,
    aborting: AtomicBool,
    delivered: AtomicBool,
    _watch: Mutex<Box<dyn Send>>,
}

impl Source {
    /// Connects to the destination and listens where libvirt will connect.
    pub(super) async fn start(
        config: &Config,
        journal: &Journal,
        board: Arc<Board>,
    ) -> Result<Self, AgentError> {
        let Task::Source { request: task, translate, persistent } = &journal.task else {
            return Err(AgentError::Carrier("The journal is not one of a source".to_owned()));
        };
        let socket_dir = &journal.socket_dir;
        let key = KeyPair::load_or_create(&config.key_path())?;
        let address: SocketAddr = task.destination.carrier.parse().map_err(|_| {
            AgentError::Carrier(format!("The destination says that it listens at {:?}", task.destination.carrier))
        })?;
        let tls = client_config(Some(&key), task.destination_pin)?;
        let dialer = Dialer::new(address, tls, SessionKey { session: task.session, secret: task.secret });
        let stream = dialer.open(Channel::Control).await.map_err(|error| {
            AgentError::Carrier(format!("Could not reach the destination's carrier at {address}: {}", chain(&error)))
        })?;
        let control = Control::start(stream);
        let sender = control.sender();
        let (stopped, vm) = (sender.clone(), task.vm);
        let runtime = tokio::runtime::Handle::current();
        let watch = blocking(&board.hypervisor, move |hypervisor| {
            hypervisor.watch(Box::new(move |event| {
                if event == DomainEvent::StoppedForMigration(vm) {
                    let stopped = stopped.clone();
                    runtime.spawn(async move { stopped.send(Message::Stopped).await });
                }
            }))
        })
        .await?;
        let (rpc, memory) = (listen(socket_dir, RPC_SOCKET)?, listen(socket_dir, MEMORY_SOCKET)?);
        let shared = Arc::new(Shared {
            request: MigrateRequest {
                vm: task.vm,
                socket_dir: socket_dir.to_owned(),
                translate: translate.clone(),
                persistent: *persistent,
                downtime_limit: Duration::from_millis(u64::from(task.downtime_limit_ms)),
                bandwidth_bytes_per_s: task.bandwidth_bytes_per_s,
            },
            board,
            timeout: Duration::from_millis(task.timeout_ms),
            dialer,
            meter: Arc::default(),
            control: sender,
            begun: AtomicBool::new(false),
            aborting: AtomicBool::new(false),
            delivered: AtomicBool::new(false),
            _watch: Mutex::new(watch),
        });
        tokio::spawn(hear(control, Arc::clone(&shared)));
        tokio::spawn(carry_rpc(rpc, Arc::clone(&shared)));
        tokio::spawn(carry_memory(memory, Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// Begins; returns at once. May be repeated.
    pub(super) fn perform(&self) -> Result<(), Box<Finding>> {
        if !self.shared.begun.swap(true, Ordering::SeqCst) {
            tokio::spawn(perform(Arc::clone(&self.shared)));
        }
        Ok(())
    }

    /// Ends it before the point of no return, and waits until the VM is known to stay.
    pub(super) async fn abort(&self) -> Result<(), Box<Finding>> {
        let shared = &self.shared;
        let board = &shared.board;
        if !shared.begun.swap(true, Ordering::SeqCst) {
            board.tell(|known| known.stage = Stage::Aborted);
        }
        shared.aborting.store(true, Ordering::SeqCst);
        let until = Instant::now() + ABORT_DEADLINE;
        // libvirt takes an abort only while its job is in a phase that can be aborted: ask again until the call ends.
        while board.known().stage == Stage::Performing && Instant::now() < until {
            let vm = board.vm;
            if let Err(error) = blocking(&board.hypervisor, move |hypervisor| hypervisor.abort_migration(vm)).await {
                warn!(%error, "libvirt did not take the abort");
            }
            let ended = board.wait_for(|known| known.stage != Stage::Performing);
            let _ = tokio::time::timeout(LOOK_EVERY, ended).await;
        }
        match board.known().stage {
            Stage::Failed | Stage::Aborted | Stage::Prepared => Ok(()),
            Stage::Performing | Stage::Delivered | Stage::Resumed | Stage::Confirmed => Err(past_pivot(board.vm)),
        }
    }
}

fn listen(dir: &Path, name: &str) -> Result<UnixListener, AgentError> {
    let path = dir.join(name);
    files::remove(&path)?;
    UnixListener::bind(&path).map_err(|source| AgentError::File { path, source })
}

async fn perform(shared: Arc<Shared>) {
    let board = &shared.board;
    if let Err(error) = board.write_down(|state| state.performing = true) {
        board.tell(|known| {
            known.stage = Stage::Failed;
            known.error = Some(chain(&error));
        });
        return;
    }
    board.tell(|known| known.stage = Stage::Performing);
    let started = Instant::now();
    let request = shared.request.clone();
    let call = blocking(&board.hypervisor, move |hypervisor| hypervisor.migrate(&request));
    let over = Arc::new(Notify::new());
    let follow = tokio::spawn(follow(Arc::clone(&shared), started, Arc::clone(&over)));
    let outcome = call.await;
    over.notify_one();
    let _ = follow.await;
    settle(&shared, started, outcome).await;
}

/// Asks libvirt for progress, and ends a move that takes too long.
async fn follow(shared: Arc<Shared>, started: Instant, over: Arc<Notify>) {
    let board = &shared.board;
    let vm = board.vm;
    loop {
        tokio::select! {
            () = over.notified() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let stats = blocking(&board.hypervisor, move |hypervisor| hypervisor.migration_stats(vm)).await;
        if let Ok(Some(stats)) = stats {
            let wire = shared.meter.wire();
            board.tell(|known| known.progress = Some(progress(known.progress, &stats, wire, started)));
        }
        if started.elapsed() > shared.timeout && !shared.aborting.swap(true, Ordering::SeqCst) {
            warn!(%vm, timeout_s = shared.timeout.as_secs(), "the move takes too long and is ended");
            let _ = blocking(&board.hypervisor, move |hypervisor| hypervisor.abort_migration(vm)).await;
            board.tell(|known| {
                known.error = Some(format!("It took longer than the limit of {} s", shared.timeout.as_secs()));
            });
        }
    }
}

/// Progress never goes back: what is done is what was done before, or more.
fn progress(before: Option<Progress>, stats: &MigrationStats, wire: u64, started: Instant) -> Progress {
    let done = stats.memory_total.0.saturating_sub(stats.memory_remaining.0);
    let net = stats.rate_bytes_per_s.saturating_sub(stats.dirty_bytes_per_s);
    Progress {
        memory_total: stats.memory_total,
        memory_done: ByteCount(done.max(before.map_or(0, |before| before.memory_done.0))),
        sent: stats.memory_processed,
        wire: ByteCount(wire),
        rate_bytes_per_s: stats.rate_bytes_per_s,
        dirty_bytes_per_s: stats.dirty_bytes_per_s,
        iteration: stats.iteration.max(1),
        elapsed_ms: started.elapsed().as_millis() as u64,
        left_ms: (net > 0).then(|| stats.memory_remaining.0.saturating_mul(1000) / net),
    }
}

/// libvirt's call ended: what it took, and who has the VM as far as this end knows.
async fn settle(shared: &Shared, started: Instant, outcome: Result<(), HypervisorError>) {
    let board = &shared.board;
    let vm: VmId = board.vm;
    let migrate_ms = started.elapsed().as_millis() as u64;
    let stats = blocking(&board.hypervisor, move |hypervisor| hypervisor.completed_stats(vm)).await.ok().flatten();
    let last = board.known().progress;
    let wire = ByteCount(shared.meter.wire());
    let written = board.write_down(|state| {
        state.figures.migrate_ms = migrate_ms;
        state.figures.wire = wire;
        if let Some(stats) = stats {
            state.figures.qemu_downtime_ms = stats.downtime_ms;
            state.figures.sent = stats.memory_processed;
            state.figures.iterations = stats.iteration;
        } else if let Some(last) = last {
            state.figures.sent = last.sent;
            state.figures.iterations = last.iteration;
        }
    });
    if let Err(error) = written {
        error!(error = %chain(&error), "figures could not be written down");
    }
    let delivered = shared.delivered.load(Ordering::SeqCst);
    match outcome {
        Ok(()) => {
            info!(%vm, migrate_ms, "libvirt's migrate call succeeded");
            board.tell(|known| known.stage = Stage::Delivered);
        }
        Err(error) if delivered => {
            warn!(%vm, error = %chain(&error), "libvirt's migrate call failed after the hand-over");
            board.tell(|known| known.stage = Stage::Delivered);
        }
        Err(error) => {
            let aborted = shared.aborting.load(Ordering::SeqCst);
            warn!(%vm, error = %chain(&error), aborted, "libvirt's migrate call failed");
            let reason = chain(&error);
            shared.control.send(Message::GaveUp { reason: reason.clone() }).await;
            board.tell(|known| {
                known.stage = if aborted && known.error.is_none() { Stage::Aborted } else { Stage::Failed };
                let limit = known.error.take();
                known.error = Some(limit.map_or(reason.clone(), |limit| format!("{limit}: {reason}")));
            });
        }
    }
}

async fn hear(mut control: Control, shared: Arc<Shared>) {
    while let Some(message) = control.receive().await {
        match message {
            Message::Running => info!("the VM runs at the destination"),
            Message::GaveUp { reason } => warn!(reason, "the destination's carrier gave up"),
            Message::Stopped | Message::HandedOver | Message::Ping { .. } | Message::Pong { .. } | Message::Unknown => {}
        }
    }
    if shared.board.known().stage == Stage::Performing {
        warn!("the control connection to the destination is gone");
    }
}

/// libvirt makes one management connection for a migration.
async fn carry_rpc(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        let Ok((local, _)) = listener.accept().await else { return };
        let peer = match shared.dialer.open(Channel::Rpc).await {
            Ok(peer) => peer,
            Err(error) => {
                error!(error = %chain(&error), "the management channel could not be opened");
                continue;
            }
        };
        let tap = Arc::new(Mutex::new(Tap::default()));
        let options = Options {
            outbound: Some(Box::new(Calls(Arc::clone(&tap)))),
            inbound: Some(Box::new(Replies { tap, finish: None, shared: Arc::clone(&shared) })),
            ..Options::new(shared.request.downtime_limit, Arc::default())
        };
        let (reader, writer) = local.into_split();
        tokio::spawn(async move { channel_ended("rpc", carry(peer, reader, writer, options).await) });
    }
}

/// Connections are opened at the destination in the order in which they came here.
async fn carry_memory(listener: UnixListener, shared: Arc<Shared>) {
    for index in 0.. {
        let Ok((local, _)) = listener.accept().await else { return };
        let peer = match shared.dialer.open(Channel::Memory(index)).await {
            Ok(peer) => peer,
            Err(error) => {
                error!(error = %chain(&error), "a memory channel could not be opened");
                continue;
            }
        };
        let options = Options::new(shared.request.downtime_limit, Arc::clone(&shared.meter));
        let (reader, writer) = local.into_split();
        tokio::spawn(async move { channel_ended("memory", carry(peer, reader, writer, options).await) });
    }
}

/// Calls of the source's libvirtd, on their way out.
struct Calls(Arc<Mutex<Tap>>);

impl Inspect for Calls {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        self.0.lock().expect("nobody panics while holding it").calls(bytes).map_err(|error| error.to_string())?;
        out.extend_from_slice(bytes);
        Ok(())
    }
}

/// Replies for the source's libvirtd. When the reply to Finish has been written to it, the VM is handed over.
struct Replies {
    tap: Arc<Mutex<Tap>>,
    finish: Option<FinishReply>,
    shared: Arc<Shared>,
}

impl Inspect for Replies {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let mut tap = self.tap.lock().expect("nobody panics while holding it");
        let finish = tap.replies(bytes, out).map_err(|error| error.to_string())?;
        if finish.is_some() {
            // Lets a test lose the reply: the whole chunk is kept back and the channel ends.
            fail::fail_point!("drop-finish-reply", |_| Err("the Finish reply was dropped".to_owned()));
            self.finish = finish;
        }
        Ok(())
    }

    fn delivered(&mut self) {
        let Some(finish) = self.finish.take() else { return };
        if !finish.destination_has_it {
            return;
        }
        // First tell the destination, for the guest stands still; then write it down. Should this process die in
        // between, the destination has been told or the source's libvirtd is asked.
        self.shared.control.send_now(Message::HandedOver);
        self.shared.delivered.store(true, Ordering::SeqCst);
        let board = Arc::clone(&self.shared.board);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = board.write_down(|state| state.finish_delivered = true) {
                error!(error = %chain(&error), "the hand-over could not be written down");
                board.tell(|known| known.state.finish_delivered = true);
            }
        });
    }
}
