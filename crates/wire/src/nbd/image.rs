//! What is known of the image that a disk is copied into.

use crate::content::index::{SeedIndex, SeedKey};

/// What the source knows of the image at the destination.
#[derive(Debug, Default)]
pub enum Image {
    /// Nothing.
    #[default]
    Unknown,
    /// It was made for this copy and reads as zeroes. Where it does not have to be written is known at the
    /// destination ([`Held::Zeroes`]).
    Zeroes,
    /// It holds these blocks.
    Seed(SeedIndex),
}

/// What the destination knows of its image. For one connection only, and nobody else may write to the image: other
/// connections know nothing.
#[derive(Debug, Default)]
pub enum Held {
    /// Nothing.
    #[default]
    Unknown,
    /// It was made for this copy and reads as zeroes.
    Zeroes,
    /// It holds blocks that the source may name.
    Seed {
        /// They are hashed with it.
        key: SeedKey,
        /// From where to where, in bytes, it may read as something else than zeroes, if that is known.
        data: Option<Vec<(u64, u64)>>,
    },
}

/// Who knows the images at the destination.
pub trait Keeper: Send {
    /// What is known of the image behind the export that the client chose, by its name and size in bytes. Asked once for
    /// a connection at the most. What is told must not be told of the same image again: it would be written meanwhile.
    fn held(&mut self, export: &str, size_bytes: u64) -> Held;

    /// The block at this offset is not what the source was told that it is; the client was told of an error.
    fn changed(&mut self, offset: u64);
}

/// One image that is known, whatever it is called.
impl Keeper for Held {
    fn held(&mut self, _export: &str, _size_bytes: u64) -> Held {
        std::mem::take(self)
    }

    fn changed(&mut self, offset: u64) {
        tracing::error!(offset, "A block is not what the source was told that it is");
    }
}
