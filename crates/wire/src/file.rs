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
//! A hash is BLAKE3's. Both ends are authenticated by TLS before a byte of this is sent. Whoever has nothing to say for a
//! while sends a sign of life: the destination its 2, the source a block once more that is there already.

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

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};

use crate::WireError;

/// Size of a block; the last of a file may be shorter.
pub const BLOCK_BYTES: u64 = 256 << 10;
/// Largest file: 16 TiB.
pub const FILE_BYTES_MAX: u64 = 1 << 44;
/// What is written is looked at in pieces of this size: those of zeroes stay holes.
const PIECE_BYTES: usize = 4096;
/// A peer that is silent for so long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// A peer that is alive speaks as often: several signs may be late before it is taken for dead.
const SIGN_EVERY: Duration = Duration::from_secs(10);
/// How long the destination may take to write to disk what it took.
const SYNC_MAX: Duration = Duration::from_secs(3600);
/// Blocks of a hole that are gone over before others have their turn: they cost a hash each.
const HOLE_TURN_BLOCKS: u32 = 4096;
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

/// What is to be done where the two files differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Differing {
    /// The destination gets what the source holds.
    Sent,
    /// It is an error: the destination's file is not to be changed.
    Refused,
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
    give(stream, file, meter, Differing::Sent).await
}

/// Compares a file with one that the destination has and that stays as it is; the destination calls [`compare`]. Ok
/// promises that both hold the same bytes.
///
/// # Errors
/// As [`send`]; [`WireError::Differs`].
pub async fn send_same<S>(stream: &mut S, file: File, meter: Arc<FileMeter>) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    give(stream, file, meter, Differing::Refused).await
}

