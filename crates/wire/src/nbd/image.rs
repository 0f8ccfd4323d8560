//! What is known about the image that a disk is copied into.

use crate::content::index::{ContentIndex, ContentKey};

/// What the source knows about the destination's image.
#[derive(Debug, Default)]
pub enum Image {
    /// Nothing.
    #[default]
    Unknown,
    /// The image was created for this copy and reads as zeroes. The destination tracks what need not be written
    /// ([`ImageContent::Zeroes`]).
    Zeroes,
    /// It holds these blocks.
    Partial(ContentIndex),
}

/// What the destination knows about its image. Valid for one connection only, while there is no other writer; other
/// connections know nothing.
#[derive(Debug, Default)]
pub enum ImageContent {
    /// Nothing.
    #[default]
    Unknown,
    /// The image was created for this copy and reads as zeroes.
    Zeroes,
    /// The image holds blocks that the source may name by hash.
    Partial {
        /// The key of the hashes.
        key: ContentKey,
        /// Byte ranges (start, end) that may contain non-zero data, if known.
        data: Option<Vec<(u64, u64)>>,
    },
}

/// Knows the images at the destination.
pub trait ImageCatalog: Send {
    /// What is known about the image of the chosen export, by its name and size in bytes. Called at most once per
    /// connection. The same knowledge must not be handed out again: the image is written meanwhile.
    fn content(&mut self, export: &str, size_bytes: u64) -> ImageContent;

    /// The block at this offset differs from what the source was told; the client received an error.
    fn changed(&mut self, offset: u64);
}

/// One known image under any name.
impl ImageCatalog for ImageContent {
    fn content(&mut self, _export: &str, _size_bytes: u64) -> ImageContent {
        std::mem::take(self)
    }

    fn changed(&mut self, offset: u64) {
        tracing::error!(offset, "A block is not what the source was told that it is");
    }
}
