//! The inbound direction: read from the lane, deframe, verify, filter, write to the local socket. Mirror of
//! `sender.rs`.

use std::{io, sync::atomic::Ordering};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use super::{
    assembly::{Assembly, Frame, LANES, broken},
    coding::Payload,
    shared::Shared,
};
use crate::{
    WireError,
    filter::Direction,
    frame::{Codec, Header, verify},
    lane::LaneReader,
    traffic::ARRIVED_BYTES_MAX,
    window::WINDOW_BYTES_MIN,
};

/// Bytes per acknowledgement while more chunks are queued: a quarter of the smallest window.
const ACK_BYTES: usize = (WINDOW_BYTES_MIN / 4) as usize;

/// Reads frames until the peer's stream is complete and the peer has closed; payloads go to `filled`, verified first if
/// there is no `codec`.
pub(crate) async fn deframe<R: AsyncRead + Unpin>(
    mut lane: LaneReader<R>,
    filled: mpsc::Sender<Payload>,
    mut to_fill: mpsc::Receiver<Vec<u8>>,
    codec: Option<Codec>,
    shared: &Shared,
) -> Result<(), WireError> {
    let mut filled = Some(filled);
    let mut assembly = Assembly::new(LANES);
    loop {
        let Some(header) = lane.header(filled.is_none()).await? else { return Ok(()) };
        match header {
            Header::Data { .. } => {
                let frame = Frame::of(&header).expect("it is one of data");
                if frame.codec != Codec::Raw && Some(frame.codec) != codec {
                    return Err(broken("a frame in a codec that was not agreed"));
                }
                assembly.expects(&frame, shared.delivered.load(Ordering::Acquire))?;
                if shared.add_received(u64::from(frame.plain)) > ARRIVED_BYTES_MAX {
                    return Err(broken("more bytes than the channels of a carrier may hold"));
                }
                let mut payload = to_fill.try_recv().unwrap_or_default();
                payload.resize(frame.coded as usize, 0);
                lane.payload(&mut payload).await?;
                if codec.is_none() {
                    verify(&payload, frame.offset, frame.checksum)?;
                }
                let queue = filled.as_ref().ok_or_else(|| broken("data after the end of the stream"))?;
                // The writer is gone only after a failure, and its own error ends the channel.
                assembly.take(frame, payload, |payload| {
                    queue.try_send(payload).map_err(|_| broken("too many frames in flight"))
                })?;
            }
            Header::Ack { delivered } => {
                let before = shared.acked.load(Ordering::Acquire);
                if delivered < before || delivered > shared.sent.load(Ordering::Acquire) {
                    return Err(broken("an acknowledgement of what was not sent"));
                }
                shared.acked.store(delivered, Ordering::Release);
                shared.traffic.take_in_flight(delivered - before);
                shared.window_open.notify_one();
            }
            Header::End { total, checksum } => assembly.ends(total, checksum)?,
            Header::Abort { length, checksum } => {
                let mut reason = vec![0; length as usize];
                lane.payload(&mut reason).await?;
                verify(&reason, 0, checksum)?;
                return Err(WireError::Aborted(String::from_utf8_lossy(&reason).into_owned()));
            }
        }
        if assembly.is_complete() {
            filled = None;
        }
    }
}

/// Writes chunks to the local socket until the stream is complete, then closes that half of the socket.
pub(crate) async fn write<W: AsyncWrite + Unpin>(
    mut local: W,
    mut to_write: mpsc::Receiver<Payload>,
    emptied: mpsc::Sender<Vec<u8>>,
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
        let Some((_, chunk)) = chunk else { break };
        if shared.has_filter {
            shared.filter(Direction::Inbound, &chunk, &mut passed)?;
            local.write_all(&passed).await.map_err(WireError::Local)?;
            passed.clear();
            shared.filtered_delivered(Direction::Inbound);
        } else {
            local.write_all(&chunk).await.map_err(WireError::Local)?;
        }
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
    if shared.delivered.load(Ordering::Acquire) != shared.received.load(Ordering::Acquire) {
        return Err(WireError::Local(io::Error::other("the thread that decodes has ended")));
    }
    match local.shutdown().await {
        Ok(()) => {}
        // The local program has already closed: it expects nothing more.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotConnected | io::ErrorKind::BrokenPipe) => {}
        Err(error) => return Err(WireError::Local(error)),
    }
    shared.inbound_done.store(true, Ordering::Release);
    shared.ack_due.notify_one();
    Ok(())
}
