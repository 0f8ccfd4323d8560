//! Pipes of TLS 1.3 over TCP. Each end proves its key in the TLS handshake.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::AsFd as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use ferry_core::error::chain;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tracing::debug;

use super::{Duplex, Listener, Opening, Pipe, Transport};
use crate::{
    WireError,
    frame::{DATA_BYTES_MAX, HEADER_BYTES},
    hello::Channel,
    window::BUDGET_BYTES,
};

/// Connections that the kernel queues until they are accepted.
const BACKLOG: u32 = 128;
/// Bytes read from the kernel at once, below TLS, which itself reads at most one record of 16 KiB.
const READ_AHEAD_BYTES: usize = 256 << 10;
/// The same, before the peer has sent its hello: anyone who reaches the port, so 1 MiB for 128 of them.
const READ_AHEAD_BYTES_MIN: usize = 8 << 10;
/// Bytes that TLS buffers before they must be written: a whole frame, which the kernel then receives at once.
const TLS_BYTES_MAX: usize = DATA_BYTES_MAX + HEADER_BYTES;

/// To be called when a carrier starts. TLS allocates and frees the records of each frame. By default glibc would return
/// them to the kernel each time, since more than 128 KiB at the end of the heap are then free, and get them back page
/// by page: a tenth of a carrier's time. It keeps twice the largest block ever freed (mallopt(3), `M_TRIM_THRESHOLD`),
/// so this frees one.
pub fn keep_freed_memory() {
    const BLOCK_BYTES: usize = 2 << 20;
    drop(std::hint::black_box(vec![0_u8; BLOCK_BYTES]));
}

/// Dials one address.
pub struct TcpDialer {
    here: Option<IpAddr>,
    address: SocketAddr,
    connector: TlsConnector,
}

impl TcpDialer {
    /// A dialer for `address` with a configuration that pins the destination's key.
    pub fn new(address: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Self { here: None, address, connector: TlsConnector::from(tls) }
    }

    /// As [`Self::new`], with every connection from this address of the host.
    pub fn from_here(here: IpAddr, address: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Self { here: Some(here), ..Self::new(address, tls) }
    }
}

impl Transport for TcpDialer {
    fn open(&self, _channel: Channel) -> Opening<'_> {
        Box::pin(async {
            let tcp = socket_for(self.address).map_err(WireError::Peer)?;
            if let Some(here) = self.here {
                tcp.bind((here, 0).into()).map_err(WireError::Local)?;
            }
            let tcp = tcp.connect(self.address).await.map_err(WireError::Peer)?;
            tcp.set_nodelay(true).map_err(WireError::Peer)?;
            let name = ServerName::try_from("ferry.invalid").expect("a valid name");
            let stream = self.connector.connect(name, ReadAhead::new(tcp)).await.map_err(WireError::Peer)?;
            Ok(pipe(stream.into()))
        })
    }
}

/// Listens at one address.
pub struct TcpAcceptor {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl TcpAcceptor {
    /// Listens on the first free port of `ports` at `ip`, with a configuration that pins the source's key.
    ///
    /// # Errors
    /// [`WireError::Local`] if no port of the range is free.
    pub fn bind(ip: IpAddr, ports: RangeInclusive<u16>, tls: Arc<ServerConfig>) -> Result<Self, WireError> {
        let mut last = io::Error::from(io::ErrorKind::InvalidInput);
        for port in ports {
            match bind((ip, port).into()) {
                Ok(listener) => return Ok(Self { listener, tls: TlsAcceptor::from(tls) }),
                Err(error) => last = error,
            }
        }
        Err(WireError::Local(last))
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// [`WireError::Local`].
    pub fn address(&self) -> Result<SocketAddr, WireError> {
        self.listener.local_addr().map_err(WireError::Local)
    }
}

impl Listener for TcpAcceptor {
    type Origin = SocketAddr;

    async fn accept(&self) -> io::Result<(SocketAddr, Opening<'static>)> {
        let (tcp, from) = self.listener.accept().await?;
        let tls = self.tls.clone();
        let opening = async move {
            tcp.set_nodelay(true).map_err(WireError::Peer)?;
            let stream = tls.accept(ReadAhead::new(tcp)).await.map_err(WireError::Peer)?;
            Ok(pipe(stream.into()))
        };
        Ok((from, Box::pin(opening)))
    }
}

fn pipe(mut stream: TlsStream<ReadAhead>) -> Pipe {
    match &mut stream {
        TlsStream::Client(stream) => stream.get_mut().1.set_buffer_limit(Some(TLS_BYTES_MAX)),
        TlsStream::Server(stream) => stream.get_mut().1.set_buffer_limit(Some(TLS_BYTES_MAX)),
    }
    Box::new(stream)
}

impl Duplex for TlsStream<ReadAhead> {
    fn introduced(&mut self) {
        let below = match self {
            TlsStream::Client(stream) => stream.get_mut().0,
            TlsStream::Server(stream) => stream.get_mut().0,
        };
        below.buffer.resize(READ_AHEAD_BYTES, 0);
    }

    fn widen(&self) {
        if let Err(error) = setsockopt(&self.get_ref().0.tcp.as_fd(), sockopt::SndBufForce, &(BUDGET_BYTES as usize)) {
            debug!(error = %chain(&error), "The send buffer stays what net.ipv4.tcp_wmem allows");
        }
    }
}

/// A socket whose receive buffer is at least a window. The size must be set before connecting: the first packet fixes
/// what a connection can announce. The kernel fills the buffer only while this process is not reading, and it always
/// reads.
fn socket_for(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Err(error) = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &(BUDGET_BYTES as usize)) {
        debug!(error = %chain(&error), "The receive buffer stays what net.ipv4.tcp_rmem allows");
    }
    Ok(socket)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket_for(address)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Reads as much as the kernel has at once, into a buffer that grows once the peer has sent its hello.
struct ReadAhead {
    tcp: TcpStream,
    buffer: Vec<u8>,
    /// Start of the buffered bytes that were not taken yet.
    start: usize,
    end: usize,
}

impl ReadAhead {
    fn new(tcp: TcpStream) -> Self {
        Self { tcp, buffer: vec![0; READ_AHEAD_BYTES_MIN], start: 0, end: 0 }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.start == this.end {
            let mut ahead = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.tcp).poll_read(context, &mut ahead))?;
            (this.start, this.end) = (0, ahead.filled().len());
        }
        let count = out.remaining().min(this.end - this.start);
        out.put_slice(&this.buffer[this.start..this.start + count]);
        this.start += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(context)
    }
}
