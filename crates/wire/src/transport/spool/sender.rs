//! The outbound direction of a pipe: gather, cut, seal, publish. Mirror of `receiver.rs`.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::{sync::Notify, time::Instant};

use super::{
    cut::{Cut, Outlook, cut},
    error::{Fault, io_error},
    segment::{HEADER_BYTES, Kind, PLAIN_BYTES_MAX, RESET_SEQUENCE, Seal},
    session::Spool,
};

/// How long the end of a pipe that was given up may take to be told.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What is to be sent, between the pipe and its task.
pub(super) struct Outbox {
    gathering: Mutex<Gathering>,
    /// Wakes the task.
    due: Notify,
}

struct Gathering {
    /// Room for a header, then the bytes.
    bytes: Vec<u8>,
    /// When bytes were last added.
    touched: Instant,
    stage: Stage,
    /// Waits for room, or for the end.
    writer: Option<Waker>,
}

/// How far a direction is.
enum Stage {
    /// Bytes may be added.
    Open,
    /// All bytes were added.
    Closing,
    /// All bytes are published.
    Closed,
    /// The pipe is gone before it was closed.
    Abandoned,
    /// It failed.
    Failed(Fault),
}

impl Gathering {
    fn plain_bytes(&self) -> usize {
        self.bytes.len() - HEADER_BYTES
    }

    fn wake(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

impl Outbox {
    pub(super) fn new() -> Self {
        let gathering =
            Gathering { bytes: vec![0; HEADER_BYTES], touched: Instant::now(), stage: Stage::Open, writer: None };
        Self { gathering: Mutex::new(gathering), due: Notify::new() }
    }

    fn gathering(&self) -> MutexGuard<'_, Gathering> {
        self.gathering.lock().expect("no thread panics while holding this lock")
    }

    /// Takes bytes to send, as many as there is room for.
    pub(super) fn poll_add(&self, context: &Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut gathering = self.gathering();
        match &gathering.stage {
            Stage::Open => {}
            Stage::Failed(fault) => return Poll::Ready(Err(io_error(Arc::clone(fault)))),
            Stage::Closing | Stage::Closed | Stage::Abandoned => {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        let mut added = 0;
        for part in parts {
            let room = PLAIN_BYTES_MAX - gathering.plain_bytes();
            let part = &part[..part.len().min(room)];
            gathering.bytes.extend_from_slice(part);
            added += part.len();
        }
        if added == 0 && parts.iter().any(|part| !part.is_empty()) {
            gathering.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        gathering.touched = Instant::now();
        drop(gathering);
        self.due.notify_one();
        Poll::Ready(Ok(added))
    }

    /// Whether the direction goes on.
    pub(super) fn check(&self) -> io::Result<()> {
        match &self.gathering().stage {
            Stage::Failed(fault) => Err(io_error(Arc::clone(fault))),
            Stage::Open | Stage::Closing | Stage::Closed | Stage::Abandoned => Ok(()),
        }
    }

    /// Closes the direction; ready when all of it is published.
    pub(super) fn poll_close(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.gathering();
        match &gathering.stage {
            Stage::Open => gathering.stage = Stage::Closing,
            Stage::Closing => {}
            Stage::Closed | Stage::Abandoned => return Poll::Ready(Ok(())),
            Stage::Failed(fault) => return Poll::Ready(Err(io_error(Arc::clone(fault)))),
        }
        gathering.writer = Some(context.waker().clone());
        drop(gathering);
        self.due.notify_one();
        Poll::Pending
    }

    /// The pipe is gone.
    pub(super) fn abandon(&self) {
        let mut gathering = self.gathering();
        if matches!(gathering.stage, Stage::Open | Stage::Closing) {
            gathering.stage = Stage::Abandoned;
        }
        drop(gathering);
        self.due.notify_one();
    }

    fn end(&self, stage: Stage) {
        let mut gathering = self.gathering();
        gathering.stage = stage;
        gathering.wake();
    }

    /// What to do about the gathered bytes; `None` if the pipe was given up.
    fn outlook(&self, in_flight: &VecDeque<InFlight>) -> Option<Outlook> {
        let gathering = self.gathering();
        let is_closing = match &gathering.stage {
            Stage::Open => false,
            Stage::Closing => true,
            Stage::Abandoned | Stage::Closed | Stage::Failed(_) => return None,
        };
        Some(Outlook {
            gathered: gathering.plain_bytes(),
            idle: gathering.touched.elapsed(),
            is_closing,
            in_flight: in_flight.len(),
            in_flight_bytes: in_flight.iter().map(|segment| segment.bytes).sum(),
        })
    }

    /// Takes what was gathered.
    fn take(&self) -> (Vec<u8>, Kind) {
        let mut gathering = self.gathering();
        let kind = if matches!(gathering.stage, Stage::Closing) { Kind::Last } else { Kind::More };
        // The next one is likely to be as long.
        let mut next = Vec::with_capacity(gathering.bytes.len());
        next.resize(HEADER_BYTES, 0);
        let taken = std::mem::replace(&mut gathering.bytes, next);
        if matches!(gathering.stage, Stage::Open) {
            gathering.wake();
        }
        (taken, kind)
    }
}

/// A segment that the other end has not deleted.
struct InFlight {
    name: String,
    bytes: usize,
}

/// Sends what is added to the outbox, until the pipe is closed or gone.
pub(super) async fn send(outbox: Arc<Outbox>, spool: Arc<Spool>, seal: Seal) {
    match publish_all(&outbox, &spool, &seal).await {
        Ok(true) => outbox.end(Stage::Closed),
        Ok(false) => {
            let file = seal.close(RESET_SEQUENCE, Kind::Reset, vec![0; HEADER_BYTES]);
            // If this cannot be told either, the other end notices by other means: its control connection.
            let _ = tokio::time::timeout(LAST_WORDS, spool.publish(seal.file_name(RESET_SEQUENCE), file)).await;
        }
        Err(fault) => outbox.end(Stage::Failed(fault)),
    }
}

/// Returns whether the direction was closed; otherwise it was given up.
async fn publish_all(outbox: &Outbox, spool: &Spool, seal: &Seal) -> Result<bool, Fault> {
    let view = spool.view();
    let mut changes = view.subscribe();
    let mut publishing = FuturesUnordered::new();
    let mut in_flight = VecDeque::<InFlight>::new();
    let mut sequence = 0;
    let mut is_last_cut = false;
    loop {
        in_flight.retain(|segment| view.is_in_flight(&segment.name));
        if let Some(fault) = view.fault() {
            return Err(fault);
        }
        if is_last_cut && publishing.is_empty() {
            return Ok(true);
        }
        let Some(outlook) = outbox.outlook(&in_flight) else { return Ok(false) };
        let wait = match cut(outlook) {
            Cut::Now if !is_last_cut => {
                let (gathered, kind) = outbox.take();
                let name = seal.file_name(sequence);
                view.publishing(&name);
                in_flight.push_back(InFlight { name: name.clone(), bytes: gathered.len() - HEADER_BYTES });
                is_last_cut = kind == Kind::Last;
                publishing.push(spool.publish(name, seal.close(sequence, kind, gathered)));
                sequence += 1;
                continue;
            }
            Cut::After(wait) => Some(wait),
            Cut::Now | Cut::NotYet => None,
        };
        tokio::select! {
            Some(published) = publishing.next(), if !publishing.is_empty() => view.published(&published?),
            () = outbox.due.notified() => {}
            // The view lives as long as the spool.
            _ = changes.changed() => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}
