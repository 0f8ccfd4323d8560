//! The source's side: connects to the destination, makes libvirt's migrate call, and tells when the VM was stopped and
//! when the hand-over was delivered. Mirror of `destination.rs`.
//!
//! ```text
//! Prepared ─perform▶ Performing ─Finish reply written to libvirtd▶ Delivered
//!                        └─ error or abort before that ─▶ Failed | Aborted: the VM runs here
//! ```

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::{ArrivalFile, PrepareSource, Role, Stage},
    convergence::{Answers, Measure, Remains, Situation, measure, still_max},
    disk_rest::{Rest, Rests},
    files::{DiskProgress, DiskStage},
    finding::{Finding, FindingId},
    id::VmId,
    job::{OnStall, Progress},
    migration::Presence,
    switchover::{self, Outlook},
    units::ByteCount,
    vm::NVRAM,
};
use ferry_drivers::hypervisor::{
    DISK_SOCKET, DiskAlong, DomainEvent, Hypervisor, HypervisorError, MEMORY_SOCKET, MigrateRequest, MigrationStats,
    RPC_SOCKET,
    rpc::{FinishReply, Tap},
};
use ferry_trust::{KeyPair, client_config};
use ferry_wire::{
    channel::{Inspect, Options, carry},
    control::{Control, ControlSender, Message},
    hello::Channel,
    meter::Meter,
    nbd::{self, Image, NbdMeter, seed::SeedIndex},
    session::{Dialer, SessionKey, widen},
    traffic::Traffic,
    window::WINDOW_BYTES_MIN,
};
use tokio::{
    net::UnixListener,
    sync::{Notify, watch},
};
use tracing::{debug, error, info, warn};

use super::{
    carrier::{Board, blocking, channel_ended, past_pivot},
    journal::{Journal, Task},
};
use crate::{AgentError, config::Config, confinement::selinux, error::chain, files};

/// How often progress is asked of libvirt.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long libvirt's migrate call may take to end after it was aborted.
const ABORT_DEADLINE: Duration = Duration::from_secs(25);
/// How often a VM that libvirt left paused is tried to be run, and how many times: until the destination's copy is gone.
const RUN_EVERY: Duration = Duration::from_millis(250);
const RUNS_MAX: u32 = 480;
/// How long the destination may be silent while it tells what a file holds. It says something each second while it reads
/// the file, but first it looks for up to a minute where the file's data lie.
const SEED_SILENCE: Duration = Duration::from_secs(90);
/// Of the indexes of a VM's disks together: 256 GiB of data. What lies behind is sent again.
const INDEX_BYTES_MAX: u64 = 64 << 20;

pub(super) struct Source {
    shared: Arc<Shared>,
}

struct Shared {
    board: Arc<Board>,
    request: MigrateRequest,
    /// For how long the VM may stand still.
    downtime_limit: Mutex<Duration>,
    /// How much of that its memory may take, as QEMU was told last.
    memory_limit: Mutex<Duration>,
    /// What is left of disks, once memory flows.
    disk_rest: Mutex<Rest>,
    timeout: Duration,
    on_stall: OnStall,
    /// Since when the time limit counts.
    limited_from: Mutex<Instant>,
    /// The new files of the disks that move along.
    files: Vec<ArrivalFile>,
    /// What is known of them, until their channels come.
    images: Mutex<Vec<Option<Image>>>,
    /// What the channels of disks count, as long as they are there.
    disk_counts: Mutex<BTreeMap<u16, Arc<NbdMeter>>>,
    /// When the VM was stopped for the hand-over.
    stopped_at: Arc<Mutex<Option<Instant>>>,
    dialer: Dialer,
    /// Of memory and disks.
    traffic: Arc<Traffic>,
    meter: Arc<Meter>,
    /// Of the disks that move along.
    disk_meter: Arc<Meter>,
    control: ControlSender,
    aborting: AtomicBool,
    delivered: AtomicBool,
    /// Whether the channels are to end at once. A VM that stands still waits for the reply to Finish, or its QEMU, deaf to
    /// libvirt, for room in the memory channel; TCP gives up after a quarter of an hour. Without the channels the reply
    /// cannot come any more, and the VM runs on here.
    cut: watch::Sender<bool>,
    /// Why the management channel broke: libvirt itself only says that it did.
    broken: Mutex<Option<String>>,
    _watch: Mutex<Box<dyn Send>>,
}

impl Shared {
    /// Bytes of memory and disks on the wire so far.
    fn wire(&self) -> u64 {
        self.meter.wire() + self.disk_meter.wire()
    }
}

