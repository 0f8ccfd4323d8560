//! Pipes over a *spool*: a folder on a file share that both hosts reach, for hosts whose way to each other is worse than
//! their ways to a file server.
//!
//! ```text
//! pipe ─ gather ─ cut ─ seal ─ publish ─▶ SHARE/ferry-spool/SESSION/PIPE-DIRECTION-SEQUENCE ─▶ read ─ open ─ pipe
//!           ▲                                              │                                      │
//!           └── at most a few in flight ◀── deletion ◀─────┴──────────────────── delete ◀─────────┘
//! ```
//! Each direction of a pipe is a series of segments (`segment.rs`), each a file that its reader deletes: deletion is the
//! acknowledgement. `cut.rs` decides how large they are. A share is shared: what is read there is what the other agent
//! wrote, in its place, or an error. Whoever may write there can still remove files, and so stop a move, which then stays at
//! its source.
//!
//! Each end has one view of the session's folder (`view.rs`), by the share's own notifications or by listing it. What a share
//! does not do is tried again for 30 s (`retry.rs`): a file server may start again in the middle of a move. A pipe whose user
//! drops it tells the other end; an end without power cannot, and is noticed at the control connection, which is a direct one.
//!
//! Memory of a direction: the segments in flight at the sender, and three at the receiver, each up to 16 MiB; but never more
//! than the window of its channel ([`crate::window`]) lets in.

pub mod conformance;
mod cut;
mod error;
pub mod janitor;
pub mod local;
mod pipe;
mod receiver;
mod retry;
pub mod segment;
mod sender;
mod session;
pub mod share;
mod view;

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex},
};

use ferry_core::error::chain;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tracing::{Instrument as _, warn};
use uuid::Uuid;

pub use self::{
    error::SpoolError,
    session::{FOLDER, Spool},
};
use self::{
    pipe::SpoolPipe,
    segment::{Direction, PipeId, opened_pipe},
};
use super::{Listener, Opening, Pipe, Transport};
use crate::hello::Channel;

/// Most pipes of a session: a pipe for each lane of each channel. A stranger who makes more stops the move.
const PIPES_MAX: usize = 1024;

/// The source's end.
pub struct SpoolDialer(Arc<Spool>);

impl SpoolDialer {
    /// Opens pipes in this spool.
    pub fn new(spool: Arc<Spool>) -> Self {
        Self(spool)
    }
}

impl Transport for SpoolDialer {
    fn open(&self, _channel: Channel) -> Opening<'_> {
        let pipe = PipeId(Uuid::new_v4());
        let pipe: Pipe = Box::new(SpoolPipe::new(&self.0, pipe, Direction::ToDestination));
        Box::pin(std::future::ready(Ok(pipe)))
    }
}

/// The destination's end.
pub struct SpoolAcceptor {
    spool: Arc<Spool>,
    known: Mutex<HashSet<PipeId>>,
    changes: AsyncMutex<watch::Receiver<()>>,
    heart: tokio::task::AbortHandle,
}

impl SpoolAcceptor {
    /// Accepts pipes in this spool, and shows that its session is alive.
    pub fn new(spool: Arc<Spool>) -> Self {
        let heart = tokio::spawn(Arc::clone(&spool).beat().in_current_span()).abort_handle();
        let changes = AsyncMutex::new(spool.view().subscribe());
        Self { spool, known: Mutex::default(), changes, heart }
    }

    /// A pipe that was not accepted yet.
    fn next(&self) -> Option<PipeId> {
        let mut known = self.known.lock().expect("no thread panics while holding this lock");
        let pipe = self.spool.view().find(|name| opened_pipe(name).filter(|pipe| !known.contains(pipe)))?;
        known.insert(pipe);
        Some(pipe)
    }
}

impl Drop for SpoolAcceptor {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

impl Listener for SpoolAcceptor {
    type Origin = String;

    async fn accept(&self) -> io::Result<(String, Opening<'static>)> {
        let mut changes = self.changes.lock().await;
        loop {
            if let Some(fault) = self.spool.view().fault() {
                warn!(error = %chain(&*fault), "No more channels are accepted through the share");
                return std::future::pending().await;
            }
            if self.known.lock().expect("no thread panics while holding this lock").len() >= PIPES_MAX {
                warn!(share = self.spool.share_name(), "Too many channels were opened through the share");
                return std::future::pending().await;
            }
            if let Some(pipe) = self.next() {
                let pipe: Pipe = Box::new(SpoolPipe::new(&self.spool, pipe, Direction::ToSource));
                return Ok((self.spool.share_name(), Box::pin(std::future::ready(Ok(pipe)))));
            }
            let _ = changes.changed().await;
        }
    }
}
