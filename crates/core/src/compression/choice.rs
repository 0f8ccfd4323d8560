//! The codecs that an encoder may choose.

/// How frames are coded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// As they are.
    #[default]
    Raw,
    /// LZ4.
    Lz4,
    /// zstd at this level, -7 to 19; each frame on its own.
    Zstd(i8),
    /// The same with long-distance matching: what was sent before on the same lane, up to a window of 128 MiB, need not
    /// be sent again. Never chosen by [`next`](super::next), because its worth shows only in later passes.
    ZstdLong(i8),
}

/// The codecs that [`next`](super::next) chooses from, from the cheapest to the deepest.
pub const CANDIDATES: [Choice; 5] = [Choice::Lz4, Choice::Zstd(-5), Choice::Zstd(-1), Choice::Zstd(1), Choice::Zstd(3)];
