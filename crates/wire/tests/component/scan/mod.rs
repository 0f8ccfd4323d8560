//! What a raw image holds.

use std::{fs::File, os::unix::fs::FileExt as _};

use ferry_wire::content::index::{BLOCK_BYTES, ContentIndex, ContentKey};
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

/// The index of all its data; holes are skipped, and so is what is left behind the last whole block.
pub fn scan(file: &File, key: ContentKey) -> ContentIndex {
    let mut index = ContentIndex::new(key);
    let count = file.metadata().expect("there").len() / BLOCK_BYTES;
    let mut bytes = vec![0; BLOCK_BYTES as usize];
    let mut next = 0;
    while let Some(data) = seek(file, next * BLOCK_BYTES, Whence::SeekData) {
        let hole = seek(file, data, Whence::SeekHole).expect("a file ends with a hole");
        for block in next.max(data / BLOCK_BYTES)..count.min(hole.div_ceil(BLOCK_BYTES)) {
            file.read_exact_at(&mut bytes, block * BLOCK_BYTES).expect("read");
            index.insert(block, &bytes);
        }
        next = hole.div_ceil(BLOCK_BYTES);
    }
    index
}

/// `None` where there is nothing such behind `offset`.
fn seek(file: &File, offset: u64, whence: Whence) -> Option<u64> {
    match lseek(file, i64::try_from(offset).expect("a small file"), whence) {
        Ok(found) => Some(found as u64),
        Err(Errno::ENXIO) => None,
        Err(error) => panic!("{error}"),
    }
}
