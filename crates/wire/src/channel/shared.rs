//! State shared by the two directions and the lanes of one end.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Instant,
};

use ferry_core::switchover::Law;
use tokio::sync::Notify;

use super::assembly::broken;
use crate::{
    WireError,
    filter::{Direction, Outputs, StreamFilter},
    meter::Meter,
    traffic::Traffic,
};

/// Limit of filter answers that the other direction has not yet taken: beyond this they are no plausible answers.
const BACK_BYTES_MAX: usize = 1 << 20;

pub(crate) struct Shared {
    pub(crate) started: Instant,
    pub(crate) lanes: u8,
    /// Bytes of the peer's stream that the local socket or the filter accepted; the lanes acknowledge them.
    pub(crate) delivered: AtomicU64,
    /// The part of that which some lane has acknowledged.
    acknowledged: AtomicU64,
    /// Bytes of the peer's stream that arrived.
    received: AtomicU64,
    /// Wakes a lane: an acknowledgement is due.
    pub(crate) ack_due: Notify,
    /// Bytes of our stream sent.
    pub(crate) sent: AtomicU64,
    /// Bytes of our stream acknowledged by the peer.
    pub(crate) acked: AtomicU64,
    /// How often the window held the sender back.
    pub(crate) held_back: AtomicU64,
    /// Our stream's length and the final value of its chain, once nothing is added to it any more.
    pub(crate) end: OnceLock<(u64, u64)>,
    /// Wakes the sender: bytes were acknowledged, the filter has an answer for the peer, or the peer's stream is complete.
    pub(crate) sender_due: Notify,
    /// The peer's stream is complete and delivered.
    pub(crate) inbound_done: AtomicBool,
    /// Lanes that the peer has closed.
    closed_lanes: AtomicU8,
    pub(crate) meter: Arc<Meter>,
    pub(crate) traffic: Arc<Traffic>,
    /// Wakes the writer: the filter has an answer for the local socket.
    pub(crate) back_due: Notify,
    pub(crate) has_filter: bool,
    /// Sender and writer of an end run in one task, so this lock is never contended.
    filtered: Mutex<Filtered>,
}

/// How our stream goes on, as its encoders see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Bytes acknowledged by the peer.
    pub(crate) acked: u64,
    /// How often the window held the sender back.
    pub(crate) held_back: u64,
    pub(crate) law: Law,
}

#[derive(Default)]
struct Filtered {
    filter: Option<Box<dyn StreamFilter>>,
    /// Answers to what came from the local socket, and to what came from the peer.
    to_local: Vec<u8>,
    to_peer: Vec<u8>,
    out: Outputs,
}

impl Shared {
    pub(crate) fn new(
        lanes: u8,
        meter: Arc<Meter>,
        traffic: Arc<Traffic>,
        filter: Option<Box<dyn StreamFilter>>,
    ) -> Self {
        Self {
            started: Instant::now(),
            lanes,
            delivered: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            received: AtomicU64::new(0),
            ack_due: Notify::new(),
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            end: OnceLock::new(),
            sender_due: Notify::new(),
            inbound_done: AtomicBool::new(false),
            closed_lanes: AtomicU8::new(0),
            meter,
            traffic,
            back_due: Notify::new(),
            has_filter: filter.is_some(),
            filtered: Mutex::new(Filtered { filter, ..Filtered::default() }),
        }
    }

    /// Adds received bytes; returns how many have arrived in all channels.
    pub(crate) fn add_received(&self, bytes: u64) -> u64 {
        self.received.fetch_add(bytes, Ordering::AcqRel);
        self.traffic.add_arrived(bytes)
    }

    pub(crate) fn add_delivered(&self, bytes: u64) {
        self.delivered.fetch_add(bytes, Ordering::AcqRel);
        self.traffic.take_arrived(bytes);
    }

    /// How the channel goes on.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            acked: self.acked.load(Ordering::Acquire),
            held_back: self.held_back.load(Ordering::Relaxed),
            law: self.traffic.law(),
        }
    }

    /// The acknowledgement that is due, if one is. The caller must send it.
    pub(crate) fn take_due_ack(&self) -> Option<u64> {
        let delivered = self.delivered.load(Ordering::Acquire);
        (self.acknowledged.fetch_max(delivered, Ordering::AcqRel) < delivered).then_some(delivered)
    }

    /// The peer has acknowledged our stream up to `delivered`.
    ///
    /// # Errors
    /// [`WireError::Protocol`] if that was not sent, or if one lane takes an acknowledgement back. Of several lanes, one may
    /// overtake another.
    pub(crate) fn acknowledge(&self, delivered: u64) -> Result<(), WireError> {
        let before = self.acked.fetch_max(delivered, Ordering::AcqRel);
        if (self.lanes == 1 && delivered < before) || delivered > self.sent.load(Ordering::Acquire) {
            return Err(broken("an acknowledgement of what was not sent"));
        }
        self.traffic.take_in_flight(delivered.saturating_sub(before));
        self.sender_due.notify_one();
        Ok(())
    }

    /// The peer has closed a lane, which it does when it has everything of our stream. Returns whether that can be.
    pub(crate) fn is_close_plausible(&self) -> bool {
        let is_last = self.closed_lanes.fetch_add(1, Ordering::AcqRel) + 1 == self.lanes;
        !is_last || self.end.get().is_some_and(|(total, _)| *total == self.acked.load(Ordering::Acquire))
    }

    /// Passes `bytes` to the filter, whose output is appended to `forward`; `forward` must be empty.
    ///
    /// # Errors
    /// [`WireError::Filter`].
    pub(crate) fn filter(&self, direction: Direction, bytes: &[u8], forward: &mut Vec<u8>) -> Result<(), WireError> {
        let mut filtered = self.filtered.lock().expect("a filter that panics ends the task of both directions");
        let Filtered { filter: Some(filter), to_local, to_peer, out } = &mut *filtered else { return Ok(()) };
        std::mem::swap(&mut out.forward, forward);
        let outcome = filter.filter(direction, bytes, out);
        std::mem::swap(&mut out.forward, forward);
        outcome.map_err(WireError::Filter)?;
        if out.back.is_empty() {
            return Ok(());
        }
        let (answers, due) = match direction {
            Direction::Outbound => (to_local, &self.back_due),
            Direction::Inbound => (to_peer, &self.sender_due),
        };
        if answers.len() + out.back.len() > BACK_BYTES_MAX {
            return Err(WireError::Filter("more is answered than is taken".into()));
        }
        answers.append(&mut out.back);
        due.notify_one();
        Ok(())
    }

    /// All filter output for the local socket was delivered.
    pub(crate) fn filtered_delivered(&self) {
        let mut filtered = self.filtered.lock().expect("a filter that panics ends the task of both directions");
        if let Some(filter) = &mut filtered.filter {
            filter.delivered();
        }
    }

    /// Appends the filter's answers in this direction to `out`.
    pub(crate) fn take_answers(&self, direction: Direction, out: &mut Vec<u8>) {
        if self.has_filter {
            let mut filtered = self.filtered.lock().expect("a filter that panics ends the task of both directions");
            out.append(match direction {
                Direction::Outbound => &mut filtered.to_peer,
                Direction::Inbound => &mut filtered.to_local,
            });
        }
    }
}

impl Drop for Shared {
    /// Returns to the shared budget what a channel that ends early still had in flight.
    fn drop(&mut self) {
        self.traffic.take_in_flight(*self.sent.get_mut() - *self.acked.get_mut());
        self.traffic.take_arrived(*self.received.get_mut() - *self.delivered.get_mut());
    }
}
