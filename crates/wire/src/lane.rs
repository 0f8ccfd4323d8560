//! A lane: frames on one duplex pipe. It knows nothing about the stream that its frames belong to.

use std::{io, sync::Arc};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};

use crate::{
    WireError,
    frame::{HEADER_BYTES, Header, REASON_BYTES_MAX, checksum_of},
    meter::Meter,
};

/// A lane's number among the lanes of its channel, which errors tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// From 0.
    pub(crate) lane: u8,
    pub(crate) lanes: u8,
}

impl Place {
    fn error(self, source: io::Error) -> WireError {
        match self {
            Self { lanes: 1, .. } => WireError::Peer(source),
            Self { lane, lanes } => WireError::Lane { lane, lanes, source },
        }
    }
}

/// Splits a pipe into both halves of a lane. The meter counts its bytes.
pub(crate) fn split<P: AsyncRead + AsyncWrite>(
    pipe: P,
    place: Place,
    meter: &Arc<Meter>,
) -> (LaneReader<ReadHalf<P>>, LaneWriter<WriteHalf<P>>) {
    let (reader, writer) = tokio::io::split(pipe);
    let meter = || Arc::clone(meter);
    (LaneReader { pipe: reader, place, meter: meter() }, LaneWriter { pipe: writer, place, meter: meter() })
}

pub(crate) struct LaneReader<R> {
    pipe: R,
    place: Place,
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
                Ok(0) => return Err(self.error(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => have += count,
                Err(error) if have == 0 && may_end && error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(self.error(error)),
            }
        }
        let header = Header::decode(&head)?;
        self.meter.add_wire((HEADER_BYTES + header.payload_bytes()) as u64);
        Ok(Some(header))
    }

    /// Fills `payload`.
    pub(crate) async fn payload(&mut self, payload: &mut [u8]) -> Result<(), WireError> {
        self.pipe.read_exact(payload).await.map(drop).map_err(|error| self.error(error))
    }

    /// The error of this lane for a failure of its pipe.
    pub(crate) fn error(&self, source: io::Error) -> WireError {
        self.place.error(source)
    }
}

pub(crate) struct LaneWriter<W> {
    pipe: W,
    place: Place,
    meter: Arc<Meter>,
}

impl<W: AsyncWrite + Unpin> LaneWriter<W> {
    /// Writes a frame. It has been flushed when this returns.
    pub(crate) async fn write(&mut self, header: Header, payload: &[u8]) -> Result<(), WireError> {
        let head = header.encode();
        // Written together: a separate header would cost a TLS record and a system call.
        let written = self.pipe.write_all_buf(&mut Buf::chain(&head[..], payload)).await;
        written.map_err(|error| self.place.error(error))?;
        self.meter.add_wire((head.len() + payload.len()) as u64);
        self.pipe.flush().await.map_err(|error| self.place.error(error))
    }

    /// Sends the peer the reason why this end gives up, and closes this half.
    pub(crate) async fn abort(&mut self, reason: &str) -> Result<(), WireError> {
        let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
        self.write(Header::Abort { length: reason.len() as u32, checksum: checksum_of(reason) }, reason).await?;
        self.close().await
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
            Err(error) => Err(self.place.error(error)),
        }
    }
}
