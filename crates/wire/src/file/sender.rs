//! The source's end: sends what differs. Mirror of `receiver.rs`.

use std::{
    fs::File,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Buf;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    blocks::{Blocks, FILE_BYTES_MAX},
    existing::Existing,
    protocol::{
        DATA, Differing, END, FileMeter, Form, GOES_ON, NO_HASH, REASON_BYTES_MAX, SIGN_EVERY, SILENCE_MAX, SYNC_MAX,
        ZEROES, timely, within, write,
    },
};
use crate::WireError;

/// Sends a file. Ok promises that the destination has the same bytes on disk.
///
/// # Errors
/// [`WireError::Local`] if it cannot be read or its length changes; [`WireError::Aborted`] with the destination's
/// reason; [`WireError::Peer`], [`WireError::Protocol`], [`WireError::Timeout`].
pub async fn send<S>(stream: &mut S, form: Form, file: File, meter: Arc<FileMeter>) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    send_blocks(stream, form, file, meter, Differing::Sent).await
}

/// Compares a file with the destination's, which is not changed; the destination calls [`compare`](super::compare). Ok
/// promises that both have the same bytes.
///
/// # Errors
/// As [`send`]; [`WireError::Differs`].
pub async fn send_same<S>(stream: &mut S, form: Form, file: File, meter: Arc<FileMeter>) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    send_blocks(stream, form, file, meter, Differing::Refused).await
}

async fn send_blocks<S>(
    stream: &mut S,
    form: Form,
    file: File,
    meter: Arc<FileMeter>,
    differing: Differing,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let file = Arc::new(file);
    let length = file.metadata().map_err(WireError::Local)?.len();
    if length > FILE_BYTES_MAX {
        return Err(WireError::Local(io::Error::other("the file is larger than 16 TiB")));
    }
    let existing = Existing::receive(stream, form, length).await?;
    let hashing = existing.hashing();
    let blocks = Blocks { file: Arc::clone(&file), length, block_bytes: hashing.block_bytes };
    let (mut whole, mut reader, mut spoke) = (blake3::Hasher::new(), blocks.reader(), Instant::now());
    for block in 0..blocks.count() {
        let bytes = reader.read(block).await?;
        let hash = bytes.map(|bytes| hashing.hash(bytes));
        whole.update(hash.as_ref().map_or(&NO_HASH, |hash| hash.as_bytes()));
        let is_there = existing.has(block, hash.as_ref());
        if is_there == Some(false) && differing == Differing::Refused {
            return Err(WireError::Differs);
        }
        // Keep-alive: sending a block that the destination already has changes nothing there.
        if is_there != Some(true) || spoke.elapsed() >= SIGN_EVERY {
            send_block(stream, block, bytes).await?;
            meter.sent.fetch_add(bytes.map_or(0, |bytes| bytes.len() as u64), Relaxed);
            spoke = Instant::now();
        }
        meter.examined.store(blocks.end_of(block), Relaxed);
    }
    if file.metadata().map_err(WireError::Local)?.len() != length {
        return Err(WireError::Local(io::Error::other("the file changed its length while it was read")));
    }
    let mut end = vec![END];
    end.extend_from_slice(&length.to_le_bytes());
    end.extend_from_slice(whole.finalize().as_bytes());
    write(stream, &end).await?;
    timely(stream.flush()).await?;
    let mut limit = SYNC_MAX;
    loop {
        match within(limit, stream.read_u8()).await? {
            0 => return Ok(()),
            1 => break,
            GOES_ON => limit = SILENCE_MAX,
            other => return Err(WireError::Protocol(format!("a verdict of kind {other}"))),
        }
    }
    let mut reason = vec![0; usize::from(timely(stream.read_u16_le()).await?).min(REASON_BYTES_MAX)];
    timely(stream.read_exact(&mut reason)).await?;
    Err(WireError::Aborted(String::from_utf8_lossy(&reason).into_owned()))
}

/// Sends a block, or that it is all zeroes. It has been flushed when this returns.
async fn send_block<S: AsyncWrite + Unpin>(stream: &mut S, block: u32, bytes: Option<&[u8]>) -> Result<(), WireError> {
    let mut head = vec![if bytes.is_some() { DATA } else { ZEROES }];
    head.extend_from_slice(&block.to_le_bytes());
    if let Some(bytes) = bytes {
        head.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    }
    // Together: a separate head would cost a TLS record and a system call.
    timely(stream.write_all_buf(&mut Buf::chain(&head[..], bytes.unwrap_or_default()))).await?;
    timely(stream.flush()).await
}
