//! The destination's end: reports what it holds, then receives or compares. Mirror of `sender.rs`.

use std::{
    fs::File,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use ferry_trust::random_secret;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    blocks::{Blocks, FILE_BYTES_MAX, off_thread},
    existing::report_content,
    protocol::{
        DATA, Differing, END, FileMeter, Form, GOES_ON, NO_HASH, REASON_BYTES_MAX, SIGN_EVERY, SYNC_MAX, ZEROES,
        timely, write,
    },
};
use crate::{
    WireError,
    content::{
        index::{ContentKey, Hashing},
        sparse::all_zero,
    },
};

/// Receives a file of `length` bytes into a file that may already have content. Ok promises that it has the source's
/// bytes and is on disk.
///
/// # Errors
/// [`WireError::Local`] if it cannot be written, or if reading it back gives other bytes than were sent; the source
/// receives the reason. [`WireError::Peer`], [`WireError::Protocol`], [`WireError::Timeout`].
pub async fn receive<S>(
    stream: &mut S,
    form: Form,
    file: File,
    length: u64,
    meter: Arc<FileMeter>,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let outcome = receive_blocks(stream, form, Arc::new(file), length, &meter, Differing::Sent).await;
    report(stream, outcome).await
}

/// Compares a file of `length` bytes, without writing to it, with one sent by [`send_same`](super::send_same). Ok
/// promises that it has the source's bytes and is on disk.
///
/// # Errors
/// As [`receive`]; [`WireError::Differs`].
pub async fn compare<S>(
    stream: &mut S,
    form: Form,
    file: File,
    length: u64,
    meter: Arc<FileMeter>,
) -> Result<(), WireError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let outcome = receive_blocks(stream, form, Arc::new(file), length, &meter, Differing::Refused).await;
    report(stream, outcome).await
}

/// Reports the outcome to the source.
async fn report<S: AsyncWrite + Unpin>(stream: &mut S, outcome: Result<(), WireError>) -> Result<(), WireError> {
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
    let answer = async {
        write(stream, &verdict).await?;
        timely(stream.flush()).await
    };
    outcome.and(answer.await)
}

async fn receive_blocks<S>(
    stream: &mut S,
    form: Form,
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
    let before = file.metadata().map_err(WireError::Local)?.len();
    match differing {
        Differing::Sent => file.set_len(length).map_err(WireError::Local)?,
        Differing::Refused if before != length => return Err(WireError::Differs),
        Differing::Refused => {}
    }
    let hashing = match form {
        Form::List => Hashing::EARLIER,
        Form::Index => Hashing::new(ContentKey(random_secret().0)),
    };
    let blocks = Blocks { file, length, block_bytes: hashing.block_bytes };
    let reported = report_content(stream, form, hashing, &blocks, before == 0).await?;
    loop {
        match timely(stream.read_u8()).await? {
            DATA => {
                let block = blocks.named(timely(stream.read_u32_le()).await?)?;
                let size = timely(stream.read_u32_le()).await?;
                if u64::from(size) != blocks.size_of(block) {
                    return Err(WireError::Protocol(format!("a block of {size} bytes")));
                }
                let mut bytes = vec![0; size as usize];
                timely(stream.read_exact(&mut bytes)).await?;
                match differing {
                    Differing::Sent => blocks.put(block, bytes, reported.has_data(block)).await?,
                    Differing::Refused => is_same(&blocks, block, Some(bytes)).await?,
                }
                meter.sent.fetch_add(u64::from(size), Relaxed);
                meter.examined.fetch_max(blocks.end_of(block), Relaxed);
            }
            ZEROES => {
                let block = blocks.named(timely(stream.read_u32_le()).await?)?;
                match differing {
                    Differing::Sent => blocks.put(block, vec![0; blocks.size_of(block) as usize], true).await?,
                    Differing::Refused => is_same(&blocks, block, None).await?,
                }
            }
            END => break,
            other => return Err(WireError::Protocol(format!("a message of kind {other}"))),
        }
    }
    let whole_length = timely(stream.read_u64_le()).await?;
    let mut expected = NO_HASH;
    timely(stream.read_exact(&mut expected)).await?;
    if whole_length != length {
        return Err(WireError::Protocol(format!("a file of {whole_length} bytes instead of {length}")));
    }
    sync(stream, &blocks.file).await?;
    let (mut whole, mut reader, mut spoke) = (blake3::Hasher::new(), blocks.reader(), Instant::now());
    sign(stream).await?;
    for block in 0..blocks.count() {
        if spoke.elapsed() >= SIGN_EVERY {
            sign(stream).await?;
            spoke = Instant::now();
        }
        let hash = reader.read(block).await?.map(|bytes| hashing.hash(bytes));
        whole.update(hash.as_ref().map_or(&NO_HASH, |hash| hash.as_bytes()));
    }
    if whole.finalize().as_bytes() != &expected {
        return Err(WireError::Local(io::Error::other("what was written is not what was sent")));
    }
    meter.examined.store(length, Relaxed);
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
async fn is_same(blocks: &Blocks, block: u32, bytes: Option<Vec<u8>>) -> Result<(), WireError> {
    let mut reader = blocks.reader();
    let here = reader.read(block).await?;
    if here == bytes.as_deref().filter(|bytes| !all_zero(bytes)) { Ok(()) } else { Err(WireError::Differs) }
}
