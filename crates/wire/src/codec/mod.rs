//! Codecs of frames: what encodes and decodes their payloads.
//!
//! Each frame states its codec, so a sender changes codec and level from frame to frame. Frames in LZ4 and zstd are
//! encoded on their own, so that any of them may be sent in another codec, or as it is. Only [`Codec::ZstdLong`] refers to
//! earlier frames: those in this codec on the same lane.
//!
//! A decoder survives any bytes, in bounded memory: a frame's plain length is known from its header, and the window of
//! [`Codec::ZstdLong`] is bounded. Checksums of the plain bytes are verified elsewhere.
mod lz4;
mod zstd;

use ferry_core::compression::{Choice, shrinks};

use crate::frame::{CODED_EXTRA_BYTES_MAX, Codec};

/// Frames of fewer bytes are sent as they are: less than their header and that of TLS is spared, or little more.
const CODED_BYTES_MIN: usize = 256;

/// Codecs that frames may use beside [`Codec::Raw`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codecs(u8);

impl Codecs {
    /// None: every frame is sent as it is.
    pub const NONE: Self = Self(0);

    /// All of this program.
    pub fn all() -> Self {
        Self(Codec::ALL.iter().fold(0, |bits, codec| bits | Self::bit(*codec)))
    }

    /// Codec number 1 is the lowest bit.
    fn bit(codec: Codec) -> u8 {
        match codec {
            Codec::Raw => 0,
            Codec::Lz4 | Codec::Zstd | Codec::ZstdLong => 1 << (codec.number() - 1),
        }
    }

    /// Whether frames may use this codec.
    pub fn contain(self, codec: Codec) -> bool {
        self.0 & Self::bit(codec) == Self::bit(codec)
    }

    /// Those in both sets.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// As a hello asks for them.
    pub(crate) fn to_byte(self) -> u8 {
        self.0
    }

    /// Those that a hello asks for; `None` if this program lacks one.
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        (byte & !Self::all().0 == 0).then_some(Self(byte))
    }

    /// As abilities state them: one bit for each codec's number, of which that of [`Codec::Raw`] is always set.
    pub(crate) fn to_abilities(self) -> u32 {
        u32::from(self.0) << 1 | 1
    }

    /// Those of the stated ones that this program has.
    pub(crate) fn from_abilities(codecs: u32) -> Self {
        Self((codecs >> 1) as u8).common(Self::all())
    }
}

/// The codec of a choice.
pub(crate) fn codec_of(choice: Choice) -> Codec {
    match choice {
        Choice::Raw => Codec::Raw,
        Choice::Lz4 => Codec::Lz4,
        Choice::Zstd(_) => Codec::Zstd,
        Choice::ZstdLong(_) => Codec::ZstdLong,
    }
}

/// The encoders of one lane. They take memory when they are first used: about 1 MiB, or that of the window.
pub struct Encoders {
    lz4: lz4::Encoder,
    zstd: zstd::Encoder,
    long: zstd::LongEncoder,
}

impl Encoders {
    /// The encoders of one of so many lanes.
    pub fn new(lanes: u8) -> Self {
        Self {
            lz4: lz4::Encoder::default(),
            zstd: zstd::Encoder::default(),
            long: zstd::LongEncoder::new(zstd::window_log(lanes)),
        }
    }

    /// Replaces `coded` by `plain` in the chosen codec, and returns that codec; [`Codec::Raw`] for a frame that is sent as
    /// it is, because it does not shrink: `coded` is nothing then.
    ///
    /// A frame that was encoded in [`Codec::ZstdLong`] must be sent: later ones refer to it.
    pub fn encode(&mut self, choice: Choice, plain: &[u8], coded: &mut Vec<u8>) -> Codec {
        coded.clear();
        if plain.len() < CODED_BYTES_MIN {
            return Codec::Raw;
        }
        let is_done = match choice {
            Choice::Raw => false,
            Choice::Lz4 => self.lz4.encode(plain, coded) && shrinks(plain.len(), coded.len()),
            Choice::Zstd(level) => self.zstd.encode(level, plain, coded) && shrinks(plain.len(), coded.len()),
            // Later frames refer to this one, so it is sent even if it did not shrink.
            Choice::ZstdLong(level) => self.long.encode(level, plain, coded, plain.len() + CODED_EXTRA_BYTES_MAX),
        };
        if is_done { codec_of(choice) } else { Codec::Raw }
    }
}

/// The decoders of one lane. They take memory when they are first used.
pub struct Decoders {
    zstd: zstd::Decoder,
    long: zstd::LongDecoder,
}

impl Decoders {
    /// The decoders of one of so many lanes.
    pub fn new(lanes: u8) -> Self {
        Self { zstd: zstd::Decoder::default(), long: zstd::LongDecoder::new(zstd::window_log(lanes)) }
    }

    /// Fills `plain` with what a frame of this codec holds. `false` if the bytes are not valid, or are of another length;
    /// the lane has to end then.
    pub fn decode(&mut self, codec: Codec, coded: &[u8], plain: &mut [u8]) -> bool {
        match codec {
            Codec::Raw => {
                coded.len() == plain.len() && {
                    plain.copy_from_slice(coded);
                    true
                }
            }
            Codec::Lz4 => lz4::decode(coded, plain),
            Codec::Zstd => self.zstd.decode(coded, plain),
            Codec::ZstdLong => self.long.decode(coded, plain),
        }
    }
}

#[cfg(test)]
mod tests;
