//! The source's side: connects to the destination, makes libvirt's migrate call, and reports when the VM was paused and
//! when the hand-over was delivered. Mirror of `destination/`.
//!
//! ```text
//! Prepared ─perform▶ Performing ─Finish reply written to libvirtd▶ Delivered
//!                        └─ error or abort before that ─▶ Failed | Aborted: the VM runs here
//! ```
//! `handover.rs` contains the point of no return; `watchdog.rs` ends a move that does not complete; `progress.rs`
//! reports its progress; `channels.rs` carries the bytes.

mod channels;
mod handover;
mod progress;
mod state;
mod watchdog;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::{PrepareSource, Stage},
    carried::Carried,
    compression::NO_GAIN_PERCENT,
    files::DiskProgress,
    finding::{self, ByHand, Finding, FindingId},
    id::VmId,
    job::OnStall,
    vm::NVRAM,
};
use ferry_drivers::cpu::CpuSampler;
use ferry_drivers::hypervisor::{
    DISK_SOCKET, DomainEvent, HypervisorError, MEMORY_SOCKET, MigrateRequest, MigratedDisk, RPC_SOCKET,
};
use ferry_wire::{
    channel::CpuSource,
    control::{Control, Message},
    hello::Channel,
    rate::RateLimit,
};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

pub(in crate::live) use self::handover::run_again;
use self::{
    channels::{carry_each, carry_rpc, listen, listen_for_qemu, request_partials},
    handover::settle,
    progress::show_progress,
    state::{POLL_EVERY, Shared, ask_to_abort, end},
    watchdog::watch_over,
};
use super::{board::Board, meters::Meters};
use crate::{
    AgentError,
    blocking::call,
    config::Config,
    live::journal::{Journal, Task},
    lock::lock,
    peers,
    refusal::past_pivot,
};

/// How long libvirt's migrate call may take to return after an abort.
const ABORT_DEADLINE: Duration = Duration::from_secs(25);

/// How busy this host's CPUs are. A test on a busy machine may have it that nothing is known of them.
fn cpu_source() -> Option<CpuSource> {
    fail::fail_point!("no-cpu-facts", |_| None);
    let sampler = CpuSampler::default();
    Some(Arc::new(move || sampler.load()))
}

pub(super) struct Source {
    shared: Arc<Shared>,
}

