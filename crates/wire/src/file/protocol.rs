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

/// Stands for a block of zeroes in the hash of the whole file.
pub(super) const NO_HASH: [u8; blake3::OUT_LEN] = [0; blake3::OUT_LEN];

pub(super) const DATA: u8 = 1;
pub(super) const ZEROES: u8 = 2;
pub(super) const END: u8 = 3;
pub(super) const GOES_ON: u8 = 2;

/// How the destination tells what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Hash after hash, as before version 4 of the wire protocol.
    List,
    /// As a [`ContentIndex`](crate::content::index::ContentIndex).
    Index,
}

impl Form {
    /// The form for a peer that speaks this version of the wire protocol.
    pub fn of(version: u16) -> Self {
        if version < 4 { Self::List } else { Self::Index }
    }
}

/// Progress of a file; shared with its observers.
#[derive(Debug, Default)]
pub struct FileMeter {
    pub(super) examined: AtomicU64,
    pub(super) sent: AtomicU64,
}

impl FileMeter {
    /// Bytes of the file that are settled: compared, sent or skipped. Never more than its length.
    pub fn examined(&self) -> u64 {
        self.examined.load(Relaxed)
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
    heard_within(limit, async { what.await.map_err(WireError::Peer) }).await
}

/// Something that consists of several messages of the peer, none of which is long.
pub(super) async fn heard<T>(what: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    heard_within(SILENCE_MAX, what).await
}

async fn heard_within<T>(limit: Duration, what: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    tokio::time::timeout(limit, what).await.map_err(|_| WireError::Timeout("the other host was silent"))?
}
