//! What the tasks of the source share: one move, its channels, and the reasons to end it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ferry_core::{api::agent::ArrivalFile, disk_rest::Rest, error::chain, job::OnStall};
use ferry_drivers::hypervisor::MigrateRequest;
use ferry_wire::{
    control::ControlSender,
    meter::Meter,
    nbd::{Image, NbdMeter},
    session::Dialer,
    traffic::Traffic,
};
use tokio::sync::watch;
use tracing::warn;

use crate::{blocking::call, live::carrier::board::Board};

/// How often progress is asked of libvirt.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Shared {
    pub(super) board: Arc<Board>,
    pub(super) request: MigrateRequest,
    /// For how long the VM may stand still.
    pub(super) downtime_limit: Mutex<Duration>,
    /// How much of that its memory may take, as QEMU was told last.
    pub(super) memory_limit: Mutex<Duration>,
    /// What is left of disks, once memory flows.
    pub(super) disk_rest: Mutex<Rest>,
    pub(super) timeout: Duration,
    pub(super) on_stall: OnStall,
    /// Since when the time limit counts.
    pub(super) limited_from: Mutex<Instant>,
    /// The new files of the disks that move along.
    pub(super) files: Vec<ArrivalFile>,
    /// What is known of them, until their channels come.
    pub(super) images: Mutex<Vec<Option<Image>>>,
    /// What the channels of disks count, as long as they are there.
    pub(super) disk_counts: Mutex<BTreeMap<u16, Arc<NbdMeter>>>,
    /// When the VM was stopped for the hand-over.
    pub(super) stopped_at: Arc<Mutex<Option<Instant>>>,
    pub(super) dialer: Dialer,
    /// Of memory and disks.
    pub(super) traffic: Arc<Traffic>,
    pub(super) meter: Arc<Meter>,
    /// Of the disks that move along.
    pub(super) disk_meter: Arc<Meter>,
    pub(super) control: ControlSender,
    pub(super) aborting: AtomicBool,
    pub(super) delivered: AtomicBool,
    /// Whether the channels are to end at once. A VM that stands still waits for the reply to Finish, or its QEMU, deaf to
    /// libvirt, for room in the memory channel; TCP gives up after a quarter of an hour. Without the channels the reply
    /// cannot come any more, and the VM runs on here.
    pub(super) cut: watch::Sender<bool>,
    /// Why the management channel broke: libvirt itself only says that it did.
    pub(super) broken: Mutex<Option<String>>,
    pub(super) _watch: Mutex<Box<dyn Send>>,
}

impl Shared {
    /// Bytes of memory and disks on the wire so far.
    pub(super) fn wire(&self) -> u64 {
        self.meter.wire() + self.disk_meter.wire()
    }
}

/// Ends a move, for this reason.
pub(super) async fn end(shared: &Shared, reason: String) {
    if !shared.aborting.swap(true, Ordering::SeqCst) {
        warn!(vm = %shared.board.vm, reason, "The move is ended");
        shared.board.tell(|known| known.error = Some(reason));
    }
    ask_to_abort(&shared.board).await;
}

pub(super) async fn ask_to_abort(board: &Board) {
    let vm = board.vm;
    if let Err(error) = call(&board.hypervisor, move |hypervisor| hypervisor.abort_migration(vm)).await {
        warn!(%vm, error = %chain(&error), "libvirt did not take the abort");
    }
}

/// Returns when the channels of this move are to end.
pub(super) async fn cut(shared: &Shared) {
    let mut cut = shared.cut.subscribe();
    // The sender lives as long as what it is a part of.
    let _ = cut.wait_for(|cut| *cut).await;
}
