//! Splits a payload into parts: zeroes, data, and blocks that the destination holds.

use super::protocol::PartKind;
use crate::content::{
    index::{BLOCK_BYTES, ContentIndex},
    sparse::{PAGE_BYTES, all_zero},
};

/// Bytes that did not have to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spared {
    pub(super) zero_bytes: u64,
    pub(super) held_bytes: u64,
}

/// Appends the parts of `payload`, to be written at `offset`, to `out`. Only whole pages count as zeroes, and only
/// whole blocks as held; blocks that differ are removed from the index.
pub(super) fn put_parts(
    payload: &[u8],
    offset: u64,
    mut index: Option<&mut ContentIndex>,
    out: &mut Vec<u8>,
) -> Spared {
    let mut run = Run { payload, offset, start: 0, is_zero: false, spared: Spared::default() };
    let mut at = 0;
    while at < payload.len() {
        let left = payload.len() - at;
        let to_next_block = BLOCK_BYTES - (offset + at as u64) % BLOCK_BYTES;
        let block = payload.get(at..at + BLOCK_BYTES as usize).filter(|_| to_next_block == BLOCK_BYTES);
        let number = (offset + at as u64) / BLOCK_BYTES;
        let hash = index.as_ref().zip(block).and_then(|(index, block)| index.find(number, block));
        let end = at + left.min(to_next_block as usize);
        if let Some(hash) = hash {
            run.end(at, &mut index, out);
            PartKind::Reference.put_head(BLOCK_BYTES as u32, out);
            out.extend_from_slice(&hash);
            run.spared.held_bytes += BLOCK_BYTES;
            run.start = end;
            at = end;
        }
        while at < end {
            let to_next_page = PAGE_BYTES - (offset + at as u64) % PAGE_BYTES;
            let page_end = end.min(at + to_next_page as usize);
            let is_zero = page_end - at == PAGE_BYTES as usize && all_zero(&payload[at..page_end]);
            if is_zero != run.is_zero {
                run.end(at, &mut index, out);
                run.is_zero = is_zero;
            }
            at = page_end;
        }
    }
    run.end(payload.len(), &mut index, out);
    run.spared
}

/// Consecutive pages of one kind.
struct Run<'a> {
    payload: &'a [u8],
    offset: u64,
    start: usize,
    is_zero: bool,
    spared: Spared,
}

impl Run<'_> {
    fn end(&mut self, end: usize, index: &mut Option<&mut ContentIndex>, out: &mut Vec<u8>) {
        let bytes = &self.payload[self.start..end];
        if bytes.is_empty() {
            return;
        }
        if let Some(index) = index {
            index.forget(self.offset + self.start as u64, self.offset + end as u64);
        }
        let length = u32::try_from(bytes.len()).expect("a payload is at most 32 MiB");
        if self.is_zero {
            PartKind::Zeroes.put_head(length, out);
            self.spared.zero_bytes += u64::from(length);
        } else {
            PartKind::Data.put_head(length, out);
            out.extend_from_slice(bytes);
        }
        self.start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        content::index::{ContentKey, HASH_BYTES},
        nbd::protocol::{PART_HEAD_BYTES, gather},
    };

    const PAGE: usize = PAGE_BYTES as usize;
    const BLOCK: usize = BLOCK_BYTES as usize;

    /// Kinds (by first letter) and lengths of the parts.
    fn decoded(mut bytes: &[u8]) -> Vec<(char, usize)> {
        let mut parts = Vec::new();
        while !bytes.is_empty() {
            let mut head = Vec::new();
            assert!(gather(&mut head, PART_HEAD_BYTES, &mut bytes), "a whole head");
            let (kind, length) =
                PartKind::decode_head(head.as_slice().try_into().expect("a whole head")).expect("well formed");
            let (letter, body) = match kind {
                PartKind::Zeroes => ('z', 0),
                PartKind::Data => ('d', length as usize),
                PartKind::Reference => ('h', HASH_BYTES),
            };
            bytes = &bytes[body..];
            parts.push((letter, length as usize));
        }
        parts
    }

    /// Blocks 1 and 2 of the disk hold sevens.
    fn index() -> ContentIndex {
        let mut index = ContentIndex::new(ContentKey([1; 32]));
        [1, 2].into_iter().for_each(|block| index.insert(block, &[7; BLOCK]));
        index
    }

    #[test]
    fn payloads_fall_into_parts() {
        let mut pages = vec![0; 6 * PAGE];
        pages[PAGE..3 * PAGE].fill(1);
        pages[5 * PAGE + 9] = 1;
        let sevens = vec![7; 2 * BLOCK];
        let mut changed = sevens.clone();
        changed[BLOCK + 3] = 8;
        let mut thin = sevens.clone();
        thin[..PAGE].fill(0);
        for (payload, offset, parts) in [
            (&pages[..], 0, &[('z', PAGE), ('d', 2 * PAGE), ('z', 2 * PAGE), ('d', PAGE)][..]),
            // Pages are aligned to the disk, not to the payload.
            (&pages[..2 * PAGE], 512, &[('d', 2 * PAGE)]),
            (&pages[3 * PAGE..5 * PAGE], 512, &[('d', PAGE - 512), ('z', PAGE), ('d', 512)]),
            (&pages[..100], 0, &[('d', 100)]),
            (&sevens, BLOCK_BYTES, &[('h', BLOCK), ('h', BLOCK)]),
            (&sevens, 0, &[('d', BLOCK), ('h', BLOCK)]),
            (&sevens, BLOCK_BYTES - 512, &[('d', 512), ('h', BLOCK), ('d', BLOCK - 512)]),
            (&changed, BLOCK_BYTES, &[('h', BLOCK), ('d', BLOCK)]),
            (&thin, BLOCK_BYTES, &[('z', PAGE), ('d', BLOCK - PAGE), ('h', BLOCK)]),
        ] {
            let mut out = Vec::new();
            let spared = put_parts(payload, offset, Some(&mut index()), &mut out);
            assert_eq!(decoded(&out), parts, "{} bytes at {offset}", payload.len());
            let sum = |letter| parts.iter().filter(|part| part.0 == letter).map(|part| part.1 as u64).sum::<u64>();
            assert_eq!(spared, Spared { zero_bytes: sum('z'), held_bytes: sum('h') });
        }
    }

    #[test]
    fn a_block_that_was_written_is_not_named_again() {
        let (mut index, sevens) = (index(), vec![7; BLOCK]);
        for (payload, offset, parts) in [
            (&sevens[..], BLOCK_BYTES, [('h', BLOCK)]),
            (&sevens[..], BLOCK_BYTES, [('h', BLOCK)]),
            (&[8; 512][..], BLOCK_BYTES + 512, [('d', 512)]),
            (&sevens[..], BLOCK_BYTES, [('d', BLOCK)]),
            (&[0; PAGE][..], 3 * BLOCK_BYTES - PAGE_BYTES, [('z', PAGE)]),
            (&sevens[..], 2 * BLOCK_BYTES, [('d', BLOCK)]),
        ] {
            let mut out = Vec::new();
            put_parts(payload, offset, Some(&mut index), &mut out);
            assert_eq!(decoded(&out), parts, "{offset}");
        }
    }
}
