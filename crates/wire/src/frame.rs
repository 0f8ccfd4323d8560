//! The frame: a fixed header, then its payload.
//!
//! ```text
//! 0  kind u8 · 1 codec u8 · 2 zero u16 · 4 plain length u32 · 8 coded length u32 · 12 zero u32
//! 16 offset u64 (Data, End: plain bytes before it · Ack: bytes delivered)
//! 24 checksum u64 (Data: xxh3 of the plain payload · End: of the whole channel, see [`Chain`] · Abort: of the reason)
//! ```
//! All numbers are little-endian. Lengths are bounded before anything is allocated.

use twox_hash::XxHash3_64;

use crate::WireError;

/// Size of the header.
pub const HEADER_BYTES: usize = 32;
/// Largest plain payload of a Data frame: large enough that the cost of headers and system calls is negligible, small
/// enough that one frame adds little delay (2 ms at 1 Gb/s).
pub const DATA_BYTES_MAX: usize = 256 << 10;
/// How much longer than its plain payload a frame in [`Codec::ZstdLong`] may be, which is sent even if it does not shrink:
/// 3 bytes for each block of 128 KiB, and the header of zstd's own frame.
pub const CODED_EXTRA_BYTES_MAX: usize = 32;
/// Largest payload of a frame.
pub const PAYLOAD_BYTES_MAX: usize = DATA_BYTES_MAX + CODED_EXTRA_BYTES_MAX;
/// Longest reason of an Abort frame.
pub const REASON_BYTES_MAX: usize = 1024;

/// How the payload of a Data frame is coded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    #[default]
    Raw,
    /// An LZ4 block.
    Lz4,
    /// A frame of zstd.
    Zstd,
    /// A byte (0: goes on, 1: begins), then a flushed part of a frame of zstd that all of its lane's payloads in this codec
    /// belong to since it began; with long-distance matching.
    ZstdLong,
}

impl Codec {
    /// Every codec of this program.
    pub const ALL: &[Self] = &[Self::Raw, Self::Lz4, Self::Zstd, Self::ZstdLong];

    /// Its number on the wire, up to 8.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
            Self::ZstdLong => 3,
        }
    }

    /// Whether a payload of this plain length can have this coded one.
    fn fits(self, plain: u32, coded: u32) -> bool {
        match self {
            Self::Raw => coded == plain,
            Self::Lz4 | Self::Zstd => (1..plain).contains(&coded),
            Self::ZstdLong => (2..=plain + CODED_EXTRA_BYTES_MAX as u32).contains(&coded),
        }
    }

    /// The codec of a number on the wire, if this program has it.
    pub(crate) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|codec| codec.number() == number)
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Bytes of the stream follow.
    Data {
        /// The coding.
        codec: Codec,
        /// Their plain length, 1 to [`DATA_BYTES_MAX`].
        plain: u32,
        /// Their coded length: less than the plain length; equal if they are not coded; up to [`CODED_EXTRA_BYTES_MAX`]
        /// more in [`Codec::ZstdLong`].
        coded: u32,
        /// Plain bytes of the stream before this frame.
        offset: u64,
        /// xxh3 of the plain bytes.
        checksum: u64,
    },
    /// The local socket accepted all bytes of the peer's stream up to `delivered`.
    Ack {
        /// That offset.
        delivered: u64,
    },
    /// The stream is complete (half-close): sent on each lane, on which nothing but acknowledgements follows.
    End {
        /// Its plain length in bytes.
        total: u64,
        /// The [`Chain`] value over all its frames.
        checksum: u64,
    },
    /// The sender gives up; a reason of this length follows.
    Abort {
        /// Length of the reason in bytes, up to [`REASON_BYTES_MAX`].
        length: u32,
        /// xxh3 of the reason.
        checksum: u64,
    },
}

impl Header {
    /// A header for `plain` without coding.
    pub fn raw_data(plain: &[u8], offset: u64) -> Self {
        let length = u32::try_from(plain.len()).expect("a chunk is at most DATA_BYTES_MAX");
        Self::Data { codec: Codec::Raw, plain: length, coded: length, offset, checksum: checksum_of(plain) }
    }

