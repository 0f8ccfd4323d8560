//! How bytes get from one carrier to the other. A transport makes pipes; what goes through them is not its business.
//!
//! TCP with TLS is the one transport. The two traits are where another one fits, as files on a share that both hosts see:
//! all that it must give is an ordered and private pipe for a channel, between ends that have proved their keys.

pub mod local;
pub mod tcp;

use std::{io, net::SocketAddr, pin::Pin};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{WireError, hello::Channel};

/// A duplex pipe to a peer that has proved its key: ordered, private, with back-pressure.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {
    /// The peer belongs to the session: from now on it may use memory.
    fn introduced(&mut self);

    /// Lets a whole window be in flight. Only for a sender that keeps to a window: whatever is written to any other pipe is
    /// taken, and waits.
    fn widen(&self);
}

/// A pipe of any transport.
pub type Pipe = Box<dyn Duplex>;
/// A pipe that is being made.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Pipe, WireError>> + Send + 'a>>;

/// The source's end of a transport.
pub trait Transport: Send + Sync {
    /// Opens a pipe for a channel. The caller sets the deadline.
    fn open(&self, channel: Channel) -> Opening<'_>;
}

/// The destination's end of a transport.
pub trait Listener: Send + 'static {
    /// The next attempt to open a pipe: from where, and the rest of what its opening takes, to be run beside others. The
    /// caller sets the deadline.
    fn accept(&self) -> impl Future<Output = io::Result<(SocketAddr, Opening<'static>)>> + Send;
}
