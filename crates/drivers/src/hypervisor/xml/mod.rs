//! Reading and editing libvirt's XML.

pub(super) mod capabilities;
pub(super) mod edit;
pub(super) mod facts;
#[cfg(test)]
mod fixtures;
mod node;
