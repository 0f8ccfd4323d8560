//! One direction in: read from the peer, deframe, verify, write to the local socket. Mirror of `sender.rs`.

use std::{io, sync::atomic::Ordering};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use crate::{
    WireError,
    channel::{INBOUND_BYTES_MAX, Inspect, Shared},
    frame::{Chain, HEADER_BYTES, Header, verify},
    traffic::ARRIVED_BYTES_MAX,
    window::WINDOW_BYTES_MIN,
};

/// While more chunks wait, so many bytes are acknowledged at once: a quarter of the smallest window.
const ACK_BYTES: usize = (WINDOW_BYTES_MIN / 4) as usize;

/// Reads frames until the peer's stream is complete and the peer has closed; data go to `filled`.
pub(crate) async fn deframe<P: AsyncRead + Unpin>(
    mut peer: P,
    filled: mpsc::Sender<Vec<u8>>,
    mut to_fill: mpsc::Receiver<Vec<u8>>,
    shared: &Shared,
) -> Result<(), WireError> {
    let mut filled = Some(filled);
    let mut chain = Chain::default();
    let mut received = 0u64;
    loop {
        let Some(header) = read_header(&mut peer, filled.is_none()).await? else { return Ok(()) };
        shared.meter.add_wire((HEADER_BYTES + header.payload_bytes()) as u64);
        match header {
            Header::Data { plain, offset, checksum, .. } => {
                let queue = filled.as_ref().ok_or_else(|| broken("data after the end of the stream"))?;
                if offset != received {
                    return Err(broken(&format!("a frame at offset {offset} where {received} was expected")));
                }
                let waiting = received - shared.delivered.load(Ordering::Acquire);
                if waiting + u64::from(plain) > INBOUND_BYTES_MAX {
                    return Err(broken("more bytes than the window allows"));
                }
                if shared.add_received(u64::from(plain)) > ARRIVED_BYTES_MAX {
                    return Err(broken("more bytes than the channels of a carrier may hold"));
                }
                let mut chunk = to_fill.try_recv().unwrap_or_default();
                chunk.resize(plain as usize, 0);
                peer.read_exact(&mut chunk).await.map_err(WireError::Peer)?;
                verify(&chunk, offset, checksum)?;
                chain.push(checksum);
                received += u64::from(plain);
                // The writer is gone only when it failed, which ends the channel with its own error.
                queue.try_send(chunk).map_err(|_| broken("too many frames in flight"))?;
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
            Header::End { total, checksum } => {
                if total != received || checksum != chain.value() || filled.is_none() {
                    return Err(broken("an end that does not fit the stream"));
                }
                filled = None;
            }
            Header::Abort { length, checksum } => {
                let mut reason = vec![0; length as usize];
                peer.read_exact(&mut reason).await.map_err(WireError::Peer)?;
                verify(&reason, 0, checksum)?;
                return Err(WireError::Aborted(String::from_utf8_lossy(&reason).into_owned()));
            }
        }
    }
}

/// The next header; `None` when the peer closed after its stream was `complete`.
async fn read_header<P: AsyncRead + Unpin>(peer: &mut P, complete: bool) -> Result<Option<Header>, WireError> {
    let mut head = [0; HEADER_BYTES];
    let mut have = 0;
    while have < HEADER_BYTES {
        match peer.read(&mut head[have..]).await {
            Ok(0) if have == 0 && complete => return Ok(None),
            Ok(0) => return Err(WireError::Peer(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => have += count,
            Err(error) if have == 0 && complete && error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(WireError::Peer(error)),
        }
    }
    Header::decode(&head).map(Some)
}

/// Writes chunks to the local socket until the stream is complete, then closes that half.
pub(crate) async fn write<W: AsyncWrite + Unpin>(
    mut local: W,
    mut to_write: mpsc::Receiver<Vec<u8>>,
    emptied: mpsc::Sender<Vec<u8>>,
    mut inspect: Option<Box<dyn Inspect>>,
    shared: &Shared,
) -> Result<(), WireError> {
    let mut passed = Vec::new();
    let mut unacknowledged = 0;
    while let Some(chunk) = to_write.recv().await {
        match &mut inspect {
            None => local.write_all(&chunk).await.map_err(WireError::Local)?,
            Some(inspect) => {
                passed.clear();
                inspect.pass(&chunk, &mut passed).map_err(WireError::Refused)?;
                local.write_all(&passed).await.map_err(WireError::Local)?;
                inspect.delivered();
            }
        }
        shared.meter.add_received(chunk.len() as u64);
        shared.add_delivered(chunk.len() as u64);
        unacknowledged += chunk.len();
        if to_write.is_empty() || unacknowledged >= ACK_BYTES {
            unacknowledged = 0;
            shared.ack_due.notify_one();
        }
        // A full return queue only means that this buffer is not used again.
        let _ = emptied.try_send(chunk);
    }
    match local.shutdown().await {
        Ok(()) => {}
        // The local peer has already gone: it wanted nothing more.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotConnected | io::ErrorKind::BrokenPipe) => {}
        Err(error) => return Err(WireError::Local(error)),
    }
    shared.inbound_done.store(true, Ordering::Release);
    shared.ack_due.notify_one();
    Ok(())
}

fn broken(what: &str) -> WireError {
    WireError::Protocol(what.to_owned())
}