async fn give<S>(stream: &mut S, file: File, meter: Arc<FileMeter>, differing: Differing) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let file = Arc::new(file);
    let length = file.metadata().map_err(WireError::Local)?.len();
    if length > FILE_BYTES_MAX {
        return Err(WireError::Local(io::Error::other("the file is larger than 16 TiB")));
    }
    let held = read_held(stream, blocks_of(length)).await?;
    let (mut whole, mut reader, mut spoke) = (blake3::Hasher::new(), Reader::new(&file, length), Instant::now());
    for block in 0..blocks_of(length) {
        let bytes = reader.read(block).await?;
        let hash = bytes.as_deref().map(hash_of);
        whole.update(&hash.unwrap_or_default());
        let there = held.get(block as usize).copied().flatten();
        if hash != there && differing == Differing::Refused {
            return Err(WireError::Differs);
        }
        // The destination waits for a word: a block that it holds changes nothing there.
        if hash != there || spoke.elapsed() >= SIGN_EVERY {
            send_block(stream, block, bytes.as_deref()).await?;
            meter.sent.fetch_add(bytes.map_or(0, |bytes| bytes.len() as u64), Relaxed);
            spoke = Instant::now();
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

/// A block, or that it holds zeroes only. On its way when it returns.
async fn send_block<S: AsyncWrite + Unpin>(stream: &mut S, block: u32, bytes: Option<&[u8]>) -> Result<(), WireError> {
    let mut head = vec![if bytes.is_some() { DATA } else { ZEROES }];
    head.extend_from_slice(&block.to_le_bytes());
    if let Some(bytes) = bytes {
        head.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    }
    write(stream, &head).await?;
    write(stream, bytes.unwrap_or_default()).await?;
    timely(stream.flush()).await
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
    let outcome = take(stream, Arc::new(file), length, &meter, Differing::Sent).await;
    tell(stream, outcome).await
}

/// Compares a file of `length` bytes, which is not written to, with one that [`send_same`] sends. Ok promises that it holds
/// the source's bytes and is on disk.
///
/// # Errors
/// As [`receive`]; [`WireError::Differs`].
pub async fn compare<S>(stream: &mut S, file: File, length: u64, meter: Arc<FileMeter>) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let outcome = take(stream, Arc::new(file), length, &meter, Differing::Refused).await;
    tell(stream, outcome).await
}

/// Says how it ended to the source.
async fn tell<S: AsyncWrite + Unpin>(stream: &mut S, outcome: Result<(), WireError>) -> Result<(), WireError> {
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

async fn take<S>(
    stream: &mut S,
    file: Arc<File>,
    length: u64,
    meter: &FileMeter,
    differing: Differing,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if length > FILE_BYTES_MAX {
        return Err(WireError::Protocol(format!("a file of {length} bytes")));
    }
    let blocks = blocks_of(length);
    let before = file.metadata().map_err(WireError::Local)?.len();
    match differing {
        Differing::Sent => file.set_len(length).map_err(WireError::Local)?,
        Differing::Refused if before != length => return Err(WireError::Differs),
        Differing::Refused => {}
    }
    let holds = if before == 0 { 0 } else { blocks };
    write(stream, &holds.to_le_bytes()).await?;
    let mut held = Vec::with_capacity(holds as usize);
    let mut reader = Reader::new(&file, length);
    for block in 0..holds {
        let hash = reader.read(block).await?.as_deref().map(hash_of);
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
                match differing {
                    Differing::Sent => put(&file, block, bytes, was_held).await?,
                    Differing::Refused => is_same(&file, block, length, Some(bytes)).await?,
                }
                meter.sent.fetch_add(u64::from(size), Relaxed);
                meter.looked_at.fetch_max(((u64::from(block) + 1) * BLOCK_BYTES).min(length), Relaxed);
            }
            ZEROES => {
                let block = block_below(timely(stream.read_u32_le()).await?, blocks)?;
                match differing {
                    Differing::Sent => put(&file, block, vec![0; size_of(block, length) as usize], true).await?,
                    Differing::Refused => is_same(&file, block, length, None).await?,
                }
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
    sync(stream, &file).await?;
    let (mut whole, mut reader, mut spoke) = (blake3::Hasher::new(), Reader::new(&file, length), Instant::now());
    sign(stream).await?;
    for block in 0..blocks {
        if spoke.elapsed() >= SIGN_EVERY {
            sign(stream).await?;
            spoke = Instant::now();
        }
        let hash = reader.read(block).await?.as_deref().map(hash_of);
        whole.update(&hash.unwrap_or_default());
    }
    if whole.finalize().as_bytes() != &expected {
        return Err(WireError::Local(io::Error::other("what was written is not what was sent")));
    }
    meter.looked_at.store(length, Relaxed);
    Ok(())
}

/// Writes to disk what was taken; the source hears meanwhile that it goes on.
async fn sync<S: AsyncWrite + Unpin>(stream: &mut S, file: &Arc<File>) -> Result<(), WireError> {
    let (file, began) = (Arc::clone(file), Instant::now());
    let syncing = off_thread(move || file.sync_all());
    tokio::pin!(syncing);
    while began.elapsed() < SYNC_MAX {
        match tokio::time::timeout(SIGN_EVERY, &mut syncing).await {
            Ok(outcome) => return outcome,
            Err(_) => sign(stream).await?,
        }
    }
    Err(WireError::Timeout("the file system did not write the file to disk"))
}

/// Says to the source that it goes on.
async fn sign<S: AsyncWrite + Unpin>(stream: &mut S) -> Result<(), WireError> {
    write(stream, &[GOES_ON]).await?;
    timely(stream.flush()).await
}

/// Whether a block holds what came; `None`: zeroes.
async fn is_same(file: &Arc<File>, block: u32, length: u64, bytes: Option<Vec<u8>>) -> Result<(), WireError> {
    let here = Reader::new(file, length).read(block).await?;
    if here == bytes.filter(|bytes| !is_zero(bytes)) { Ok(()) } else { Err(WireError::Differs) }
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

/// Reads the blocks of a file in order. Holes are gone over without being read, where the file system tells of them.
struct Reader {
    file: Arc<File>,
    length: u64,
    /// What was looked at last is a hole up to here. Bytes.
    hole_until: u64,
}

impl Reader {
    fn new(file: &Arc<File>, length: u64) -> Self {
        Self { file: Arc::clone(file), length, hole_until: 0 }
    }

    /// A block; `None` if it holds zeroes only.
    async fn read(&mut self, block: u32) -> Result<Option<Vec<u8>>, WireError> {
        let start = u64::from(block) * BLOCK_BYTES;
        let size = size_of(block, self.length);
        if start + size <= self.hole_until {
            if block.is_multiple_of(HOLE_TURN_BLOCKS) {
                tokio::task::yield_now().await;
            }
            return Ok(None);
        }
        #[cfg(test)]
        tests::takes_its_time().await;
        let (file, length) = (Arc::clone(&self.file), self.length);
        let (bytes, hole_until) = off_thread(move || {
            let data = next_data(&file, start, length);
            if start + size <= data {
                return Ok((None, data));
            }
            let mut bytes = vec![0; size as usize];
            file.read_exact_at(&mut bytes, start)?;
            Ok((Some(bytes).filter(|bytes| !is_zero(bytes)), 0))
        })
        .await?;
        self.hole_until = hole_until;
        Ok(bytes)
    }
}

/// Where the next data of a file begin, at `start` at the earliest; all of it is data where the file system does not tell.
fn next_data(file: &File, start: u64, length: u64) -> u64 {
    use nix::{
        errno::Errno,
        unistd::{Whence, lseek},
    };
    // Nothing else goes by the file's offset: every read and write names its place.
    match lseek(file, start as i64, Whence::SeekData) {
        Ok(data) => u64::try_from(data).unwrap_or(start),
        Err(Errno::ENXIO) => length,
        Err(_) => start,
    }
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
    use std::{cell::Cell, os::unix::fs::MetadataExt as _};

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        static A_READ_TAKES: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    /// A test may make every read slow.
    pub(super) async fn takes_its_time() {
        let time = A_READ_TAKES.get();
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }

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

    #[tokio::test(start_paused = true)]
    async fn hosts_that_read_for_hours_what_they_have_in_common_hear_of_each_other() {
        // Data, and zeroes that are no holes: a host with a slow disk finds nothing to send for longer than a peer waits.
        let mut bytes = vec![7; (30 * BLOCK_BYTES) as usize];
        bytes[8 * BLOCK_BYTES as usize..24 * BLOCK_BYTES as usize].fill(0);
        let written = || {
            let file = file(&[]);
            file.write_all_at(&bytes, 0).expect("written");
            file
        };
        let (from, to, length) = (written(), written(), bytes.len() as u64);
        A_READ_TAKES.set(SILENCE_MAX / 8);
        let (_, one, other) = copy(&from, &to, length).await;
        A_READ_TAKES.set(Duration::ZERO);
        one.and(other).expect("copied");
        assert!(content(&to) == bytes, "the same bytes");
        assert_eq!(to.metadata().expect("there").len(), length);
    }

    #[tokio::test]
    async fn what_a_large_thin_file_does_not_hold_is_not_read() {
        let (from, to) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let length = 64 << 30;
        for file in [&from, &to] {
            file.set_len(length).expect("grown");
            file.write_all_at(&[3; 5000], 40 << 30).expect("written");
        }
        from.write_all_at(&[4; 5000], 50 << 30).expect("written");
        to.write_all_at(&[5; 5000], 20 << 30).expect("written");
        assert_eq!(next_data(&from, 0, length) >> 30, 40, "the file system of this test tells of holes");
        let (sent, one, other) = copy(&from, &to, length).await;
        one.and(other).expect("copied");
        assert_eq!(sent, BLOCK_BYTES);
        let mut there = [1; 5000];
        for (at, byte) in [(20 << 30, 0), (40 << 30, 3), (50 << 30, 4)] {
            to.read_exact_at(&mut there, at).expect("read");
            assert_eq!(there, [byte; 5000], "{at}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_there_is_compared_and_never_written_to() {
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES + 9).map(|at| (at / 4096) as u8).collect();
        let mut other = bytes.clone();
        other[2 * BLOCK_BYTES as usize + 5] ^= 1;
        for (there, is_same) in [(&bytes, true), (&other, false), (&bytes[..9].to_vec(), false)] {
            let (from, to) = (file(&bytes), file(there));
            let (mut one, mut two) = tokio::io::duplex(1 << 16);
            let (from, kept) = (from.try_clone().expect("cloned"), to.try_clone().expect("cloned"));
            let sending = async {
                let outcome = send_same(&mut one, from, Arc::default()).await;
                drop(one);
                outcome
            };
            let comparing = async {
                let outcome = compare(&mut two, to, bytes.len() as u64, Arc::default()).await;
                drop(two);
                outcome
            };
            let (sent, compared) = tokio::join!(sending, comparing);
            assert_eq!((sent.is_ok(), compared.is_ok()), (is_same, is_same), "{sent:?} {compared:?}");
            assert!(content(&kept) == *there, "untouched");
        }
        // A source that sends what differs all the same.
        let (from, to) = (file(&bytes), file(&other));
        let (mut one, mut two) = tokio::io::duplex(1 << 22);
        let kept = to.try_clone().expect("cloned");
        let (_, compared) = tokio::join!(
            send(&mut one, from, Arc::default()),
            compare(&mut two, to, bytes.len() as u64, Arc::default())
        );
        assert!(matches!(compared, Err(WireError::Differs)), "{compared:?}");
        assert!(content(&kept) == other, "untouched");
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
