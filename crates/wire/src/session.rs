//! A session's connections: the source dials, the destination accepts.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use ferry_core::{id::SessionId, pin::Secret};
use ferry_trust::same_secret;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::BufReader,
    net::{TcpListener, TcpSocket, TcpStream, UnixStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tracing::{debug, warn};

use crate::{
    WireError,
    frame::{Codec, DATA_BYTES_MAX, HEADER_BYTES},
    hello::{Channel, Hello, answer, common_version, introduce, listen},
    window::{BUDGET_BYTES, window_bytes_max},
};

/// A connection that is not introduced by then is dropped.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Connections that may be unintroduced at once: a session has a handful, and strangers shall not be in its way. More
/// are closed at once: none waits unread in the kernel, which would keep a window's worth of what a stranger sends.
const HANDSHAKES_MAX: usize = 128;
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 128;

/// What is read from the kernel at once, below TLS, which asks for a record of 16 KiB at the most.
const READ_AHEAD_BYTES: usize = 256 << 10;
/// What TLS takes before it must be written: a whole frame, which the kernel then gets at once.
const TLS_BYTES_MAX: usize = DATA_BYTES_MAX + HEADER_BYTES;

/// A connection between two carriers.
pub type Connection = TlsStream<BufReader<TcpStream>>;

/// What two carriers must both know to meet.
#[derive(Clone, Copy, Debug)]
pub struct SessionKey {
    /// The migration attempt.
    pub session: SessionId,
    /// Given to both by the server.
    pub secret: Secret,
}

/// The source's end: opens connections to the destination's carrier.
#[derive(Clone)]
pub struct Dialer {
    address: SocketAddr,
    connector: TlsConnector,
    key: SessionKey,
    /// What the destination speaks; 0 before it was asked.
    version: Arc<AtomicU16>,
}

impl Dialer {
    /// Will dial `address` with a configuration that pins the destination's key.
    pub fn new(address: SocketAddr, tls: Arc<ClientConfig>, key: SessionKey) -> Self {
        Self { address, connector: TlsConnector::from(tls), key, version: Arc::default() }
    }

    /// The largest window that the destination takes, known when a connection to it is open.
    pub fn window_max(&self) -> u64 {
        window_bytes_max(self.version.load(Ordering::Acquire))
    }

    /// Opens a connection for `channel`. Ok promises that the destination accepted it for this session.
    ///
    /// # Errors
    /// [`WireError::Peer`], [`WireError::Refused`] with the destination's reason, [`WireError::Timeout`].
    pub async fn open(&self, channel: Channel) -> Result<Connection, WireError> {
        let dial = async {
            let tcp = socket_for(self.address).map_err(WireError::Peer)?;
            let tcp = tcp.connect(self.address).await.map_err(WireError::Peer)?;
            tcp.set_nodelay(true).map_err(WireError::Peer)?;
            let name = ServerName::try_from("ferry.invalid").expect("a valid name");
            let mut stream = self.connector.connect(name, read_ahead(tcp)).await.map_err(WireError::Peer)?;
            stream.get_mut().1.set_buffer_limit(Some(TLS_BYTES_MAX));
            let hello = Hello::new(self.key.session, self.key.secret, channel, Codec::Raw);
            self.version.store(introduce(&mut stream, &hello).await?, Ordering::Release);
            Ok(TlsStream::from(stream))
        };
        tokio::time::timeout(HANDSHAKE_DEADLINE, dial)
            .await
            .map_err(|_| WireError::Timeout("the destination's carrier did not answer"))?
    }
}

/// The destination's end: accepts the connections of one session.
#[derive(Debug)]
pub struct Acceptor {
    address: SocketAddr,
    accepted: mpsc::Receiver<(Channel, Connection)>,
    /// What the source speaks; 0 before it came.
    version: Arc<AtomicU16>,
    task: tokio::task::JoinHandle<()>,
}

impl Acceptor {
    /// Listens on the first free port of `ports` at `ip`, with a configuration that pins the source's key.
    ///
    /// # Errors
    /// [`WireError::Local`] when no port of the range is free.
    pub async fn bind(
        ip: std::net::IpAddr,
        ports: RangeInclusive<u16>,
        tls: Arc<ServerConfig>,
        key: SessionKey,
    ) -> Result<Self, WireError> {
        let mut last = std::io::Error::from(std::io::ErrorKind::InvalidInput);
        for port in ports {
            match bind((ip, port).into()) {
                Ok(listener) => return Self::start(listener, tls, key),
                Err(error) => last = error,
            }
        }
        Err(WireError::Local(last))
    }

    fn start(listener: TcpListener, tls: Arc<ServerConfig>, key: SessionKey) -> Result<Self, WireError> {
        let address = listener.local_addr().map_err(WireError::Local)?;
        let (found, accepted) = mpsc::channel(HANDSHAKES_MAX);
        let version = Arc::<AtomicU16>::default();
        let task = tokio::spawn(accept_all(listener, TlsAcceptor::from(tls), key, found, Arc::clone(&version)));
        Ok(Self { address, accepted, version, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The largest window that the source takes, known when a connection from it is open.
    pub fn window_max(&self) -> u64 {
        window_bytes_max(self.version.load(Ordering::Acquire))
    }

    /// The next connection that showed the session's secret; `None` when listening ended.
    pub async fn accept(&mut self) -> Option<(Channel, Connection)> {
        self.accepted.recv().await
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A socket whose receive buffer is not smaller than a window. It has to be told before the connection is made: what a
/// connection can announce is settled with its first packet. The kernel fills the buffer only while this process does not
/// read, which it always does.
fn socket_for(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Err(error) = setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &(BUDGET_BYTES as usize)) {
        debug!(%error, "the receive buffer stays what net.ipv4.tcp_rmem allows");
    }
    Ok(socket)
}

/// Lets a whole window be in flight on a connection. Only for one whose sender keeps to a window: whatever is written
/// to any other is taken, and waits.
pub fn widen(stream: &Connection) {
    if let Err(error) =
        setsockopt(&stream.get_ref().0.get_ref().as_fd(), sockopt::SndBufForce, &(BUDGET_BYTES as usize))
    {
        debug!(%error, "the send buffer stays what net.ipv4.tcp_wmem allows");
    }
}

/// Lets a local reader fall behind by two frames before the carrier has to wait for it, and be woken. What waits there is
/// gone in a millisecond or two.
pub fn widen_local(stream: &UnixStream) {
    if let Err(error) = setsockopt(&stream.as_fd(), sockopt::SndBufForce, &(2 * DATA_BYTES_MAX)) {
        debug!(%error, "the local send buffer stays what net.core.wmem_default says");
    }
}

fn read_ahead(tcp: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(READ_AHEAD_BYTES, tcp)
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket_for(address)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept_all(
    listener: TcpListener,
    tls: TlsAcceptor,
    key: SessionKey,
    found: mpsc::Sender<(Channel, Connection)>,
    spoken: Arc<AtomicU16>,
) {
    let pending = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the peer was gone at once: others are not affected.
                warn!(%error, "a connection could not be accepted");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&pending).try_acquire_owned() else {
            warn!(%from, "too many connections are not introduced; this one was closed");
            continue;
        };
        let (tls, found, spoken) = (tls.clone(), found.clone(), Arc::clone(&spoken));
        tokio::spawn(async move {
            let _permit = permit;
            let greeted = tokio::time::timeout(HANDSHAKE_DEADLINE, greet(tcp, tls, key)).await;
            match greeted.unwrap_or(Err(WireError::Timeout("no hello came"))) {
                Ok((channel, stream, version)) => {
                    spoken.store(version, Ordering::Release);
                    let _ = found.send((channel, stream)).await;
                }
                Err(error) => warn!(%from, error = %report(&error), "a connection to the carrier was refused"),
            }
        });
    }
}

async fn greet(tcp: TcpStream, tls: TlsAcceptor, key: SessionKey) -> Result<(Channel, Connection, u16), WireError> {
    tcp.set_nodelay(true).map_err(WireError::Peer)?;
    let mut stream = tls.accept(read_ahead(tcp)).await.map_err(WireError::Peer)?;
    stream.get_mut().1.set_buffer_limit(Some(TLS_BYTES_MAX));
    let mut stream = TlsStream::from(stream);
    let hello = listen(&mut stream).await?;
    let refusal = if hello.session != key.session || !same_secret(&hello.secret, &key.secret) {
        Some("unknown session")
    } else if hello.lanes != 1 {
        Some("several lanes are not spoken")
    } else {
        None
    };
    let version = common_version(hello.version_min, hello.version_max);
    match (refusal, version) {
        (None, Some(version)) => {
            answer(&mut stream, Ok(version)).await?;
            Ok((hello.channel, stream, version))
        }
        (refusal, _) => {
            let reason = refusal.unwrap_or("no common version");
            answer(&mut stream, Err(reason)).await?;
            Err(WireError::Refused(reason.to_owned()))
        }
    }
}

fn report(error: &WireError) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
