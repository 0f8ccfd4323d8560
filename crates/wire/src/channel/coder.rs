//! What encodes and decodes the frames of one lane.

use std::time::Duration;

use super::shared::Progress;
use crate::{codec::Decoders, frame::Codec};

/// Encodes the frames of one lane in order.
pub(crate) trait Encoder: Send {
    /// Replaces `coded` by `plain` in the codec that it returns. [`Codec::Raw`]: the frame is sent as it is, and the
    /// decoder does not see it.
    fn encode(&mut self, plain: &[u8], coded: &mut Vec<u8>) -> Codec;

    /// The frame was handed to the lane.
    fn sent(&mut self, sent: &Sent) {
        let _ = sent;
    }
}

/// A frame that was handed to its lane, how long that took, and what became of earlier ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Bytes of the stream up to its end.
    pub(crate) end: u64,
    pub(crate) plain: usize,
    /// Its bytes on the wire.
    pub(crate) wire: usize,
    /// How long the thread encoded it, and then waited for the lane.
    pub(crate) encoding: Duration,
    pub(crate) lane: Duration,
    pub(crate) progress: Progress,
}

/// Decodes the output of an [`Encoder`], in the same order.
pub(crate) trait Decoder: Send {
    /// Fills `plain`, whose length the frame states; `false` if the bytes are not valid for the codec.
    fn decode(&mut self, codec: Codec, coded: &[u8], plain: &mut [u8]) -> bool;
}

impl Decoder for Decoders {
    fn decode(&mut self, codec: Codec, coded: &[u8], plain: &mut [u8]) -> bool {
        Self::decode(self, codec, coded, plain)
    }
}
