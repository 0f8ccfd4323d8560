//! Filters: what looks at the plain bytes of a channel as they pass one of its ends, and may change them.

use std::error::Error;

/// Which way bytes pass an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the local socket to the peer, before they are framed.
    Outbound,
    /// From the peer to the local socket, after they are verified.
    Inbound,
}

/// Where a filter puts what goes on.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Goes on in the direction in which the bytes came.
    pub forward: Vec<u8>,
    /// Goes back to where they came from, behind all that this filter has let out in the other direction so far. So a
    /// filter that answers lets out whole messages only.
    pub back: Vec<u8>,
}

/// Why a filter ends its channel.
pub type FilterError = Box<dyn Error + Send + Sync>;

/// Takes the bytes of both directions at one end of a channel.
///
/// Checksums, offsets, acknowledgements and the window are of what is framed: of what a filter let out towards the peer,
/// and of what it took from there. So it cannot hold up the window by keeping bytes back. A filter itself bounds how many it
/// keeps.
pub trait StreamFilter: Send {
    /// Takes the next bytes of a direction and appends what goes on: all of them, some now and the rest later, or others
    /// that mean the same ([`crate::nbd`]). What it still keeps when the stream ends is dropped.
    ///
    /// # Errors
    /// Why the channel must end. Nothing of this call goes on then.
    fn filter(&mut self, direction: Direction, bytes: &[u8], out: &mut Outputs) -> Result<(), FilterError>;

    /// Everything that was let out in this direction so far was taken by the socket it was meant for.
    fn delivered(&mut self, _direction: Direction) {}
}
