//! A lane: frames on one duplex pipe. It knows nothing about the stream that its frames belong to.

use std::{io, sync::Arc};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};

use crate::{
    WireError,
    frame::{HEADER_BYTES, Header},
    meter::Meter,
};

/// Splits a pipe into both halves of a lane. The meter counts its bytes.
pub(crate) fn split<P: AsyncRead + AsyncWrite>(
    pipe: P,
    meter: &Arc<Meter>,
) -> (LaneReader<ReadHalf<P>>, LaneWriter<WriteHalf<P>>) {
    let (reader, writer) = tokio::io::split(pipe);
    (LaneReader { pipe: reader, meter: Arc::clone(meter) }, LaneWriter { pipe: writer, meter: Arc::clone(meter) })
}

pub(crate) struct LaneReader<R> {
    pipe: R,
    meter: Arc<Meter>,
}

impl<R: AsyncRead + Unpin> LaneReader<R> {
    /// The next header; `None` if `may_end` and the peer has closed. Its payload must be read next.
    pub(crate) async fn header(&mut self, may_end: bool) -> Result<Option<Header>, WireError> {
        let mut head = [0; HEADER_BYTES];
        let mut have = 0;
        while have < HEADER_BYTES {
            match self.pipe.read(&mut head[have..]).await {
                Ok(0) if have == 0 && may_end => return Ok(None),
                Ok(0) => return Err(WireError::Peer(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => have += count,
                Err(error) if have == 0 && may_end && error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(WireError::Peer(error)),
            }
        }
        let header = Header::decode(&head)?;
        self.meter.add_wire((HEADER_BYTES + header.payload_bytes()) as u64);
        Ok(Some(header))
    }

    /// Fills `payload`.
    pub(crate) async fn payload(&mut self, payload: &mut [u8]) -> Result<(), WireError> {
        self.pipe.read_exact(payload).await.map(drop).map_err(WireError::Peer)
    }
}

pub(crate) struct LaneWriter<W> {
    pipe: W,
    meter: Arc<Meter>,
}

impl<W: AsyncWrite + Unpin> LaneWriter<W> {
    /// Writes a frame. It has been flushed when this returns.
    pub(crate) async fn write(&mut self, header: Header, payload: &[u8]) -> Result<(), WireError> {
        let head = header.encode();
        // Written together: a separate header would cost a TLS record and a system call.
        self.pipe.write_all_buf(&mut Buf::chain(&head[..], payload)).await.map_err(WireError::Peer)?;
        self.meter.add_wire((head.len() + payload.len()) as u64);
        self.pipe.flush().await.map_err(WireError::Peer)
    }

    /// Closes this half. The peer may already have closed.
    pub(crate) async fn close(&mut self) -> Result<(), WireError> {
        match self.pipe.shutdown().await {
            Ok(()) => Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotConnected | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(WireError::Peer(error)),
        }
    }
}