impl Source {
    /// Connects to the destination and listens where libvirt will connect.
    pub(super) async fn start(config: &Config, journal: &Journal, board: Arc<Board>) -> Result<Self, AgentError> {
        let Task::Source { request: task, translate, persistent, along, vouched, .. } = &journal.task else {
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
        let stopped_at: Arc<Mutex<Option<Instant>>> = Arc::default();
        let note = Arc::clone(&stopped_at);
        let watch = blocking(&board.hypervisor, move |hypervisor| {
            hypervisor.watch(Box::new(move |event| {
                if event == DomainEvent::StoppedForMigration(vm) {
                    stopped.send_now(Message::Stopped);
                    note.lock().expect("nobody panics while holding it").get_or_insert_with(Instant::now);
                }
            }))
        })
        .await?;
        let (rpc, memory) = (listen(socket_dir, RPC_SOCKET)?, listen_for_qemu(socket_dir, MEMORY_SOCKET)?);
        let disks = if along.is_empty() { None } else { Some(listen_for_qemu(socket_dir, DISK_SOCKET)?) };
        let shared = Arc::new(Shared {
            request: MigrateRequest {
                vm: task.vm,
                socket_dir: socket_dir.to_owned(),
                translate: translate.clone(),
                persistent: *persistent,
                downtime_limit: Duration::from_millis(u64::from(task.downtime_limit_ms)),
                bandwidth_bytes_per_s: task.bandwidth_bytes_per_s,
                auto_converge: task.on_stall == OnStall::Autoconverge,
                disks: disks_along(task),
                vouched: *vouched,
            },
            downtime_limit: Mutex::new(Duration::from_millis(u64::from(task.downtime_limit_ms))),
            memory_limit: Mutex::new(Duration::from_millis(u64::from(task.downtime_limit_ms))),
            disk_rest: Mutex::default(),
            on_stall: task.on_stall,
            board,
            timeout: Duration::from_millis(task.timeout_ms),
            dialer,
            traffic: Arc::default(),
            meter: Arc::default(),
            disk_meter: Arc::default(),
            control: sender,
            aborting: AtomicBool::new(false),
            delivered: AtomicBool::new(false),
            limited_from: Mutex::new(Instant::now()),
            stopped_at,
            files: task.destination.files.clone(),
            images: Mutex::default(),
            disk_counts: Mutex::default(),
            cut: watch::Sender::new(false),
            broken: Mutex::default(),
            _watch: Mutex::new(watch),
        });
        let board = &shared.board;
        board.tell(|known| {
            let waiting = |disk: &DiskAlong| DiskProgress { device: disk.device.clone(), ..DiskProgress::default() };
            known.disks = shared.request.disks.iter().map(waiting).collect();
        });
        board.spawn(hear(control, Arc::clone(&shared)));
        board.spawn(carry_rpc(rpc, Arc::clone(&shared)));
        board.spawn(carry_each(memory, Channel::Memory, Arc::clone(&shared)));
        if let Some(disks) = disks {
            board.spawn(carry_each(disks, Channel::Disk, Arc::clone(&shared)));
        }
        Ok(Self { shared })
    }

    /// Begins; returns at once. May be repeated.
    pub(super) fn perform(&self) {
        let board = &self.shared.board;
        let begun = board.change(|known| {
            let begins = known.stage == Stage::Prepared;
            if begins {
                known.stage = Stage::Performing;
            }
            begins
        });
        if begun {
            board.spawn(perform(Arc::clone(&self.shared)));
        }
    }

    /// Ends it before the point of no return. Ok promises that the VM stays here.
    pub(super) async fn abort(&self) -> Result<(), Box<Finding>> {
        let (shared, board) = (&self.shared, &self.shared.board);
        shared.aborting.store(true, Ordering::SeqCst);
        board.change(|known| {
            let ends = known.stage == Stage::Prepared;
            if ends {
                known.stage = Stage::Aborted;
            }
            ends
        });
        let until = Instant::now() + ABORT_DEADLINE;
        // libvirt takes an abort only while its job is in a phase that can be aborted: ask again until the call ends.
        while board.known().stage == Stage::Performing && Instant::now() < until {
            ask_to_abort(board).await;
            let ended = board.wait_for(|known| known.stage != Stage::Performing);
            let _ = tokio::time::timeout(LOOK_EVERY, ended).await;
        }
        aborted(board.vm, board.known().stage, shared.delivered.load(Ordering::SeqCst))
    }
}

/// Whether a move has ended with the VM here, after it was asked to end.
fn aborted(vm: VmId, stage: Stage, delivered: bool) -> Result<(), Box<Finding>> {
    match stage {
        Stage::Failed | Stage::Aborted if delivered => Err(past_pivot(vm)),
        Stage::Failed | Stage::Aborted => Ok(()),
        Stage::Delivered | Stage::Resumed | Stage::Confirmed => Err(past_pivot(vm)),
        Stage::Prepared | Stage::Performing => Err(Box::new(Finding::blocks(
            FindingId::JobUndecided,
            vm,
            format!("libvirt did not end the move of VM {vm} within {} s", ABORT_DEADLINE.as_secs()),
            "Ask again; until libvirt's call ends it is not known who has the VM",
        ))),
    }
}

async fn ask_to_abort(board: &Board) {
    let vm = board.vm;
    if let Err(error) = blocking(&board.hypervisor, move |hypervisor| hypervisor.abort_migration(vm)).await {
        warn!(%vm, %error, "libvirt did not take the abort");
    }
}

/// Disks that move along, with the files that the destination made for them.
fn disks_along(task: &PrepareSource) -> Vec<DiskAlong> {
    // UEFI variables come with the memory, not as a disk.
    let is_disk = |device: &str| device != NVRAM && task.disks.iter().any(|disk| disk.device == device);
    let files = task.destination.files.iter().filter(|file| is_disk(&file.device));
    files
        .map(|file| DiskAlong { device: file.device.clone(), path: file.path.clone().into(), format: file.format })
        .collect()
}

/// What the destination's files hold already, which it reads now. That it is not told only means that more is sent.
async fn ask_seeds(shared: &Shared) -> Vec<Option<Image>> {
    let mut left = INDEX_BYTES_MAX;
    let mut images = Vec::new();
    for (index, file) in (0..).zip(&shared.files) {
        let asked = async {
            let mut peer = shared.dialer.open(Channel::Seed(index)).await?;
            SeedIndex::receive(&mut peer, SEED_SILENCE, left).await
        };
        images.push(Some(match file.sown {
            false => Image::Zeroes,
            true => match asked.await {
                Ok(index) => {
                    info!(disk = file.device, blocks = index.blocks(), "the destination holds an unfinished copy");
                    left = left.saturating_sub(index.runs().len() as u64);
                    Image::Seed(index)
                }
                Err(error) => {
                    warn!(disk = file.device, error = %chain(&error), "the destination does not say what it holds");
                    Image::Unknown
                }
            },
        }));
    }
    images
}

/// Returns soon after the move was to be ended.
async fn ended(shared: &Shared) {
    while !shared.aborting.load(Ordering::SeqCst) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn listen(dir: &Path, name: &str) -> Result<UnixListener, AgentError> {
    let path = dir.join(name);
    files::remove(&path)?;
    UnixListener::bind(&path).map_err(|source| AgentError::File { path, source })
}

fn listen_for_qemu(dir: &Path, name: &str) -> Result<UnixListener, AgentError> {
    selinux::for_qemu(|| Ok(listen(dir, name))).map_err(|source| AgentError::File { path: dir.join(name), source })?
}

async fn perform(shared: Arc<Shared>) {
    let board = &shared.board;
    // Before libvirt's call: from then on the files are written, and its time limit counts.
    let images = tokio::select! {
        images = ask_seeds(&shared) => images,
        () = ended(&shared) => Vec::new(),
    };
    *shared.images.lock().expect("nobody panics while holding it") = images;
    let started = Instant::now();
    let request = shared.request.clone();
    let over = Arc::new(Notify::new());
    let follow = follow(Arc::clone(&shared), started, Arc::clone(&over));
    let call = async {
        // An abort may have come between the request and here.
        let outcome = if shared.aborting.load(Ordering::SeqCst) {
            Err(HypervisorError::Aborted { what: format!("Could not migrate VM {}", board.vm) })
        } else {
            blocking(&board.hypervisor, move |hypervisor| hypervisor.migrate(&request)).await
        };
        over.notify_one();
        outcome
    };
    let ((), outcome) = tokio::join!(follow, call);
    settle(&shared, started, outcome).await;
}

/// Shows how far libvirt is, and does something about a move that does not come to its end. These are two: a libvirt that
/// does not answer is one reason why a move does not come to its end.
async fn follow(shared: Arc<Shared>, started: Instant, over: Arc<Notify>) {
    let both = async { tokio::join!(show_progress(&shared, started), watch_over(&shared)) };
    tokio::select! {
        () = over.notified() => {}
        _ = both => {}
    }
}

async fn show_progress(shared: &Shared, started: Instant) -> ! {
    let board = &shared.board;
    let vm = board.vm;
    let (mut looked_at, mut remained, mut remains) = (Instant::now(), ByteCount(0), Remains::default());
    let mut rests = Rests::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // Each question would wait for QEMU, which hands over now.
        if shared.stopped_at.lock().expect("nobody panics while holding it").is_some() {
            continue;
        }
        let stats = blocking(&board.hypervisor, move |hypervisor| hypervisor.migration_stats(vm)).await;
        let stats = match stats {
            Ok(Some(stats)) => stats,
            Ok(None) => continue,
            Err(_) => {
                follow_law(shared, None);
                continue;
            }
        };
        follow_law(shared, Some(outlook(shared, &stats, remained, looked_at.elapsed())));
        (looked_at, remained) = (Instant::now(), stats.memory_remaining);
        let devices: Vec<String> = shared.request.disks.iter().map(|disk| disk.device.clone()).collect();
        let look = move |hypervisor: &dyn Hypervisor| {
            let one = |device: &String| hypervisor.disk_along(vm, device);
            devices.iter().map(one).collect::<Result<Vec<_>, _>>()
        };
        let looked = match shared.request.disks.is_empty() {
            true => Vec::new(),
            false => blocking(&board.hypervisor, look).await.unwrap_or_default(),
        };
        let wire = shared.wire();
        let flows = (stats.memory_total.0 > 0).then_some(stats.rate_bytes_per_s);
        let rest = rests.look(started.elapsed(), &looked, flows);
        let rest = if flows.is_some() { rest } else { Rest::default() };
        *shared.disk_rest.lock().expect("nobody panics while holding it") = rest;
        if stats.memory_total.0 == 0 && remains.get_on(&looked) {
            // Its time limit is for the memory: disks take as long as they take, while they get on.
            *shared.limited_from.lock().expect("nobody panics while holding it") = Instant::now();
        }
        board.tell(|known| {
            known.progress = Some(progress(known.progress, &stats, rest, wire, started));
            for (disk, looked) in known.disks.iter_mut().zip(looked) {
                disk_progress(disk, looked);
            }
        });
    }
}

/// What is known of the memory; `remained` is what remained at the look before.
fn outlook(shared: &Shared, stats: &MigrationStats, remained: ByteCount, since_look: Duration) -> Outlook {
    let fell = remained.0.saturating_sub(stats.memory_remaining.0);
    Outlook {
        total: stats.memory_total,
        remaining: stats.memory_remaining,
        rate_bytes_per_s: stats.rate_bytes_per_s,
        falling_bytes_per_s: (fell as f64 / since_look.as_secs_f64()) as u64,
        downtime_limit: *shared.downtime_limit.lock().expect("nobody panics while holding it"),
        round_trip: shared.control.round_trip(),
        since_look,
    }
}

/// Lets the windows follow the law of memory, those of disks too: they are drained while the VM stands still.
fn follow_law(shared: &Shared, outlook: Option<Outlook>) {
    let before = shared.traffic.law();
    let law = switchover::law(before, outlook.as_ref());
    if law != before {
        let in_flight = shared.traffic.in_flight();
        debug!(vm = %shared.board.vm, ?law, ?outlook, in_flight, "another law for the windows");
    }
    shared.traffic.set_law(law);
}

/// Bytes never go back. Nor does a disk that is ready: what the guest writes from then on goes to both files at once.
fn disk_progress(disk: &mut DiskProgress, looked: Option<(ByteCount, ByteCount)>) {
    let Some((copied, total)) = looked else { return };
    let all = disk.looked(copied, total);
    disk.stage = match disk.stage == DiskStage::Ready || (all && disk.copied == disk.total) {
        true => DiskStage::Ready,
        false => DiskStage::Copying,
    };
}

/// The disk of which nothing was heard for longest while something was asked, and for how long.
fn most_silent(shared: &Shared, heard: &mut BTreeMap<u16, Answers>, now: Duration) -> (String, Duration) {
    let counts = shared.disk_counts.lock().expect("nobody panics while holding it");
    heard.retain(|index, _| counts.contains_key(index));
    let each = counts.iter().map(|(index, count)| {
        let answers = heard.entry(*index).or_default();
        (*index, answers.silent(count.waiting(), count.answered(), now))
    });
    let most = each.max_by_key(|(_, silent)| *silent);
    let (index, silent) = most.unwrap_or_default();
    let device = shared.request.disks.get(usize::from(index)).map_or("of the VM", |disk| disk.device.as_str());
    (device.to_owned(), silent)
}

async fn watch_over(shared: &Shared) -> ! {
    *shared.limited_from.lock().expect("nobody panics while holding it") = Instant::now();
    let board = &shared.board;
    let vm = board.vm;
    let (began, mut heard) = (Instant::now(), BTreeMap::new());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (device, silent) = most_silent(shared, &mut heard, began.elapsed());
        let delivered = shared.delivered.load(Ordering::SeqCst);
        let stopped_at = *shared.stopped_at.lock().expect("nobody panics while holding it");
        let downtime_limit = *shared.downtime_limit.lock().expect("nobody panics while holding it");
        let rest = *shared.disk_rest.lock().expect("nobody panics while holding it");
        let measure = measure(&Situation {
            on_stall: shared.on_stall,
            elapsed: shared.limited_from.lock().expect("nobody panics while holding it").elapsed(),
            timeout: shared.timeout,
            downtime_limit,
            memory_limit: *shared.memory_limit.lock().expect("nobody panics while holding it"),
            disk_rest: rest.time,
            still: stopped_at.filter(|_| !delivered).map(|at| at.elapsed()),
            silent: if delivered { Duration::ZERO } else { silent },
        });
        match measure {
            Measure::GoOn => {}
            Measure::AllowDowntime { limit, memory } => {
                if limit > downtime_limit {
                    warn!(%vm, limit_s = limit.as_secs(), "the move takes too long: the VM may stand still for longer");
                } else {
                    let (memory_ms, disks) = (memory.as_millis(), rest.bytes);
                    debug!(%vm, memory_ms, %disks, "what is left of disks leaves another part of the limit to memory");
                }
                let set = move |hypervisor: &dyn Hypervisor| hypervisor.set_downtime_limit(vm, memory);
                match blocking(&board.hypervisor, set).await {
                    Ok(()) => {
                        *shared.downtime_limit.lock().expect("nobody panics while holding it") = limit;
                        *shared.memory_limit.lock().expect("nobody panics while holding it") = memory;
                    }
                    Err(error) => warn!(%vm, %error, "libvirt did not take the downtime limit"),
                }
            }
            Measure::EndSlow => {
                let limit = shared.timeout.as_secs();
                let copies_disks = !shared.request.disks.is_empty()
                    && board.known().progress.is_none_or(|progress| progress.memory_total.0 == 0);
                let too_much = rest.time.filter(|time| *time > downtime_limit);
                let reason = match (copies_disks, too_much) {
                    (true, _) => format!(
                        "The copies of the disks have not got on for {limit} s, the time limit of the move: the guest writes faster than the link or the destination's storage takes it"
                    ),
                    (false, Some(time)) => format!(
                        "The move took longer than its limit of {limit} s: the guest writes to its disks faster than that is copied; what is left of them, {}, would keep the VM standing still for {} ms",
                        rest.bytes,
                        time.as_millis()
                    ),
                    (false, None) => format!(
                        "The move took longer than its limit of {limit} s: the guest writes faster than its memory is sent, or the link is slow"
                    ),
                };
                end(shared, reason).await;
            }
            Measure::EndStill => {
                let still = still_max(downtime_limit).as_secs();
                shared.cut.send_replace(true);
                end(shared, format!("The VM stood still for {still} s at the end of the move, far longer than it may"))
                    .await;
            }
            Measure::EndSilent => {
                let silent = silent.as_secs();
                shared.cut.send_replace(true);
                end(shared, format!("The destination has not answered for disk {device} for {silent} s: its storage or the link hangs")).await;
            }
        }
    }
}

