//! The point of no return at the source. Mirror of `destination/handover.rs`.
//!
//! libvirt's own hand-over runs the VM twice if the reply to its Finish call is lost: the source's libvirtd resumes its
//! copy while the destination's already runs. So with Ferry the VM arrives paused, and running it is a separate step:
//!
//! ```text
//! source's libvirtd        source's carrier          destination's carrier        destination's libvirtd
//!   Finish ───────────────▶ calls ────────────────────▶ gate ────────────────────▶ VM complete, paused
//!                                                       take-over: it has its disks ◀─── reply
//!   ends its copy ◀──────── replies ◀────────────────── reply
//!                           │ written to libvirtd: THE POINT OF NO RETURN
//!                           └ HandedOver ─────────────▶ resume ──────────────────▶ VM runs
//! ```
//! What is known about the VM at each moment:
//!
//! - Before the reply was written, the source has it. Whatever breaks (the channel, either carrier, either host), its
//!   libvirtd resumes it here or we do ([`run_again`]), and the destination's paused copy is destroyed without ever
//!   being run.
//! - When `Management::delivered` is called, the reply is in the socket of the source's libvirtd, which ends its copy.
//!   The destination is informed first, because the guest is paused; then the hand-over is recorded. If this process
//!   dies in between, either the destination was informed, or the source's libvirtd is asked what became of its copy.
//! - If libvirt's migrate call succeeds, it promises the same, whether or not the reply was seen here ([`settle`]).
//! - If the control connection is lost before that, the destination could not be informed: the channels are cut, so
//!   that the reply can no longer arrive (`super::hear`). The move of a VM that is paused for too long is ended the
//!   same way (`watchdog.rs`).
//! - After an uncertain end both hosts are asked, and `ferry_core::migration::verdict` decides which one has the VM.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::{Role, Stage},
    error::chain,
    files::DiskStage,
    id::VmId,
    migration::Presence,
    units::ByteCount,
};
use ferry_drivers::hypervisor::{
    Hypervisor, HypervisorError,
    rpc::{FinishReply, Tap},
};
use ferry_wire::{
    control::Message,
    filter::{Direction, FilterError, Outputs, StreamFilter},
};
use tracing::{debug, error, info, warn};

use super::state::Shared;
use crate::{blocking::call, live::carrier::board::Board, lock::lock};

/// Interval and number of attempts to run a VM that libvirt left paused: until the destination's copy is gone.
const RUN_EVERY: Duration = Duration::from_millis(250);

const RUNS_MAX: u32 = 480;

/// Filters both directions of the source's libvirtd. When the reply to Finish has been written to it, the VM is handed
/// over.
pub(super) struct Management {
    tap: Tap,
    finish: Option<FinishReply>,
    shared: Arc<Shared>,
}

impl Management {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { tap: Tap::default(), finish: None, shared: Arc::clone(shared) }
    }

    fn calls(&mut self, bytes: &[u8]) -> Result<(), FilterError> {
        let (before, had_finish) = (self.tap.passed().calls, self.tap.has_seen_finish());
        self.tap.calls(bytes)?;
        cut_here("call", before, self.tap.passed().calls)?;
        if !had_finish && self.tap.has_seen_finish() {
            lose_here()?;
        }
        Ok(())
    }

    fn replies(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), FilterError> {
        let before = self.tap.passed().replies;
        let finish = self.tap.replies(bytes, out)?;
        cut_here("reply", before, self.tap.passed().replies)?;
        if finish.is_some() {
            // Lets a test lose the reply: the whole chunk is dropped and the channel ends.
            fail::fail_point!("drop-finish-reply", |_| Err("the Finish reply was dropped".into()));
            self.finish = finish;
        }
        Ok(())
    }
}

impl StreamFilter for Management {
    fn filter(&mut self, direction: Direction, bytes: &[u8], out: &mut Outputs) -> Result<(), FilterError> {
        match direction {
            Direction::Outbound => {
                self.calls(bytes)?;
                out.forward.extend_from_slice(bytes);
                Ok(())
            }
            Direction::Inbound => self.replies(bytes, &mut out.forward),
        }
    }

    fn delivered(&mut self) {
        if self.finish.take().is_some_and(|finish| finish.destination_has_it) {
            hand_over(&self.shared);
        }
    }
}

/// The VM now belongs to the destination. The destination is informed first, because the guest is paused; then the
/// hand-over is recorded. If this process dies in between, either the destination was informed or the source's libvirtd
/// is asked.
fn hand_over(shared: &Arc<Shared>) {
    if shared.delivered.swap(true, Ordering::SeqCst) {
        return;
    }
    shared.control.send_now(Message::HandedOver);
    let board = Arc::clone(&shared.board);
    board.update(|known| known.state.finish_delivered = true);
    shared.board.spawn(async move { board.write_down().await });
}

