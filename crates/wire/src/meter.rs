//! Counters of channels, readable by any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters of one or several channels of one end. All except `waiting` only rise.
#[derive(Debug, Default)]
pub struct Meter {
    sent_plain: AtomicU64,
    received_plain: AtomicU64,
    wire: AtomicU64,
    waiting: AtomicU64,
    waiting_max: AtomicU64,
}

impl Meter {
    /// Plain bytes read from local sockets and sent.
    pub fn sent_plain(&self) -> u64 {
        self.sent_plain.load(Relaxed)
    }

    /// Plain bytes received and written to local sockets.
    pub fn received_plain(&self) -> u64 {
        self.received_plain.load(Relaxed)
    }

    /// Bytes of frames written to and read from the peer, including headers but not the overhead of TLS and TCP.
    pub fn wire(&self) -> u64 {
        self.wire.load(Relaxed)
    }

    /// Bytes accepted here and not yet delivered at the other end.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// The maximum of `waiting` so far.
    pub fn waiting_max(&self) -> u64 {
        self.waiting_max.load(Relaxed)
    }

    pub(crate) fn add_sent(&self, plain: u64) {
        self.sent_plain.fetch_add(plain, Relaxed);
        let waiting = self.waiting.fetch_add(plain, Relaxed) + plain;
        self.waiting_max.fetch_max(waiting, Relaxed);
    }

    pub(crate) fn add_acked(&self, plain: u64) {
        self.waiting.fetch_sub(plain, Relaxed);
    }

    pub(crate) fn add_received(&self, plain: u64) {
        self.received_plain.fetch_add(plain, Relaxed);
    }

    pub(crate) fn add_wire(&self, bytes: u64) {
        self.wire.fetch_add(bytes, Relaxed);
    }
}
