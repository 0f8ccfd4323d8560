//! Writes a file and gives it its name, in as few requests as possible: one if it is small. The client's own ways to write
//! ask the server to bring each file to its disk, which takes longer than all the rest; what is read once and deleted need
//! not be there.

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use smb2::{
    CompoundOp, Error, Frame,
    client::Connection,
    encode_path,
    msg::{
        close::CloseRequest,
        create::{CreateDisposition, CreateRequest, CreateResponse, ImpersonationLevel, ShareAccess},
        set_info::{InfoType, SetInfoRequest},
        write::{WriteRequest, WriteResponse},
    },
    pack::{ReadCursor, Unpack as _},
    types::{Command, CreditCharge, FileId, OplockLevel, TreeId, flags::FileAccessMask, status::NtStatus},
};

/// Longest write of one request; a server may allow less.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Writes of one file that are on their way at once.
const WRITES_MAX: usize = 8;
/// Bytes that one credit pays for.
const CREDIT_BYTES: usize = 64 << 10;
/// `FileRenameInformation`.
const FILE_RENAME_INFORMATION: u8 = 10;
/// Where a write's bytes are in its message: behind the header and the fixed part.
const DATA_OFFSET: u16 = 0x70;
const NON_DIRECTORY_FILE: u32 = 0x40;
const ATTRIBUTES_NORMAL: u32 = 0x80;

/// Writes `bytes` to a file that has the name `path` afterwards, and has never had it before.
///
/// # Errors
/// The first refusal. A file of another name may stay.
pub(super) async fn publish(connection: &Connection, tree: TreeId, path: &str, bytes: &[u8]) -> Result<(), Error> {
    let (create, close) = (create(path), CloseRequest { flags: 0, file_id: FileId::SENTINEL });
    let chunk_bytes = connection.params().map_or(CREDIT_BYTES as u32, |params| params.max_write_size);
    let chunk_bytes = chunk_bytes.min(WRITE_BYTES_MAX) as usize;
    if bytes.len() <= chunk_bytes {
        let (write, rename) = (write(FileId::SENTINEL, 0, bytes), rename(FileId::SENTINEL, path));
        let mut requests = vec![CompoundOp::new(Command::Create, &create, Some(tree))];
        // A write of nothing may be refused.
        if !bytes.is_empty() {
            let mut request = CompoundOp::new(Command::Write, &write, Some(tree));
            request.credit_charge = charge(bytes.len());
            requests.push(request);
        }
        requests.push(CompoundOp::new(Command::SetInfo, &rename, Some(tree)));
        requests.push(CompoundOp::new(Command::Close, &close, Some(tree)));
        return all(connection, &requests).await;
    }
    let opened = connection.execute(Command::Create, &create, Some(tree)).await?;
    accepted(&opened, Command::Create)?;
    let file = CreateResponse::unpack(&mut ReadCursor::new(&opened.body))?.file_id;
    let (rename, close) = (rename(file, path), CloseRequest { flags: 0, file_id: file });
    match write_all(connection, tree, file, bytes, chunk_bytes).await {
        Ok(()) => {
            let named = CompoundOp::new(Command::SetInfo, &rename, Some(tree));
            all(connection, &[named, CompoundOp::new(Command::Close, &close, Some(tree))]).await
        }
        Err(error) => {
            let _ = connection.execute(Command::Close, &close, Some(tree)).await;
            Err(error)
        }
    }
}

/// Writes all bytes, several chunks at once.
async fn write_all(
    connection: &Connection,
    tree: TreeId,
    file: FileId,
    bytes: &[u8],
    chunk_bytes: usize,
) -> Result<(), Error> {
    let mut writes = FuturesUnordered::new();
    for (index, chunk) in bytes.chunks(chunk_bytes).enumerate() {
        if writes.len() >= WRITES_MAX
            && let Some(written) = writes.next().await
        {
            written?;
        }
        writes.push(write_chunk(connection, tree, file, (index * chunk_bytes) as u64, chunk));
    }
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

async fn write_chunk(
    connection: &Connection,
    tree: TreeId,
    file: FileId,
    offset: u64,
    chunk: &[u8],
) -> Result<(), Error> {
    let request = write(file, offset, chunk);
    let frame = connection.execute_with_credits(Command::Write, &request, Some(tree), charge(chunk.len())).await?;
    accepted(&frame, Command::Write)?;
    let written = WriteResponse::unpack(&mut ReadCursor::new(&frame.body))?.count;
    match written as usize == chunk.len() {
        true => Ok(()),
        false => Err(Error::invalid_data(format!("{written} of {} bytes were written", chunk.len()))),
    }
}

/// Sends requests that build on each other, and expects all to be done.
async fn all(connection: &Connection, requests: &[CompoundOp<'_>]) -> Result<(), Error> {
    let frames = connection.execute_compound(requests).await?;
    for (frame, request) in frames.into_iter().zip(requests) {
        accepted(&frame?, request.command)?;
    }
    Ok(())
}

fn accepted(frame: &Frame, command: Command) -> Result<(), Error> {
    match frame.header.status {
        NtStatus::SUCCESS => Ok(()),
        status => Err(Error::Protocol { status, command }),
    }
}

fn charge(bytes: usize) -> CreditCharge {
    CreditCharge(bytes.div_ceil(CREDIT_BYTES).max(1) as u16)
}

/// A new file of another name, or an old one of a publication that failed. Others may open it meanwhile: they see it under
/// its final name before it is closed.
fn create(path: &str) -> CreateRequest {
    let access = FileAccessMask::FILE_WRITE_DATA | FileAccessMask::DELETE | FileAccessMask::SYNCHRONIZE;
    let shared = ShareAccess::FILE_SHARE_READ | ShareAccess::FILE_SHARE_WRITE | ShareAccess::FILE_SHARE_DELETE;
    CreateRequest {
        requested_oplock_level: OplockLevel::None,
        impersonation_level: ImpersonationLevel::Impersonation,
        desired_access: FileAccessMask::new(access),
        file_attributes: ATTRIBUTES_NORMAL,
        share_access: ShareAccess(shared),
        create_disposition: CreateDisposition::FileOverwriteIf,
        create_options: NON_DIRECTORY_FILE,
        name: encode_path(&format!("{path}.tmp")),
        create_contexts: vec![],
    }
}

fn write(file_id: FileId, offset: u64, bytes: &[u8]) -> WriteRequest {
    WriteRequest {
        data_offset: DATA_OFFSET,
        offset,
        file_id,
        channel: 0,
        remaining_bytes: 0,
        write_channel_info_offset: 0,
        write_channel_info_length: 0,
        flags: 0,
        data: bytes.to_vec(),
    }
}

/// Renames to `path`, replacing what has that name (MS-FSCC 2.4.42.2).
fn rename(file_id: FileId, path: &str) -> SetInfoRequest {
    let name: Vec<u8> = encode_path(path).encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut buffer = vec![1];
    buffer.resize(16, 0);
    buffer.extend_from_slice(&(name.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&name);
    SetInfoRequest {
        info_type: InfoType::File,
        file_info_class: FILE_RENAME_INFORMATION,
        additional_information: 0,
        file_id,
        buffer,
    }
}