/// Ends a move, for this reason.
async fn end(shared: &Shared, reason: String) {
    if !shared.aborting.swap(true, Ordering::SeqCst) {
        warn!(vm = %shared.board.vm, reason, "the move is ended");
        shared.board.tell(|known| known.error = Some(reason));
    }
    ask_to_abort(&shared.board).await;
}

/// Returns when the channels of this move are to end.
async fn cut(shared: &Shared) {
    let mut cut = shared.cut.subscribe();
    // The sender lives as long as what it is a part of.
    let _ = cut.wait_for(|cut| *cut).await;
}

/// Progress never goes back: what is done is what was done before, or more.
fn progress(before: Option<Progress>, stats: &MigrationStats, rest: Rest, wire: u64, started: Instant) -> Progress {
    let done = stats.memory_total.0.saturating_sub(stats.memory_remaining.0);
    let net = stats.rate_bytes_per_s.saturating_sub(stats.dirty_bytes_per_s);
    let takes_ms = |rate: u64| stats.memory_remaining.0.saturating_mul(1000).checked_div(rate);
    let disks_ms = match rest {
        Rest { bytes: ByteCount(0), .. } => Some(0),
        Rest { time, .. } => time.map(|time| time.as_millis() as u64),
    };
    Progress {
        memory_total: stats.memory_total,
        memory_done: ByteCount(done.max(before.map_or(0, |before| before.memory_done.0))),
        sent: stats.memory_processed,
        wire: ByteCount(wire),
        rate_bytes_per_s: stats.rate_bytes_per_s,
        dirty_bytes_per_s: stats.dirty_bytes_per_s,
        iteration: stats.iteration.max(1),
        elapsed_ms: started.elapsed().as_millis() as u64,
        left_ms: takes_ms(net).map(|memory| memory.saturating_add(disks_ms.unwrap_or(0))),
        downtime_ms: takes_ms(stats.rate_bytes_per_s).and_then(|memory| Some(memory.saturating_add(disks_ms?))),
    }
}