    /// Bytes that follow the header.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Data { coded, .. } => *coded as usize,
            Self::Abort { length, .. } => *length as usize,
            Self::Ack { .. } | Self::End { .. } => 0,
        }
    }

    /// Encodes the header for the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (kind, codec, plain, coded, offset, checksum) = match *self {
            Self::Data { codec, plain, coded, offset, checksum } => (1, codec.number(), plain, coded, offset, checksum),
            Self::Ack { delivered } => (2, 0, 0, 0, delivered, 0),
            Self::End { total, checksum } => (3, 0, 0, 0, total, checksum),
            Self::Abort { length, checksum } => (4, 0, length, length, 0, checksum),
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = kind;
        bytes[1] = codec;
        bytes[4..8].copy_from_slice(&plain.to_le_bytes());
        bytes[8..12].copy_from_slice(&coded.to_le_bytes());
        bytes[16..24].copy_from_slice(&offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes a header.
    ///
    /// # Errors
    /// [`WireError::Protocol`] for an unknown kind, a length out of bounds, or a set bit that must be zero.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let bad = |what: &str| WireError::Protocol(format!("frame header with {what}"));
        let (plain, coded, offset, checksum) = (u32_at(4), u32_at(8), u64_at(16), u64_at(24));
        if bytes[2..4] != [0, 0] || u32_at(12) != 0 {
            return Err(bad("reserved bits set"));
        }
        if bytes[0] != 1 && bytes[1] != 0 {
            return Err(bad("a codec where there is no data"));
        }
        match bytes[0] {
            1 => {
                let codec = Codec::of_number(bytes[1]).ok_or_else(|| bad("an unknown codec"))?;
                let legal = 1..=DATA_BYTES_MAX as u32;
                if !legal.contains(&plain) || !codec.fits(plain, coded) {
                    return Err(bad("a length out of bounds"));
                }
                Ok(Self::Data { codec, plain, coded, offset, checksum })
            }
            2 if plain == 0 && coded == 0 && checksum == 0 => Ok(Self::Ack { delivered: offset }),
            3 if plain == 0 && coded == 0 => Ok(Self::End { total: offset, checksum }),
            4 if plain == coded && plain as usize <= REASON_BYTES_MAX && offset == 0 => {
                Ok(Self::Abort { length: plain, checksum })
            }
            2..=4 => Err(bad("a length out of bounds")),
            _ => Err(bad("an unknown kind")),
        }
    }
}

/// A checksum over a whole channel, computed from the checksums of its frames in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain(u64);

impl Chain {
    /// Adds the next frame's checksum.
    pub fn push(&mut self, checksum: u64) {
        self.0 = XxHash3_64::oneshot_with_seed(self.0, &checksum.to_le_bytes());
    }

    /// The value so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// xxh3 of a payload. The implementation uses the widest vectors of the processor, detected at run time.
pub(crate) fn checksum_of(payload: &[u8]) -> u64 {
    XxHash3_64::oneshot(payload)
}

/// Checks that `plain` matches the header's `checksum`.
///
/// # Errors
/// [`WireError::Protocol`] naming the offset.
pub fn verify(plain: &[u8], offset: u64, checksum: u64) -> Result<(), WireError> {
    if checksum_of(plain) == checksum {
        Ok(())
    } else {
        Err(WireError::Protocol(format!("bytes were changed on the way, in the frame at offset {offset}")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_header() -> impl Strategy<Value = Header> {
        let length = 1..=DATA_BYTES_MAX as u32;
        let coded = (1..=DATA_BYTES_MAX as u32, 1..Codec::ALL.len(), any::<u64>(), any::<u64>());
        prop_oneof![
            coded.prop_map(|(length, codec, offset, checksum)| Header::Data {
                codec: Codec::ALL[codec],
                plain: length.max(3),
                coded: length.max(3) - 1,
                offset,
                checksum
            }),
            (length, any::<u64>(), any::<u64>()).prop_map(|(length, offset, checksum)| Header::Data {
                codec: Codec::Raw,
                plain: length,
                coded: length,
                offset,
                checksum
            }),
            any::<u64>().prop_map(|delivered| Header::Ack { delivered }),
            (any::<u64>(), any::<u64>()).prop_map(|(total, checksum)| Header::End { total, checksum }),
            (0..=REASON_BYTES_MAX as u32, any::<u64>())
                .prop_map(|(length, checksum)| Header::Abort { length, checksum }),
        ]
    }

    proptest! {
        #[test]
        fn headers_survive_the_wire(header in any_header()) {
            prop_assert_eq!(Header::decode(&header.encode()).expect("legal"), header);
        }

        #[test]
        fn any_bytes_decode_to_bounded_lengths_or_an_error(bytes: [u8; HEADER_BYTES]) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.payload_bytes() <= PAYLOAD_BYTES_MAX);
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn a_flipped_bit_in_the_payload_is_seen(mut payload in prop::collection::vec(any::<u8>(), 1..4096), at: prop::sample::Index, bit in 0..8u8) {
            let Header::Data { checksum, .. } = Header::raw_data(&payload, 0) else { unreachable!("it is data") };
            let index = at.index(payload.len());
            payload[index] ^= 1 << bit;
            prop_assert!(verify(&payload, 0, checksum).is_err());
        }
    }

    #[test]
    fn checksums_are_those_of_every_version() {
        let bytes: Vec<u8> = (0..1000_u32).map(|at| (at * 7) as u8).collect();
        let mut chain = Chain::default();
        // Computed with the crate xxhash-rust, which earlier versions use.
        for (length, checksum) in [
            (0, 0x2d06_8005_38d3_94c2),
            (3, 0xc348_9259_e968_ad9e),
            (16, 0x9da2_3836_adf2_be1e),
            (100, 0x6dbb_812c_f19d_012e),
            (200, 0x7c64_f3b1_7285_e96a),
            (240, 0x4917_a75c_0ef8_eed7),
            (241, 0x541b_1922_6f00_52e8),
            (1000, 0x10ad_3026_4426_c830),
        ] {
            assert_eq!(checksum_of(&bytes[..length]), checksum, "{length}");
            chain.push(checksum);
        }
        assert_eq!(chain.value(), 0x04ae_e941_02e4_41f5);
    }

    #[test]
    fn the_chain_depends_on_the_order() {
        let (mut one, mut other) = (Chain::default(), Chain::default());
        one.push(1);
        one.push(2);
        other.push(2);
        other.push(1);
        assert_ne!(one, other);
    }
}
