//! A file that nobody writes, from one host to another: only what differs from what is there already is sent, holes
//! stay holes, and the whole is compared before it counts.
//!
//! ```text
//! destination: blocks u32 · for each: 0 | 1 · hash 32          what it holds; what lies behind holds zeroes
//! source:      1 · block u32 · length u32 · bytes              a block that differs
//!              2 · block u32                                   a block of zeroes where the destination holds something
//!              3 · length u64 · hash 32                        the end: of the whole file, by its blocks' hashes
//! destination: 2 …                                             while it is read again after it was written to disk
//!              0 | 1 · length u16 · why not
//! ```
//! A hash is BLAKE3's. Both ends are authenticated by TLS before a byte of this is sent.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::WireError;

/// Size of a block; the last of a file may be shorter.
pub const BLOCK_BYTES: u64 = 256 << 10;
/// Largest file: 16 TiB.
pub const FILE_BYTES_MAX: u64 = 1 << 44;
/// What is written is looked at in pieces of this size: those of zeroes stay holes.
const PIECE_BYTES: usize = 4096;
/// A peer that is silent for so long is dead. While it reads what it holds it speaks with each block.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// How long the destination may take to write to disk what it took.
const SYNC_MAX: Duration = Duration::from_secs(900);
/// Blocks that are read again between two signs of life.
const SIGN_EVERY: u32 = 256;
const REASON_BYTES_MAX: usize = 512;

const DATA: u8 = 1;
const ZEROES: u8 = 2;
const END: u8 = 3;
const GOES_ON: u8 = 2;

type Hash = [u8; 32];

/// How far a file is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct FileMeter {
    looked_at: AtomicU64,
    sent: AtomicU64,
}

impl FileMeter {
    /// Bytes of the file that are settled. Never more than its length.
    pub fn looked_at(&self) -> u64 {
        self.looked_at.load(Relaxed)
    }

    /// Bytes of the file that went over the wire.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

/// Sends a file. Ok promises that the destination has the same bytes on disk.
///
/// # Errors
/// [`WireError::Local`] when it cannot be read or changes its length; [`WireError::Aborted`] with the destination's reason;
/// [`WireError::Peer`], [`WireError::Protocol`], [`WireError::Timeout`].
pub async fn send<S>(stream: &mut S, file: File, meter: Arc<FileMeter>) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let file = Arc::new(file);
    let length = file.metadata().map_err(WireError::Local)?.len();
    if length > FILE_BYTES_MAX {
        return Err(WireError::Local(io::Error::other("the file is larger than 16 TiB")));
    }
    let held = read_held(stream, blocks_of(length)).await?;
    let mut whole = blake3::Hasher::new();
    for block in 0..blocks_of(length) {
        let bytes = read(&file, block, length).await?;
        let hash = bytes.as_deref().map(hash_of);
        whole.update(&hash.unwrap_or_default());
        let there = held.get(block as usize).copied().flatten();
        match (bytes, hash) {
            (_, hash) if hash == there => {}
            (Some(bytes), _) => {
                let mut head = vec![DATA];
                head.extend_from_slice(&block.to_le_bytes());
                head.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                write(stream, &head).await?;
                write(stream, &bytes).await?;
                meter.sent.fetch_add(bytes.len() as u64, Relaxed);
            }
            (None, _) => {
                let mut head = vec![ZEROES];
                head.extend_from_slice(&block.to_le_bytes());
                write(stream, &head).await?;
            }
        }
        meter.looked_at.store(((u64::from(block) + 1) * BLOCK_BYTES).min(length), Relaxed);
    }
    if file.metadata().map_err(WireError::Local)?.len() != length {
        return Err(WireError::Local(io::Error::other("the file changed its length while it was read")));
    }
    let mut end = vec![END];
    end.extend_from_slice(&length.to_le_bytes());
    end.extend_from_slice(whole.finalize().as_bytes());
    write(stream, &end).await?;
    timely(stream.flush()).await?;
    let mut patience = SYNC_MAX;
    loop {
        match within(patience, stream.read_u8()).await? {
            0 => return Ok(()),
            1 => break,
            GOES_ON => patience = SILENCE_MAX,
            other => return Err(WireError::Protocol(format!("a verdict of kind {other}"))),
        }
    }
    let mut reason = vec![0; usize::from(timely(stream.read_u16_le()).await?).min(REASON_BYTES_MAX)];
    timely(stream.read_exact(&mut reason)).await?;
    Err(WireError::Aborted(String::from_utf8_lossy(&reason).into_owned()))
}

