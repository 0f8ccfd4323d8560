//! Filters inspect the plain bytes of a channel as they pass one of its ends, and may change them.

use std::error::Error;

/// The direction in which bytes pass an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the local socket to the peer, before they are framed.
    Outbound,
    /// From the peer to the local socket, after they are verified.
    Inbound,
}

/// The output of a filter.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Continues in the direction of the input.
    pub forward: Vec<u8>,
    /// Returns to where the input came from, after everything that this filter has already let out in that direction. A
    /// filter that answers must therefore let out whole messages only.
    pub back: Vec<u8>,
}

/// Why a filter ends its channel.
pub type FilterError = Box<dyn Error + Send + Sync>;

/// Processes the bytes of both directions at one end of a channel.
///
/// Checksums, offsets, acknowledgements and the window apply to framed bytes: the filter's output towards the peer, and
/// its input from the peer. A filter that retains bytes therefore cannot block the window. It must itself bound how
/// many it retains.
pub trait StreamFilter: Send {
    /// Processes the next bytes of a direction and appends the output: all of them, some now and the rest later, or
    /// different bytes with the same meaning ([`crate::nbd`]). Whatever it retains when the stream ends is dropped.
    ///
    /// # Errors
    /// Why the channel must end. Nothing from this call is forwarded then.
    fn filter(&mut self, direction: Direction, bytes: &[u8], out: &mut Outputs) -> Result<(), FilterError>;

    /// All output so far for the local socket was accepted by it.
    fn delivered(&mut self) {}
}
