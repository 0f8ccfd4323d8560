//! One channel: both directions between a local socket and the peer.
//!
//! ```text
//! local reader ─▶ filter ─▶ sender ─▶ (queue) ─▶ lanes ══ lanes ─▶ order ─▶ (queue ≤ window) ─▶ filter ─▶ writer ─▶ local writer
//!                             ▲                    ▲ acks to send ◀──────────────────────────────────────────┘
//!                             └ window opens ◀── acks received by lanes
//! ```
//! Each direction is a *stream*: offsets, checksums, a window and acknowledgements, independent of sockets. Its frames
//! travel over *lanes* (`lane.rs`), of which both ends have agreed on a number ([`crate::hello::Terms`]). The lane that has
//! time sends the next frame (`lanes.rs`); early frames wait at the receiver (`assembly.rs`), within the window, which
//! belongs to the stream, as acknowledgements do: they go over any lane. The first lane runs in the channel's task, and
//! each further one in tasks of its own. A lane that fails ends the channel.
//!
//! Deframing never waits for the local socket; the peer's window bounds its buffer. A program that does not read its
//! local socket therefore blocks one direction only, as with a plain socket.
//!
//! A channel with codecs (`coding`) encodes and decodes on separate threads, so that they delay neither acknowledgements
//! nor other channels. Each lane chooses the codec of its frames by what it measures (`adaptive`).
//!
//! Memory of a channel: one frame for each lane at the sender, or four with codecs, and what the filter made of the last;
//! the peer's window and up to 16 MiB of reusable chunks at the receiver; in TLS, for each lane, one outgoing frame and
//! 256 KiB of read-ahead; with codecs about 2 MiB for each lane, and with a long window 128 MiB for all of them, at each
//! end. The kernel holds the bytes that the sender has in flight.

mod adaptive;
mod assembly;
mod coder;
pub(crate) mod coding;
mod lanes;
mod receiver;
mod sender;
mod shared;

use std::{pin::pin, sync::Arc, time::Duration};

use ferry_core::error::chain;
use futures_util::future::{FusedFuture as _, FutureExt as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task::JoinSet,
};

use crate::{
    WireError,
    filter::StreamFilter,
    lane::{self, Place},
    meter::Meter,
    rate::RateLimit,
    traffic::Traffic,
    window::{BUDGET_BYTES, Pace},
};
pub use adaptive::{Compression, CpuSource};
use coding::{Coding, Decoding, ENCODING_FRAMES_MAX, Source};
use lanes::Ending;
use receiver::Inbound;
use sender::Sender;
use shared::Shared;

/// Largest number of lanes of a channel: as many as a fast link needs processors for.
pub const LANES_MAX: u8 = 8;
/// Time limit for the Abort frames to the peer.
const ABORT_DEADLINE: Duration = Duration::from_millis(500);

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
    /// How this end chooses among the codecs that were agreed.
    pub compression: Compression,
    /// Filters the plain bytes of both directions at this end.
    pub filter: Option<Box<dyn StreamFilter>>,
    /// Limits what is read from the local socket; shared by the channels that are limited together.
    pub rate: Option<Arc<RateLimit>>,
}

impl Options {
    /// No filter, the only channel of its carrier, and a peer that speaks the newest version.
    pub fn new(downtime_limit: Duration, meter: Arc<Meter>) -> Self {
        Self {
            downtime_limit,
            meter,
            traffic: Arc::default(),
            window_max: BUDGET_BYTES,
            compression: Compression::default(),
            filter: None,
            rate: None,
        }
    }
}

/// Carries both directions over these lanes, 1 to [`LANES_MAX`], until both streams are complete. Ok promises that every
/// byte read from `local` was delivered at the peer, and every byte of the peer's stream was written to `local`, except
/// what the filters changed or withheld.
///
/// # Errors
/// The first fault of either direction. The peer is informed, and both local halves are dropped, so that the local
/// program sees its connection end. A lane that failed is named: [`WireError::Lane`], or [`WireError::Peer`] for the only
/// one.
pub async fn carry<P, R, W>(lanes: Vec<P>, local_reader: R, local_writer: W, options: Options) -> Result<(), WireError>
where
    P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    carry_coded(lanes, local_reader, local_writer, options, None).await
}

