//! A file as blocks: which it has, and their content.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use crate::{
    WireError,
    content::sparse::{PAGE_BYTES, all_zero, next_data, punch},
};

/// Largest file: 16 TiB.
pub const FILE_BYTES_MAX: u64 = 1 << 44;
/// Bytes read at once: a whole number of blocks.
pub(super) const READ_BYTES: u64 = 1 << 20;
/// Blocks of a hole processed before yielding to other tasks: each costs a hash.
const HOLE_BATCH_BLOCKS: u32 = 4096;

/// A file of at most [`FILE_BYTES_MAX`], divided into blocks; the last may be shorter.
#[derive(Clone)]
pub(super) struct Blocks {
    pub(super) file: Arc<File>,
    pub(super) length: u64,
    pub(super) block_bytes: u64,
}

impl Blocks {
    /// The number of blocks.
    pub(super) fn count(&self) -> u32 {
        self.length.div_ceil(self.block_bytes) as u32
    }

    pub(super) fn start_of(&self, block: u32) -> u64 {
        u64::from(block) * self.block_bytes
    }

    pub(super) fn end_of(&self, block: u32) -> u64 {
        (self.start_of(block) + self.block_bytes).min(self.length)
    }

    pub(super) fn size_of(&self, block: u32) -> u64 {
        self.end_of(block) - self.start_of(block)
    }

    /// The number of a block that a peer named.
    ///
    /// # Errors
    /// [`WireError::Protocol`] if there is none.
    pub(super) fn named(&self, block: u32) -> Result<u32, WireError> {
        let count = self.count();
        if block < count { Ok(block) } else { Err(WireError::Protocol(format!("block {block} of {count}"))) }
    }

    pub(super) fn reader(&self) -> Reader {
        Reader { blocks: self.clone(), ahead: Vec::new(), ahead_start: 0, hole_until: 0 }
    }

    /// Writes a block. Where the file had a hole, pieces of zeroes are skipped.
    pub(super) async fn put(&self, block: u32, bytes: Vec<u8>, was_held: bool) -> Result<(), WireError> {
        let (file, start) = (Arc::clone(&self.file), self.start_of(block));
        off_thread(move || put_at(&file, start, &bytes, was_held)).await
    }
}

/// Reads blocks in order. Skips holes without reading them, if the file system reports them.
pub(super) struct Reader {
    blocks: Blocks,
    /// What was read of the file from this offset on.
    ahead: Vec<u8>,
    ahead_start: u64,
    /// The last probe found a hole up to this offset, in bytes.
    hole_until: u64,
}

impl Reader {
    /// The content of a block; `None` if it is all zeroes.
    pub(super) async fn read(&mut self, block: u32) -> Result<Option<&[u8]>, WireError> {
        let (start, end) = (self.blocks.start_of(block), self.blocks.end_of(block));
        if end <= self.hole_until {
            if block.is_multiple_of(HOLE_BATCH_BLOCKS) {
                tokio::task::yield_now().await;
            }
            return Ok(None);
        }
        if start < self.ahead_start || end > self.ahead_start + self.ahead.len() as u64 {
            self.read_ahead(start, end).await?;
        }
        if end <= self.hole_until {
            return Ok(None);
        }
        let bytes = &self.ahead[(start - self.ahead_start) as usize..(end - self.ahead_start) as usize];
        Ok(Some(bytes).filter(|bytes| !all_zero(bytes)))
    }

    /// Reads from `start` on, or finds that there is a hole up to `end` at least.
    async fn read_ahead(&mut self, start: u64, end: u64) -> Result<(), WireError> {
        #[cfg(test)]
        slow::takes_its_time().await;
        let (file, length) = (Arc::clone(&self.blocks.file), self.blocks.length);
        let mut ahead = std::mem::take(&mut self.ahead);
        let (ahead, hole_until) = off_thread(move || {
            let data = next_data(&file, start, length);
            if end <= data {
                ahead.clear();
                return Ok((ahead, data));
            }
            ahead.resize(READ_BYTES.min(length - start) as usize, 0);
            file.read_exact_at(&mut ahead, start)?;
            Ok((ahead, 0))
        })
        .await?;
        (self.ahead, self.ahead_start, self.hole_until) = (ahead, start, hole_until);
        Ok(())
    }
}

fn put_at(file: &File, start: u64, bytes: &[u8], was_held: bool) -> io::Result<()> {
    let is_hole = !was_held || punch(file, start, bytes.len() as u64).is_ok();
    for (index, piece) in bytes.chunks(PAGE_BYTES as usize).enumerate() {
        // If no hole could be punched, zeroes are written.
        if !is_hole || !all_zero(piece) {
            file.write_all_at(piece, start + index as u64 * PAGE_BYTES)?;
        }
    }
    Ok(())
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
