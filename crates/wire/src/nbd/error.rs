//! Why a disk's channel ends.

use thiserror::Error;

/// What a client, a server or the other carrier said that cannot be carried on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NbdError {
    /// Something stands where something else must.
    #[error("something else than {0}")]
    Unexpected(&'static str),
    /// An option came when there can be none.
    #[error("an NBD option after the handshake")]
    LateOption,
    /// The server told its block size when requests were made for another.
    #[error("The NBD server named its block size after the export")]
    LateBlockSize,
    /// The client has more requests in flight than are followed.
    #[error("more than {0} NBD requests at once")]
    TooManyRequests(usize),
    /// The server was asked more than is followed.
    #[error("more than {0} parts of NBD requests at once")]
    TooManyParts(usize),
    /// The client has two requests in flight that its replies cannot tell apart.
    #[error("two NBD requests with one cookie")]
    SameCookie,
    /// Nobody asked.
    #[error("an NBD reply that nobody waits for")]
    UnknownReply,
    /// Requests follow the one that said that none would.
    #[error("an NBD client that goes on after its goodbye")]
    AfterGoodbye,
    /// A client uses a command of the carriers.
    #[error("the NBD command {0:#x}, which only carriers may use")]
    CarriersCommand(u16),
    /// Beyond the end of any disk.
    #[error("an NBD request for {length} bytes at {offset}")]
    OutOfBounds {
        /// Where.
        offset: u64,
        /// How many.
        length: u32,
    },
    /// More than a WRITE may have.
    #[error("an NBD request to write {0} bytes at once")]
    TooLong(u32),
    /// The other carrier's parts are no parts of a WRITE.
    #[error("{0}")]
    Parts(&'static str),
    /// Of a kind that is not known.
    #[error("a part of the unknown kind {0}")]
    UnknownPart(u8),
}
