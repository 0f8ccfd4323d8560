//! The two halves of a lane of a channel. The lane that has time sends the stream's next frame, and acknowledges what was
//! delivered; so a slow lane delays the frames that it carries, and no others.

use std::sync::Arc;

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use super::{
    assembly::{Frame, broken},
    coding::{Decoding, DecodingThread, Source, decoded},
    receiver::Inbound,
    shared::Shared,
};
use crate::{
    WireError,
    codec::Codecs,
    frame::{Codec, Header, verify},
    lane::{LaneReader, LaneWriter},
    traffic::ARRIVED_BYTES_MAX,
};

/// Whether the lanes of a channel go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// They do.
    No,
    /// Both streams are complete, and all of ours is acknowledged.
    Complete,
    /// This end gives up, for this reason.
    GaveUp(String),
}

/// Sends frames until the stream ends, and acknowledgements until the channel does; then closes this half of the lane.
/// Mirror of [`receive`].
///
/// # Errors
/// [`WireError::Peer`], or the error that an encoding thread ended with.
pub(super) async fn send<W: AsyncWrite + Unpin>(
    mut lane: LaneWriter<W>,
    mut source: Source,
    mut ending: watch::Receiver<Ending>,
    shared: Arc<Shared>,
) -> Result<(), WireError> {
    let mut is_ended = false;
    loop {
        if let Some(delivered) = shared.take_due_ack() {
            lane.write(Header::Ack { delivered }, &[]).await?;
        }
        tokio::select! {
            biased;
            () = shared.ack_due.notified() => {}
            how = ended(&mut ending, is_ended) => return match how {
                Ending::GaveUp(reason) => lane.abort(&reason).await,
                Ending::No | Ending::Complete => {
                    if let Some(delivered) = shared.take_due_ack() {
                        lane.write(Header::Ack { delivered }, &[]).await?;
                    }
                    lane.close().await
                }
            },
            frame = source.next(), if !is_ended => match frame? {
                Some(frame) => lane.write(frame.header, &frame.payload).await?,
                None => {
                    is_ended = true;
                    // The sender states the end before it ends the queue; without that the whole channel is gone.
                    if let Some((total, checksum)) = shared.end.get().copied() {
                        lane.write(Header::End { total, checksum }, &[]).await?;
                    }
                }
            },
        }
    }
}

/// Returns when the lane does not go on, but not before it has sent the end of a stream that is complete.
async fn ended(ending: &mut watch::Receiver<Ending>, has_sent_end: bool) -> Ending {
    let is_over = |ending: &Ending| match ending {
        Ending::No => false,
        Ending::Complete => has_sent_end,
        Ending::GaveUp(_) => true,
    };
    // Without its sender the whole channel is gone.
    ending.wait_for(is_over).await.map_or(Ending::Complete, |ending| ending.clone())
}

/// Takes frames until the peer closes the lane, which it does when both streams are complete. Payloads go to `inbound`,
/// verified. Mirror of [`send`].
///
/// # Errors
/// [`WireError::Peer`], [`WireError::Protocol`], and [`WireError::Aborted`] with the peer's reason.
pub(super) async fn receive<R: AsyncRead + Unpin>(
    lane: LaneReader<R>,
    decoding: Option<(Decoding, DecodingThread)>,
    inbound: Arc<Inbound>,
    shared: Arc<Shared>,
) -> Result<(), WireError> {
    let (decoding, thread) = decoding.unzip();
    tokio::try_join!(decoded(thread), deframe(lane, decoding, &inbound, &shared)).map(drop)
}

async fn deframe<R: AsyncRead + Unpin>(
    mut lane: LaneReader<R>,
    mut decoding: Option<Decoding>,
    inbound: &Inbound,
    shared: &Shared,
) -> Result<(), WireError> {
    let codecs = decoding.as_ref().map_or(Codecs::NONE, |decoding| decoding.codecs);
    let mut is_ended = false;
    while let Some(header) = lane.header(is_ended).await? {
        match header {
            Header::Data { .. } => {
                let frame = Frame::of(&header).expect("it is one of data");
                if is_ended {
                    return Err(broken("data after the end of the stream"));
                }
                if !codecs.contain(frame.codec) {
                    return Err(broken("a frame in a codec that was not agreed"));
                }
                inbound.expect(&frame, shared)?;
                if shared.add_received(u64::from(frame.plain)) > ARRIVED_BYTES_MAX {
                    return Err(broken("more bytes than the channels of a carrier may hold"));
                }
                // Of a coded frame, only the plain bytes go through the chunks.
                let mut payload = if frame.codec == Codec::Raw { inbound.spare_chunk() } else { Vec::new() };
                payload.resize(frame.coded as usize, 0);
                lane.payload(&mut payload).await?;
                match &decoding {
                    Some(decoding) => {
                        shared.meter.add_coded(frame.codec, u64::from(frame.plain), u64::from(frame.coded));
                        decoding.put(frame, payload);
                    }
                    None => {
                        verify(&payload, frame.offset, frame.checksum)?;
                        inbound.take(&frame, payload)?;
                    }
                }
            }
            Header::Ack { delivered } => shared.acknowledge(delivered)?,
            Header::End { .. } if is_ended => return Err(broken("two ends of a lane")),
            Header::End { total, checksum } => {
                inbound.end(total, checksum)?;
                (is_ended, decoding) = (true, None);
            }
            Header::Abort { length, checksum } => {
                let mut reason = vec![0; length as usize];
                lane.payload(&mut reason).await?;
                verify(&reason, 0, checksum)?;
                return Err(WireError::Aborted(String::from_utf8_lossy(&reason).into_owned()));
            }
        }
    }
    match shared.is_close_plausible() {
        true => Ok(()),
        false => Err(lane.error(std::io::ErrorKind::UnexpectedEof.into())),
    }
}
