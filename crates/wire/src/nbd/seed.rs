//! What an image at the destination already holds: keyed hashes of its blocks, for the source to compare with.

use std::{collections::BTreeMap, fmt, fs::File, io, os::unix::fs::FileExt as _};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

use super::{
    all_zero,
    protocol::{u32_at, u64_at},
};
use crate::WireError;

/// What is compared: large enough that a hash costs next to nothing on the wire, small enough that a changed page
/// spoils little. A qcow2 cluster.
pub const BLOCK_BYTES: u64 = 64 << 10;
/// Of each hash so much is kept.
pub(super) const HASH_BYTES: usize = 16;
/// `FerryS` and the version of the form.
const MAGIC: [u8; 8] = *b"FerryS\0\x01";
const HEAD_BYTES: usize = MAGIC.len() + 32;
const RUN_HEAD_BYTES: usize = 12;

/// A block's keyed BLAKE3 hash, cut to 128 bits. Who does not know the key cannot make two blocks with the same one.
pub(super) type BlockHash = [u8; HASH_BYTES];

/// The key of one session's hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SeedKey(pub [u8; 32]);

impl SeedKey {
    /// For a block that comes piecewise.
    pub(super) fn hasher(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.0)
    }

    fn hash(&self, block: &[u8]) -> BlockHash {
        cut(&blake3::keyed_hash(&self.0, block))
    }
}

impl fmt::Debug for SeedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SeedKey(…)")
    }
}

pub(super) fn cut(hash: &blake3::Hash) -> BlockHash {
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// The blocks of an image that are not all zero, by where they lie. 64 GiB of data need about 40 MiB of memory.
#[derive(Clone, PartialEq, Eq)]
pub struct SeedIndex {
    key: SeedKey,
    blocks: BTreeMap<u64, BlockHash>,
}

impl fmt::Debug for SeedIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SeedIndex({} blocks)", self.blocks.len())
    }
}

impl SeedIndex {
    /// Of an image of which nothing is known yet.
    pub fn new(key: SeedKey) -> Self {
        Self { key, blocks: BTreeMap::new() }
    }

    /// The image holds this block, of [`BLOCK_BYTES`], at its place. One that is all zero is left out.
    pub fn insert(&mut self, block: u64, bytes: &[u8]) {
        if bytes.len() as u64 == BLOCK_BYTES && !all_zero(bytes) {
            self.blocks.insert(block, self.key.hash(bytes));
        }
    }

    /// The key of its hashes.
    pub fn key(&self) -> SeedKey {
        self.key
    }

    /// Reads all data of a raw image; holes are skipped, and so is what is left behind the last whole block. Moves the
    /// file's position. Takes as long as reading does.
    ///
    /// # Errors
    /// Where the file cannot be read, or becomes shorter meanwhile.
    pub fn scan(file: &File, key: SeedKey) -> io::Result<Self> {
        let mut index = Self { key, blocks: BTreeMap::new() };
        let count = file.metadata()?.len() / BLOCK_BYTES;
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        let mut next = 0;
        while next < count {
            let Some(data) = seek(file, next * BLOCK_BYTES, Whence::SeekData)? else { break };
            let hole = seek(file, data, Whence::SeekHole)?.unwrap_or(count * BLOCK_BYTES);
            for block in next.max(data / BLOCK_BYTES)..count.min(hole.div_ceil(BLOCK_BYTES)) {
                file.read_exact_at(&mut bytes, block * BLOCK_BYTES)?;
                if !all_zero(&bytes) {
                    index.blocks.insert(block, key.hash(&bytes));
                }
                next = block + 1;
            }
            next = next.max(data / BLOCK_BYTES);
        }
        Ok(index)
    }

    /// How many blocks it knows.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The bytes for the source: the key, and each run of blocks with its hashes.
    ///
    /// ```text
    /// magic and version 8 bytes · key 32 bytes · runs: first block u64 · count u32 · count hashes of 16 bytes
    /// ```
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + RUN_HEAD_BYTES + self.blocks.len() * HASH_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.key.0);
        // Where the count of the run that is being written stands, and the block that would continue it.
        let mut run: Option<(usize, u64)> = None;
        for (block, hash) in &self.blocks {
            let at = match run {
                Some((at, next)) if next == *block && u32_at(&bytes, at) < u32::MAX => at,
                _ => {
                    bytes.extend_from_slice(&block.to_be_bytes());
                    bytes.extend_from_slice(&[0; 4]);
                    bytes.len() - 4
                }
            };
            let count = u32_at(&bytes, at) + 1;
            bytes[at..at + 4].copy_from_slice(&count.to_be_bytes());
            bytes.extend_from_slice(hash);
            run = Some((at, block + 1));
        }
        bytes
    }

    /// Reads what [`Self::encode`] wrote. Allocates no more than a few times the bytes it gets.
    ///
    /// # Errors
    /// [`WireError::Protocol`] for another form or version, and for blocks out of order.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let bad = |what: &str| WireError::Protocol(format!("an index of blocks with {what}"));
        let (head, mut rest) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(|| bad("no head"))?;
        let key = head.strip_prefix(&MAGIC).ok_or_else(|| bad("another form or version"))?;
        let mut index =
            Self { key: SeedKey(key.try_into().expect("the head's length was asked for")), blocks: BTreeMap::new() };
        let mut least = 0;
        while !rest.is_empty() {
            let (head, after) = rest.split_at_checked(RUN_HEAD_BYTES).ok_or_else(|| bad("a run that is cut off"))?;
            let (first, count) = (u64_at(head, 0), u32_at(head, 8));
            let end = first.checked_add(u64::from(count)).filter(|end| *end <= u64::MAX / BLOCK_BYTES);
            let end = end.ok_or_else(|| bad("a block beyond the last"))?;
            if first < least || count == 0 {
                return Err(bad("runs out of order"));
            }
            let length = usize::try_from(u64::from(count) * HASH_BYTES as u64).map_err(|_| bad("too long a run"))?;
            let (hashes, after) = after.split_at_checked(length).ok_or_else(|| bad("a run that is cut off"))?;
            let (hashes, _) = hashes.as_chunks::<HASH_BYTES>();
            index.blocks.extend((first..end).zip(hashes.iter().copied()));
            (rest, least) = (after, end);
        }
        Ok(index)
    }

    /// The hash of `bytes`, if the image holds this very block there.
    pub(super) fn held(&self, block: u64, bytes: &[u8]) -> Option<BlockHash> {
        self.blocks.get(&block).copied().filter(|hash| *hash == self.key.hash(bytes))
    }

    /// The image no longer holds what it did between bytes `start` and `end`.
    pub(super) fn forget(&mut self, start: u64, end: u64) {
        let touched = start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        while let Some((&block, _)) = self.blocks.range(touched.clone()).next() {
            self.blocks.remove(&block);
        }
    }
}