/// libvirt's call ended: what it took, and who has the VM as far as this end knows.
async fn settle(shared: &Arc<Shared>, started: Instant, outcome: Result<(), HypervisorError>) {
    let board = &shared.board;
    let vm = board.vm;
    let migrate_ms = started.elapsed().as_millis() as u64;
    let delivered = match &outcome {
        Ok(()) => {
            info!(%vm, migrate_ms, "libvirt's migrate call succeeded");
            // It promises that the source's copy is gone, whether or not the reply was seen to pass.
            hand_over(shared);
            true
        }
        Err(error) if shared.delivered.load(Ordering::SeqCst) => {
            warn!(%vm, error = %chain(error), "libvirt's migrate call failed after the hand-over");
            true
        }
        Err(error) => {
            let aborted = shared.aborting.load(Ordering::SeqCst);
            warn!(%vm, error = %chain(error), aborted, "libvirt's migrate call failed");
            false
        }
    };
    let (wire, disk_wire) = (ByteCount(shared.wire()), ByteCount(shared.disk_meter.wire()));
    if delivered {
        board.tell(|known| {
            known.stage = Stage::Delivered;
            for disk in &mut known.disks {
                disk.stage = DiskStage::Moved;
            }
            known.state.figures.migrate_ms = migrate_ms;
            known.state.figures.wire = wire;
            known.state.figures.disk_wire = disk_wire;
        });
    } else if let Err(error) = outcome {
        give_up(shared, error).await;
    }
    let stats = blocking(&board.hypervisor, move |hypervisor| hypervisor.completed_stats(vm)).await.ok().flatten();
    board.tell(|known| {
        let (sent, iterations) = match (stats, known.progress) {
            (Some(stats), _) => (stats.memory_processed, stats.iteration),
            (None, Some(last)) => (last.sent, last.iteration),
            (None, None) => return,
        };
        known.state.figures.sent = sent;
        known.state.figures.iterations = iterations;
        known.state.figures.qemu_downtime_ms = stats.map_or(0, |stats| stats.downtime_ms);
    });
    board.write_down().await;
}

