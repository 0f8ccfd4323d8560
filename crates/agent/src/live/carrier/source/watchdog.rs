//! Ends a move that does not complete, or allows a longer downtime. [`ferry_core::convergence`] decides when and why.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use ferry_core::{
    convergence::{Answers, ConvergenceAction, Sample, next_action, paused_max},
    disk_rest::Rest,
    error::chain,
};
use ferry_drivers::hypervisor::Hypervisor;
use tracing::{debug, warn};

use super::state::{POLL_EVERY, Shared, end};
use crate::{blocking::call, lock::lock};

pub(super) async fn watch_over(shared: &Shared) -> ! {
    *lock(&shared.limited_from) = Instant::now();
    let board = &shared.board;
    let vm = board.vm;
    let (began, mut heard) = (Instant::now(), BTreeMap::new());
    loop {
        tokio::time::sleep(POLL_EVERY).await;
        let (device, silent) = most_silent(shared, &mut heard, began.elapsed());
        let delivered = shared.delivered.load(Ordering::SeqCst);
        let stopped_at = *lock(&shared.stopped_at);
        let downtime_limit = *lock(&shared.downtime_limit);
        let rest = *lock(&shared.disk_rest);
        let gain_percent = shared.gain_percent.load(Ordering::Relaxed);
        let action = next_action(&Sample {
            on_stall: shared.on_stall,
            elapsed: lock(&shared.limited_from).elapsed(),
            timeout: shared.timeout,
            downtime_limit,
            memory_limit: *lock(&shared.memory_limit),
            disk_rest: rest.time,
            gain_percent,
            paused: stopped_at.filter(|_| !delivered).map(|at| at.elapsed()),
            silent: if delivered { Duration::ZERO } else { silent },
        });
        match action {
            ConvergenceAction::GoOn => {}
            ConvergenceAction::AllowDowntime { limit, memory } => {
                if limit > downtime_limit {
                    warn!(limit_s = limit.as_secs(), "The move takes too long: the VM may stand still for longer");
                } else {
                    let (memory_ms, disks) = (memory.as_millis(), rest.bytes);
                    debug!(memory_ms, %disks, gain_percent, "Another limit for memory, by QEMU's measure");
                }
                let set = move |hypervisor: &dyn Hypervisor| hypervisor.set_downtime_limit(vm, memory);
                match call(&board.hypervisor, set).await {
                    Ok(()) => {
                        *lock(&shared.downtime_limit) = limit;
                        *lock(&shared.memory_limit) = memory;
                    }
                    Err(error) => warn!(error = %chain(&error), "libvirt did not take the downtime limit"),
                }
            }
            ConvergenceAction::EndSlow => {
                end(shared, why_slow(shared, rest, downtime_limit)).await;
            }
            ConvergenceAction::EndPaused => {
                let paused = paused_max(downtime_limit).as_secs();
                shared.cut.send_replace(true);
                end(
                    shared,
                    format!("The VM stood still for {paused} s at the end of the move, far longer than it may"),
                )
                .await;
            }
            ConvergenceAction::EndSilent => {
                let silent = silent.as_secs();
                shared.cut.send_replace(true);
                end(shared, format!("The destination has not answered for disk {device} for {silent} s: its storage or the link hangs")).await;
            }
        }
    }
}

/// Why a move did not complete within its time limit, as text for people.
fn why_slow(shared: &Shared, rest: Rest, downtime_limit: Duration) -> String {
    let limit = shared.timeout.as_secs();
    let copies_disks = !shared.request.disks.is_empty()
        && shared.board.known().progress.is_none_or(|progress| progress.memory_total.0 == 0);
    let too_much = rest.time.filter(|time| *time > downtime_limit);
    match (copies_disks, too_much) {
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
    }
}

/// The disk with the longest unanswered request, and its age.
fn most_silent(shared: &Shared, heard: &mut BTreeMap<u16, Answers>, now: Duration) -> (String, Duration) {
    let counts = shared.meters.open_disks();
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
