//! State shared by the channels of one carrier: the law that sizes their windows, and the memory budget of all of them.

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Acquire, Release},
};

use crate::window::{BUDGET_BYTES, Law, WINDOW_BYTES_MIN};

/// Limit of bytes that have arrived and wait for local sockets, over all channels: the peer's budget, plus
/// [`WINDOW_BYTES_MIN`] and one frame in transit for each of 128 channels. A peer that sends more breaks the protocol.
pub(crate) const ARRIVED_BYTES_MAX: u64 = BUDGET_BYTES + (64 << 20);

/// Traffic of all channels of a carrier. It starts in bulk.
#[derive(Debug, Default)]
pub struct Traffic {
    tail: AtomicBool,
    in_flight: AtomicU64,
    arrived: AtomicU64,
}

impl Traffic {
    /// Makes the windows follow this law from now on.
    pub fn set_law(&self, law: Law) {
        self.tail.store(law == Law::Tail, Release);
    }

    /// The law that the windows follow.
    pub fn law(&self) -> Law {
        if self.tail.load(Acquire) { Law::Tail } else { Law::Bulk }
    }

    /// Bytes that all channels have accepted here and that are not yet delivered at the other end.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Acquire)
    }

    /// Bytes that have arrived here and wait for local sockets.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Acquire)
    }

    /// What the budget leaves for a channel that has `own` bytes in flight. Whatever the others use, it gets the
    /// smallest window, so it always has pending acknowledgements to wake it.
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

    /// Adds arrived bytes; returns the new total.
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
