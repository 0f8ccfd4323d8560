//! Tracks which pages of a disk were written over one connection.
//!
//! One bit per page, for the parts of the disk that were touched. Memory is bounded: beyond the bound, more counts as
//! written than was, never less.

use std::collections::BTreeMap;

use crate::content::sparse::PAGE_BYTES;

/// Pages of one bitmap: 128 MiB of disk in 4 KiB of memory.
const CHUNK_PAGES: u64 = 1 << 15;
const CHUNK_WORDS: usize = CHUNK_PAGES as usize / 64;
/// 64 MiB of bitmaps: 2 TiB of partly written disk.
const BITMAPS_MAX: usize = 1 << 14;
/// 32 TiB of disk.
const CHUNKS_MAX: usize = 1 << 18;
/// Largest number of ranges for one request: each becomes a request to the server.
const RANGES_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Written {
    chunks: BTreeMap<u64, Chunk>,
    bitmaps: usize,
    /// More was touched than can be tracked.
    too_much: bool,
}

enum Chunk {
    Some(Box<[u64; CHUNK_WORDS]>),
    All,
}

impl Written {
    /// Marks bytes `start` to `end` as written.
    pub(super) fn mark(&mut self, start: u64, end: u64) {
        let (mut page, end) = (start / PAGE_BYTES, end.div_ceil(PAGE_BYTES));
        while page < end && !self.too_much {
            let chunk = page / CHUNK_PAGES;
            let chunk_end = end.min((chunk + 1) * CHUNK_PAGES);
            self.mark_in(chunk, page % CHUNK_PAGES, chunk_end - chunk * CHUNK_PAGES);
            page = chunk_end;
        }
    }

    /// Marks pages `from` to `to` of one chunk.
    fn mark_in(&mut self, number: u64, from: u64, to: u64) {
        let is_whole = from == 0 && to == CHUNK_PAGES;
        let has_room = self.bitmaps < BITMAPS_MAX;
        if self.chunks.len() >= CHUNKS_MAX && !self.chunks.contains_key(&number) {
            self.too_much = true;
            self.chunks.clear();
            return;
        }
        let chunk = self.chunks.entry(number).or_insert_with(|| {
            if is_whole || !has_room {
                return Chunk::All;
            }
            self.bitmaps += 1;
            Chunk::Some(Box::new([0; CHUNK_WORDS]))
        });
        let Chunk::Some(bits) = chunk else { return };
        if !is_whole {
            for page in from..to {
                bits[page as usize / 64] |= 1 << (page % 64);
            }
        }
        if is_whole || bits.iter().all(|word| *word == u64::MAX) {
            *chunk = Chunk::All;
            self.bitmaps -= 1;
        }
    }

