//! Counters of disks' channels, which anybody may read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What was spared, of one or several connections of one end.
#[derive(Debug, Default)]
pub struct NbdMeter {
    pub(super) elided: AtomicU64,
    pub(super) referenced: AtomicU64,
    pub(super) mismatches: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) answered: AtomicU64,
}

impl NbdMeter {
    /// Bytes of zeroes: at the source those that the client wrote and that were not sent, at the destination those of
    /// which the server heard nothing.
    pub fn elided_bytes(&self) -> u64 {
        self.elided.load(Relaxed)
    }

    /// Bytes of blocks that were sent as a hash; at the destination those that were found to be held.
    pub fn referenced_bytes(&self) -> u64 {
        self.referenced.load(Relaxed)
    }

    /// Blocks that the destination's image should have held and did not. The client was told of an error.
    pub fn mismatches(&self) -> u64 {
        self.mismatches.load(Relaxed)
    }

    /// At the source: requests of the client that were not answered yet.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// At the source: requests of the client that were answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }
}
