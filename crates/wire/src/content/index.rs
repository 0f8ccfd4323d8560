//! The content of an image at the destination: keyed hashes of its blocks, which the source compares with.

use std::{collections::BTreeMap, fmt, time::Duration};

use ferry_core::error::chain;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tracing::warn;

use super::sparse::all_zero;
use crate::WireError;

/// The unit of comparison: large enough that a hash costs almost nothing on the wire, small enough that a changed page
/// invalidates little. The size of a qcow2 cluster.
pub const BLOCK_BYTES: u64 = 64 << 10;
/// Bytes kept of each hash.
pub(crate) const HASH_BYTES: usize = 16;
/// `FerryS` and the format version.
const MAGIC: [u8; 8] = *b"FerryS\0\x02";
const HEAD_BYTES: usize = MAGIC.len() + 32;
const RUN_HEAD_BYTES: usize = 12;
/// Blocks of one run: 64 MiB of data, 16 KiB of hashes.
pub const RUN_BLOCKS_MAX: usize = 1024;
/// Marks a block that the image no longer holds. The chance that a real block has this hash is negligible.
const FORGOTTEN: BlockHash = [0; HASH_BYTES];

/// A block's keyed BLAKE3 hash, truncated to 128 bits. Without the key, nobody can construct two blocks with the same
/// hash.
pub(crate) type BlockHash = [u8; HASH_BYTES];

/// The key of one session's hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SeedKey(pub [u8; 32]);

impl SeedKey {
    /// For a block that arrives in pieces.
    pub(crate) fn hasher(&self) -> blake3::Hasher {
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

pub(crate) fn cut(hash: &blake3::Hash) -> BlockHash {
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// The blocks of an image that are not all zero, by position. 256 GiB of data need about 64 MiB of memory, or five
/// times as much if every second block is zero.
#[derive(Clone, PartialEq, Eq)]
pub struct SeedIndex {
    key: SeedKey,
    /// Runs of consecutive blocks, by their first block.
    runs: BTreeMap<u64, Vec<BlockHash>>,
}

impl fmt::Debug for SeedIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SeedIndex({} blocks)", self.blocks())
    }
}

impl SeedIndex {
    /// An empty index: nothing is known of the image yet.
    pub fn new(key: SeedKey) -> Self {
        Self { key, runs: BTreeMap::new() }
    }

    /// Records the content of a block of [`BLOCK_BYTES`] at its position. All-zero blocks are ignored, as are blocks
    /// that do not come after the recorded ones.
    pub fn insert(&mut self, block: u64, bytes: &[u8]) {
        if bytes.len() as u64 == BLOCK_BYTES && block >= self.end() && !all_zero(bytes) {
            self.append(block, self.key.hash(bytes));
        }
    }

