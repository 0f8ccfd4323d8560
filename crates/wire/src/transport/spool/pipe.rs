//! A pipe over a spool, as its two users see it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};

use super::{
    error::{Fault, io_error},
    receiver::receive,
    segment::{Direction, Kind, Opened, PipeId},
    sender::{Outbox, send},
    session::Spool,
};
use crate::transport::Duplex;

/// Bytes that are accepted are sent within [`super::cut::IDLE`], flushed or not. Errors of the share are those of the next
/// call.
pub(super) struct SpoolPipe {
    outbox: Arc<Outbox>,
    inbox: mpsc::Receiver<Result<Opened, Fault>>,
    current: Option<Opened>,
    /// Bytes of `current` that were taken.
    taken: usize,
    has_ended: bool,
}

impl SpoolPipe {
    /// The end of a pipe that sends in this direction. Its tasks end when it is closed or dropped.
    pub(super) fn new(spool: &Arc<Spool>, pipe: PipeId, direction: Direction) -> Self {
        let outbox = Arc::new(Outbox::new());
        // One segment is being used, and one waits.
        let (filled, inbox) = mpsc::channel(1);
        let seal = |direction| spool.keys().seal(pipe, direction);
        tokio::spawn(send(Arc::clone(&outbox), Arc::clone(spool), seal(direction)));
        tokio::spawn(receive(filled, Arc::clone(spool), seal(direction.opposite())));
        Self { outbox, inbox, current: None, taken: 0, has_ended: false }
    }
}

impl Drop for SpoolPipe {
    fn drop(&mut self) {
        self.outbox.abandon();
    }
}

impl AsyncRead for SpoolPipe {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(current) = &this.current {
                let rest = &current.plain()[this.taken..];
                if !rest.is_empty() {
                    let count = out.remaining().min(rest.len());
                    out.put_slice(&rest[..count]);
                    this.taken += count;
                    return Poll::Ready(Ok(()));
                }
                this.has_ended |= current.kind == Kind::Last;
                (this.current, this.taken) = (None, 0);
            }
            if this.has_ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(this.inbox.poll_recv(context)) {
                Some(Ok(opened)) => this.current = Some(opened),
                Some(Err(fault)) => return Poll::Ready(Err(io_error(fault))),
                // Its task told the reason before.
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
    }
}

impl AsyncWrite for SpoolPipe {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.outbox.poll_add(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.outbox.poll_add(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.outbox.check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbox.poll_close(context)
    }
}

impl Duplex for SpoolPipe {
    fn introduced(&mut self) {}

    /// A window is in flight anyway: in segments.
    fn widen(&self) {}
}