    /// The ranges within `start` to `end` that may have been written, in order. At most 64, so gaps between them may be
    /// included.
    pub(super) fn ranges(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        if self.too_much {
            return vec![(start, end)];
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let (mut page, page_end) = (start / PAGE_BYTES, end.div_ceil(PAGE_BYTES));
        loop {
            let first = self.next(page, page_end, true);
            if first >= page_end {
                return ranges;
            }
            page = self.next(first, page_end, false);
            let range = (start.max(first * PAGE_BYTES), end.min(page.saturating_mul(PAGE_BYTES)));
            if ranges.len() < RANGES_MAX {
                ranges.push(range);
            } else if let Some(last) = ranges.last_mut() {
                last.1 = range.1;
            }
        }
    }

    /// The first page from `page` on whose state is `is_written`; `end` if there is none before.
    fn next(&self, mut page: u64, end: u64, is_written: bool) -> u64 {
        while page < end {
            let (chunk, inside) = (page / CHUNK_PAGES, page % CHUNK_PAGES);
            let word = match self.chunks.get(&chunk) {
                None if !is_written => return page,
                Some(Chunk::All) if is_written => return page,
                None | Some(Chunk::All) => {
                    page = (chunk + 1) * CHUNK_PAGES;
                    continue;
                }
                Some(Chunk::Some(bits)) => bits[inside as usize / 64],
            };
            let matching = (if is_written { word } else { !word }) >> (page % 64);
            if matching != 0 {
                return end.min(page + u64::from(matching.trailing_zeros()));
            }
            page = (page / 64 + 1) * 64;
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK_BYTES: u64 = CHUNK_PAGES * PAGE_BYTES;

    #[test]
    fn what_was_not_touched_is_not_written() {
        let mut written = Written::default();
        assert_eq!(written.ranges(0, 1 << 40), []);
        written.mark(5000, 5001);
        assert_eq!(written.ranges(0, 1 << 40), [(4096, 8192)]);
        assert_eq!(written.ranges(4100, 4200), [(4100, 4200)]);
        assert_eq!(written.ranges(0, 4096), []);
        written.mark(CHUNK_BYTES - 1, 3 * CHUNK_BYTES + 1);
        let long = (CHUNK_BYTES - PAGE_BYTES, 3 * CHUNK_BYTES + PAGE_BYTES);
        assert_eq!(written.ranges(0, 1 << 40), [(4096, 8192), long]);
    }

    #[test]
    fn many_ranges_are_taken_together_at_the_end() {
        let mut written = Written::default();
        for page in 0..200 {
            written.mark(page * 2 * PAGE_BYTES, (page * 2 + 1) * PAGE_BYTES);
        }
        let ranges = written.ranges(0, 1 << 30);
        assert_eq!(ranges.len(), RANGES_MAX);
        assert_eq!(ranges[0], (0, PAGE_BYTES));
        assert_eq!(ranges[RANGES_MAX - 1], (126 * PAGE_BYTES, 399 * PAGE_BYTES));
    }

    #[test]
    fn memory_is_bounded_and_too_much_is_taken_for_written() {
        let mut written = Written::default();
        for chunk in 0..BITMAPS_MAX as u64 + 10 {
            written.mark(chunk * CHUNK_BYTES, chunk * CHUNK_BYTES + 1);
        }
        assert_eq!(written.bitmaps, BITMAPS_MAX);
        let beyond = BITMAPS_MAX as u64 * CHUNK_BYTES;
        assert_eq!(written.ranges(beyond, beyond + 2 * PAGE_BYTES), [(beyond, beyond + 2 * PAGE_BYTES)]);
        // A completely written chunk needs no bitmap.
        written.mark(0, CHUNK_BYTES);
        assert_eq!(written.bitmaps, BITMAPS_MAX - 1);
        for chunk in 0..CHUNKS_MAX as u64 + 1 {
            written.mark(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
        }
        assert_eq!(written.ranges(1 << 60, (1 << 60) + 1), [(1 << 60, (1 << 60) + 1)]);
    }

    proptest! {
        #[test]
        fn it_knows_what_a_list_of_pages_knows(
            marks in prop::collection::vec((0..3 * CHUNK_PAGES, 1..300u64), 0..12),
            (from, length) in (0..3 * CHUNK_PAGES, 1..CHUNK_PAGES),
        ) {
            let mut written = Written::default();
            let mut pages = vec![false; 5 * CHUNK_PAGES as usize];
            for (page, count) in marks {
                written.mark(page * PAGE_BYTES, (page + count) * PAGE_BYTES);
                pages[page as usize..(page + count) as usize].fill(true);
            }
            let mut found = vec![false; pages.len()];
            for (start, end) in written.ranges(from * PAGE_BYTES, (from + length) * PAGE_BYTES) {
                found[(start / PAGE_BYTES) as usize..(end / PAGE_BYTES) as usize].fill(true);
            }
            let asked = from as usize..(from + length) as usize;
            prop_assert_eq!(&found[asked.clone()], &pages[asked]);
        }
    }
}
