//! What both ends say, how long they wait for it, and how far they are.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::WireError;

/// A peer that is silent for so long is dead.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(120);
/// A peer that is alive speaks as often: several signs may be late before it is taken for dead.
pub(super) const SIGN_EVERY: Duration = Duration::from_secs(10);
/// How long the destination may take to write to disk what it took.
pub(super) const SYNC_MAX: Duration = Duration::from_secs(3600);
pub(super) const REASON_BYTES_MAX: usize = 512;

pub(super) const DATA: u8 = 1;
pub(super) const ZEROES: u8 = 2;
pub(super) const END: u8 = 3;
pub(super) const GOES_ON: u8 = 2;

/// How far a file is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct FileMeter {
    pub(super) looked_at: AtomicU64,
    pub(super) sent: AtomicU64,
}

impl FileMeter {
    /// Bytes of the file that are settled. Never more than its length.
    pub fn looked_at(&self) -> u64 {
        self.looked_at.load(Relaxed)
    }

    /// Bytes of the file that went over the wire.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

/// What is to be done where the two files differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Differing {
    /// The destination gets what the source holds.
    Sent,
    /// It is an error: the destination's file is not to be changed.
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
