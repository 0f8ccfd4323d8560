//! One channel: both directions between a local socket and the peer.
//!
//! ```text
//! local reader ─▶ sender ─▶ peer        peer ─▶ deframer ─▶ (queue ≤ window) ─▶ writer ─▶ local writer
//!                   ▲ acks to send ◀──────────────────────────────────────────────┘
//!                   └ window opens ◀── acks received by the deframer
//! ```
//! The deframer never waits for the local socket: what it may hold is bounded by the peer's window. So an end that
//! does not read its local socket holds up one direction only, as a plain socket would.
//!
//! A channel's memory: a frame at the sender; the peer's window, and up to 16 MiB of chunks to be filled again, at the
//! receiver; in TLS a frame on its way out, and 256 KiB that were read ahead. What the sender has in flight is held by the
//! kernel.

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
    traffic::Traffic,
    window::{BUDGET_BYTES, Pace, WINDOW_BYTES_MIN},
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
    /// Shared with the other channels of the carrier.
    pub traffic: Arc<Traffic>,
    /// The largest window that the peer takes.
    pub window_max: u64,
    /// Looks at bytes from the peer before they reach the local socket.
    pub inbound: Option<Box<dyn Inspect>>,
    /// Looks at bytes from the local socket before they are sent.
    pub outbound: Option<Box<dyn Inspect>>,
}

impl Options {
    /// Without inspectors, alone in its carrier, to a peer that speaks the newest version.
    pub fn new(downtime_limit: Duration, meter: Arc<Meter>) -> Self {
        let traffic = Arc::default();
        Self { downtime_limit, meter, traffic, window_max: BUDGET_BYTES, inbound: None, outbound: None }
    }
}

/// What the two directions of one end tell each other.
pub(crate) struct Shared {
    pub(crate) started: Instant,
    /// Bytes of the peer's stream that the local socket, or its inspector, took; the sender acknowledges them.
    pub(crate) delivered: AtomicU64,
    /// Bytes of the peer's stream that arrived.
    pub(crate) received: AtomicU64,
    pub(crate) ack_due: Notify,
    /// Bytes of our stream that were sent.
    pub(crate) sent: AtomicU64,
    /// Bytes of our stream that the peer acknowledged.
    pub(crate) acked: AtomicU64,
    pub(crate) window_open: Notify,
    /// The peer's stream is complete and delivered.
    pub(crate) inbound_done: AtomicBool,
    pub(crate) meter: Arc<Meter>,
    pub(crate) traffic: Arc<Traffic>,
}

/// Frames in flight, so chunks that wait for the local socket: the largest window in frames of 16 KiB. The byte bounds
/// are checked by the deframer.
pub(crate) const FRAMES_MAX: usize = 1 << 14;
/// Chunks that are kept to be filled again: on a short link no more are in flight. Each keeps the size of the largest
/// frame that it held: 16 MiB at the most.
const SPARE_CHUNKS: usize = 64;
/// More than the peer's window may hold: it breaks the protocol then.
pub(crate) const INBOUND_BYTES_MAX: u64 = BUDGET_BYTES + WINDOW_BYTES_MIN;

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
        received: AtomicU64::new(0),
        ack_due: Notify::new(),
        sent: AtomicU64::new(0),
        acked: AtomicU64::new(0),
        window_open: Notify::new(),
        inbound_done: AtomicBool::new(false),
        meter: options.meter,
        traffic: options.traffic,
    };
    let (filled, to_write) = mpsc::channel(FRAMES_MAX);
    let (emptied, to_fill) = mpsc::channel(SPARE_CHUNKS);
    let pace = Pace::new(options.downtime_limit, options.window_max);
    let mut sender = sender::Sender::new(peer_writer, local_reader, options.outbound, pace, &shared);
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
    /// Gives how many bytes have arrived in all channels.
    pub(crate) fn add_received(&self, bytes: u64) -> u64 {
        self.received.fetch_add(bytes, Ordering::AcqRel);
        self.traffic.add_arrived(bytes)
    }

    pub(crate) fn add_delivered(&self, bytes: u64) {
        self.delivered.fetch_add(bytes, Ordering::AcqRel);
        self.traffic.take_arrived(bytes);
    }
}

