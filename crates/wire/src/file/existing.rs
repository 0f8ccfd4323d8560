//! What the destination holds of a file: told while it is read, received as an index.

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    blocks::Blocks,
    protocol::{Form, SIGN_EVERY, heard, timely, write},
};
use crate::{
    WireError,
    content::index::{ContentIndex, Hashing, Next, RUN_BLOCKS_MAX, cut},
};

/// Limit of the blocks in an index: 1 TiB of data, 256 MiB of hashes. Whatever is behind them is sent again.
const INDEX_BLOCKS_MAX: u32 = 1 << 24;

/// Where the destination's file has data, as it told the source.
pub(super) struct Reported {
    blocks: Vec<bool>,
    /// Whether there may be data behind these blocks.
    may_go_on: bool,
}

impl Reported {
    /// Whether the destination's file may have data in this block.
    pub(super) fn has_data(&self, block: u32) -> bool {
        self.blocks.get(block as usize).copied().unwrap_or(self.may_go_on)
    }
}

/// Tells the source what the file holds; of an empty one (`is_new`), that it is all zeroes.
///
/// # Errors
/// [`WireError::Local`] if the file cannot be read; [`WireError::Peer`], [`WireError::Timeout`].
pub(super) async fn report_content<S>(
    stream: &mut S,
    form: Form,
    hashing: Hashing,
    file: &Blocks,
    is_new: bool,
) -> Result<Reported, WireError>
where
    S: AsyncWrite + Unpin,
{
    let holds = if is_new { 0 } else { file.count() };
    let blocks = match form {
        Form::List => report_list(stream, hashing, file, holds).await?,
        Form::Index => report_index(stream, hashing, file, holds).await?,
    };
    timely(stream.flush()).await?;
    Ok(Reported { blocks, may_go_on: !is_new })
}

async fn report_list<S: AsyncWrite + Unpin>(
    stream: &mut S,
    hashing: Hashing,
    file: &Blocks,
    holds: u32,
) -> Result<Vec<bool>, WireError> {
    write(stream, &holds.to_le_bytes()).await?;
    let (mut blocks, mut reader) = (Vec::with_capacity(holds as usize), file.reader());
    for block in 0..holds {
        let hash = reader.read(block).await?.map(|bytes| hashing.hash(bytes));
        match hash {
            None => write(stream, &[0]).await?,
            Some(hash) => {
                write(stream, &[1]).await?;
                write(stream, hash.as_bytes()).await?;
            }
        }
        blocks.push(hash.is_some());
    }
    Ok(blocks)
}

async fn report_index<S: AsyncWrite + Unpin>(
    stream: &mut S,
    hashing: Hashing,
    file: &Blocks,
    holds: u32,
) -> Result<Vec<bool>, WireError> {
    let mut piece = ContentIndex::with(hashing);
    write(stream, &piece.encode()).await?;
    let (mut blocks, mut reader, mut spoke) = (Vec::new(), file.reader(), Instant::now());
    let (mut in_piece, mut reported) = (0, 0);
    while (blocks.len() as u32) < holds && reported < INDEX_BLOCKS_MAX {
        let block = blocks.len() as u32;
        let bytes = reader.read(block).await?;
        if let Some(bytes) = bytes {
            piece.insert(block.into(), bytes);
            (in_piece, reported) = (in_piece + 1, reported + 1);
        }
        blocks.push(bytes.is_some());
        if in_piece >= RUN_BLOCKS_MAX || spoke.elapsed() >= SIGN_EVERY {
            write(stream, &piece.runs()).await?;
            timely(stream.flush()).await?;
            (piece, in_piece, spoke) = (ContentIndex::with(hashing), 0, Instant::now());
        }
    }
    write(stream, &piece.runs()).await?;
    let known = if holds == 0 { file.count() } else { blocks.len() as u32 };
    write(stream, &ContentIndex::end_of(known.into())).await?;
    Ok(blocks)
}

/// What the destination holds, as the source knows it.
pub(super) struct Existing {
    index: ContentIndex,
    /// The number of blocks that the index covers. What it does not have of them is zeroes; the others are not known.
    known: u64,
}

impl Existing {
    pub(super) fn hashing(&self) -> Hashing {
        self.index.hashing()
    }

    /// Whether the destination has the block with this hash (`None`: zeroes); `None` if that is not known.
    pub(super) fn has(&self, block: u32, hash: Option<&blake3::Hash>) -> Option<bool> {
        let block = u64::from(block);
        (block < self.known).then(|| self.index.at(block) == hash.map(cut))
    }

    /// Receives what the destination tells of its file, which will have this length.
    ///
    /// # Errors
    /// [`WireError::Peer`], [`WireError::Protocol`], [`WireError::Timeout`].
    pub(super) async fn receive<S: AsyncRead + Unpin>(
        stream: &mut S,
        form: Form,
        length: u64,
    ) -> Result<Self, WireError> {
        match form {
            Form::List => receive_list(stream, length).await,
            Form::Index => receive_index(stream, length).await,
        }
    }
}

async fn receive_list<S: AsyncRead + Unpin>(stream: &mut S, length: u64) -> Result<Existing, WireError> {
    let mut index = ContentIndex::with(Hashing::EARLIER);
    let known = length.div_ceil(Hashing::EARLIER.block_bytes);
    let count = timely(stream.read_u32_le()).await?;
    if u64::from(count) > known {
        return Err(WireError::Protocol(format!("{count} blocks of a file of {known}")));
    }
    for block in 0..count {
        match timely(stream.read_u8()).await? {
            0 => {}
            1 => {
                let mut hash = [0; blake3::OUT_LEN];
                timely(stream.read_exact(&mut hash)).await?;
                index.append(block.into(), cut(&hash.into()));
            }
            other => return Err(WireError::Protocol(format!("a block of kind {other}"))),
        }
    }
    // The rest is zeroes.
    Ok(Existing { index, known })
}

async fn receive_index<S: AsyncRead + Unpin>(stream: &mut S, length: u64) -> Result<Existing, WireError> {
    let mut index = heard(ContentIndex::receive_head(stream)).await?;
    let blocks = length.div_ceil(index.hashing().block_bytes);
    let mut received = 0;
    loop {
        match heard(index.receive_next(stream)).await? {
            Next::Run(count) => received += count,
            Next::End(known) if known <= blocks => return Ok(Existing { index, known }),
            Next::End(known) => {
                return Err(WireError::Protocol(format!("an index of {known} blocks of a file of {blocks}")));
            }
            Next::Closed => return Err(WireError::Peer(std::io::ErrorKind::UnexpectedEof.into())),
        }
        if received > INDEX_BLOCKS_MAX {
            return Err(WireError::Protocol(format!("an index of more than {INDEX_BLOCKS_MAX} blocks")));
        }
    }
}
