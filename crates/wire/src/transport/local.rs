//! The local end of a channel: the socket of a program on this host.

use std::os::fd::AsFd as _;

use ferry_core::error::chain;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UnixStream;
use tracing::debug;

use crate::frame::DATA_BYTES_MAX;

/// Enlarges the socket buffer, so that a local reader may lag by two frames before the carrier has to wait and be
/// woken. Bytes buffered there drain within a millisecond or two.
pub fn widen(stream: &UnixStream) {
    if let Err(error) = setsockopt(&stream.as_fd(), sockopt::SndBufForce, &(2 * DATA_BYTES_MAX)) {
        debug!(error = %chain(&error), "The local send buffer stays what net.core.wmem_default says");
    }
}