    /// One past the last block.
    fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(first, run)| first + run.len() as u64)
    }

    fn append(&mut self, block: u64, hash: BlockHash) {
        match self.runs.last_entry() {
            Some(mut last) if last.get().len() < RUN_BLOCKS_MAX && last.key() + last.get().len() as u64 == block => {
                last.get_mut().push(hash);
            }
            _ => drop(self.runs.insert(block, vec![hash])),
        }
    }

    /// The key of the hashes.
    pub fn key(&self) -> SeedKey {
        self.key
    }

    /// The number of blocks recorded.
    pub fn blocks(&self) -> usize {
        self.runs.values().flatten().filter(|hash| **hash != FORGOTTEN).count()
    }

    /// Encodes the index for the source: the key, and each run of blocks with its hashes.
    ///
    /// ```text
    /// magic and version 8 bytes · key 32 bytes · runs: first block u64 · count u32, at most 1024 · count hashes of 16 bytes
    /// ```
    /// An empty run is a keep-alive. An index built in pieces is sent as an encoded empty index followed by the
    /// [`runs`](Self::runs) of each piece.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.key.0);
        self.put_runs(&mut bytes);
        bytes
    }

    /// The encoded runs, without magic and key; for an empty index, a keep-alive.
    pub fn runs(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.put_runs(&mut bytes);
        if bytes.is_empty() {
            bytes.extend_from_slice(&[0; RUN_HEAD_BYTES]);
        }
        bytes
    }

    fn put_runs(&self, bytes: &mut Vec<u8>) {
        for (first, run) in &self.runs {
            bytes.extend_from_slice(&first.to_be_bytes());
            bytes.extend_from_slice(&(run.len() as u32).to_be_bytes());
            run.iter().for_each(|hash| bytes.extend_from_slice(hash));
        }
    }

    /// Decodes the output of [`Self::encode`]. Allocates at most a few times the input length.
    ///
    /// # Errors
    /// [`WireError::Protocol`] for another format or version, and for blocks out of order.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut index = None;
        let mut rest = bytes;
        while let Some(behind) = Self::take(&mut index, rest)? {
            rest = behind;
        }
        match index {
            Some(index) if rest.is_empty() => Ok(index),
            Some(_) => Err(bad("a run that is cut off")),
            None => Err(bad("no head")),
        }
    }

    /// Decodes the head or the next run from the front of `bytes`; returns the rest, or `None` if it is incomplete.
    fn take<'a>(index: &mut Option<Self>, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, WireError> {
        let Some(index) = index else {
            let Some((head, behind)) = bytes.split_at_checked(HEAD_BYTES) else { return Ok(None) };
            let key = head.strip_prefix(&MAGIC).ok_or_else(|| bad("another form or version"))?;
            *index = Some(Self::new(SeedKey(key.try_into().expect("the head's length was asked for"))));
            return Ok(Some(behind));
        };
        let Some((head, behind)) = bytes.split_at_checked(RUN_HEAD_BYTES) else { return Ok(None) };
        let (first, count) = run_head(head.first_chunk().expect("the head's length was asked for"));
        if count == 0 {
            return Ok(Some(behind));
        }
        let end = first.checked_add(count as u64).filter(|end| *end <= u64::MAX / BLOCK_BYTES);
        if end.is_none() || count > RUN_BLOCKS_MAX {
            return Err(bad("too long a run"));
        }
        if first < index.end() {
            return Err(bad("runs out of order"));
        }
        let Some((hashes, behind)) = behind.split_at_checked(count * HASH_BYTES) else { return Ok(None) };
        let (hashes, _) = hashes.as_chunks::<HASH_BYTES>();
        index.runs.insert(first, hashes.to_vec());
        Ok(Some(behind))
    }

    /// Reads an index that arrives in pieces, of at most `bytes_max`, until its end or until nothing arrives for
    /// `silence_max`. A partial index is still useful: each known block is one that need not be sent.
    ///
    /// # Errors
    /// [`WireError::Protocol`] as [`Self::decode`]; [`WireError::Timeout`] and [`WireError::Peer`] if not even its head
    /// arrives.
    pub async fn receive(
        peer: &mut (impl AsyncRead + Unpin),
        silence_max: Duration,
        bytes_max: u64,
    ) -> Result<Self, WireError> {
        let (mut index, mut held) = (None, Vec::new());
        let mut limited = peer.take(bytes_max);
        loop {
            let read = match tokio::time::timeout(silence_max, limited.read_buf(&mut held)).await {
                Ok(read) => read.map_err(WireError::Peer),
                Err(_) => Err(WireError::Timeout("no more is said of what the destination holds")),
            };
            match (read, &index) {
                (Ok(0), None) => return Err(bad("no head")),
                (Err(error), None) => return Err(error),
                (Ok(0), Some(_)) => break,
                (Err(error), Some(_)) => {
                    warn!(error = %chain(&error), "The rest of what the destination holds is not known");
                    break;
                }
                (Ok(_), _) => {}
            }
            let mut rest = held.as_slice();
            while let Some(behind) = Self::take(&mut index, rest)? {
                rest = behind;
            }
            let taken = held.len() - rest.len();
            held.drain(..taken);
        }
        index.ok_or_else(|| bad("no head"))
    }

    /// The hash of `bytes`, if the image holds exactly this block at this position.
    pub(crate) fn held(&self, block: u64, bytes: &[u8]) -> Option<BlockHash> {
        let (first, run) = self.runs.range(..=block).next_back()?;
        let hash = *run.get(usize::try_from(block - first).ok()?)?;
        (hash != FORGOTTEN && hash == self.key.hash(bytes)).then_some(hash)
    }

    /// Bytes `start` to `end` of the image changed: forgets the blocks there.
    pub(crate) fn forget(&mut self, start: u64, end: u64) {
        let (from, to) = (start / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        for (first, run) in self.runs.range_mut(..to).rev() {
            let (run_from, run_to) = (from.saturating_sub(*first), (to - first).min(run.len() as u64));
            if run_from >= run.len() as u64 {
                return;
            }
            if run_from < run_to {
                run[run_from as usize..run_to as usize].fill(FORGOTTEN);
            }
        }
    }
}

/// The first block and the number of blocks of a run.
fn run_head(head: &[u8; RUN_HEAD_BYTES]) -> (u64, usize) {
    let ([first @ .., _, _, _, _], [.., a, b, c, d]) = (head, head);
    (u64::from_be_bytes(*first), u32::from_be_bytes([*a, *b, *c, *d]) as usize)
}

