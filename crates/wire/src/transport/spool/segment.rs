//! A segment: a part of one direction of a pipe, in a file of its own, sealed. A share is shared: whoever can write there
//! must not be able to change what arrives, and whoever can read there must not learn what a guest's memory holds.
//!
//! ```text
//! 0  "FERRYSPL" · 8 version u16 · 10 direction u8 · 11 kind u8 · 12 plain length u32
//! 16 session 16 · 32 pipe 16 · 48 sequence u64
//! 56 the bytes, encrypted, and a tag of 16 bytes over them and the header (AES-256-GCM)
//! ```
//! All numbers are little-endian. The key is derived (HKDF-SHA-256) from the session's secret for each direction of each
//! pipe, and pipes have random names, so a key's nonce, the sequence, is used once. A segment that was changed, renamed,
//! copied from another session, pipe or direction, or kept from earlier does not open in its place.

use ferry_core::{id::SessionId, pin::Secret};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Prk, Salt},
};
use thiserror::Error;
use uuid::Uuid;

/// Size of the header.
pub const HEADER_BYTES: usize = 56;
/// Size of the tag behind the encrypted bytes.
const TAG_BYTES: usize = 16;
/// Most plain bytes of a segment. Larger ones were not faster, and what is in one must be whole before any of it is used.
pub const PLAIN_BYTES_MAX: usize = 16 << 20;
/// Largest file of a segment.
pub const FILE_BYTES_MAX: usize = HEADER_BYTES + PLAIN_BYTES_MAX + TAG_BYTES;
/// The sequence of [`Kind::Reset`], which has no place in the order.
pub const RESET_SEQUENCE: u64 = u64::MAX;

const MAGIC: &[u8; 8] = b"FERRYSPL";
const VERSION: u16 = 1;
const SALT_PURPOSE: &[u8] = b"ferry spool 1";

/// Which of a pipe's two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the source to the destination.
    ToDestination,
    /// From the destination to the source.
    ToSource,
}

impl Direction {
    /// The other one.
    pub fn opposite(self) -> Self {
        match self {
            Self::ToDestination => Self::ToSource,
            Self::ToSource => Self::ToDestination,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::ToDestination => 0,
            Self::ToSource => 1,
        }
    }

    fn letter(self) -> char {
        match self {
            Self::ToDestination => 'd',
            Self::ToSource => 's',
        }
    }
}

/// What a segment is for its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// More will follow.
    More,
    /// The last one.
    Last,
    /// Its sender gives the pipe up.
    Reset,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::More => 0,
            Self::Last => 1,
            Self::Reset => 2,
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        [Self::More, Self::Last, Self::Reset].into_iter().find(|kind| kind.number() == number)
    }
}

/// A pipe's name: random, and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PipeId(pub Uuid);

/// What is wrong with a segment.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SegmentError {
    /// It is too short, or its lengths contradict each other.
    #[error("It has no valid length")]
    Length,
    /// It is not one, or one of a version that this program does not speak.
    #[error("It is no segment of version {VERSION}")]
    Version,
    /// It belongs somewhere else.
    #[error("It belongs to another session, pipe, direction or place")]
    Place,
    /// It was not sealed by the other agent, or was changed since.
    #[error("Its seal is broken")]
    Seal,
}

/// The name of a segment's file. Names have one length, and their order is that of their sequences.
pub fn file_name(pipe: PipeId, direction: Direction, sequence: u64) -> String {
    format!("{}{sequence:016x}", prefix(pipe, direction))
}

/// What the names of all segments of a direction begin with.
pub fn prefix(pipe: PipeId, direction: Direction) -> String {
    format!("{}-{}-", pipe.0.simple(), direction.letter())
}

/// The pipe of a file that is the first segment to the destination.
pub fn opened_pipe(name: &str) -> Option<PipeId> {
    let pipe = PipeId(Uuid::try_parse(name.get(..32)?).ok()?);
    (file_name(pipe, Direction::ToDestination, 0) == name).then_some(pipe)
}

/// The sequence of a file whose name has this [`prefix`].
pub fn sequence_of(prefix: &str, name: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Derives the keys of a session's pipes.
pub struct Keys {
    session: SessionId,
    derived: Prk,
}

impl Keys {
    /// The keys of a session whose two agents know `secret`.
    pub fn new(session: SessionId, secret: &Secret) -> Self {
        let derived = Salt::new(HKDF_SHA256, session.0.as_bytes()).extract(&secret.0);
        Self { session, derived }
    }

    /// Seals and opens one direction of a pipe.
    pub fn seal(&self, pipe: PipeId, direction: Direction) -> Seal {
        let info = [SALT_PURPOSE, pipe.0.as_bytes(), &[direction.number()]];
        let key = self.derived.expand(&info, &AES_256_GCM).expect("a key is shorter than what can be derived");
        Seal { key: LessSafeKey::new(UnboundKey::from(key)), session: self.session, pipe, direction }
    }
}

/// Seals and opens the segments of one direction of a pipe.
pub struct Seal {
    key: LessSafeKey,
    session: SessionId,
    pipe: PipeId,
    direction: Direction,
}

/// The plain bytes of a segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// What it is.
    pub kind: Kind,
    /// The file; its plain bytes begin at [`HEADER_BYTES`].
    bytes: Vec<u8>,
}

impl Opened {
    /// The plain bytes.
    pub fn plain(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
}

impl Seal {
    /// The name of a segment's file.
    pub fn file_name(&self, sequence: u64) -> String {
        file_name(self.pipe, self.direction, sequence)
    }

    /// What the names of all its segments begin with.
    pub fn prefix(&self) -> String {
        prefix(self.pipe, self.direction)
    }

