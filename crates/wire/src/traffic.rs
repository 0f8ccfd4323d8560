//! What the channels of one carrier share: the law that bounds their windows, and the memory that bounds them together.

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Acquire, Release},
};

use crate::window::{BUDGET_BYTES, Law, WINDOW_BYTES_MIN};

/// Bytes that have arrived and wait for local sockets, of all channels: the peer's budget, and [`WINDOW_BYTES_MIN`] and
/// a frame on the way beyond it for each of 128 channels. A peer that sends more breaks the protocol.
pub(crate) const ARRIVED_BYTES_MAX: u64 = BUDGET_BYTES + (64 << 20);

/// Of all channels of a carrier. A fresh one is in bulk.
#[derive(Debug, Default)]
pub struct Traffic {
    tail: AtomicBool,
    in_flight: AtomicU64,
    arrived: AtomicU64,
}

impl Traffic {
    /// From now on the windows follow this law.
    pub fn set_law(&self, law: Law) {
        self.tail.store(law == Law::Tail, Release);
    }

    /// The law that the windows follow.
    pub fn law(&self) -> Law {
        if self.tail.load(Acquire) { Law::Tail } else { Law::Bulk }
    }

    /// Bytes that all channels have accepted here, and that are not yet delivered at the other end.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Acquire)
    }

    /// Bytes that have arrived here and wait for local sockets.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Acquire)
    }

    /// What the budget leaves for a channel that has `own` bytes in flight. However many the others have, it gets the
    /// smallest window; so it always has acknowledgements to come, which wake it.
    pub(crate) fn room(&self, own: u64) -> u64 {
        let left = BUDGET_BYTES.saturating_sub(self.in_flight());
        left.max(WINDOW_BYTES_MIN.saturating_sub(own))
    }

    pub(crate) fn add_in_flight(&self, bytes: u64) {
        self.in_flight.fetch_add(bytes, AcqRel);
    }

    pub(crate) fn take_in_flight(&self, bytes: u64) {
        self.in_flight.fetch_sub(bytes, AcqRel);
    }

    /// Gives how many have arrived with these.
    pub(crate) fn add_arrived(&self, bytes: u64) -> u64 {
        self.arrived.fetch_add(bytes, AcqRel) + bytes
    }

    pub(crate) fn take_arrived(&self, bytes: u64) {
        self.arrived.fetch_sub(bytes, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_gets_what_is_left_or_the_smallest_window() {
        for (others, own, room) in [
            (0, 0, BUDGET_BYTES),
            (BUDGET_BYTES - 10, 0, WINDOW_BYTES_MIN),
            (BUDGET_BYTES, WINDOW_BYTES_MIN - 1, 1),
            (BUDGET_BYTES, WINDOW_BYTES_MIN, 0),
            (BUDGET_BYTES + 1, 2 * WINDOW_BYTES_MIN, 0),
        ] {
            let traffic = Traffic::default();
            traffic.add_in_flight(others);
            assert_eq!(traffic.room(own), room, "{others} of others, {own} of its own");
        }
    }
}
