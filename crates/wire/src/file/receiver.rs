//! The destination's end: reports what it holds, then receives or compares. Mirror of `sender.rs`.

use std::{
    fs::File,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    blocks::{BLOCK_BYTES, FILE_BYTES_MAX, Hash, Reader, block_below, blocks_of, hash_of, off_thread, put, size_of},
    protocol::{
        DATA, Differing, END, FileMeter, GOES_ON, REASON_BYTES_MAX, SIGN_EVERY, SYNC_MAX, ZEROES, timely, write,
    },
};
use crate::{WireError, content::sparse::all_zero};

/// Receives a file of `length` bytes into a file that may already have content. Ok promises that it has the source's
/// bytes and is on disk.
///
/// # Errors
/// [`WireError::Local`] if it cannot be written, or if reading it back gives other bytes than were sent; the source
/// receives the reason. [`WireError::Peer`], [`WireError::Protocol`], [`WireError::Timeout`].
pub async fn receive<S>(stream: &mut S, file: File, length: u64, meter: Arc<FileMeter>) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let outcome = take(stream, Arc::new(file), length, &meter, Differing::Sent).await;
    tell(stream, outcome).await
}

/// Compares a file of `length` bytes, without writing to it, with one sent by [`send_same`](super::send_same). Ok
/// promises that it has the source's bytes and is on disk.
///
/// # Errors
/// As [`receive`]; [`WireError::Differs`].
pub async fn compare<S>(stream: &mut S, file: File, length: u64, meter: Arc<FileMeter>) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let outcome = take(stream, Arc::new(file), length, &meter, Differing::Refused).await;
    tell(stream, outcome).await
}

/// Reports the outcome to the source.
async fn tell<S: AsyncWrite + Unpin>(stream: &mut S, outcome: Result<(), WireError>) -> Result<(), WireError> {
    let verdict = match &outcome {
        Ok(()) => vec![0],
        Err(error) => {
            let mut reason =
                format!("{error}: {}", std::error::Error::source(error).map(ToString::to_string).unwrap_or_default());
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
            let mut bytes = vec![1];
            bytes.extend_from_slice(&(reason.len() as u16).to_le_bytes());
            bytes.extend_from_slice(reason.as_bytes());
            bytes
        }
    };
    let told = async {
        write(stream, &verdict).await?;
        timely(stream.flush()).await
    };
    outcome.and(told.await)
}

async fn take<S>(
    stream: &mut S,
    file: Arc<File>,
    length: u64,
    meter: &FileMeter,
    differing: Differing,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if length > FILE_BYTES_MAX {
        return Err(WireError::Protocol(format!("a file of {length} bytes")));
    }
    let blocks = blocks_of(length);
    let before = file.metadata().map_err(WireError::Local)?.len();
    match differing {
        Differing::Sent => file.set_len(length).map_err(WireError::Local)?,
        Differing::Refused if before != length => return Err(WireError::Differs),
        Differing::Refused => {}
    }
    let holds = if before == 0 { 0 } else { blocks };
    write(stream, &holds.to_le_bytes()).await?;
    let mut held = Vec::with_capacity(holds as usize);
    let mut reader = Reader::new(&file, length);
    for block in 0..holds {
        let hash = reader.read(block).await?.as_deref().map(hash_of);
        match hash {
            None => write(stream, &[0]).await?,
            Some(hash) => {
                write(stream, &[1]).await?;
                write(stream, &hash).await?;
            }
        }
        held.push(hash.is_some());
    }
    timely(stream.flush()).await?;
    loop {
        match timely(stream.read_u8()).await? {
            DATA => {
                let block = block_below(timely(stream.read_u32_le()).await?, blocks)?;
                let size = timely(stream.read_u32_le()).await?;
                if u64::from(size) != size_of(block, length) {
                    return Err(WireError::Protocol(format!("a block of {size} bytes")));
                }
                let mut bytes = vec![0; size as usize];
                timely(stream.read_exact(&mut bytes)).await?;
                let was_held = held.get(block as usize).copied().unwrap_or(false);
                match differing {
                    Differing::Sent => put(&file, block, bytes, was_held).await?,
                    Differing::Refused => is_same(&file, block, length, Some(bytes)).await?,
                }
                meter.sent.fetch_add(u64::from(size), Relaxed);
                meter.looked_at.fetch_max(((u64::from(block) + 1) * BLOCK_BYTES).min(length), Relaxed);
            }
            ZEROES => {
                let block = block_below(timely(stream.read_u32_le()).await?, blocks)?;
                match differing {
                    Differing::Sent => put(&file, block, vec![0; size_of(block, length) as usize], true).await?,
                    Differing::Refused => is_same(&file, block, length, None).await?,
                }
            }
            END => break,
            other => return Err(WireError::Protocol(format!("a message of kind {other}"))),
        }
    }
    let whole_length = timely(stream.read_u64_le()).await?;
    let mut expected = Hash::default();
    timely(stream.read_exact(&mut expected)).await?;
    if whole_length != length {
        return Err(WireError::Protocol(format!("a file of {whole_length} bytes instead of {length}")));
    }
    sync(stream, &file).await?;
    let (mut whole, mut reader, mut spoke) = (blake3::Hasher::new(), Reader::new(&file, length), Instant::now());
    sign(stream).await?;
    for block in 0..blocks {
        if spoke.elapsed() >= SIGN_EVERY {
            sign(stream).await?;
            spoke = Instant::now();
        }
        let hash = reader.read(block).await?.as_deref().map(hash_of);
        whole.update(&hash.unwrap_or_default());
    }
    if whole.finalize().as_bytes() != &expected {
        return Err(WireError::Local(io::Error::other("what was written is not what was sent")));
    }
    meter.looked_at.store(length, Relaxed);
    Ok(())
}

/// Syncs the received file to disk, with keep-alives to the source meanwhile.
async fn sync<S: AsyncWrite + Unpin>(stream: &mut S, file: &Arc<File>) -> Result<(), WireError> {
    let (file, began) = (Arc::clone(file), Instant::now());
    let syncing = off_thread(move || file.sync_all());
    tokio::pin!(syncing);
    while began.elapsed() < SYNC_MAX {
        match tokio::time::timeout(SIGN_EVERY, &mut syncing).await {
            Ok(outcome) => return outcome,
            Err(_) => sign(stream).await?,
        }
    }
    Err(WireError::Timeout("the file system did not write the file to disk"))
}

/// Sends a keep-alive to the source.
async fn sign<S: AsyncWrite + Unpin>(stream: &mut S) -> Result<(), WireError> {
    write(stream, &[GOES_ON]).await?;
    timely(stream.flush()).await
}

/// Whether a block of the file equals the received one; `None`: zeroes.
async fn is_same(file: &Arc<File>, block: u32, length: u64, bytes: Option<Vec<u8>>) -> Result<(), WireError> {
    let here = Reader::new(file, length).read(block).await?;
    if here == bytes.filter(|bytes| !all_zero(bytes)) { Ok(()) } else { Err(WireError::Differs) }
}