/// `None` where there is nothing such behind `offset`.
fn seek(file: &File, offset: u64, whence: Whence) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    match lseek(file, offset, whence) {
        Ok(found) => Ok(Some(found as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: SeedKey = SeedKey([3; 32]);

    fn index(blocks: impl IntoIterator<Item = (u64, BlockHash)>) -> SeedIndex {
        SeedIndex { key: KEY, blocks: blocks.into_iter().collect() }
    }

    #[test]
    fn a_scan_finds_blocks_of_data_and_skips_holes_zeroes_and_the_tail() {
        let file = tempfile::tempfile().expect("a file");
        let block = BLOCK_BYTES as usize;
        file.set_len(100 * BLOCK_BYTES + 5000).expect("sparse");
        for at in [0, 3 * BLOCK_BYTES + 4096, 4 * BLOCK_BYTES, 99 * BLOCK_BYTES, 100 * BLOCK_BYTES] {
            file.write_all_at(b"data", at).expect("written");
        }
        file.write_all_at(&vec![0; 2 * block], 50 * BLOCK_BYTES).expect("written");
        let index = SeedIndex::scan(&file, KEY).expect("read");
        assert_eq!(index.blocks.keys().copied().collect::<Vec<_>>(), [0, 3, 4, 99]);
        let mut bytes = vec![0; block];
        bytes[..4].copy_from_slice(b"data");
        assert_eq!(index.held(4, &bytes), index.blocks.get(&4).copied());
        assert!(index.held(4, &bytes).is_some() && index.held(3, &bytes).is_none() && index.held(5, &bytes).is_none());
        bytes[block - 1] = 1;
        assert!(index.held(4, &bytes).is_none());
    }

    #[test]
    fn what_was_touched_is_forgotten() {
        let mut index = index((0..6).map(|block| (block, [0; 16])));
        index.forget(BLOCK_BYTES - 1, BLOCK_BYTES);
        index.forget(3 * BLOCK_BYTES + 5, 4 * BLOCK_BYTES + 1);
        index.forget(5 * BLOCK_BYTES, 5 * BLOCK_BYTES);
        assert_eq!(index.blocks.into_keys().collect::<Vec<_>>(), [1, 2, 5]);
    }

    #[test]
    fn hostile_indexes_are_refused() {
        let good = index([(1, [1; 16]), (2, [2; 16]), (9, [3; 16])]).encode();
        assert_eq!(SeedIndex::decode(&good).expect("good").blocks(), 3);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let run = HEAD_BYTES;
        let second = run + RUN_HEAD_BYTES + 2 * HASH_BYTES;
        for (what, bytes) in [
            ("nothing", Vec::new()),
            ("no head", good[..HEAD_BYTES - 1].to_vec()),
            ("another version", with(7, 2)),
            ("a cut run", good[..good.len() - 1].to_vec()),
            ("a cut head", good[..second + 3].to_vec()),
            ("a count that nothing backs", with(run + 8, 0xff)),
            ("no blocks", with(second + 11, 0)),
            ("runs that overlap", with(second + 7, 2)),
            ("a block beyond the last", with(second, 0xff)),
        ] {
            assert!(SeedIndex::decode(&bytes).is_err(), "{what}");
        }
    }

    proptest! {
        #[test]
        fn an_index_survives_the_wire(blocks in prop::collection::btree_map(0..64u64, any::<BlockHash>(), 0..40)) {
            let index = index(blocks);
            prop_assert_eq!(SeedIndex::decode(&index.encode()).expect("its own bytes"), index);
        }

        #[test]
        fn any_bytes_are_an_index_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            if let Some(head) = bytes.get_mut(..8) {
                head.copy_from_slice(&MAGIC);
            }
            if let Ok(index) = SeedIndex::decode(&bytes) {
                prop_assert!(index.blocks() * HASH_BYTES <= bytes.len());
            }
        }
    }
}
