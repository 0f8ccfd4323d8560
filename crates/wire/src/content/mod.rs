//! Content of files: which parts are zeroes or holes, and which blocks an image has, by hash. Independent of channels
//! and of the protocols that use it.

pub mod index;
pub(crate) mod sparse;