/// As [`carry`], with the codecs that were agreed.
pub(crate) async fn carry_coded<P, R, W>(
    lanes: Vec<P>,
    local_reader: R,
    local_writer: W,
    options: Options,
    mut coding: Option<Coding>,
) -> Result<(), WireError>
where
    P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: AsyncRead + Send + Unpin,
    W: AsyncWrite + Send + Unpin,
{
    let count = lanes.len() as u8;
    let shared = Arc::new(Shared::new(count, options.meter, options.traffic, options.filter));
    let slots = lanes.len() * if coding.is_some() { ENCODING_FRAMES_MAX } else { 1 };
    let pace = Pace::new(options.downtime_limit, options.window_max);
    let (mut sender, frames) = Sender::new(local_reader, pace, options.rate, slots, Arc::clone(&shared));
    let (inbound, chunks) = Inbound::new(count);
    let (end, ending) = watch::channel(Ending::No);
    let mut halves = (0..).zip(lanes).map(|(lane, pipe)| {
        let (from_peer, to_peer) = lane::split(pipe, Place { lane, lanes: count }, &shared.meter);
        let (source, decoding) = match &mut coding {
            None => (Source::Raw(frames.clone()), None),
            Some(Coding { codecs, encoder, decoder }) => (
                Source::encoded(encoder(), frames.clone(), &shared),
                Some(Decoding::start(*codecs, decoder(), Arc::clone(&inbound))),
            ),
        };
        (
            lanes::send(to_peer, source, ending.clone(), Arc::clone(&shared)),
            lanes::receive(from_peer, decoding, Arc::clone(&inbound), Arc::clone(&shared)),
        )
    });
    let (first_send, first_receive) = halves.next().expect("a channel has a lane");
    let mut first_send = pin!(first_send.fuse());
    let (mut sending, mut receiving) = (JoinSet::new(), JoinSet::new());
    for (send, receive) in halves {
        sending.spawn(send);
        receiving.spawn(receive);
    }
    let outcome = {
        let send = async {
            sender.run().await?;
            end.send_replace(Ending::Complete);
            Ok::<_, WireError>(())
        };
        let write = receiver::write(local_writer, chunks, &shared);
        tokio::try_join!(first_receive, send, first_send.as_mut(), write, all(&mut receiving), all(&mut sending))
    };
    if let Err(error) = &outcome {
        end.send_replace(Ending::GaveUp(chain(error)));
        let last_words = async {
            if !first_send.is_terminated() {
                let _ = first_send.await;
            }
            while sending.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(ABORT_DEADLINE, last_words).await;
    }
    outcome.map(drop)
}

/// Waits for all tasks.
///
/// # Errors
/// The first error of one.
async fn all(tasks: &mut JoinSet<Result<(), WireError>>) -> Result<(), WireError> {
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| WireError::Local(error.into()))??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split},
        task::JoinHandle,
    };

    use super::{assembly::FRAMES_MAX, *};
    use crate::{
        frame::{Chain, HEADER_BYTES, Header},
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
        (near, far, tokio::spawn(async move { carry(vec![peer], reader, writer, options).await }))
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
    async fn a_peer_that_ends_before_it_has_all_of_our_stream_is_an_error() {
        let (_near, mut peer, channel) = end(&Arc::default(), &Arc::default());
        let end = Header::End { total: 0, checksum: Chain::default().value() };
        within(peer.write_all(&end.encode())).await.expect("taken");
        drop(peer);
        let error = within(channel).await.expect("no panic").expect_err("our stream has not ended");
        assert!(matches!(error, WireError::Peer(_)), "{error:?}");
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
