//! One channel: both directions between a local socket and the peer.
//!
//! ```text
//! local reader ─▶ sender ─▶ peer        peer ─▶ deframer ─▶ (queue ≤ window) ─▶ writer ─▶ local writer
//!                   ▲ acks to send ◀──────────────────────────────────────────────┘
//!                   └ window opens ◀── acks received by the deframer
//! ```
//! The deframer never waits for the local socket: what it may hold is bounded by the peer's window. So an end that
//! does not read its local socket holds up one direction only, as a plain socket would.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, mpsc},
};

use crate::{
    WireError,
    meter::Meter,
    receiver, sender,
    window::{WINDOW_BYTES_MAX, WINDOW_BYTES_MIN},
};

/// Looks at the plain bytes of one direction as they pass: before they are framed at the sending end, after they are
/// verified at the receiving end.
///
/// Checksums, offsets, acknowledgements and the window are of what is framed: of what an inspector at the sending end
/// let out, and of what one at the receiving end took. So neither can hold up the window by keeping bytes back; how
/// many it keeps at most, it says itself.
pub trait Inspect: Send {
    /// Takes the next bytes and appends what goes on to `out`: all, some now and the rest later, or, for a disk's
    /// channel, others that mean the same ([`crate::nbd`]). What it still keeps when the stream ends is dropped.
    ///
    /// # Errors
    /// Why the channel must end. Nothing of `bytes` goes on then.
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String>;

    /// Everything appended to `out` so far was taken by the socket it was meant for.
    fn delivered(&mut self) {}
}

/// What a channel is run with.
pub struct Options {
    /// The window follows it.
    pub downtime_limit: Duration,
    /// Counts.
    pub meter: Arc<Meter>,
    /// Looks at bytes from the peer before they reach the local socket.
    pub inbound: Option<Box<dyn Inspect>>,
    /// Looks at bytes from the local socket before they are sent.
    pub outbound: Option<Box<dyn Inspect>>,
}

impl Options {
    /// Without inspectors.
    pub fn new(downtime_limit: Duration, meter: Arc<Meter>) -> Self {
        Self { downtime_limit, meter, inbound: None, outbound: None }
    }
}

/// What the two directions of one end tell each other.
pub(crate) struct Shared {
    pub(crate) started: Instant,
    /// Bytes of the peer's stream that the local socket, or its inspector, took; the sender acknowledges them.
    pub(crate) delivered: AtomicU64,
    pub(crate) ack_due: Notify,
    /// Bytes of our stream that were sent.
    pub(crate) sent: AtomicU64,
    /// Bytes of our stream that the peer acknowledged.
    pub(crate) acked: AtomicU64,
    pub(crate) window_open: Notify,
    /// The peer's stream is complete and delivered.
    pub(crate) inbound_done: AtomicBool,
    pub(crate) meter: Arc<Meter>,
}

/// Chunks that wait for the local socket: the window in frames of the smallest useful size; the byte bound is checked
/// by the deframer.
const QUEUE_CHUNKS: usize = 1 << 14;
/// More than the peer's window may hold: it breaks the protocol then.
pub(crate) const INBOUND_BYTES_MAX: u64 = WINDOW_BYTES_MAX + WINDOW_BYTES_MIN;

/// Carries both directions until both streams are complete. Ok promises that every byte read from `local` was
/// delivered at the peer, and every byte of the peer's stream was written to `local`, as far as the inspectors let
/// them.
///
/// # Errors
/// The first fault of either direction. The peer is told, and both local halves are dropped, so that whoever is
/// connected there sees the connection end.
pub async fn carry<P, R, W>(peer: P, local_reader: R, local_writer: W, options: Options) -> Result<(), WireError>
where
    P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    let (peer_reader, peer_writer) = tokio::io::split(peer);
    let shared = Shared {
        started: Instant::now(),
        delivered: AtomicU64::new(0),
        ack_due: Notify::new(),
        sent: AtomicU64::new(0),
        acked: AtomicU64::new(0),
        window_open: Notify::new(),
        inbound_done: AtomicBool::new(false),
        meter: options.meter,
    };
    let (filled, to_write) = mpsc::channel(QUEUE_CHUNKS);
    let (emptied, to_fill) = mpsc::channel(QUEUE_CHUNKS);
    let mut sender = sender::Sender::new(peer_writer, local_reader, options.outbound, options.downtime_limit, &shared);
    let outcome = {
        let send = sender.run();
        let deframe = receiver::deframe(peer_reader, filled, to_fill, &shared);
        let write = receiver::write(local_writer, to_write, emptied, options.inbound, &shared);
        tokio::try_join!(send, deframe, write).map(|_| ())
    };
    if let Err(error) = &outcome {
        sender.abort(error).await;
    }
    outcome
}

impl Shared {
    pub(crate) fn add_delivered(&self, bytes: u64) {
        self.delivered.fetch_add(bytes, Ordering::AcqRel);
        self.ack_due.notify_one();
    }
}
