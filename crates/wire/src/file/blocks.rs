//! A file as blocks: which it has, their content, and their hashes.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use crate::{
    WireError,
    content::sparse::{PAGE_BYTES, all_zero, next_data, punch},
};

/// Size of a block; the last block of a file may be shorter.
pub const BLOCK_BYTES: u64 = 256 << 10;
/// Largest file: 16 TiB.
pub const FILE_BYTES_MAX: u64 = 1 << 44;
/// Blocks of a hole processed before yielding to other tasks: each costs a hash.
const HOLE_TURN_BLOCKS: u32 = 4096;

/// BLAKE3 of a block.
pub(super) type Hash = [u8; 32];

pub(super) fn blocks_of(length: u64) -> u32 {
    length.div_ceil(BLOCK_BYTES) as u32
}

pub(super) fn size_of(block: u32, length: u64) -> u64 {
    (length - u64::from(block) * BLOCK_BYTES).min(BLOCK_BYTES)
}

pub(super) fn block_below(block: u32, blocks: u32) -> Result<u32, WireError> {
    if block < blocks { Ok(block) } else { Err(WireError::Protocol(format!("block {block} of {blocks}"))) }
}

pub(super) fn hash_of(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// Reads the blocks of a file in order. Skips holes without reading them, if the file system reports them.
pub(super) struct Reader {
    file: Arc<File>,
    length: u64,
    /// The last probe found a hole up to this offset, in bytes.
    hole_until: u64,
}

impl Reader {
    pub(super) fn new(file: &Arc<File>, length: u64) -> Self {
        Self { file: Arc::clone(file), length, hole_until: 0 }
    }

    /// The content of a block; `None` if it is all zeroes.
    pub(super) async fn read(&mut self, block: u32) -> Result<Option<Vec<u8>>, WireError> {
        let start = u64::from(block) * BLOCK_BYTES;
        let size = size_of(block, self.length);
        if start + size <= self.hole_until {
            if block.is_multiple_of(HOLE_TURN_BLOCKS) {
                tokio::task::yield_now().await;
            }
            return Ok(None);
        }
        #[cfg(test)]
        slow::takes_its_time().await;
        let (file, length) = (Arc::clone(&self.file), self.length);
        let (bytes, hole_until) = off_thread(move || {
            let data = next_data(&file, start, length);
            if start + size <= data {
                return Ok((None, data));
            }
            let mut bytes = vec![0; size as usize];
            file.read_exact_at(&mut bytes, start)?;
            Ok((Some(bytes).filter(|bytes| !all_zero(bytes)), 0))
        })
        .await?;
        self.hole_until = hole_until;
        Ok(bytes)
    }
}

/// Writes a block. Where the file had a hole, pieces of zeroes are skipped.
pub(super) async fn put(file: &Arc<File>, block: u32, bytes: Vec<u8>, was_held: bool) -> Result<(), WireError> {
    let file = Arc::clone(file);
    off_thread(move || {
        let start = u64::from(block) * BLOCK_BYTES;
        let mut is_hole = !was_held;
        if was_held {
            is_hole = punch(&file, start, bytes.len() as u64).is_ok();
        }
        for (index, piece) in bytes.chunks(PAGE_BYTES as usize).enumerate() {
            // If no hole could be punched, zeroes are written.
            if !is_hole || !all_zero(piece) {
                file.write_all_at(piece, start + index as u64 * PAGE_BYTES)?;
            }
        }
        Ok(())
    })
    .await
}

pub(super) async fn off_thread<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, WireError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(outcome) => outcome.map_err(WireError::Local),
        Err(error) => Err(WireError::Local(io::Error::other(error))),
    }
}

/// Lets a test slow down every read.
#[cfg(test)]
pub(super) mod slow {
    use std::{cell::Cell, time::Duration};

    thread_local! {
        pub(in crate::file) static A_READ_TAKES: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    pub(super) async fn takes_its_time() {
        let time = A_READ_TAKES.get();
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
    }
}
