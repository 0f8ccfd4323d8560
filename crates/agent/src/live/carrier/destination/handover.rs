//! The point of no return at the destination. Mirror of `source/handover.rs`, which describes the whole hand-over.
//!
//! A VM arrives paused and complete, and stays paused until it is known that the source's copy is gone. It is run here
//!
//! - at once, when the source's carrier reports that the reply to Finish was written to its libvirtd ([`handed_over`]);
//! - or when the server, having asked both hosts, decides that the VM is here (`Destination::resume_by_verdict`).
//!
//! From the first line of [`resume`] on this is the only copy: it is never destroyed here, and running it is retried
//! until it runs. An abort excludes it: whichever changes the board first happens, and the other does not. The same
//! holds for a take-over that found the VM without its disks (`takeover.rs`): it takes the same lock.

use std::time::{Duration, Instant};

use ferry_core::{
    api::agent::Stage,
    backoff::Backoff,
    error::chain,
    finding::{self, Command, Finding, FindingId},
    id::VmId,
};
use ferry_wire::control::{ControlSender, Message};
use tracing::{info, warn};

use super::state::Shared;
use crate::{blocking::call, lock::lock};

/// Pause after a failed resume before the next try: libvirt may be restarting, or a file server away. Doubles each
/// time.
const RESUME: Backoff = Backoff::new(Duration::from_millis(250), RESUME_PAUSE_MAX);
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long the caller of a resume waits for it. Trying continues after that.
pub(super) const RESUME_ANSWER_WITHIN: Duration = Duration::from_secs(20);

pub(super) async fn handed_over(shared: std::sync::Arc<Shared>, control: ControlSender) {
    // On a separate thread: a test that pauses it here must not pause the control socket as well.
    #[cfg(feature = "failpoints")]
    let _ = tokio::task::spawn_blocking(|| {
        fail::fail_point!("before-resume");
    })
    .await;
    resume(&shared, Some(&control)).await;
}

/// Runs the VM, unless that is already in progress. From the first line on it is never destroyed here.
pub(super) async fn resume(shared: &Shared, control: Option<&ControlSender>) {
    let board = &shared.board;
    let begun = {
        let _no_take_over = shared.resuming.lock().await;
        // Check and change are atomic: an abort comes before this or not at all.
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
    // The guest is paused, so the record is written concurrently with the call, not before it. If this process dies in
    // between, libvirt reports that the VM runs, or it is still paused and the source knows of the hand-over.
    tokio::join!(run(shared), board.write_down());
    let stopped = *lock(&shared.stopped_at);
    let ran = *lock(&shared.ran_at);
    // The message took half a round trip, during which the guest was paused.
    let travel = control.map_or(Duration::ZERO, |control| control.round_trip() / 2);
    let downtime = stopped.zip(ran).map(|(stopped, ran)| ran.saturating_duration_since(stopped) + travel);
    let downtime_ms = downtime.map_or(0, |downtime| downtime.as_millis() as u64);
    info!(downtime_ms, "The VM runs here");
    let wire = ferry_core::units::ByteCount(shared.meters.wire());
    let carried = shared.meters.carried();
    board.update(|known| {
        known.stage = Stage::Resumed;
        known.error = None;
        known.state.resumed = true;
        known.state.figures.downtime_ms = downtime_ms;
        known.state.figures.wire = wire;
        known.state.figures.carried = Some(carried);
    });
    if let Some(control) = control {
        control.send_now(Message::Running);
    }
    let vm = board.vm;
    let stats = call(&board.hypervisor, move |hypervisor| hypervisor.completed_stats(vm)).await.ok().flatten();
    board.update(|known| known.state.figures.qemu_downtime_ms = stats.map_or(0, |stats| stats.downtime_ms));
    board.write_down().await;
}

/// Asks libvirt to run the VM until it does: it is the only copy. Does not depend on a server that may be away or has
/// given up.
async fn run(shared: &Shared) {
    let (board, vm) = (&shared.board, shared.board.vm);
    let resume = || call(&board.hypervisor, move |hypervisor| hypervisor.resume(vm));
    until_done(resume, |error| {
        let reason = chain(&error);
        let news = board.change(|known| {
            let news = known.error.as_ref() != Some(&reason);
            known.error = Some(reason.clone());
            news
        });
        if news {
            warn!(reason, "The VM could not be resumed; it is tried until it runs");
        }
    })
    .await;
    *lock(&shared.ran_at) = Some(Instant::now());
}

/// Retries until it succeeds, however long that takes; reports each failure.
async fn until_done<E, F: Future<Output = Result<(), E>>>(attempt: impl Fn() -> F, failed: impl Fn(E)) {
    let mut backoff = RESUME;
    while let Err(error) = attempt().await {
        failed(error);
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// The finding for a VM that was handed over and does not run yet.
pub(super) fn not_resumed(vm: VmId, name: &str, stage: Stage, error: Option<String>) -> Box<Finding> {
    let reason = error.unwrap_or_else(|| format!("this end of the move is {stage:?}"));
    Box::new(Finding::blocks(
        FindingId::VmNotResumed,
        vm,
        finding::Message::NotResumed { vm: name.to_owned(), reason },
        Command::MendOrDestroy { vm: name.to_owned() },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let finding = not_resumed(VmId(uuid::Uuid::nil()), "web01", Stage::Aborted, error);
            assert!(
                finding.id == FindingId::VmNotResumed && finding.message.to_string().ends_with(reason),
                "{finding:?}"
            );
        }
    }
}
