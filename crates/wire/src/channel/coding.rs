//! Codecs: each direction of a stream that has one gets a thread of its own for it, so that nobody's acknowledgements wait.
//!
//! ```text
//! read ─▶ filter ─▶ (thread: checksum, encode) ─▶ lane        lane ─▶ deframe ─▶ (thread: decode, verify) ─▶ filter ─▶ write
//! ```
//! A stream without a codec has no threads: its frames are checked where they are read and written.
//!
//! What waits for a thread counts as in flight, as all that was accepted and is not delivered.

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

/// Frames that wait for the thread that encodes, and behind it: it is never idle while the sender reads.
const ENCODING_FRAMES_MAX: usize = 4;

/// Encodes the frames of one direction, in their order.
pub trait Encoder: Send {
    /// Appends `plain` to `coded` in fewer bytes and says `true`; `false`: it does not get fewer, and goes as it is. The
    /// decoder does not see what goes as it is.
    fn encode(&mut self, plain: &[u8], coded: &mut Vec<u8>) -> bool;
}

/// Decodes what an [`Encoder`] of the same codec has encoded, in the same order.
pub trait Decoder: Send {
    /// Fills `plain`, which has the length that the frame tells; `false`: these bytes are not of the codec.
    fn decode(&mut self, coded: &[u8], plain: &mut [u8]) -> bool;
}

/// What both directions of a channel are coded with; agreed with the peer.
pub struct Coding {
    /// Its number is in each frame.
    pub codec: Codec,
    /// Of what is sent.
    pub encoder: Box<dyn Encoder>,
    /// Of what comes.
    pub decoder: Box<dyn Decoder>,
}

/// A frame on its way: what its header says, and its payload.
pub(super) type Payload = (Frame, Vec<u8>);

/// The thread that encodes what is sent. Dropped, it ends with the frame that it has.
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

    /// Takes the next bytes of the stream. There must be room.
    pub(super) fn put(&mut self, offset: u64, plain: Vec<u8>) -> Result<(), WireError> {
        self.waiting += 1;
        self.to_encode.try_send((offset, plain)).map_err(|_| ended("encodes"))
    }

    /// The next frame. Not to be asked for when nothing waits.
    pub(super) async fn next(&mut self) -> Result<(Header, Vec<u8>), WireError> {
        let frame = self.encoded.recv().await.ok_or_else(|| ended("encodes"))?;
        self.waiting -= 1;
        Ok(frame)
    }
}

/// A thread that decodes what comes; ends when `coded` does. With an error it keeps its end of `plain`: the stream is not
/// complete.
type Decoding = JoinHandle<Result<(), (WireError, mpsc::Sender<Payload>)>>;

/// Decodes and verifies frames on a thread of its own.
pub(super) fn decode(
    mut decoder: Box<dyn Decoder>,
    mut coded: mpsc::Receiver<Payload>,
    plain: mpsc::Sender<Payload>,
) -> Decoding {
    spawn_blocking(move || {
        while let Some((frame, mut bytes)) = coded.blocking_recv() {
            let mut is_legal = true;
            if frame.codec != Codec::RAW {
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

/// Waits for a thread that decodes.
///
/// # Errors
/// What it found.
pub(super) async fn decoded(thread: Option<Decoding>) -> Result<(), WireError> {
    let Some(thread) = thread else { return Ok(()) };
    thread.await.map_err(|_| ended("decodes"))?.map_err(|(error, _)| error)
}

fn ended(what: &str) -> WireError {
    WireError::Local(io::Error::other(format!("the thread that {what} has ended")))
}
