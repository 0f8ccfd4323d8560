//! Frames that do not shrink are sent as they are, and soon not even tried.

/// Whether a frame is worth sending coded: it must become smaller by 3 %, or decoding it costs more than it spares.
pub fn shrinks(plain: usize, coded: usize) -> bool {
    coded <= plain - plain.div_ceil(32)
}

/// Frames in a row that did not shrink, after which not every frame is tried.
const MISSES: u32 = 3;
/// The largest number of frames between two tries: 8 MiB of full frames.
const APART_MAX: u32 = 32;

/// Decides which frames are tried. Of bytes that do not shrink, at most one frame in 32 is encoded in vain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skip {
    misses: u32,
    /// Frames to skip before the next try.
    left: u32,
}

impl Skip {
    /// Whether the next frame is tried. To be called once for each frame.
    pub fn tries(&mut self) -> bool {
        let is_tried = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_tried
    }

    /// Records whether the frame that was tried shrank.
    pub fn tried(&mut self, has_shrunk: bool) {
        self.misses = if has_shrunk { 0 } else { self.misses.saturating_add(1) };
        self.left = match self.misses.checked_sub(MISSES) {
            None => 0,
            Some(more) => (4 << more.min(4)).min(APART_MAX) - 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_percent_are_worth_it() {
        for (plain, coded, is_worth_it) in
            [(0, 0, true), (100, 96, true), (100, 97, false), (3200, 3100, true), (1, 1, false)]
        {
            assert_eq!(shrinks(plain, coded), is_worth_it, "{plain} {coded}");
        }
    }

    #[test]
    fn what_does_not_shrink_is_tried_ever_less_often_and_what_does_always() {
        let mut skip = Skip::default();
        let mut tried = Vec::new();
        for frame in 0..200 {
            if skip.tries() {
                tried.push(frame);
                skip.tried(false);
            }
        }
        assert_eq!(tried, [0, 1, 2, 6, 14, 30, 62, 94, 126, 158, 190]);
        skip.tried(true);
        for _ in 0..100 {
            assert!(skip.tries());
            skip.tried(true);
        }
        // Two frames of a mixed stream that do not shrink cost nothing else.
        skip.tried(false);
        skip.tried(false);
        assert!(skip.tries());
    }
}
