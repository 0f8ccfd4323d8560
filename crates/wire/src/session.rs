//! A session's connections: the source dials, the destination accepts.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use ferry_core::{error::chain, id::SessionId, pin::Secret};
use ferry_trust::same_secret;
use rustls::{ClientConfig, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Semaphore, mpsc},
};
use tracing::warn;

use crate::{
    WireError,
    hello::{Abilities, Agreed, Channel, Hello, HelloError, answer, common_version, introduce, listen},
    transport::{
        Listener, Opening, Pipe, Transport,
        tcp::{TcpAcceptor, TcpDialer},
    },
    window::window_bytes_max,
};

/// A connection that is not introduced by then is dropped.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Connections that may be unintroduced at once: a session has a handful, and strangers shall not be in its way. More
/// are closed at once: none waits unread in the kernel, which would keep a window's worth of what a stranger sends.
const HANDSHAKES_MAX: usize = 128;

/// A connection between two carriers: a pipe, and what was agreed when it was opened.
pub struct Connection {
    pipe: Pipe,
    agreed: Agreed,
}

impl Connection {
    /// What was agreed when it was opened.
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// The largest window that the peer takes.
    pub fn window_max(&self) -> u64 {
        window_bytes_max(self.agreed.version)
    }

    /// Lets a whole window be in flight. Only where the sender keeps to a window: whatever is written to any other
    /// connection is taken, and waits.
    pub fn widen(&self) {
        self.pipe.widen();
    }
}

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
    transport: Arc<dyn Transport>,
    key: SessionKey,
    /// What the destination speaks; 0 before it was asked.
    version: Arc<AtomicU16>,
}

impl Dialer {
    /// Will dial `address` with a configuration that pins the destination's key.
    pub fn new(address: SocketAddr, tls: Arc<ClientConfig>, key: SessionKey) -> Self {
        Self { transport: Arc::new(TcpDialer::new(address, tls)), key, version: Arc::default() }
    }

    /// Opens a connection for `channel`. Ok promises that the destination accepted it for this session.
    ///
    /// # Errors
    /// [`WireError::Peer`], [`WireError::Refused`] with the destination's reason, [`WireError::Timeout`].
    pub async fn open(&self, channel: Channel) -> Result<Connection, WireError> {
        let dial = async {
            let mut pipe = self.transport.open(channel).await?;
            let hello = Hello::new(self.key.session, self.key.secret, channel, self.version.load(Ordering::Acquire));
            let agreed = introduce(&mut pipe, &hello).await?;
            self.version.store(agreed.version, Ordering::Release);
            pipe.introduced();
            Ok(Connection { pipe, agreed })
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
        let listener = TcpAcceptor::bind(ip, ports, tls)?;
        let address = listener.address()?;
        let (found, accepted) = mpsc::channel(HANDSHAKES_MAX);
        let task = tokio::spawn(accept_all(listener, key, found));
        Ok(Self { address, accepted, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
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

async fn accept_all<L: Listener>(listener: L, key: SessionKey, found: mpsc::Sender<(Channel, Connection)>) {
    let pending = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let (from, opening) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the peer was gone at once: others are not affected.
                warn!(error = %chain(&error), "A connection could not be accepted");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&pending).try_acquire_owned() else {
            warn!(%from, "Too many connections are not introduced; this one was closed");
            continue;
        };
        let found = found.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let greeted = tokio::time::timeout(HANDSHAKE_DEADLINE, greet(opening, key)).await;
            match greeted.unwrap_or(Err(WireError::Timeout("no hello came"))) {
                Ok(accepted) => drop(found.send(accepted).await),
                Err(error) => warn!(%from, error = %chain(&error), "A connection to the carrier was refused"),
            }
        });
    }
}

async fn greet(opening: Opening<'static>, key: SessionKey) -> Result<(Channel, Connection), WireError> {
    let mut pipe = opening.await?;
    let refusal = match admit(listen(&mut pipe).await, key) {
        Ok((channel, version)) => {
            answer(&mut pipe, Ok(version)).await?;
            pipe.introduced();
            // A dialer tells what it asks for, not what it can do.
            return Ok((channel, Connection { pipe, agreed: Agreed { version, peer: Abilities::default() } }));
        }
        Err(refusal) => refusal,
    };
    if let WireError::Refused(reason) = &refusal {
        answer(&mut pipe, Err(reason)).await?;
    }
    Err(refusal)
}

/// What a hello asks for, and the version in which it gets it.
///
/// # Errors
/// [`WireError::Refused`] with what is to be answered; others where nothing is.
fn admit(heard: Result<Hello, HelloError>, key: SessionKey) -> Result<(Channel, u16), WireError> {
    let is_known = |session: SessionId, secret: &Secret| session == key.session && same_secret(secret, &key.secret);
    let reason = match heard {
        Err(HelloError::NotOne(error)) => return Err(error),
        Err(HelloError::NotSupported { session, secret, what }) if is_known(session, &secret) => {
            format!("not supported: {what}")
        }
        Ok(hello) if is_known(hello.session, &hello.secret) => {
            match common_version(hello.version_min, hello.version_max) {
                Some(version) => return Ok((hello.channel, version)),
                None => "no common version".to_owned(),
            }
        }
        Ok(_) | Err(HelloError::NotSupported { .. }) => "unknown session".to_owned(),
    };
    Err(WireError::Refused(reason))
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(context, out)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.pipe.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}
