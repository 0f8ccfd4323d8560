//! Errors of disk channels.

use thiserror::Error;

/// A message of a client, a server or the other carrier that makes the channel fail.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NbdError {
    /// Unexpected bytes where these were required.
    #[error("something else than {0}")]
    Unexpected(&'static str),
    /// An option arrived after the handshake.
    #[error("an NBD option after the handshake")]
    LateOption,
    /// The server announced its block size after requests had been prepared for another.
    #[error("The NBD server named its block size after the export")]
    LateBlockSize,
    /// The client has more requests in flight than the limit.
    #[error("more than {0} NBD requests at once")]
    TooManyRequests(usize),
    /// The server has more pending requests than the limit.
    #[error("more than {0} parts of NBD requests at once")]
    TooManyParts(usize),
    /// The client has two requests in flight with the same cookie, so replies are ambiguous.
    #[error("two NBD requests with one cookie")]
    SameCookie,
    /// A reply without a request.
    #[error("an NBD reply that nobody waits for")]
    UnknownReply,
    /// A request after the client's disconnect request.
    #[error("an NBD client that goes on after its goodbye")]
    AfterGoodbye,
    /// The client used a command reserved for carriers.
    #[error("the NBD command {0:#x}, which only carriers may use")]
    CarriersCommand(u16),
    /// The request exceeds any possible disk.
    #[error("an NBD request for {length} bytes at {offset}")]
    OutOfBounds {
        /// Its offset in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// The payload exceeds the limit of a WRITE.
    #[error("an NBD request to write {0} bytes at once")]
    TooLong(u32),
    /// The other carrier sent parts that do not form a WRITE.
    #[error("{0}")]
    Parts(&'static str),
    /// A part of an unknown kind.
    #[error("a part of the unknown kind {0}")]
    UnknownPart(u8),
}
