//! The content of a file at the destination, which the source compares with its own: keyed hashes of its blocks. For disks
//! ([`crate::nbd`]) and for files that nobody writes ([`crate::file`]).

use std::{collections::BTreeMap, fmt, io, time::Duration};

use ferry_core::error::chain;
use futures_util::future::FutureExt as _;
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
/// In place of a run's count: the end of an index, with one past the last block that it covers in place of the first.
const END: u32 = u32::MAX;
/// Marks a block that the file no longer holds. The chance that a real block has this hash is negligible.
const FORGOTTEN: BlockHash = [0; HASH_BYTES];

/// A block's BLAKE3 hash, truncated to 128 bits. It is keyed: without the key, nobody can construct two blocks with the
/// same hash.
pub(crate) type BlockHash = [u8; HASH_BYTES];

/// The key of an index's hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContentKey(pub [u8; 32]);

impl fmt::Debug for ContentKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ContentKey(…)")
    }
}

/// How a file is divided into blocks, and how these are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hashing {
    key: Option<ContentKey>,
    pub(crate) block_bytes: u64,
}

impl Hashing {
    /// As every content index has it.
    pub(crate) fn new(key: ContentKey) -> Self {
        Self { key: Some(key), block_bytes: BLOCK_BYTES }
    }

    /// Of files that nobody writes, with a peer before version 4.
    pub(crate) const EARLIER: Self = Self { key: None, block_bytes: 256 << 10 };

    /// For a block that arrives in pieces.
    pub(crate) fn hasher(&self) -> blake3::Hasher {
        self.key.map_or_else(blake3::Hasher::new, |key| blake3::Hasher::new_keyed(&key.0))
    }

    /// The whole hash of a block.
    pub(crate) fn hash(&self, block: &[u8]) -> blake3::Hash {
        self.key.map_or_else(|| blake3::hash(block), |key| blake3::keyed_hash(&key.0, block))
    }
}

pub(crate) fn cut(hash: &blake3::Hash) -> BlockHash {
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// The blocks of a file that are not all zero, by position. 256 GiB of data need about 64 MiB of memory, or five times as
/// much if every second block is zero.
#[derive(Clone, PartialEq, Eq)]
pub struct ContentIndex {
    hashing: Hashing,
    /// Runs of consecutive blocks, by their first block.
    runs: BTreeMap<u64, Vec<BlockHash>>,
}

impl fmt::Debug for ContentIndex {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ContentIndex({} blocks)", self.blocks())
    }
}

/// What follows in an index that is being received.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A run of so many blocks was added; none is a sign that the peer goes on.
    Run(u32),
    /// The index is complete for all blocks before this one.
    End(u64),
    /// The peer has closed.
    Closed,
}

impl ContentIndex {
    /// An empty index: nothing is known of the file yet.
    pub fn new(key: ContentKey) -> Self {
        Self::with(Hashing::new(key))
    }

    pub(crate) fn with(hashing: Hashing) -> Self {
        Self { hashing, runs: BTreeMap::new() }
    }

    pub(crate) fn hashing(&self) -> Hashing {
        self.hashing
    }

    /// Records the content of a block of [`BLOCK_BYTES`] at its position; the file's last may be shorter. All-zero blocks
    /// are ignored, as are blocks that do not come after the recorded ones.
    pub fn insert(&mut self, block: u64, bytes: &[u8]) {
        if block >= self.end() && !all_zero(bytes) {
            self.append(block, cut(&self.hashing.hash(bytes)));
        }
    }