/// The move failed before the point of no return: the VM is here. What libvirt leaves paused is run again.
async fn give_up(shared: &Arc<Shared>, error: HypervisorError) {
    let board = &shared.board;
    let vm = board.vm;
    let looked = blocking(&board.hypervisor, move |hypervisor| {
        // In this order: of a migration that still goes on it is not known that the VM runs on.
        let moves = hypervisor.migration_stats(vm)?.is_some();
        Ok((hypervisor.presence(vm, Role::Source)?, moves))
    });
    let (presence, moves) = looked.await.unwrap_or((Presence::Unknown, true));
    if presence == Presence::Running && !moves {
        note_that_it_runs_on(board).await;
    }
    let whereabouts = match presence {
        Presence::Running => "the VM runs at the source",
        Presence::Paused | Presence::Stopped | Presence::HandedOver | Presence::Left => {
            "the VM is at the source, paused"
        }
        Presence::Halted => "the VM is at the source, and its guest crashed or suspended itself",
        Presence::Absent | Presence::Off | Presence::Ended => "the VM has no process at the source",
        Presence::Receiving | Presence::Arrived | Presence::Unknown => "libvirt at the source does not say what it has",
    };
    let broken = shared.broken.lock().expect("nobody panics while holding it").clone();
    let broken = broken.map(|broken| format!("; the management channel broke: {broken}")).unwrap_or_default();
    let aborted = shared.aborting.load(Ordering::SeqCst);
    let limit = board.known().error;
    let reason = match &limit {
        // That a move which this side ended was "ended by request" explains nothing.
        Some(limit) if matches!(error, HypervisorError::Aborted { .. }) => format!("{limit}; {whereabouts}"),
        Some(limit) => format!("{limit}: {}{broken}; {whereabouts}", chain(&error)),
        None => format!("{}{broken}; {whereabouts}", chain(&error)),
    };
    shared.control.send_now(Message::GaveUp { reason: reason.clone() });
    board.tell(|known| {
        known.stage = if aborted && limit.is_none() { Stage::Aborted } else { Stage::Failed };
        known.error = Some(reason);
    });
    if presence == Presence::Stopped {
        let shared = Arc::clone(shared);
        board.spawn(async move {
            if run_again(Arc::clone(&shared.board.hypervisor), vm).await {
                note_that_it_runs_on(&shared.board).await;
            }
        });
    }
}

