//! Codecs: each direction of a coded stream has its own thread, so that encoding never delays acknowledgements.
//!
//! ```text
//! read ─▶ filter ─▶ (thread: checksum, encode) ─▶ lane        lane ─▶ deframe ─▶ (thread: decode, verify) ─▶ filter ─▶ write
//! ```
//! A stream without a codec has no threads: its checksums are computed where frames are read and written.
//!
//! Bytes that wait for a thread count as in flight, like all bytes accepted and not yet delivered.

use std::io;

use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};

use super::assembly::{Frame, broken};
use crate::{
    WireError,
    frame::{Codec, Header, checksum_of, verify},
};

/// Frames that wait before the encoding thread, and as many after it, so that it is never idle while the sender reads.
const ENCODING_FRAMES_MAX: usize = 4;

/// Encodes the frames of one direction in order.
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

/// A codec at work in both directions of a channel.
pub(crate) struct Coding {
    /// Stated in each frame.
    pub(super) codec: Codec,
    /// For the outgoing stream.
    pub(super) encoder: Box<dyn Encoder>,
    /// For the incoming stream.
    pub(super) decoder: Box<dyn Decoder>,
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

/// A frame in transit: what its header states, and its payload.
pub(super) type Payload = (Frame, Vec<u8>);

/// The thread that encodes the outgoing stream. When this is dropped, the thread ends after its current frame.
pub(super) struct Encoding {
    to_encode: mpsc::Sender<(u64, Vec<u8>)>,
    encoded: mpsc::Receiver<(Header, Vec<u8>)>,
    waiting: usize,
}

impl Encoding {
    pub(super) fn start(codec: Codec, mut encoder: Box<dyn Encoder>) -> Self {
        let (to_encode, mut plain) = mpsc::channel::<(u64, Vec<u8>)>(ENCODING_FRAMES_MAX);
        let (done, encoded) = mpsc::channel(ENCODING_FRAMES_MAX);
        spawn_blocking(move || {
            while let Some((offset, plain)) = plain.blocking_recv() {
                let mut coded = Vec::with_capacity(plain.len());
                let frame = if encoder.encode(&plain, &mut coded) && (1..plain.len()).contains(&coded.len()) {
                    let (length, checksum) = (plain.len() as u32, checksum_of(&plain));
                    (Header::Data { codec, plain: length, coded: coded.len() as u32, offset, checksum }, coded)
                } else {
                    (Header::raw_data(&plain, offset), plain)
                };
                if done.blocking_send(frame).is_err() {
                    return;
                }
            }
        });
        Self { to_encode, encoded, waiting: 0 }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting == 0
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting < ENCODING_FRAMES_MAX
    }

    /// Queues the next bytes of the stream. There must be room.
    pub(super) fn put(&mut self, offset: u64, plain: Vec<u8>) -> Result<(), WireError> {
        self.waiting += 1;
        self.to_encode.try_send((offset, plain)).map_err(|_| ended("encodes"))
    }

    /// The next encoded frame. Must not be called when nothing is queued.
    pub(super) async fn next(&mut self) -> Result<(Header, Vec<u8>), WireError> {
        let frame = self.encoded.recv().await.ok_or_else(|| ended("encodes"))?;
        self.waiting -= 1;
        Ok(frame)
    }
}

/// A thread that decodes the incoming stream and ends with `coded`. On an error it returns its end of `plain`, so that
/// the truncated stream does not look complete.
type Decoding = JoinHandle<Result<(), (WireError, mpsc::Sender<Payload>)>>;

/// Decodes and verifies frames on its own thread.
pub(super) fn decode(
    mut decoder: Box<dyn Decoder>,
    mut coded: mpsc::Receiver<Payload>,
    plain: mpsc::Sender<Payload>,
) -> Decoding {
    spawn_blocking(move || {
        while let Some((frame, mut bytes)) = coded.blocking_recv() {
            let mut is_legal = true;
            if frame.codec != Codec::Raw {
                let mut decoded = vec![0; frame.plain as usize];
                is_legal = decoder.decode(&bytes, &mut decoded);
                bytes = decoded;
            }
            let verified = match is_legal {
                true => verify(&bytes, frame.offset, frame.checksum),
                false => Err(broken(&format!("the frame at offset {} cannot be decoded", frame.offset))),
            };
            if let Err(error) = verified {
                return Err((error, plain));
            }
            if plain.blocking_send((frame, bytes)).is_err() {
                break;
            }
        }
        Ok(())
    })
}

/// Waits for a decoding thread to end.
///
/// # Errors
/// The error that the thread ended with.
pub(super) async fn decoded(thread: Option<Decoding>) -> Result<(), WireError> {
    let Some(thread) = thread else { return Ok(()) };
    thread.await.map_err(|_| ended("decodes"))?.map_err(|(error, _)| error)
}

fn ended(what: &str) -> WireError {
    WireError::Local(io::Error::other(format!("the thread that {what} has ended")))
}

#[cfg(test)]
mod tests;
