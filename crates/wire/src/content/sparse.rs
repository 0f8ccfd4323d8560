//! Zeroes and holes.

use std::{fs::File, io};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    unistd::{Whence, lseek},
};

/// What is told apart: the smallest unit that file systems allocate.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// At the speed of memory: sixty-four bytes at a time, and data are told by their first.
pub(crate) fn all_zero(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<64>();
    lines.iter().all(|line| line.iter().fold(0, |all, byte| all | byte) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Where the next data of a file begin, at `start` at the earliest; all of it is data where the file system does not tell.
pub(crate) fn next_data(file: &File, start: u64, length: u64) -> u64 {
    // Nothing else goes by the file's offset: every read and write names its place.
    match lseek(file, start as i64, Whence::SeekData) {
        Ok(data) => u64::try_from(data).unwrap_or(start),
        Err(Errno::ENXIO) => length,
        Err(_) => start,
    }
}

/// Makes a hole of these bytes of a file, which read as zeroes from then on.
///
/// # Errors
/// Where the file system cannot.
pub(crate) fn punch(file: &File, start: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, start as i64, length as i64)?)
}
