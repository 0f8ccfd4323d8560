//! How bytes get from one carrier to the other. A transport makes pipes; it does not interpret their content.
//!
//! [`tcp`] is TLS over TCP, for every channel. [`spool`] is files on a share that both hosts reach, for channels in bulk. A
//! transport provides an ordered and private pipe per channel, between ends that have proved their keys, or that they know
//! the session's secret.

pub mod local;
pub mod spool;
pub mod tcp;

use std::{fmt, io, pin::Pin};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{WireError, hello::Channel};

/// A duplex pipe to a peer that has proved its key: ordered, private, with back-pressure.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {
    /// The peer has proved that it belongs to the session and may use more memory from now on.
    fn introduced(&mut self);

    /// Allows a whole window to be in flight. Only for senders that respect a window: on any other pipe, all bytes
    /// written are accepted and queued.
    fn widen(&self);
}

/// A pipe of any transport.
pub type Pipe = Box<dyn Duplex>;
/// A pipe that is being opened.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Pipe, WireError>> + Send + 'a>>;

/// The source's end of a transport.
pub trait Transport: Send + Sync {
    /// Opens a pipe for a channel. The caller sets the deadline.
    fn open(&self, channel: Channel) -> Opening<'_>;
}

/// The destination's end of a transport.
pub trait Listener: Send + 'static {
    /// Where an attempt comes from, for people.
    type Origin: fmt::Display + Send + 'static;

    /// The next incoming attempt to open a pipe: its origin, and the future that completes it, to be run concurrently
    /// with others. The caller sets the deadline.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Origin, Opening<'static>)>> + Send;
}