impl Drop for Shared {
    /// What a channel that ends early still had is the others' again.
    fn drop(&mut self) {
        self.traffic.take_in_flight(*self.sent.get_mut() - *self.acked.get_mut());
        self.traffic.take_arrived(*self.received.get_mut() - *self.delivered.get_mut());
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split},
        task::JoinHandle,
    };

    use super::*;
    use crate::{
        frame::{HEADER_BYTES, Header},
        traffic::ARRIVED_BYTES_MAX,
    };

    const LIMIT: Duration = Duration::from_millis(300);
    const DEADLINE: Duration = Duration::from_secs(20);

    async fn within<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(DEADLINE, future).await.expect("done in time")
    }

    /// One end; gives the far ends of its local socket and of its peer.
    fn end(
        meter: &Arc<Meter>,
        traffic: &Arc<Traffic>,
    ) -> (DuplexStream, DuplexStream, JoinHandle<Result<(), WireError>>) {
        let ((peer, far), (local, near)) = (duplex(64 << 20), duplex(64 << 10));
        let options = Options { traffic: Arc::clone(traffic), ..Options::new(LIMIT, Arc::clone(meter)) };
        let (reader, writer) = split(local);
        (near, far, tokio::spawn(async move { carry(peer, reader, writer, options).await }))
    }

    async fn acknowledge(peer: &mut DuplexStream, delivered: u64) {
        within(peer.write_all(&Header::Ack { delivered }.encode())).await.expect("taken");
    }

    #[tokio::test]
    async fn a_channel_beside_others_that_took_the_budget_has_the_smallest_window() {
        let (meter, traffic) = (Arc::default(), Arc::<Traffic>::default());
        traffic.add_in_flight(BUDGET_BYTES);
        let (mut near, mut peer, channel) = end(&meter, &traffic);
        let total = 8 << 20;
        let feed = tokio::spawn(async move { near.write_all(&vec![7; total]).await });
        let (mut taken, mut head) = (0, [0; HEADER_BYTES]);
        while taken < total {
            within(peer.read_exact(&mut head)).await.expect("a frame");
            let frame = Header::decode(&head).expect("legal");
            within(peer.read_exact(&mut vec![0; frame.payload_bytes()])).await.expect("whole");
            taken += frame.payload_bytes();
            acknowledge(&mut peer, taken as u64).await;
        }
        assert!(meter.waiting_max() <= WINDOW_BYTES_MIN, "{} waited", meter.waiting_max());
        drop(peer);
        assert!(within(channel).await.expect("no panic").is_err());
        let _ = within(feed).await;
        assert_eq!(traffic.in_flight(), BUDGET_BYTES);
    }

    #[tokio::test]
    async fn a_peer_that_fills_a_carriers_memory_breaks_the_protocol() {
        let (meter, traffic) = (Arc::default(), Arc::<Traffic>::default());
        // Nobody reads the local socket, and the first frame is more than it holds: none is delivered.
        let (first, other) = (vec![4; 128 << 10], [3; 1000]);
        let others = ARRIVED_BYTES_MAX - 2000 - first.len() as u64;
        traffic.add_arrived(others);
        let (_near, mut peer, channel) = end(&meter, &traffic);
        let mut offset = 0;
        for frame in [&first[..], &other, &other, &other] {
            within(peer.write_all(&Header::raw_data(frame, offset).encode())).await.expect("taken");
            within(peer.write_all(frame)).await.expect("taken");
            offset += frame.len() as u64;
        }
        let error = within(channel).await.expect("no panic").expect_err("too much");
        assert!(matches!(error, WireError::Protocol(_)), "{error:?}");
        assert_eq!(traffic.arrived(), others);
    }

    #[tokio::test]
    async fn more_small_frames_than_the_peer_queues_are_not_sent() {
        let (meter, traffic) = (Arc::<Meter>::default(), Arc::default());
        let (mut near, mut peer, channel) = end(&meter, &traffic);
        let mut frame = [0; HEADER_BYTES + 1];
        for _ in 0..FRAMES_MAX {
            within(near.write_all(&[1])).await.expect("taken");
            within(peer.read_exact(&mut frame)).await.expect("sent");
        }
        within(near.write_all(&[2])).await.expect("taken");
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(meter.sent_plain(), FRAMES_MAX as u64);
        acknowledge(&mut peer, 1).await;
        within(peer.read_exact(&mut frame)).await.expect("sent");
        assert_eq!(frame[HEADER_BYTES], 2);
        channel.abort();
    }
}