fn bad(what: &str) -> WireError {
    WireError::Protocol(format!("an index of blocks with {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const KEY: SeedKey = SeedKey([3; 32]);

    fn index(blocks: impl IntoIterator<Item = (u64, BlockHash)>) -> SeedIndex {
        let mut index = SeedIndex::new(KEY);
        blocks.into_iter().for_each(|(block, hash)| index.append(block, hash));
        index
    }

    fn known(index: &SeedIndex) -> Vec<u64> {
        let run = |(first, run): (&u64, &Vec<BlockHash>)| {
            let blocks = (*first..).zip(run.clone());
            blocks.filter(|(_, hash)| *hash != FORGOTTEN).map(|(block, _)| block).collect::<Vec<_>>()
        };
        index.runs.iter().flat_map(run).collect()
    }

    #[test]
    fn an_index_holds_blocks_of_data_and_neither_zeroes_nor_a_part_nor_what_comes_out_of_order() {
        let block = BLOCK_BYTES as usize;
        let (mut bytes, mut inside) = (vec![0; block], vec![0; block]);
        bytes[..4].copy_from_slice(b"data");
        inside[4096..4100].copy_from_slice(b"data");
        let mut index = SeedIndex::new(KEY);
        for (at, content) in [(0, &bytes), (3, &inside), (4, &bytes), (50, &vec![0; block]), (99, &bytes)] {
            index.insert(at, content);
        }
        index.insert(60, &bytes);
        index.insert(100, &bytes[..5000]);
        assert_eq!(known(&index), [0, 3, 4, 99]);
        assert!(index.held(4, &bytes).is_some() && index.held(3, &bytes).is_none() && index.held(5, &bytes).is_none());
        bytes[block - 1] = 1;
        assert!(index.held(4, &bytes).is_none());
    }

    #[test]
    fn what_was_touched_is_forgotten() {
        let mut index = index((0..6).chain([9, 10]).map(|block| (block, [1; 16])));
        index.forget(BLOCK_BYTES - 1, BLOCK_BYTES);
        index.forget(3 * BLOCK_BYTES + 5, 4 * BLOCK_BYTES + 1);
        index.forget(5 * BLOCK_BYTES, 5 * BLOCK_BYTES);
        assert_eq!(known(&index), [1, 2, 5, 9, 10]);
        index.forget(6 * BLOCK_BYTES, 9 * BLOCK_BYTES);
        assert_eq!(known(&index), [1, 2, 5, 9, 10]);
        index.forget(5 * BLOCK_BYTES, 9 * BLOCK_BYTES + 1);
        assert_eq!(known(&index), [1, 2, 10]);
        assert_eq!(index.blocks(), 3);
    }

    #[tokio::test]
    async fn an_index_comes_piece_by_piece_and_what_came_before_silence_counts() {
        const PATIENCE: Duration = Duration::from_secs(20);
        let piece = |block: u64| index([(block, [1; 16]), (block + 1, [2; 16])]).runs();
        let sign = SeedIndex::new(KEY).runs();
        let all = [SeedIndex::new(KEY).encode(), piece(3), sign, piece(9)].concat();
        for chunk in [1, 7, all.len()] {
            let (mut near, mut far) = tokio::io::duplex(chunk);
            let sent = all.clone();
            tokio::spawn(async move { far.write_all(&sent).await });
            let whole = SeedIndex::receive(&mut near, PATIENCE, u64::MAX).await.expect("whole");
            assert_eq!((known(&whole), whole.key()), (vec![3, 4, 9, 10], KEY));
        }
        let limit = (HEAD_BYTES + RUN_HEAD_BYTES + 2 * HASH_BYTES + 5) as u64;
        let part = SeedIndex::receive(&mut all.as_slice(), PATIENCE, limit).await.expect("a part");
        assert_eq!(known(&part), [3, 4], "no more is read than may be");
        for (sent, expected) in [(0, None), (HEAD_BYTES - 1, None), (all.len() - 3, Some(vec![3, 4]))] {
            let (mut near, mut far) = tokio::io::duplex(1 << 16);
            far.write_all(&all[..sent]).await.expect("room");
            // The other end stays open but sends nothing more.
            let part = SeedIndex::receive(&mut near, Duration::from_millis(50), u64::MAX).await;
            assert_eq!(part.as_ref().ok().map(known), expected, "{sent}: {part:?}");
        }
        let hostile = [SeedIndex::new(KEY).encode(), piece(3), piece(2)].concat();
        assert!(SeedIndex::receive(&mut hostile.as_slice(), PATIENCE, u64::MAX).await.is_err(), "out of order");
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
            ("another version", with(7, 1)),
            ("a cut run", good[..good.len() - 1].to_vec()),
            ("a cut head", good[..second + 3].to_vec()),
            ("a count that nothing backs", with(run + 11, 3)),
            ("too long a run", with(run + 8, 0xff)),
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