/// Receives a file of `length` bytes into one that may hold something. Ok promises that it has the source's bytes and is
/// on disk.
///
/// # Errors
/// [`WireError::Local`] when it cannot be written, also for what is read again and is not what was sent; the source hears
/// why. [`WireError::Peer`], [`WireError::Protocol`], [`WireError::Timeout`].
pub async fn receive<S>(stream: &mut S, file: File, length: u64, meter: Arc<FileMeter>) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let outcome = take(stream, Arc::new(file), length, &meter).await;
    let verdict = match &outcome {
        Ok(()) => vec![0],
        Err(error) => {
            let mut reason =
                format!("{error}: {}", std::error::Error::source(error).map(ToString::to_string).unwrap_or_default());
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
            let mut bytes = vec![1];
            bytes.extend_from_slice(&(reason.len() as u16).to_le_bytes());
            bytes.extend_from_slice(reason.as_bytes());
            bytes
        }
    };
    let told = async {
        write(stream, &verdict).await?;
        timely(stream.flush()).await
    };
    outcome.and(told.await)
}

async fn take<S>(stream: &mut S, file: Arc<File>, length: u64, meter: &FileMeter) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if length > FILE_BYTES_MAX {
        return Err(WireError::Protocol(format!("a file of {length} bytes")));
    }
    let blocks = blocks_of(length);
    let before = file.metadata().map_err(WireError::Local)?.len();
    file.set_len(length).map_err(WireError::Local)?;
    let holds = if before == 0 { 0 } else { blocks };
    write(stream, &holds.to_le_bytes()).await?;
    let mut held = Vec::with_capacity(holds as usize);
    for block in 0..holds {
        let hash = read(&file, block, length).await?.as_deref().map(hash_of);
        match hash {
            None => write(stream, &[0]).await?,
            Some(hash) => {
                write(stream, &[1]).await?;
                write(stream, &hash).await?;
            }
        }
        held.push(hash.is_some());
    }
    timely(stream.flush()).await?;
    loop {
        match timely(stream.read_u8()).await? {
            DATA => {
                let block = block_below(timely(stream.read_u32_le()).await?, blocks)?;
                let size = timely(stream.read_u32_le()).await?;
                if u64::from(size) != size_of(block, length) {
                    return Err(WireError::Protocol(format!("a block of {size} bytes")));
                }
                let mut bytes = vec![0; size as usize];
                timely(stream.read_exact(&mut bytes)).await?;
                let was_held = held.get(block as usize).copied().unwrap_or(false);
                put(&file, block, bytes, was_held).await?;
                meter.sent.fetch_add(u64::from(size), Relaxed);
                meter.looked_at.fetch_max(((u64::from(block) + 1) * BLOCK_BYTES).min(length), Relaxed);
            }
            ZEROES => {
                let block = block_below(timely(stream.read_u32_le()).await?, blocks)?;
                put(&file, block, vec![0; size_of(block, length) as usize], true).await?;
            }
            END => break,
            other => return Err(WireError::Protocol(format!("a message of kind {other}"))),
        }
    }
    let whole_length = timely(stream.read_u64_le()).await?;
    let mut expected = Hash::default();
    timely(stream.read_exact(&mut expected)).await?;
    if whole_length != length {
        return Err(WireError::Protocol(format!("a file of {whole_length} bytes instead of {length}")));
    }
    let synced = Arc::clone(&file);
    off_thread(move || synced.sync_all()).await?;
    let mut whole = blake3::Hasher::new();
    for block in 0..blocks {
        if block % SIGN_EVERY == 0 {
            write(stream, &[GOES_ON]).await?;
            timely(stream.flush()).await?;
        }
        let hash = read(&file, block, length).await?.as_deref().map(hash_of);
        whole.update(&hash.unwrap_or_default());
    }
    if whole.finalize().as_bytes() != &expected {
        return Err(WireError::Local(io::Error::other("what was written is not what was sent")));
    }
    meter.looked_at.store(length, Relaxed);
    Ok(())
}

