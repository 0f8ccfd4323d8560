//! What files hold: which parts of them are zeroes or holes, and which blocks an image has, by their hashes. Knows neither
//! channels nor the protocols that use it.

pub mod index;
pub(crate) mod sparse;