/// Evaluates the end of libvirt's call: how long it took, and who has the VM as far as this end knows.
pub(super) async fn settle(shared: &Arc<Shared>, started: Instant, outcome: Result<(), HypervisorError>) {
    let board = &shared.board;
    let vm = board.vm;
    let migrate_ms = started.elapsed().as_millis() as u64;
    let delivered = match &outcome {
        Ok(()) => {
            info!(migrate_ms, "libvirt's migrate call succeeded");
            // Success promises that the source's copy is gone, whether or not the reply was seen here.
            hand_over(shared);
            true
        }
        Err(error) if shared.delivered.load(Ordering::SeqCst) => {
            warn!(error = %chain(error), "libvirt's migrate call failed after the hand-over");
            true
        }
        Err(error) => {
            if shared.aborting.load(Ordering::SeqCst) {
                info!(error = %chain(error), "libvirt's migrate call was ended, as asked");
            } else {
                warn!(error = %chain(error), "libvirt's migrate call failed");
            }
            false
        }
    };
    let (wire, disk_wire) = (ByteCount(shared.meters.wire()), ByteCount(shared.meters.disks.wire()));
    let carried = shared.meters.carried();
    if delivered {
        board.update(|known| {
            known.stage = Stage::Delivered;
            for disk in &mut known.disks {
                disk.stage = DiskStage::Moved;
            }
            known.state.figures.migrate_ms = migrate_ms;
            known.state.figures.wire = wire;
            known.state.figures.disk_wire = disk_wire;
            known.state.figures.carried = Some(carried);
        });
    } else if let Err(error) = outcome {
        give_up(shared, error).await;
    }
    let stats = call(&board.hypervisor, move |hypervisor| hypervisor.completed_stats(vm)).await.ok().flatten();
    board.update(|known| {
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

/// The move failed before the point of no return: the VM is here. If libvirt left it paused, it is run again.
async fn give_up(shared: &Arc<Shared>, error: HypervisorError) {
    let board = &shared.board;
    let vm = board.vm;
    let probed = call(&board.hypervisor, move |hypervisor| {
        // In this order: while a migration is still active, a running VM proves nothing.
        let moves = hypervisor.migration_stats(vm)?.is_some();
        Ok((hypervisor.presence(vm, Role::Source)?, moves))
    });
    let (presence, moves) = probed.await.unwrap_or((Presence::Unknown, true));
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
    let broken = lock(&shared.broken).clone();
    let broken = broken.map(|broken| format!("; the management channel broke: {broken}")).unwrap_or_default();
    let aborted = shared.aborting.load(Ordering::SeqCst);
    let limit = board.known().error;
    let reason = match &limit {
        // "Ended by request" explains nothing if this side itself ended the move.
        Some(limit) if matches!(error, HypervisorError::Aborted { .. }) => format!("{limit}; {whereabouts}"),
        Some(limit) => format!("{limit}: {}{broken}; {whereabouts}", chain(&error)),
        None => format!("{}{broken}; {whereabouts}", chain(&error)),
    };
    shared.control.send_now(Message::GaveUp { reason: reason.clone() });
    board.update(|known| {
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

/// Records that the copy at the destination is outdated from now on. It is on disk when this returns.
async fn note_that_it_runs_on(board: &Board) {
    board.update(|known| known.state.ran_on = true);
    board.write_down().await;
}

/// Runs a VM again that was paused for a hand-over that failed. libvirt does so itself, but cannot while the copy at
/// the destination holds the disk's lock; that copy is never run, and is destroyed when the move is undone. Returns
/// whether the VM runs here.
pub(in crate::live) async fn run_again(hypervisor: Arc<dyn Hypervisor>, vm: VmId) -> bool {
    warn!("libvirt left the VM paused at the source; it is run as soon as its disks are free");
    for _ in 0..RUNS_MAX {
        let outcome = call(&hypervisor, move |hypervisor| {
            let presence = hypervisor.presence(vm, Role::Source)?;
            if matches!(presence, Presence::Stopped | Presence::Left) {
                return hypervisor.resume(vm).map(|()| true);
            }
            Ok(presence == Presence::Running)
        });
        match outcome.await {
            Ok(runs) => {
                info!(runs, "The VM is not paused any more");
                return runs;
            }
            Err(error) => debug!(error = %chain(&error), "The VM could not be run yet"),
        }
        tokio::time::sleep(RUN_EVERY).await;
    }
    error!("The VM is still paused at the source; run it with `virsh resume`");
    false
}

/// Lets a test cut the management channel before a given message passes: the failpoint names a file that contains `call
/// N` or `reply N`. `before` and `after` count messages without and with those about to pass.
fn cut_here(direction: &str, before: u32, after: u32) -> Result<(), String> {
    fail::fail_point!("cut-rpc", |file| {
        let requested = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let number = requested.trim().strip_prefix(direction).and_then(|number| number.trim().parse().ok());
        match number {
            Some(number) if before < number && number <= after => {
                Err(format!("a test cut the channel before {direction} {number}"))
            }
            Some(_) | None => Ok(()),
        }
    });
    // Without failpoints nothing is cut.
    let _ = (direction, before, after);
    Ok(())
}

/// Lets a test lose the call to Finish: the failpoint gives the number of milliseconds after which the channel ends
/// instead.
fn lose_here() -> Result<(), String> {
    fail::fail_point!("lose-finish-call", |ms| {
        let ms = ms.and_then(|ms| ms.parse().ok()).unwrap_or_default();
        std::thread::sleep(Duration::from_millis(ms));
        Err("the Finish call was lost".to_owned())
    });
    // Without failpoints nothing is lost.
    Ok(())
}
