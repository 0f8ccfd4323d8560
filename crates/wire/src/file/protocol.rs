//! Messages of both ends, their timeouts, and the progress counters.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::WireError;

/// A peer that is silent for this long is dead.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Interval of keep-alives: several may be late before the peer is declared dead.
pub(super) const SIGN_EVERY: Duration = Duration::from_secs(10);
/// How long the destination may take to sync what it received.
pub(super) const SYNC_MAX: Duration = Duration::from_secs(3600);
pub(super) const REASON_BYTES_MAX: usize = 512;

pub(super) const DATA: u8 = 1;
pub(super) const ZEROES: u8 = 2;
pub(super) const END: u8 = 3;
pub(super) const GOES_ON: u8 = 2;

/// Progress of a file; shared with its observers.
#[derive(Debug, Default)]
pub struct FileMeter {
    pub(super) looked_at: AtomicU64,
    pub(super) sent: AtomicU64,
}

impl FileMeter {
    /// Bytes of the file that are settled: compared, sent or skipped. Never more than its length.
    pub fn looked_at(&self) -> u64 {
        self.looked_at.load(Relaxed)
    }

    /// Bytes of the file that were sent over the wire.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

/// What to do with blocks that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Differing {
    /// Send the source's content to the destination.
    Sent,
    /// Fail: the destination's file must not be changed.
    Refused,
}

pub(super) async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), WireError> {
    timely(stream.write_all(bytes)).await
}

pub(super) async fn timely<T>(what: impl Future<Output = io::Result<T>>) -> Result<T, WireError> {
    within(SILENCE_MAX, what).await
}

pub(super) async fn within<T>(limit: Duration, what: impl Future<Output = io::Result<T>>) -> Result<T, WireError> {
    match tokio::time::timeout(limit, what).await {
        Ok(outcome) => outcome.map_err(WireError::Peer),
        Err(_) => Err(WireError::Timeout("the other host was silent")),
    }
}