async fn read_held<S: AsyncRead + Unpin>(stream: &mut S, blocks: u32) -> Result<Vec<Option<Hash>>, WireError> {
    let count = timely(stream.read_u32_le()).await?;
    if count > blocks {
        return Err(WireError::Protocol(format!("{count} blocks of a file of {blocks}")));
    }
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(match timely(stream.read_u8()).await? {
            0 => None,
            1 => {
                let mut hash = Hash::default();
                timely(stream.read_exact(&mut hash)).await?;
                Some(hash)
            }
            other => return Err(WireError::Protocol(format!("a block of kind {other}"))),
        });
    }
    Ok(held)
}

fn blocks_of(length: u64) -> u32 {
    length.div_ceil(BLOCK_BYTES) as u32
}

fn size_of(block: u32, length: u64) -> u64 {
    (length - u64::from(block) * BLOCK_BYTES).min(BLOCK_BYTES)
}

fn block_below(block: u32, blocks: u32) -> Result<u32, WireError> {
    if block < blocks { Ok(block) } else { Err(WireError::Protocol(format!("block {block} of {blocks}"))) }
}

fn hash_of(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// A block of a file; `None` if it holds zeroes only.
async fn read(file: &Arc<File>, block: u32, length: u64) -> Result<Option<Vec<u8>>, WireError> {
    let file = Arc::clone(file);
    off_thread(move || {
        let mut bytes = vec![0; size_of(block, length) as usize];
        file.read_exact_at(&mut bytes, u64::from(block) * BLOCK_BYTES)?;
        Ok(Some(bytes).filter(|bytes| !is_zero(bytes)))
    })
    .await
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && rest.iter().all(|byte| *byte == 0)
}

/// Writes a block; where the file held nothing, pieces of zeroes are left out.
async fn put(file: &Arc<File>, block: u32, bytes: Vec<u8>, was_held: bool) -> Result<(), WireError> {
    let file = Arc::clone(file);
    off_thread(move || {
        let start = u64::from(block) * BLOCK_BYTES;
        let mut is_hole = !was_held;
        if was_held {
            is_hole = punch(&file, start, bytes.len() as u64).is_ok();
        }
        for (index, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            // Where no hole could be made, zeroes are written.
            if !is_hole || !is_zero(piece) {
                file.write_all_at(piece, start + (index * PIECE_BYTES) as u64)?;
            }
        }
        Ok(())
    })
    .await
}

fn punch(file: &File, start: u64, length: u64) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, start as i64, length as i64)?)
}

async fn off_thread<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, WireError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(outcome) => outcome.map_err(WireError::Local),
        Err(error) => Err(WireError::Local(io::Error::other(error))),
    }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), WireError> {
    timely(stream.write_all(bytes)).await
}

async fn timely<T>(what: impl Future<Output = io::Result<T>>) -> Result<T, WireError> {
    within(SILENCE_MAX, what).await
}

