//! Counters of disk channels, readable by any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What one or several connections of one end avoided sending.
#[derive(Debug, Default)]
pub struct NbdMeter {
    pub(super) elided: AtomicU64,
    pub(super) referenced: AtomicU64,
    pub(super) mismatches: AtomicU64,
    pub(super) waiting: AtomicU64,
    pub(super) answered: AtomicU64,
}

impl NbdMeter {
    /// Bytes of zeroes: at the source, those written by the client and not sent; at the destination, those that did not
    /// have to reach the server.
    pub fn elided_bytes(&self) -> u64 {
        self.elided.load(Relaxed)
    }

    /// Bytes of blocks sent as a hash; at the destination, those found in the image.
    pub fn referenced_bytes(&self) -> u64 {
        self.referenced.load(Relaxed)
    }

    /// Blocks that the destination's image should have held and did not. The client received an error.
    pub fn mismatches(&self) -> u64 {
        self.mismatches.load(Relaxed)
    }

    /// At the source: client requests without a reply.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// At the source: client requests with a reply.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }
}