/// From now on the copy at the destination is old: on the disk when it returns.
async fn note_that_it_runs_on(board: &Board) {
    board.tell(|known| known.state.ran_on = true);
    board.write_down().await;
}

/// Runs a VM again that was stopped for a hand-over that failed. libvirt does so itself, but cannot while the copy at
/// the destination has the disk's lock; that copy is never run, and is destroyed when the move is undone. Gives whether it
/// runs here.
pub(super) async fn run_again(hypervisor: Arc<dyn Hypervisor>, vm: VmId) -> bool {
    warn!(%vm, "libvirt left the VM paused at the source; it is run as soon as its disks are free");
    for _ in 0..RUNS_MAX {
        let outcome = blocking(&hypervisor, move |hypervisor| match hypervisor.presence(vm, Role::Source)? {
            Presence::Stopped | Presence::Left => hypervisor.resume(vm).map(|()| true),
            presence => Ok(presence == Presence::Running),
        });
        match outcome.await {
            Ok(runs) => {
                info!(%vm, runs, "the VM is not paused any more");
                return runs;
            }
            Err(error) => debug!(%vm, error = %chain(&error), "the VM could not be run yet"),
        }
        tokio::time::sleep(RUN_EVERY).await;
    }
    error!(%vm, "the VM is still paused at the source; run it with `virsh resume`");
    false
}

