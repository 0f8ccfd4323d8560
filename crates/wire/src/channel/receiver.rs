//! The inbound direction: put the frames of all lanes in order, filter, write to the local socket. Mirror of
//! `sender.rs`.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use super::{
    assembly::{Assembly, FRAMES_MAX, Frame, broken},
    shared::Shared,
};
use crate::{WireError, filter::Direction, meter::Wait, window::WINDOW_BYTES_MIN};

/// Bytes per acknowledgement while more chunks are queued: a quarter of the smallest window.
const ACK_BYTES: usize = (WINDOW_BYTES_MIN / 4) as usize;
/// Chunks kept for reuse: on a short link no more are in flight. Each keeps the size of the largest frame that it held,
/// so they occupy at most 16 MiB.
const SPARE_CHUNKS: usize = 64;

/// The peer's stream, as its lanes bring it.
pub(super) struct Inbound(Mutex<Order>);

struct Order {
    assembly: Assembly,
    /// Takes what is in order; gone when the stream is complete.
    filled: Option<mpsc::Sender<Vec<u8>>>,
    spares: mpsc::Receiver<Vec<u8>>,
}

/// What the writer writes next, and where it returns chunks.
pub(super) struct Chunks {
    to_write: mpsc::Receiver<Vec<u8>>,
    emptied: mpsc::Sender<Vec<u8>>,
}

impl Inbound {
    pub(super) fn new(lanes: u8) -> (Arc<Self>, Chunks) {
        let (filled, to_write) = mpsc::channel(FRAMES_MAX);
        let (emptied, spares) = mpsc::channel(SPARE_CHUNKS);
        let order = Order { assembly: Assembly::new(lanes), filled: Some(filled), spares };
        (Arc::new(Self(Mutex::new(order))), Chunks { to_write, emptied })
    }

    /// Accepts a frame before its payload is read.
    ///
    /// # Errors
    /// As [`Assembly::expect`].
    pub(super) fn expect(&self, frame: &Frame, shared: &Shared) -> Result<(), WireError> {
        self.order().assembly.expect(frame, shared.delivered.load(Ordering::Acquire))
    }

    /// A chunk to read into, of any length.
    pub(super) fn spare_chunk(&self) -> Vec<u8> {
        self.order().spares.try_recv().unwrap_or_default()
    }

    /// Takes the plain bytes of an expected frame.
    ///
    /// # Errors
    /// As [`Assembly::take`].
    pub(super) fn take(&self, frame: &Frame, bytes: Vec<u8>) -> Result<(), WireError> {
        let mut order = self.order();
        let Order { assembly, filled, .. } = &mut *order;
        let queue = filled.as_ref().ok_or_else(|| broken("data after the end of the stream"))?;
        // The writer is gone only after a failure, and its own error ends the channel.
        assembly.take(frame.offset, bytes, |bytes| {
            queue.try_send(bytes).map_err(|_| broken("too many frames in flight"))
        })?;
        order.end_if_complete();
        Ok(())
    }

    /// A lane carries no more data.
    ///
    /// # Errors
    /// As [`Assembly::end`].
    pub(super) fn end(&self, total: u64, checksum: u64) -> Result<(), WireError> {
        let mut order = self.order();
        order.assembly.end(total, checksum)?;
        order.end_if_complete();
        Ok(())
    }

    fn order(&self) -> MutexGuard<'_, Order> {
        self.0.lock().expect("no thread panics while holding this lock")
    }
}

impl Order {
    fn end_if_complete(&mut self) {
        if self.assembly.is_complete() {
            self.filled = None;
        }
    }
}

/// Writes chunks to the local socket until the stream is complete, then closes that half of the socket.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    mut local: W,
    Chunks { mut to_write, emptied }: Chunks,
    shared: &Shared,
) -> Result<(), WireError> {
    let mut passed = Vec::new();
    let mut unacknowledged = 0;
    loop {
        let chunk = tokio::select! {
            biased;
            chunk = to_write.recv() => chunk,
            () = shared.back_due.notified() => {
                shared.take_answers(Direction::Inbound, &mut passed);
                local.write_all(&passed).await.map_err(WireError::Local)?;
                passed.clear();
                continue;
            }
        };
        let Some(chunk) = chunk else { break };
        let began = shared.started.elapsed();
        if shared.has_filter {
            shared.filter(Direction::Inbound, &chunk, &mut passed)?;
            local.write_all(&passed).await.map_err(WireError::Local)?;
            passed.clear();
            shared.filtered_delivered();
        } else {
            local.write_all(&chunk).await.map_err(WireError::Local)?;
        }
        shared.meter.add_wait(Wait::Delivery, shared.started.elapsed().saturating_sub(began));
        shared.meter.add_received(chunk.len() as u64);
        shared.add_delivered(chunk.len() as u64);
        unacknowledged += chunk.len();
        if to_write.is_empty() || unacknowledged >= ACK_BYTES {
            unacknowledged = 0;
            shared.ack_due.notify_one();
        }
        // If the return queue is full, this buffer is simply not reused.
        let _ = emptied.try_send(chunk);
    }
    match local.shutdown().await {
        Ok(()) => {}
        // The local program has already closed: it expects nothing more.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotConnected | io::ErrorKind::BrokenPipe) => {}
        Err(error) => return Err(WireError::Local(error)),
    }
    shared.inbound_done.store(true, Ordering::Release);
    shared.sender_due.notify_one();
    Ok(())
}
