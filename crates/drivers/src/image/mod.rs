//! Disk images: made new, and what they hold and need, as their headers and QEMU's tool tell.

mod chain;
mod create;
mod extents;
#[cfg(test)]
mod fixtures;
mod header;

pub use self::{
    chain::below,
    create::create,
    extents::{Extent, extents},
    header::{Header, header},
};
