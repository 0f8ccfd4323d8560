//! Codecs: each lane of a coded stream has a thread of its own for each direction, so that encoding never delays
//! acknowledgements or other lanes.
//!
//! ```text
//! read ─▶ filter ─▶ (thread: encode) ─▶ lane        lane ─▶ deframe ─▶ (thread: decode, verify) ─▶ order ─▶ filter ─▶ write
//! ```
//! A stream without a codec has no threads. An encoder sees those frames of the stream that its lane carries, and the
//! decoder at the other end the same ones, in the same order.
//!
//! Bytes that wait for a thread count as in flight, like all bytes accepted and not yet delivered.

use std::{io, sync::Arc};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};

use super::{
    assembly::{FRAMES_MAX, Frame, broken},
    receiver::Inbound,
    sender::{Frames, Outgoing},
};
use crate::{
    WireError,
    frame::{Codec, Header, verify},
};

/// Frames of a lane that wait, are being encoded, or are being written, so that its thread is never idle while it writes.
pub(super) const ENCODING_FRAMES_MAX: usize = 4;

/// Encodes the frames of one lane in order.
pub(crate) trait Encoder: Send {
    /// Appends `plain` to `coded` in fewer bytes and returns `true`; `false` if it does not shrink and is sent as it
    /// is. The decoder does not see frames that are sent as they are.
    fn encode(&mut self, plain: &[u8], coded: &mut Vec<u8>) -> bool;
}

/// Decodes the output of an [`Encoder`] of the same codec, in the same order.
pub(crate) trait Decoder: Send {
    /// Fills `plain`, whose length the frame states; `false` if the bytes are not valid for the codec.
    fn decode(&mut self, coded: &[u8], plain: &mut [u8]) -> bool;
}

/// Makes the encoders and decoders of a channel: one of each for each lane.
pub(crate) struct Coding {
    /// Stated in each frame.
    pub(super) codec: Codec,
    pub(super) encoder: Box<dyn FnMut() -> Box<dyn Encoder> + Send>,
    pub(super) decoder: Box<dyn FnMut() -> Box<dyn Decoder> + Send>,
}

impl Coding {
    /// The implementation of the codec agreed with the peer; none for [`Codec::Raw`].
    pub(crate) fn of(codec: Codec) -> Option<Self> {
        match codec {
            Codec::Raw => None,
            #[cfg(test)]
            Codec::Repeats => Some(tests::repeats(None, None)),
        }
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
    pub(super) fn encoded(codec: Codec, mut encoder: Box<dyn Encoder>, queue: Frames) -> Self {
        let (done, frames) = mpsc::channel(1);
        let thread = spawn_blocking(move || {
            while let Some(mut frame) = queue.blocking_next() {
                let mut coded = Vec::with_capacity(frame.payload.len());
                let shrinks =
                    encoder.encode(&frame.payload, &mut coded) && (1..frame.payload.len()).contains(&coded.len());
                if let Header::Data { plain, offset, checksum, .. } = frame.header
                    && shrinks
                {
                    frame.header = Header::Data { codec, plain, coded: coded.len() as u32, offset, checksum };
                    frame.payload = coded.into();
                }
                if done.blocking_send(frame).is_err() {
                    return;
                }
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
    pub(super) codec: Codec,
    coded: mpsc::Sender<(Frame, Vec<u8>)>,
}

/// That thread.
pub(super) type DecodingThread = JoinHandle<Result<(), WireError>>;

impl Decoding {
    pub(super) fn start(codec: Codec, mut decoder: Box<dyn Decoder>, inbound: Arc<Inbound>) -> (Self, DecodingThread) {
        // As many as the stream may have: the window bounds their bytes.
        let (coded, mut arrived) = mpsc::channel::<(Frame, Vec<u8>)>(FRAMES_MAX);
        let thread = spawn_blocking(move || {
            while let Some((frame, mut bytes)) = arrived.blocking_recv() {
                if frame.codec != Codec::Raw {
                    let mut plain = vec![0; frame.plain as usize];
                    if !decoder.decode(&bytes, &mut plain) {
                        return Err(broken(&format!("the frame at offset {} cannot be decoded", frame.offset)));
                    }
                    bytes = plain;
                }
                verify(&bytes, frame.offset, frame.checksum)?;
                inbound.take(&frame, bytes)?;
            }
            Ok(())
        });
        (Self { codec, coded }, thread)
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
