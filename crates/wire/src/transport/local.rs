//! The other end of a channel: the socket of a program on this host.

use std::os::fd::AsFd as _;

use ferry_core::error::chain;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::UnixStream;
use tracing::debug;

use crate::frame::DATA_BYTES_MAX;

/// Lets a local reader fall behind by two frames before the carrier has to wait for it, and be woken. What waits there is
/// gone in a millisecond or two.
pub fn widen(stream: &UnixStream) {
    if let Err(error) = setsockopt(&stream.as_fd(), sockopt::SndBufForce, &(2 * DATA_BYTES_MAX)) {
        debug!(error = %chain(&error), "The local send buffer stays what net.core.wmem_default says");
    }
}
