//! State shared by the source's tasks: one move, its channels, and the reasons to end it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use ferry_core::{api::agent::IncomingDiskFile, disk_rest::Rest, error::chain, job::OnStall, transfer::Preset};
use ferry_drivers::hypervisor::MigrateRequest;
use ferry_wire::{
    channel::CpuSource, control::ControlSender, nbd::Image, rate::RateLimit, session::Dialer, traffic::Traffic,
};
use tokio::sync::watch;
use tracing::warn;

use crate::{
    blocking::call,
    live::carrier::{board::Board, meters::Meters},
};

/// How often libvirt is polled for progress.
pub(super) const POLL_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Shared {
    pub(super) board: Arc<Board>,
    pub(super) request: MigrateRequest,
    /// How long the VM may be paused.
    pub(super) downtime_limit: Mutex<Duration>,
    /// The part of that for its memory, as last set in QEMU.
    pub(super) memory_limit: Mutex<Duration>,
    /// What remains of disks once memory is being sent.
    pub(super) disk_rest: Mutex<Rest>,
    /// How much faster the link seems to QEMU than it may be, in percent.
    pub(super) gain_percent: AtomicU32,
    pub(super) timeout: Duration,
    pub(super) on_stall: OnStall,
    /// Start of the time limit.
    pub(super) limited_from: Mutex<Instant>,
    /// The new files of migrated disks.
    pub(super) files: Vec<IncomingDiskFile>,
    /// What is known about them, until their channels open.
    pub(super) images: Mutex<Vec<Option<Image>>>,
    /// When the VM was paused for the hand-over.
    pub(super) stopped_at: Arc<Mutex<Option<Instant>>>,
    pub(super) dialer: Dialer,
    /// Traffic of memory and disks.
    pub(super) traffic: Arc<Traffic>,
    /// The limit of memory, if the carrier and not libvirt limits it.
    pub(super) memory_rate: Option<Arc<RateLimit>>,
    /// The limit of all disks together.
    pub(super) disk_rate: Option<Arc<RateLimit>>,
    /// How the bytes of memory and disks travel.
    pub(super) performance: Preset,
    /// How busy this host's CPUs are: what guests need is not used to compress.
    pub(super) cpu: Option<CpuSource>,
    pub(super) meters: Meters,
    pub(super) control: ControlSender,
    pub(super) aborting: AtomicBool,
    pub(super) delivered: AtomicBool,
    /// Whether the channels must end at once. A paused VM waits for the reply to Finish, or its QEMU, which does not
    /// answer libvirt then, for room in the memory channel; TCP gives up only after a quarter of an hour. Without the
    /// channels the reply can no longer arrive, and the VM continues here.
    pub(super) cut: watch::Sender<bool>,
    /// Why the management channel broke: libvirt itself reports only that it did.
    pub(super) broken: Mutex<Option<String>>,
    pub(super) _watch: Mutex<Box<dyn Send>>,
}

/// Ends the move for this reason.
pub(super) async fn end(shared: &Shared, reason: String) {
    if !shared.aborting.swap(true, Ordering::SeqCst) {
        warn!(reason, "The move is ended");
        shared.board.update(|known| known.error = Some(reason));
    }
    ask_to_abort(&shared.board).await;
}

pub(super) async fn ask_to_abort(board: &Board) {
    let vm = board.vm;
    if let Err(error) = call(&board.hypervisor, move |hypervisor| hypervisor.abort_migration(vm)).await {
        warn!(error = %chain(&error), "libvirt did not take the abort");
    }
}

/// Whether the move is being ended, by whomever.
pub(super) fn is_ending(shared: &Shared) -> bool {
    shared.aborting.load(Ordering::SeqCst)
}

/// Returns when the channels of this move must end.
pub(super) async fn cut(shared: &Shared) {
    let mut cut = shared.cut.subscribe();
    // The sender lives as long as the object that contains it.
    let _ = cut.wait_for(|cut| *cut).await;
}
