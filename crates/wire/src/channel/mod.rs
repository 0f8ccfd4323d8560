//! One channel: both directions between a local socket and the peer.
//!
//! ```text
//! local reader ─▶ filter ─▶ sender ─▶ lane        lane ─▶ deframe ─▶ (queue ≤ window) ─▶ filter ─▶ writer ─▶ local writer
//!                             ▲ acks to send ◀─────────────────────────────────────────────────┘
//!                             └ window opens ◀── acks received by deframe
//! ```
//! Each direction is a *stream*: offsets, checksums, a window and acknowledgements, independent of sockets. Its frames
//! travel over *lanes* (`lane.rs`). Today there is one lane. Several are possible: early frames wait in `assembly.rs`,
//! within the window, and acknowledgements belong to the stream, not to a lane.
//!
//! Deframing never waits for the local socket; the peer's window bounds its buffer. A program that does not read its
//! local socket therefore blocks one direction only, as with a plain socket.
//!
//! A channel with a codec ([`coding`]) encodes and decodes on separate threads, so a codec delays neither
//! acknowledgements nor other channels.
//!
//! Memory of a channel: one frame at the sender; the peer's window and up to 16 MiB of reusable chunks at the receiver;
//! one outgoing frame and 256 KiB of read-ahead in TLS. The kernel holds the bytes that the sender has in flight.

mod assembly;
pub(crate) mod coding;
mod receiver;
mod sender;
mod shared;

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{
    WireError,
    filter::StreamFilter,
    lane,
    meter::Meter,
    traffic::Traffic,
    window::{BUDGET_BYTES, Pace},
};
use coding::{Coding, Encoding};
use shared::{FRAMES_MAX, Shared};

/// Settings of a channel.
pub struct Options {
    /// Downtime limit that the window follows.
    pub downtime_limit: Duration,
    /// Counters.
    pub meter: Arc<Meter>,
    /// Shared with the other channels of the carrier.
    pub traffic: Arc<Traffic>,
    /// Largest window that the peer accepts.
    pub window_max: u64,
    /// Filters the plain bytes of both directions at this end.
    pub filter: Option<Box<dyn StreamFilter>>,
}

impl Options {
    /// No filter, the only channel of its carrier, and a peer that speaks the newest version.
    pub fn new(downtime_limit: Duration, meter: Arc<Meter>) -> Self {
        Self { downtime_limit, meter, traffic: Arc::default(), window_max: BUDGET_BYTES, filter: None }
    }
}

/// Chunks kept for reuse: on a short link no more are in flight. Each keeps the size of the largest frame that it held,
/// so they occupy at most 16 MiB.
const SPARE_CHUNKS: usize = 64;

/// Carries both directions until both streams are complete. Ok promises that every byte read from `local` was delivered
/// at the peer, and every byte of the peer's stream was written to `local`, except what the filters changed or
/// withheld.
///
/// # Errors
/// The first fault of either direction. The peer is informed, and both local halves are dropped, so that the local
/// program sees its connection end.
pub async fn carry<P, R, W>(peer: P, local_reader: R, local_writer: W, options: Options) -> Result<(), WireError>
where
    P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    carry_coded(peer, local_reader, local_writer, options, None).await
}

/// As [`carry`], with the codec that was agreed.
pub(crate) async fn carry_coded<P, R, W>(
    peer: P,
    local_reader: R,
    local_writer: W,
    options: Options,
    coding: Option<Coding>,
) -> Result<(), WireError>
where
    P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    let shared = Shared::new(options.meter, options.traffic, options.filter);
    let (from_peer, to_peer) = lane::split(peer, &shared.meter);
    let (filled, to_write) = mpsc::channel(FRAMES_MAX);
    let (emptied, to_fill) = mpsc::channel(SPARE_CHUNKS);
    let pace = Pace::new(options.downtime_limit, options.window_max);
    let codec = coding.as_ref().map(|coding| coding.codec);
    let (encoding, filled, decoding) = match coding {
        None => (None, filled, None),
        Some(Coding { codec, encoder, decoder }) => {
            let (coded, to_decode) = mpsc::channel(FRAMES_MAX);
            (Some(Encoding::start(codec, encoder)), coded, Some(coding::decode(decoder, to_decode, filled)))
        }
    };
    let mut sender = sender::Sender::new(to_peer, local_reader, pace, encoding, &shared);
    let outcome = {
        let send = sender.run();
        let deframe = receiver::deframe(from_peer, filled, to_fill, codec, &shared);
        let write = receiver::write(local_writer, to_write, emptied, &shared);
        tokio::try_join!(coding::decoded(decoding), send, deframe, write).map(|_| ())
    };
    if let Err(error) = &outcome {
        sender.abort(error).await;
    }
    outcome
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
        window::WINDOW_BYTES_MIN,
    };

    const LIMIT: Duration = Duration::from_millis(300);
    const DEADLINE: Duration = Duration::from_secs(20);

    async fn within<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(DEADLINE, future).await.expect("done in time")
    }

    /// Starts one end; returns the far ends of its local socket and of its peer connection.
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
        // The local socket is not read, and the first frame exceeds its buffer: nothing is delivered.
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