async fn hear(mut control: Control, shared: Arc<Shared>) {
    while let Some(message) = control.receive().await {
        match message {
            Message::Running => info!("the VM runs at the destination"),
            Message::GaveUp { reason } => {
                warn!(reason, "the destination's carrier gave up");
                // It explains what libvirt's call will fail of.
                shared.board.change(|known| {
                    let explains = known.stage == Stage::Performing && known.error.is_none();
                    if explains {
                        known.error = Some(reason);
                    }
                    explains
                });
            }
            Message::Stopped | Message::HandedOver | Message::Ping { .. } | Message::Pong { .. } | Message::Unknown => {
            }
        }
    }
    if shared.board.known().stage == Stage::Performing && !shared.delivered.load(Ordering::SeqCst) {
        // Nobody could tell the destination that the VM was handed over.
        shared.cut.send_replace(true);
        end(&shared, "The connection to the destination's carrier is gone".to_owned()).await;
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
            window_max: WINDOW_BYTES_MIN,
            ..Options::new(shared.request.downtime_limit, Arc::default())
        };
        let (reader, writer) = local.into_split();
        let ended = Arc::clone(&shared);
        shared.board.spawn(async move {
            let reason = tokio::select! {
                outcome = carry(peer, reader, writer, options) => channel_ended("rpc", outcome),
                () = cut(&ended) => Some("it was ended with the move".to_owned()),
            };
            if let Some(reason) = reason {
                *ended.broken.lock().expect("nobody panics while holding it") = Some(reason);
            }
        });
    }
}

/// Connections are opened at the destination in the order in which they came here.
async fn carry_each(listener: UnixListener, channel: fn(u16) -> Channel, shared: Arc<Shared>) {
    for index in 0.. {
        let Ok((local, _)) = listener.accept().await else { return };
        let channel = channel(index);
        let name = if matches!(channel, Channel::Disk(_)) { "disk" } else { "memory" };
        let peer = match shared.dialer.open(channel).await {
            Ok(peer) => peer,
            Err(error) => {
                error!(channel = name, error = %chain(&error), "a channel could not be opened");
                continue;
            }
        };
        let meter = if matches!(channel, Channel::Disk(_)) { &shared.disk_meter } else { &shared.meter };
        widen(&peer);
        let mut options = Options {
            traffic: Arc::clone(&shared.traffic),
            window_max: shared.dialer.window_max(),
            ..Options::new(shared.request.downtime_limit, Arc::clone(meter))
        };
        let mut disk = None;
        if let Channel::Disk(index) = channel {
            // One connection for each disk: of another, should there be one, nothing is known.
            let mut images = shared.images.lock().expect("nobody panics while holding it");
            let image = images.get_mut(usize::from(index)).and_then(Option::take).unwrap_or_default();
            let count = Arc::<NbdMeter>::default();
            let (requests, replies) = nbd::source(image, Arc::clone(&count));
            shared.disk_counts.lock().expect("nobody panics while holding it").insert(index, count);
            disk = Some(index);
            options.outbound = Some(Box::new(requests));
            options.inbound = Some(Box::new(replies));
        }
        let (reader, writer) = local.into_split();
        let ended = Arc::clone(&shared);
        shared.board.spawn(async move {
            tokio::select! {
                outcome = carry(peer, reader, writer, options) => drop(channel_ended(name, outcome)),
                () = cut(&ended) => warn!(channel = name, "the channel was ended with the move"),
            }
            if let Some(index) = disk {
                ended.disk_counts.lock().expect("nobody panics while holding it").remove(&index);
            }
        });
    }
}