impl Source {
    /// Connects to the destination and listens where libvirt will connect.
    pub(super) async fn start(config: &Config, journal: &Journal, board: Arc<Board>) -> Result<Self, AgentError> {
        let Task::Source { request: task, translate, persistent, migrated, vouched, .. } = &journal.task else {
            return Err(AgentError::failed("The journal is not one of a source"));
        };
        let socket_dir = &journal.socket_dir;
        let address = &task.destination.carrier;
        let dialer = peers::dialer(config, address, task.destination_pin, task.session, task.secret, task.route)?;
        let opened = dialer.open(Channel::Control).await;
        let stream = opened.map_err(|error| peers::not_reached(address, task.route, error))?;
        let control = Control::start(stream);
        let sender = control.sender();
        let (stopped, vm) = (sender.clone(), task.vm);
        let stopped_at: Arc<Mutex<Option<Instant>>> = Arc::default();
        let note = Arc::clone(&stopped_at);
        let limit = |bytes_per_s: Option<u64>| bytes_per_s.map(|rate| Arc::new(RateLimit::new(rate)));
        // libvirt knows one limit and would hold each disk to that of memory, so it is given none where disks migrate.
        let (by_libvirt, by_carrier) =
            if migrated.is_empty() { (task.bandwidth_bytes_per_s, None) } else { (None, task.bandwidth_bytes_per_s) };
        let (memory_rate, disk_rate) = (limit(by_carrier), limit(task.disk_bandwidth_bytes_per_s));
        let lifted = memory_rate.clone();
        let watch = call(&board.hypervisor, move |hypervisor| {
            hypervisor.watch(Box::new(move |event| {
                if event == DomainEvent::StoppedForMigration(vm) {
                    if let Some(rate) = &lifted {
                        rate.lift();
                    }
                    stopped.send_now(Message::Stopped);
                    lock(&note).get_or_insert_with(Instant::now);
                }
            }))
        })
        .await?;
        let (rpc, memory) = (listen(socket_dir, RPC_SOCKET)?, listen_for_qemu(socket_dir, MEMORY_SOCKET)?);
        let disks = if migrated.is_empty() { None } else { Some(listen_for_qemu(socket_dir, DISK_SOCKET)?) };
        let shared = Arc::new(Shared {
            request: MigrateRequest {
                vm: task.vm,
                socket_dir: socket_dir.to_owned(),
                translate: translate.clone(),
                persistent: *persistent,
                downtime_limit: Duration::from_millis(u64::from(task.downtime_limit_ms)),
                bandwidth_bytes_per_s: by_libvirt,
                auto_converge: task.on_stall == OnStall::Autoconverge,
                disks: migrated_disks(task),
                vouched: *vouched,
            },
            downtime_limit: Mutex::new(Duration::from_millis(u64::from(task.downtime_limit_ms))),
            memory_limit: Mutex::new(Duration::from_millis(u64::from(task.downtime_limit_ms))),
            disk_rest: Mutex::default(),
            gain_percent: AtomicU32::new(NO_GAIN_PERCENT),
            on_stall: task.on_stall,
            board,
            timeout: Duration::from_millis(task.timeout_ms),
            dialer,
            traffic: Arc::default(),
            memory_rate,
            disk_rate,
            performance: task.performance,
            cpu: cpu_source(),
            meters: Meters::default(),
            control: sender,
            aborting: AtomicBool::new(false),
            delivered: AtomicBool::new(false),
            limited_from: Mutex::new(Instant::now()),
            stopped_at,
            files: task.destination.files.clone(),
            images: Mutex::default(),
            cut: watch::Sender::new(false),
            broken: Mutex::default(),
            _watch: Mutex::new(watch),
        });
        let board = &shared.board;
        board.update(|known| {
            let waiting = |disk: &MigratedDisk| DiskProgress { device: disk.device.clone(), ..DiskProgress::default() };
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

    pub(super) fn carried(&self) -> Carried {
        self.shared.meters.carried()
    }

    /// Begins the migration; returns at once. May be repeated.
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

    /// Ends the move before the point of no return. Ok promises that the VM stays here.
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
        // libvirt accepts an abort only in some phases of its job: retry until the call returns.
        while board.known().stage == Stage::Performing && Instant::now() < until {
            ask_to_abort(board).await;
            let ended = board.wait_for(|known| known.stage != Stage::Performing);
            let _ = tokio::time::timeout(POLL_EVERY, ended).await;
        }
        aborted(board.vm, board.known().stage, shared.delivered.load(Ordering::SeqCst))
    }
}

/// Whether a move that was asked to end has ended with the VM here.
fn aborted(vm: VmId, stage: Stage, delivered: bool) -> Result<(), Box<Finding>> {
    match stage {
        Stage::Failed | Stage::Aborted if delivered => Err(past_pivot(vm)),
        Stage::Failed | Stage::Aborted => Ok(()),
        Stage::Delivered | Stage::Resumed | Stage::Confirmed => Err(past_pivot(vm)),
        Stage::Prepared | Stage::Performing => Err(Box::new(Finding::blocks(
            FindingId::JobUndecided,
            vm,
            finding::Message::MoveNotEnded { vm: vm.to_string(), seconds: ABORT_DEADLINE.as_secs() },
            ByHand::AskAgain,
        ))),
    }
}

/// Migrated disks, with the files that the destination created for them.
fn migrated_disks(task: &PrepareSource) -> Vec<MigratedDisk> {
    // UEFI variables are sent with the memory, not as a disk.
    let is_disk = |device: &str| device != NVRAM && task.disks.iter().any(|disk| disk.device == device);
    let files = task.destination.files.iter().filter(|file| is_disk(&file.device));
    files
        .map(|file| MigratedDisk { device: file.device.clone(), path: file.path.clone().into(), format: file.format })
        .collect()
}

async fn perform(shared: Arc<Shared>) {
    let board = &shared.board;
    // Before libvirt's call: from then on the files are written, and the time limit runs.
    let images = tokio::select! {
        images = request_partials(&shared) => images,
        () = ended(&shared) => Vec::new(),
    };
    *lock(&shared.images) = images;
    let started = Instant::now();
    let request = shared.request.clone();
    let over = Arc::new(Notify::new());
    let follow = follow(Arc::clone(&shared), started, Arc::clone(&over));
    let call = async {
        // An abort may have arrived since the request.
        let outcome = if shared.aborting.load(Ordering::SeqCst) {
            Err(HypervisorError::Aborted { what: format!("Could not migrate VM {}", board.vm) })
        } else {
            call(&board.hypervisor, move |hypervisor| hypervisor.migrate(&request)).await
        };
        over.notify_one();
        outcome
    };
    let ((), outcome) = tokio::join!(follow, call);
    settle(&shared, started, outcome).await;
}

/// Publishes libvirt's progress, and acts on a move that does not complete. Two loops, because a hung libvirt must not
/// stop the watchdog.
async fn follow(shared: Arc<Shared>, started: Instant, over: Arc<Notify>) {
    let both = async { tokio::join!(show_progress(&shared, started), watch_over(&shared)) };
    tokio::select! {
        () = over.notified() => {}
        _ = both => {}
    }
}

async fn hear(mut control: Control, shared: Arc<Shared>) {
    while let Some(message) = control.receive().await {
        match message {
            Message::Running => info!("The VM runs at the destination"),
            Message::GaveUp { reason } => {
                warn!(reason, "The destination's carrier gave up");
                // Explains the coming failure of libvirt's call.
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
        // The destination could not be informed of the hand-over.
        shared.cut.send_replace(true);
        end(&shared, "The connection to the destination's carrier is gone".to_owned()).await;
    }
}

/// Returns shortly after the move was asked to end.
async fn ended(shared: &Shared) {
    while !shared.aborting.load(Ordering::SeqCst) {
        tokio::time::sleep(POLL_EVERY).await;
    }
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
                let found = aborted(VmId(Uuid::nil()), stage, delivered).err().map(|finding| finding.id);
                let expected = match stage {
                    Failed | Aborted => delivered.then_some(FindingId::JobPastPivot),
                    Delivered | Resumed | Confirmed => Some(FindingId::JobPastPivot),
                    Prepared | Performing => Some(FindingId::JobUndecided),
                };
                assert_eq!(found, expected, "{stage:?} {delivered}");
            }
        }
    }
}