async fn within<T>(limit: Duration, what: impl Future<Output = io::Result<T>>) -> Result<T, WireError> {
    match tokio::time::timeout(limit, what).await {
        Ok(outcome) => outcome.map_err(WireError::Peer),
        Err(_) => Err(WireError::Timeout("the other host was silent")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(content.len() as u64).expect("grown");
        for (index, piece) in content.chunks(PIECE_BYTES).enumerate().filter(|(_, piece)| !is_zero(piece)) {
            file.write_all_at(piece, (index * PIECE_BYTES) as u64).expect("written");
        }
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().expect("there").len() as usize];
        file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    /// Bytes sent, and both outcomes.
    async fn copy(from: &File, to: &File, length: u64) -> (u64, Result<(), WireError>, Result<(), WireError>) {
        let (mut one, mut other) = tokio::io::duplex(1 << 16);
        let (meter, meter_there) = (Arc::<FileMeter>::default(), Arc::<FileMeter>::default());
        let (from, to) = (from.try_clone().expect("cloned"), to.try_clone().expect("cloned"));
        let sending = async {
            let outcome = send(&mut one, from, Arc::clone(&meter)).await;
            drop(one);
            outcome
        };
        let receiving = async {
            let outcome = receive(&mut other, to, length, Arc::clone(&meter_there)).await;
            drop(other);
            outcome
        };
        let (sent, received) = tokio::join!(sending, receiving);
        if sent.is_ok() {
            assert_eq!((meter.looked_at(), meter_there.looked_at()), (length, length));
        }
        (meter.sent(), sent, received)
    }

    #[tokio::test]
    async fn a_file_arrives_whole_and_thin_and_again_with_what_differs() {
        let mut bytes = vec![0; (40 * BLOCK_BYTES + 777) as usize];
        bytes[5 * BLOCK_BYTES as usize..9 * BLOCK_BYTES as usize].fill(7);
        bytes[20 * BLOCK_BYTES as usize + 9] = 1;
        let last = bytes.len() - 1;
        bytes[last] = 3;
        let (from, to) = (file(&bytes), tempfile::tempfile().expect("a file"));
        let length = bytes.len() as u64;
        let (sent, one, other) = copy(&from, &to, length).await;
        one.and(other).expect("copied");
        assert_eq!(sent, 5 * BLOCK_BYTES + 777);
        assert!(content(&to) == bytes, "the same bytes");
        let (takes, took) = (to.metadata().expect("there").blocks(), from.metadata().expect("there").blocks());
        assert!(takes * 512 <= took * 512 + 16 * 1024, "{takes} and {took} sectors");

        // What was there and is gone, what is new, and what is other.
        bytes[6 * BLOCK_BYTES as usize..7 * BLOCK_BYTES as usize].fill(0);
        bytes[30 * BLOCK_BYTES as usize] = 4;
        let from = file(&bytes);
        let (sent, one, other) = copy(&from, &to, length).await;
        one.and(other).expect("copied");
        assert_eq!(sent, BLOCK_BYTES);
        assert!(content(&to) == bytes, "the same bytes");
        let takes = to.metadata().expect("there").blocks() * 512;
        assert!(takes <= from.metadata().expect("there").blocks() * 512 + 16 * 1024, "{takes} bytes");
    }

    #[tokio::test]
    async fn nothing_and_a_little_arrive() {
        for length in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1] {
            let bytes = vec![5; length as usize];
            let (from, to) = (file(&bytes), file(&[9; 300]));
            let (_, one, other) = copy(&from, &to, length).await;
            one.and(other).expect("copied");
            assert!(content(&to) == bytes, "{length}");
        }
    }

    #[tokio::test]
    async fn a_file_of_another_length_is_refused_at_both_ends() {
        let (from, to) = (file(&[1; 9]), tempfile::tempfile().expect("a file"));
        let (_, one, other) = copy(&from, &to, 8).await;
        assert!(matches!(one, Err(WireError::Aborted(_) | WireError::Peer(_))), "{one:?}");
        assert!(matches!(other, Err(WireError::Protocol(_))), "{other:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn whatever_is_held_the_bytes_arrive(
            from in proptest::collection::vec((0_u32..12, any::<u8>()), 0..12),
            held in proptest::collection::vec((0_u32..12, any::<u8>()), 0..12),
            odd in 1_usize..5000,
        ) {
            let length = 11 * BLOCK_BYTES as usize + odd;
            let make = |blocks: &[(u32, u8)]| {
                let mut bytes = vec![0; length];
                for (block, byte) in blocks {
                    let start = *block as usize * BLOCK_BYTES as usize;
                    let end = (start + 9000).min(length);
                    bytes[start..end].fill(*byte);
                }
                bytes
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("built");
            let wanted = make(&from);
            let (source, destination) = (file(&wanted), file(&make(&held)));
            let (_, one, other) = runtime.block_on(copy(&source, &destination, length as u64));
            one.and(other).expect("copied");
            prop_assert!(content(&destination) == wanted);
        }

        #[test]
        fn random_bytes_of_a_peer_end_it_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("built");
            runtime.block_on(async {
                for is_source in [true, false] {
                    let (mut one, mut other) = tokio::io::duplex(1 << 20);
                    other.write_all(&bytes).await.expect("room");
                    other.shutdown().await.expect("ended");
                    let meter = Arc::default();
                    let outcome = match is_source {
                        true => send(&mut one, file(&[1; 900]), meter).await,
                        false => receive(&mut one, tempfile::tempfile().expect("a file"), 900, meter).await,
                    };
                    assert!(outcome.is_err() || is_source, "{outcome:?}");
                }
            });
        }
    }
}