    /// Seals what follows the first [`HEADER_BYTES`] of `gathered`, at most [`PLAIN_BYTES_MAX`]: the file of the segment.
    /// A sequence must not be used twice.
    pub fn close(&self, sequence: u64, kind: Kind, mut gathered: Vec<u8>) -> Vec<u8> {
        let length = gathered.len() - HEADER_BYTES;
        assert!(length <= PLAIN_BYTES_MAX, "more than a segment was gathered");
        let header = self.header(sequence, kind, length as u32);
        let (head, plain) = gathered.split_at_mut(HEADER_BYTES);
        head.copy_from_slice(&header);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(sequence), Aad::from(&header), plain)
            .expect("a segment is shorter than what can be sealed");
        gathered.extend_from_slice(tag.as_ref());
        gathered
    }

    /// Opens the file that has the name of this sequence.
    ///
    /// # Errors
    /// [`SegmentError`], if it is anything else than what the other agent closed for this place.
    pub fn open(&self, sequence: u64, mut bytes: Vec<u8>) -> Result<Opened, SegmentError> {
        let header: [u8; HEADER_BYTES] = *bytes.first_chunk().ok_or(SegmentError::Length)?;
        let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        if length > PLAIN_BYTES_MAX || bytes.len() != HEADER_BYTES + length + TAG_BYTES {
            return Err(SegmentError::Length);
        }
        if &header[..8] != MAGIC || header[8..10] != VERSION.to_le_bytes() {
            return Err(SegmentError::Version);
        }
        let kind = Kind::of_number(header[11]).ok_or(SegmentError::Version)?;
        if header != self.header(sequence, kind, length as u32) {
            return Err(SegmentError::Place);
        }
        let sealed = &mut bytes[HEADER_BYTES..];
        self.key.open_in_place(nonce(sequence), Aad::from(&header), sealed).map_err(|_| SegmentError::Seal)?;
        bytes.truncate(HEADER_BYTES + length);
        Ok(Opened { kind, bytes })
    }

    fn header(&self, sequence: u64, kind: Kind, length: u32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[10] = self.direction.number();
        header[11] = kind.number();
        header[12..16].copy_from_slice(&length.to_le_bytes());
        header[16..32].copy_from_slice(self.session.0.as_bytes());
        header[32..48].copy_from_slice(self.pipe.0.as_bytes());
        header[48..56].copy_from_slice(&sequence.to_le_bytes());
        header
    }
}

fn nonce(sequence: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&sequence.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(session: u128, secret: u8) -> Keys {
        Keys::new(SessionId(Uuid::from_u128(session)), &Secret([secret; 32]))
    }

    fn pipe(number: u128) -> PipeId {
        PipeId(Uuid::from_u128(number))
    }

    fn closed(seal: &Seal, sequence: u64, plain: &[u8]) -> Vec<u8> {
        seal.close(sequence, Kind::More, [&[0; HEADER_BYTES], plain].concat())
    }

    #[test]
    fn a_segment_opens_only_in_its_place() {
        let seal = keys(1, 1).seal(pipe(1), Direction::ToSource);
        let file = closed(&seal, 7, b"some bytes");
        assert_eq!(seal.open(7, file.clone()).expect("in its place").plain(), b"some bytes");
        assert!(!file.windows(4).any(|bytes| bytes == b"some"), "it can be read");
        assert_eq!(seal.open(8, file.clone()), Err(SegmentError::Place), "another sequence");
        for (other, what) in [
            (keys(2, 1).seal(pipe(1), Direction::ToSource), "another session"),
            (keys(1, 1).seal(pipe(2), Direction::ToSource), "another pipe"),
            (keys(1, 1).seal(pipe(1), Direction::ToDestination), "the other direction"),
        ] {
            assert_eq!(other.open(7, file.clone()), Err(SegmentError::Place), "{what}");
        }
        let stranger = keys(1, 2).seal(pipe(1), Direction::ToSource);
        assert_eq!(stranger.open(7, file), Err(SegmentError::Seal), "another secret");
    }

    #[test]
    fn names_are_in_order_and_tell_their_sequence() {
        let (one, other) = (pipe(0xabc), pipe(0xabd));
        assert_eq!(opened_pipe(&file_name(one, Direction::ToDestination, 0)), Some(one));
        for name in [
            file_name(one, Direction::ToDestination, 1),
            file_name(one, Direction::ToSource, 0),
            file_name(one, Direction::ToDestination, 0) + ".tmp",
            "alive".to_owned(),
            "é".repeat(40),
        ] {
            assert_eq!(opened_pipe(&name), None, "{name}");
        }
        let start = prefix(one, Direction::ToSource);
        for sequence in [0, 1, 255, 1 << 40, RESET_SEQUENCE] {
            let name = file_name(one, Direction::ToSource, sequence);
            assert_eq!(sequence_of(&start, &name), Some(sequence));
            assert_eq!(sequence_of(&start, &format!("{name}.tmp")), None);
            assert_eq!(sequence_of(&prefix(other, Direction::ToSource), &name), None);
        }
    }

    proptest! {
        #[test]
        fn what_was_changed_anywhere_does_not_open(
            plain in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, change in 1..=255u8,
        ) {
            let seal = keys(1, 1).seal(pipe(1), Direction::ToDestination);
            let file = closed(&seal, 3, &plain);
            let opened = seal.open(3, file.clone()).expect("unchanged");
            prop_assert_eq!(opened.plain(), &plain[..]);
            let mut changed = file.clone();
            changed[at.index(file.len())] ^= change;
            prop_assert!(seal.open(3, changed).is_err());
            let cut = file[..at.index(file.len())].to_vec();
            prop_assert!(seal.open(3, cut).is_err());
            prop_assert!(seal.open(3, [&file[..], &[change]].concat()).is_err());
        }
    }
}