    /// One past the last block.
    fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(first, run)| first + run.len() as u64)
    }

    /// Records the hash of a block after all recorded ones.
    pub(crate) fn append(&mut self, block: u64, hash: BlockHash) {
        match self.runs.last_entry() {
            Some(mut last) if last.get().len() < RUN_BLOCKS_MAX && last.key() + last.get().len() as u64 == block => {
                last.get_mut().push(hash);
            }
            _ => drop(self.runs.insert(block, vec![hash])),
        }
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
    /// [`runs`](Self::runs) of each piece. The index of a disk ends with its connection, and that of any other file with
    /// `end_of`.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.hashing.key.expect("an index without a key is not sent").0);
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
            put_run_head(*first, run.len() as u32, bytes);
            run.iter().for_each(|hash| bytes.extend_from_slice(hash));
        }
    }

    /// The encoded end of an index that is complete for the first `blocks`.
    pub(crate) fn end_of(blocks: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_run_head(blocks, END, &mut bytes);
        bytes
    }

    /// Decodes the output of [`Self::encode`]. Allocates at most a few times the input length.
    ///
    /// # Errors
    /// [`WireError::Protocol`] for another format or version, and for blocks out of order; [`WireError::Peer`] if it is
    /// incomplete.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, WireError> {
        let read = async {
            let mut index = Self::receive_head(&mut bytes).await?;
            loop {
                match index.receive_next(&mut bytes).await? {
                    Next::Run(_) => {}
                    Next::Closed => return Ok(index),
                    Next::End(_) => return Err(bad("an end, though it is one of a disk")),
                }
            }
        };
        read.now_or_never().expect("bytes in memory never wait")
    }

    /// Receives the head of an index.
    ///
    /// # Errors
    /// [`WireError::Protocol`] for another format or version; [`WireError::Peer`].
    pub(crate) async fn receive_head(peer: &mut (impl AsyncRead + Unpin)) -> Result<Self, WireError> {
        let mut head = [0; HEAD_BYTES];
        peer.read_exact(&mut head).await.map_err(WireError::Peer)?;
        let key = head.strip_prefix(&MAGIC).ok_or_else(|| bad("another form or version"))?;
        Ok(Self::new(ContentKey(key.try_into().expect("the rest of the head is the key"))))
    }

    /// Receives the next run. If this is cancelled, the rest of the index is lost.
    ///
    /// # Errors
    /// [`WireError::Protocol`] for blocks out of order; [`WireError::Peer`].
    pub(crate) async fn receive_next(&mut self, peer: &mut (impl AsyncRead + Unpin)) -> Result<Next, WireError> {
        let mut head = [0; RUN_HEAD_BYTES];
        let begun = peer.read(&mut head).await.map_err(WireError::Peer)?;
        if begun == 0 {
            return Ok(Next::Closed);
        }
        peer.read_exact(&mut head[begun..]).await.map_err(WireError::Peer)?;
        let (first, count) = run_head(&head);
        if count == END {
            return if first >= self.end() { Ok(Next::End(first)) } else { Err(bad("an end before its last run")) };
        }
        let end = first.checked_add(count.into()).filter(|end| *end <= u64::MAX / BLOCK_BYTES);
        if end.is_none() || count as usize > RUN_BLOCKS_MAX {
            return Err(bad("too long a run"));
        }
        if count > 0 && first < self.end() {
            return Err(bad("runs out of order"));
        }
        if count > 0 {
            let mut run = vec![[0; HASH_BYTES]; count as usize];
            peer.read_exact(run.as_flattened_mut()).await.map_err(WireError::Peer)?;
            self.runs.insert(first, run);
        }
        Ok(Next::Run(count))
    }

    /// Receives the index of a disk, of at most `bytes_max`, until the connection ends or nothing arrives for
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
        let silence = || WireError::Timeout("no more is said of what the destination holds");
        let mut limited = peer.take(bytes_max);
        let head = tokio::time::timeout(silence_max, Self::receive_head(&mut limited)).await;
        let mut index = head.map_err(|_| silence())??;
        loop {
            let next = tokio::time::timeout(silence_max, index.receive_next(&mut limited)).await;
            match next.map_err(|_| silence()).flatten() {
                Ok(Next::Run(_)) => {}
                Ok(Next::Closed) => return Ok(index),
                Ok(Next::End(_)) => return Err(bad("an end, though it is one of a disk")),
                Err(WireError::Peer(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(index),
                Err(error @ (WireError::Peer(_) | WireError::Timeout(_))) => {
                    warn!(error = %chain(&error), "The rest of what the destination holds is not known");
                    return Ok(index);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The hash of `bytes`, if the file holds exactly this block at this position.
    pub(crate) fn find(&self, block: u64, bytes: &[u8]) -> Option<BlockHash> {
        let there = self.at(block)?;
        (there == cut(&self.hashing.hash(bytes))).then_some(there)
    }

    /// The hash of the block at this position; `None` if it is all zero, or not known any more.
    pub(crate) fn at(&self, block: u64) -> Option<BlockHash> {
        let (first, run) = self.runs.range(..=block).next_back()?;
        run.get(usize::try_from(block - first).ok()?).copied().filter(|hash| *hash != FORGOTTEN)
    }

    /// Bytes `start` to `end` of the file changed: forgets the blocks there.
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
fn run_head(head: &[u8; RUN_HEAD_BYTES]) -> (u64, u32) {
    let ([first @ .., _, _, _, _], [.., a, b, c, d]) = (head, head);
    (u64::from_be_bytes(*first), u32::from_be_bytes([*a, *b, *c, *d]))
}

fn put_run_head(first: u64, count: u32, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&first.to_be_bytes());
    bytes.extend_from_slice(&count.to_be_bytes());
}

fn bad(what: &str) -> WireError {
    WireError::Protocol(format!("an index of blocks with {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const KEY: ContentKey = ContentKey([3; 32]);

    fn index(blocks: impl IntoIterator<Item = (u64, BlockHash)>) -> ContentIndex {
        let mut index = ContentIndex::new(KEY);
        blocks.into_iter().for_each(|(block, hash)| index.append(block, hash));
        index
    }

    fn known(index: &ContentIndex) -> Vec<u64> {
        let run = |(first, run): (&u64, &Vec<BlockHash>)| {
            let blocks = (*first..).zip(run.clone());
            blocks.filter(|(_, hash)| *hash != FORGOTTEN).map(|(block, _)| block).collect::<Vec<_>>()
        };
        index.runs.iter().flat_map(run).collect()
    }

    #[test]
    fn an_index_holds_blocks_of_data_and_neither_zeroes_nor_what_comes_out_of_order() {
        let block = BLOCK_BYTES as usize;
        let (mut bytes, mut inside) = (vec![0; block], vec![0; block]);
        bytes[..4].copy_from_slice(b"data");
        inside[4096..4100].copy_from_slice(b"data");
        let mut index = ContentIndex::new(KEY);
        for (at, content) in [(0, &bytes), (3, &inside), (4, &bytes), (50, &vec![0; block]), (99, &bytes)] {
            index.insert(at, content);
        }
        index.insert(60, &bytes);
        // The last block of a file.
        index.insert(100, &bytes[..5000]);
        assert_eq!(known(&index), [0, 3, 4, 99, 100]);
        assert!(index.find(100, &bytes[..5000]).is_some() && index.find(100, &bytes).is_none());
        assert!(index.find(4, &bytes).is_some() && index.find(3, &bytes).is_none() && index.find(5, &bytes).is_none());
        bytes[block - 1] = 1;
        assert!(index.find(4, &bytes).is_none());
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
        const DEADLINE: Duration = Duration::from_secs(20);
        let piece = |block: u64| index([(block, [1; 16]), (block + 1, [2; 16])]).runs();
        let sign = ContentIndex::new(KEY).runs();
        let all = [ContentIndex::new(KEY).encode(), piece(3), sign, piece(9)].concat();
        for chunk in [1, 7, all.len()] {
            let (mut near, mut far) = tokio::io::duplex(chunk);
            let sent = all.clone();
            tokio::spawn(async move { far.write_all(&sent).await });
            let whole = ContentIndex::receive(&mut near, DEADLINE, u64::MAX).await.expect("whole");
            assert_eq!((known(&whole), whole.hashing()), (vec![3, 4, 9, 10], Hashing::new(KEY)));
        }
        let limit = (HEAD_BYTES + RUN_HEAD_BYTES + 2 * HASH_BYTES + 5) as u64;
        let part = ContentIndex::receive(&mut all.as_slice(), DEADLINE, limit).await.expect("a part");
        assert_eq!(known(&part), [3, 4], "no more is read than may be");
        for (sent, expected) in [(0, None), (HEAD_BYTES - 1, None), (all.len() - 3, Some(vec![3, 4]))] {
            let (mut near, mut far) = tokio::io::duplex(1 << 16);
            far.write_all(&all[..sent]).await.expect("room");
            // The other end stays open but sends nothing more.
            let part = ContentIndex::receive(&mut near, Duration::from_millis(50), u64::MAX).await;
            assert_eq!(part.as_ref().ok().map(known), expected, "{sent}: {part:?}");
        }
        let hostile = [ContentIndex::new(KEY).encode(), piece(3), piece(2)].concat();
        assert!(ContentIndex::receive(&mut hostile.as_slice(), DEADLINE, u64::MAX).await.is_err(), "out of order");
    }

    #[test]
    fn hostile_indexes_are_refused() {
        let good = index([(1, [1; 16]), (2, [2; 16]), (9, [3; 16])]).encode();
        assert_eq!(ContentIndex::decode(&good).expect("good").blocks(), 3);
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
            ("an end before its last block", [&good[..], &ContentIndex::end_of(9)].concat()),
        ] {
            assert!(ContentIndex::decode(&bytes).is_err(), "{what}");
        }
    }

    proptest! {
        #[test]
        fn an_index_survives_the_wire(blocks in prop::collection::btree_map(0..64u64, any::<BlockHash>(), 0..40)) {
            let index = index(blocks);
            prop_assert_eq!(ContentIndex::decode(&index.encode()).expect("its own bytes"), index);
        }

        #[test]
        fn any_bytes_are_an_index_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            if let Some(head) = bytes.get_mut(..8) {
                head.copy_from_slice(&MAGIC);
            }
            if let Ok(index) = ContentIndex::decode(&bytes) {
                prop_assert!(index.blocks() * HASH_BYTES <= bytes.len());
            }
        }
    }
}
