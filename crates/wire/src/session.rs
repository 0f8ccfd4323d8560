//! A session's connections: the source dials, the destination accepts.

use std::{net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use ferry_core::{id::SessionId, pin::Secret};
use ferry_trust::same_secret;
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tracing::warn;

use crate::{
    WireError,
    frame::Codec,
    hello::{Channel, Hello, answer, common_version, introduce, listen},
};

/// A connection that is not introduced by then is dropped.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Connections that may be unintroduced at once: a session has a handful.
const HANDSHAKES_MAX: usize = 16;

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
}

impl Dialer {
    /// Will dial `address` with a configuration that pins the destination's key.
    pub fn new(address: SocketAddr, tls: Arc<ClientConfig>, key: SessionKey) -> Self {
        Self { address, connector: TlsConnector::from(tls), key }
    }

    /// Opens a connection for `channel`. Ok promises that the destination accepted it for this session.
    ///
    /// # Errors
    /// [`WireError::Peer`], [`WireError::Refused`] with the destination's reason, [`WireError::Timeout`].
    pub async fn open(&self, channel: Channel) -> Result<TlsStream<TcpStream>, WireError> {
        let dial = async {
            let tcp = TcpStream::connect(self.address).await.map_err(WireError::Peer)?;
            tcp.set_nodelay(true).map_err(WireError::Peer)?;
            let name = ServerName::try_from("ferry.invalid").expect("a valid name");
            let mut stream = self.connector.connect(name, tcp).await.map_err(WireError::Peer)?;
            introduce(&mut stream, &Hello::new(self.key.session, self.key.secret, channel, Codec::Raw)).await?;
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
    accepted: mpsc::Receiver<(Channel, TlsStream<TcpStream>)>,
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
            match TcpListener::bind((ip, port)).await {
                Ok(listener) => return Self::start(listener, tls, key),
                Err(error) => last = error,
            }
        }
        Err(WireError::Local(last))
    }

    fn start(listener: TcpListener, tls: Arc<ServerConfig>, key: SessionKey) -> Result<Self, WireError> {
        let address = listener.local_addr().map_err(WireError::Local)?;
        let (found, accepted) = mpsc::channel(HANDSHAKES_MAX);
        let task = tokio::spawn(accept_all(listener, TlsAcceptor::from(tls), key, found));
        Ok(Self { address, accepted, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection that showed the session's secret; `None` when listening ended.
    pub async fn accept(&mut self) -> Option<(Channel, TlsStream<TcpStream>)> {
        self.accepted.recv().await
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept_all(
    listener: TcpListener,
    tls: TlsAcceptor,
    key: SessionKey,
    found: mpsc::Sender<(Channel, TlsStream<TcpStream>)>,
) {
    let pending = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = Arc::clone(&pending).acquire_owned().await else { return };
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the peer was gone at once: others are not affected.
                warn!(%error, "a connection could not be accepted");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let (tls, found) = (tls.clone(), found.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let greeted = tokio::time::timeout(HANDSHAKE_DEADLINE, greet(tcp, tls, key)).await;
            match greeted.unwrap_or(Err(WireError::Timeout("no hello came"))) {
                Ok(connection) => {
                    let _ = found.send(connection).await;
                }
                Err(error) => warn!(%from, error = %report(&error), "a connection to the carrier was refused"),
            }
        });
    }
}

async fn greet(
    tcp: TcpStream,
    tls: TlsAcceptor,
    key: SessionKey,
) -> Result<(Channel, TlsStream<TcpStream>), WireError> {
    tcp.set_nodelay(true).map_err(WireError::Peer)?;
    let mut stream = TlsStream::from(tls.accept(tcp).await.map_err(WireError::Peer)?);
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
            Ok((hello.channel, stream))
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