/// Lets a test cut the management channel before one message passes: the failpoint names a file, which holds `call N` or
/// `reply N`. `before` and `after` count messages without and with those that are about to pass.
fn cut_here(direction: &str, before: u32, after: u32) -> Result<(), String> {
    fail::fail_point!("cut-rpc", |file| {
        let wanted = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let number = wanted.trim().strip_prefix(direction).and_then(|number| number.trim().parse().ok());
        match number {
            Some(number) if before < number && number <= after => {
                Err(format!("a test cut the channel before {direction} {number}"))
            }
            _ => Ok(()),
        }
    });
    // Without failpoints nothing is cut.
    let _ = (direction, before, after);
    Ok(())
}

/// Lets a test lose the call to Finish: the failpoint tells after how many milliseconds the channel ends instead.
fn lose_here() -> Result<(), String> {
    fail::fail_point!("lose-finish-call", |ms| {
        let ms = ms.and_then(|ms| ms.parse().ok()).unwrap_or_default();
        std::thread::sleep(Duration::from_millis(ms));
        Err("the Finish call was lost".to_owned())
    });
    // Without failpoints nothing is lost.
    Ok(())
}

/// Calls of the source's libvirtd, on their way out.
struct Calls(Arc<Mutex<Tap>>);

impl Inspect for Calls {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let mut tap = self.0.lock().expect("nobody panics while holding it");
        let (before, had_finish) = (tap.passed().calls, tap.has_seen_finish());
        tap.calls(bytes).map_err(|error| error.to_string())?;
        cut_here("call", before, tap.passed().calls)?;
        if !had_finish && tap.has_seen_finish() {
            lose_here()?;
        }
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
        let before = tap.passed().replies;
        let finish = tap.replies(bytes, out).map_err(|error| error.to_string())?;
        cut_here("reply", before, tap.passed().replies)?;
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
        hand_over(&self.shared);
    }
}

/// The VM is the destination's. First that is told to the destination, for the guest stands still; then it is written
/// down. Should this process die in between, the destination has been told or the source's libvirtd is asked.
fn hand_over(shared: &Arc<Shared>) {
    if shared.delivered.swap(true, Ordering::SeqCst) {
        return;
    }
    shared.control.send_now(Message::HandedOver);
    let board = Arc::clone(&shared.board);
    board.tell(|known| known.state.finish_delivered = true);
    shared.board.spawn(async move { board.write_down().await });
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_a_vm_that_was_handed_over_is_said_to_have_switched_over() {
        use Stage::{Aborted, Confirmed, Delivered, Failed, Performing, Prepared, Resumed};
        for stage in [Prepared, Performing, Delivered, Resumed, Confirmed, Failed, Aborted] {
            for delivered in [false, true] {
                let told = aborted(VmId(Uuid::nil()), stage, delivered).err().map(|finding| finding.id);
                let expected = match stage {
                    Failed | Aborted => delivered.then_some(FindingId::JobPastPivot),
                    Delivered | Resumed | Confirmed => Some(FindingId::JobPastPivot),
                    Prepared | Performing => Some(FindingId::JobUndecided),
                };
                assert_eq!(told, expected, "{stage:?} {delivered}");
            }
        }
    }

    #[test]
    fn a_disk_that_is_ready_stays_ready_while_the_guest_writes() {
        let mut disk = DiskProgress::default();
        for (looked, expected, copied) in [
            (None, DiskStage::Waiting, 0),
            (Some((0, 0)), DiskStage::Copying, 0),
            (Some((50, 100)), DiskStage::Copying, 50),
            (Some((40, 100)), DiskStage::Copying, 50),
            (Some((100, 100)), DiskStage::Ready, 100),
            (Some((100, 120)), DiskStage::Ready, 100),
            (Some((120, 120)), DiskStage::Ready, 120),
        ] {
            disk_progress(&mut disk, looked.map(|(copied, total)| (ByteCount(copied), ByteCount(total))));
            assert_eq!((disk.stage, disk.copied), (expected, ByteCount(copied)), "{looked:?}");
        }
    }
}
