//! Coded streams: each lane of one has a thread of its own for each direction, so that encoding never delays
//! acknowledgements or other lanes.
//!
//! ```text
//! read ─▶ filter ─▶ (thread: encode) ─▶ lane        lane ─▶ deframe ─▶ (thread: decode, verify) ─▶ order ─▶ filter ─▶ write
//! ```
//! A stream without codecs has no threads. An encoder sees those frames of the stream that its lane carries, and the
//! decoder at the other end the same ones, in the same order. Each frame states its codec, which is one of those agreed.
//!
//! Bytes that wait for a thread count as in flight, like all bytes accepted and not yet delivered: so what the law of the
//! tail bounds are plain bytes, whatever they are coded as.

use std::{
    io,
    sync::{Arc, Weak},
    time::Instant,
};

use bytes::Bytes;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};

use super::{
    adaptive::{Adaptive, Compression},
    assembly::{FRAMES_MAX, Frame, broken},
    coder::{Decoder, Encoder, Sent},
    receiver::Inbound,
    sender::{Frames, Outgoing},
    shared::Shared,
};
use crate::{
    WireError,
    codec::{Codecs, Decoders},
    frame::{Codec, HEADER_BYTES, Header, verify},
};

/// Frames of a lane that wait, are being encoded, or are being written, so that its thread is never idle while it writes.
pub(super) const ENCODING_FRAMES_MAX: usize = 4;

/// Makes the encoders and decoders of a channel: one of each for each lane.
pub(crate) struct Coding {
    /// Those that frames may use.
    pub(super) codecs: Codecs,
    pub(super) encoder: Box<dyn FnMut() -> Box<dyn Encoder> + Send>,
    pub(super) decoder: Box<dyn FnMut() -> Box<dyn Decoder> + Send>,
}

impl Coding {
    /// The implementation of the codecs agreed with the peer for so many lanes; `None` if there are none.
    pub(crate) fn of(codecs: Codecs, lanes: u8, compression: Compression) -> Option<Self> {
        (codecs != Codecs::NONE).then(|| Self {
            codecs,
            encoder: Box::new(move || Box::new(Adaptive::new(codecs, lanes, compression.clone()))),
            decoder: Box::new(move || Box::new(Decoders::new(lanes))),
        })
    }
}

/// The frames that a lane sends next.
pub(super) enum Source {
    /// As they are.
    Raw(Frames),
    /// As its thread has encoded them. When this is dropped, the thread ends after its current frame.
    Encoded { frames: mpsc::Receiver<Outgoing>, thread: JoinHandle<()> },
}

impl Source {
    /// Encodes frames on a thread.
    pub(super) fn encoded(mut encoder: Box<dyn Encoder>, queue: Frames, shared: &Arc<Shared>) -> Self {
        let (done, frames) = mpsc::channel(1);
        // Not the channel's state: what the channel returns when it ends must not wait for this thread.
        let (shared, meter) = (Arc::downgrade(shared), Arc::clone(&shared.meter));
        let thread = spawn_blocking(move || {
            let mut coded = Vec::new();
            while let Some(mut frame) = queue.blocking_next() {
                let begun = Instant::now();
                let codec = encoder.encode(&frame.payload, &mut coded);
                let plain = frame.payload.len();
                let Header::Data { plain: length, offset, checksum, .. } = frame.header else { continue };
                if codec != Codec::Raw {
                    frame.header = Header::Data { codec, plain: length, coded: coded.len() as u32, offset, checksum };
                    frame.payload = Bytes::copy_from_slice(&coded);
                }
                let (end, wire) = (offset + u64::from(length), HEADER_BYTES + frame.payload.len());
                let encoded = Instant::now();
                meter.add_coded(codec, plain as u64, (wire - HEADER_BYTES) as u64);
                meter.add_encoding(encoded - begun);
                if done.blocking_send(frame).is_err() {
                    return;
                }
                let (encoding, lane) = (encoded - begun, encoded.elapsed());
                let Some(progress) = Weak::upgrade(&shared).map(|shared| shared.progress()) else { return };
                encoder.sent(&Sent { end, plain, wire, encoding, lane, progress });
            }
        });
        Self::Encoded { frames, thread }
    }

    /// The next frame; `None` at the end of the stream, after which this must not be called again. Cancelling this loses
    /// nothing.
    ///
    /// # Errors
    /// If the thread has ended early.
    pub(super) async fn next(&mut self) -> Result<Option<Outgoing>, WireError> {
        match self {
            Self::Raw(frames) => Ok(frames.next().await),
            Self::Encoded { frames, thread } => match frames.recv().await {
                Some(frame) => Ok(Some(frame)),
                None => thread.await.map(|()| None).map_err(|_| ended("encodes")),
            },
        }
    }
}

/// Hands frames of a lane to the thread that decodes them, which ends with this.
pub(super) struct Decoding {
    pub(super) codecs: Codecs,
    coded: mpsc::Sender<(Frame, Vec<u8>)>,
}

/// That thread.
pub(super) type DecodingThread = JoinHandle<Result<(), WireError>>;

impl Decoding {
    pub(super) fn start(
        codecs: Codecs,
        mut decoder: Box<dyn Decoder>,
        inbound: Arc<Inbound>,
    ) -> (Self, DecodingThread) {
        // As many as the stream may have: the window bounds their bytes.
        let (coded, mut arrived) = mpsc::channel::<(Frame, Vec<u8>)>(FRAMES_MAX);
        let thread = spawn_blocking(move || {
            while let Some((frame, mut bytes)) = arrived.blocking_recv() {
                if frame.codec != Codec::Raw {
                    let mut plain = inbound.spare_chunk();
                    plain.resize(frame.plain as usize, 0);
                    if !decoder.decode(frame.codec, &bytes, &mut plain) {
                        return Err(broken(&format!("the frame at offset {} cannot be decoded", frame.offset)));
                    }
                    bytes = plain;
                }
                verify(&bytes, frame.offset, frame.checksum)?;
                inbound.take(&frame, bytes)?;
            }
            Ok(())
        });
        (Self { codecs, coded }, thread)
    }

    /// Hands over a frame. If the thread has ended, its own error ends the channel.
    pub(super) fn put(&self, frame: Frame, bytes: Vec<u8>) {
        let _ = self.coded.try_send((frame, bytes));
    }
}

/// Waits for the end of a lane's decoding, if it has any.
///
/// # Errors
/// The error that the thread ended with.
pub(super) async fn decoded(thread: Option<DecodingThread>) -> Result<(), WireError> {
    match thread {
        None => Ok(()),
        Some(thread) => thread.await.map_err(|_| ended("decodes"))?,
    }
}

fn ended(what: &str) -> WireError {
    WireError::Local(io::Error::other(format!("the thread that {what} has ended")))
}

#[cfg(test)]
mod tests;
