//! Progress at the source, published while the move runs; and the law that the channels' windows follow.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use ferry_core::{
    compression::Gain,
    convergence::Remains,
    disk_rest::{Rest, Rests},
    files::{DiskProgress, DiskStage},
    job::Progress,
    switchover::{self, Outlook},
    units::ByteCount,
};
use ferry_drivers::hypervisor::{Hypervisor, MigrationStats};
use tracing::debug;

use super::state::{POLL_EVERY, Shared};
use crate::{blocking::call, lock::lock};

pub(super) async fn show_progress(shared: &Shared, started: Instant) -> ! {
    let board = &shared.board;
    let vm = board.vm;
    let (mut polled_at, mut remained, mut remains) = (Instant::now(), ByteCount(0), Remains::default());
    let (mut rests, mut gain) = (Rests::default(), Gain::default());
    loop {
        tokio::time::sleep(POLL_EVERY).await;
        // A query would wait for QEMU, which is handing over now.
        if lock(&shared.stopped_at).is_some() {
            continue;
        }
        let stats = call(&board.hypervisor, move |hypervisor| hypervisor.migration_stats(vm)).await;
        let stats = match stats {
            Ok(Some(stats)) => stats,
            Ok(None) => continue,
            Err(_) => {
                follow_law(shared, None);
                continue;
            }
        };
        follow_law(shared, Some(outlook(shared, &stats, remained, polled_at.elapsed())));
        (polled_at, remained) = (Instant::now(), stats.memory_remaining);
        let devices: Vec<String> = shared.request.disks.iter().map(|disk| disk.device.clone()).collect();
        let probe = move |hypervisor: &dyn Hypervisor| {
            let one = |device: &String| hypervisor.migrated_disk(vm, device);
            devices.iter().map(one).collect::<Result<Vec<_>, _>>()
        };
        let polled = match shared.request.disks.is_empty() {
            true => Vec::new(),
            false => call(&board.hypervisor, probe).await.unwrap_or_default(),
        };
        let wire = shared.meters.wire();
        let memory = &shared.meters.memory;
        let gain = gain.percent(started.elapsed(), stats.iteration, memory.sent_plain(), memory.wire());
        shared.gain_percent.store(gain, Ordering::Relaxed);
        let flows = (stats.memory_total.0 > 0).then_some(stats.rate_bytes_per_s);
        let rest = rests.update(started.elapsed(), &polled, flows);
        let rest = if flows.is_some() { rest } else { Rest::default() };
        *lock(&shared.disk_rest) = rest;
        if stats.memory_total.0 == 0 && remains.get_on(&polled) {
            // The time limit applies to memory: disks take as long as they need while they make progress.
            *lock(&shared.limited_from) = Instant::now();
        }
        board.update(|known| {
            known.progress = Some(progress(known.progress, &stats, rest, wire, started));
            for (disk, polled) in known.disks.iter_mut().zip(polled) {
                disk_progress(disk, polled);
            }
        });
    }
}

/// The outlook for memory; `remained` is what remained at the previous poll.
fn outlook(shared: &Shared, stats: &MigrationStats, remained: ByteCount, since_poll: Duration) -> Outlook {
    let fell = remained.0.saturating_sub(stats.memory_remaining.0);
    Outlook {
        total: stats.memory_total,
        remaining: stats.memory_remaining,
        rate_bytes_per_s: stats.rate_bytes_per_s,
        falling_bytes_per_s: (fell as f64 / since_poll.as_secs_f64()) as u64,
        downtime_limit: *lock(&shared.downtime_limit),
        round_trip: shared.control.round_trip(),
        since_poll,
    }
}

/// Lets all windows follow the law of memory, including those of disks: they are drained while the VM is paused.
fn follow_law(shared: &Shared, outlook: Option<Outlook>) {
    let before = shared.traffic.law();
    let law = switchover::law(before, outlook.as_ref());
    if law != before {
        let in_flight = shared.traffic.in_flight();
        debug!(?law, ?outlook, in_flight, "Another law for the windows");
    }
    shared.traffic.set_law(law);
}

/// Byte counts never fall, and a ready disk stays ready: from then on the guest's writes go to both files at once.
fn disk_progress(disk: &mut DiskProgress, polled: Option<(ByteCount, ByteCount)>) {
    let Some((copied, total)) = polled else { return };
    let all = disk.update(copied, total);
    disk.stage = match disk.stage == DiskStage::Ready || (all && disk.copied == disk.total) {
        true => DiskStage::Ready,
        false => DiskStage::Copying,
    };
}

/// Progress never falls.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_ready_stays_ready_while_the_guest_writes() {
        let mut disk = DiskProgress::default();
        for (polled, expected, copied) in [
            (None, DiskStage::Waiting, 0),
            (Some((0, 0)), DiskStage::Copying, 0),
            (Some((50, 100)), DiskStage::Copying, 50),
            (Some((40, 100)), DiskStage::Copying, 50),
            (Some((100, 100)), DiskStage::Ready, 100),
            (Some((100, 120)), DiskStage::Ready, 100),
            (Some((120, 120)), DiskStage::Ready, 120),
        ] {
            disk_progress(&mut disk, polled.map(|(copied, total)| (ByteCount(copied), ByteCount(total))));
            assert_eq!((disk.stage, disk.copied), (expected, ByteCount(copied)), "{polled:?}");
        }
    }
}
