//! Disk images: creating them, and reading their content and dependencies from headers and with QEMU's tool.

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
