//! Connections of a session: the source dials, the destination accepts.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use ferry_core::{error::chain, id::SessionId, pin::Secret};
use ferry_trust::same_secret;
use futures_util::future::try_join_all;
use rustls::{ClientConfig, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tracing::{Instrument as _, warn};

use crate::{
    WireError,
    channel::{Options, carry_coded, coding::Coding},
    hello::{Abilities, Agreed, Channel, Hello, HelloError, Terms, answer, common_version, introduce, listen},
    transport::{
        Listener, Opening, Pipe, Transport,
        spool::SpoolAcceptor,
        tcp::{TcpAcceptor, TcpDialer},
    },
    window::window_bytes_max,
};

/// A connection that has not sent its hello by then is dropped.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Limit of connections that have not sent their hello: a session has a handful, and strangers must not block it.
/// Further ones are closed at once rather than left unread in the kernel, where each could occupy a window's worth of
/// memory.
const HANDSHAKES_MAX: usize = 128;

/// Limit of channels of which some lanes have arrived and others have not: a session opens a few at once. Those of a
/// channel that the dialer gave up stay until the session ends, and count.
const INCOMPLETE_CHANNELS_MAX: usize = 128;

/// A connection between two carriers: a pipe for each lane of its channel, and what was agreed when opening them. It can be
/// read and written if there is one.
pub struct Connection {
    lanes: Vec<Pipe>,
    agreed: Agreed,
}

impl Connection {
    /// What was agreed when opening it.
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// Carries the channel as [`carry`](crate::channel::carry) does, on the agreed terms, with no larger a window than the peer accepts.
    ///
    /// # Errors
    /// As there.
    pub async fn carry<R, W>(self, local_reader: R, local_writer: W, options: Options) -> Result<(), WireError>
    where
        R: AsyncRead + Send + Unpin,
        W: AsyncWrite + Send + Unpin,
    {
        let window_max = options.window_max.min(window_bytes_max(self.agreed.version));
        let Terms { codecs, lanes } = self.agreed.terms;
        let coding = Coding::of(codecs, lanes, options.compression.clone());
        carry_coded(self.lanes, local_reader, local_writer, Options { window_max, ..options }, coding).await
    }

    /// Allows a whole window to be in flight. Only for senders that respect a window: on any other connection, all
    /// bytes written are accepted and queued.
    pub fn widen(&self) {
        self.lanes.iter().for_each(|pipe| pipe.widen());
    }
}

/// What both carriers must know to connect.
#[derive(Clone, Copy, Debug)]
pub struct SessionKey {
    /// The session: one migration attempt.
    pub session: SessionId,
    /// The secret that the server gave to both.
    pub secret: Secret,
}

/// The source's end: opens connections to the destination's carrier.
#[derive(Clone)]
pub struct Dialer {
    direct: Arc<dyn Transport>,
    /// For streams, if they go another way.
    bulk: Option<Arc<dyn Transport>>,
    key: SessionKey,
    /// The version that the destination speaks, and its abilities, once it has answered.
    peer: Arc<OnceLock<(u16, Abilities)>>,
}

impl Dialer {
    /// A dialer for `address` with a configuration that pins the destination's key.
    pub fn new(address: SocketAddr, tls: Arc<ClientConfig>, key: SessionKey) -> Self {
        Self::over(TcpDialer::new(address, tls), key)
    }

    /// As [`Self::new`], with every connection from this address of the host. If the host does not have it, opening fails
    /// with [`WireError::Local`].
    pub fn from_here(here: IpAddr, address: SocketAddr, tls: Arc<ClientConfig>, key: SessionKey) -> Self {
        Self::over(TcpDialer::from_here(here, address, tls), key)
    }

    fn over(direct: TcpDialer, key: SessionKey) -> Self {
        Self { direct: Arc::new(direct), bulk: None, key, peer: Arc::default() }
    }

    /// Sends memory and disks through this transport. Everything else stays on direct connections: control, whose silence
    /// tells that the other end is gone, and libvirt's calls, which must not wait.
    #[must_use]
    pub fn with_bulk(self, transport: Arc<dyn Transport>) -> Self {
        Self { bulk: Some(transport), ..self }
    }

    /// Opens a connection for `channel` on the terms of every version. Ok promises that the destination accepted it for
    /// this session.
    ///
    /// # Errors
    /// [`WireError::Peer`], [`WireError::Refused`] with the destination's reason, [`WireError::Timeout`].
    pub async fn open(&self, channel: Channel) -> Result<Connection, WireError> {
        self.open_on(Terms::default(), channel).await
    }

    /// As [`Self::open`], on these terms or what remains of them for the destination: [`Connection::agreed`].
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_on(&self, terms: Terms, channel: Channel) -> Result<Connection, WireError> {
        let (version, peer) = self.peer.get().copied().unwrap_or_default();
        let terms = terms.within(channel, peer);
        let hello = Hello { terms, ..Hello::new(self.key.session, self.key.secret, channel, version) };
        let dialed = try_join_all((0..terms.lanes).map(|lane| self.dial(Hello { lane, ..hello })));
        let dialed = tokio::time::timeout(HANDSHAKE_DEADLINE, dialed)
            .await
            .map_err(|_| WireError::Timeout("the destination's carrier did not answer"))??;
        let agreed = dialed[0].1;
        self.peer.get_or_init(|| (agreed.version, agreed.peer));
        Ok(Connection { lanes: dialed.into_iter().map(|(pipe, _)| pipe).collect(), agreed })
    }

    async fn dial(&self, hello: Hello) -> Result<(Pipe, Agreed), WireError> {
        let transport = self.bulk.as_ref().filter(|_| hello.channel.is_stream()).unwrap_or(&self.direct);
        let mut pipe = transport.open(hello.channel).await?;
        let agreed = introduce(&mut pipe, &hello).await?;
        pipe.introduced();
        Ok((pipe, agreed))
    }
}

/// A pipe, its hello, and the version agreed for it.
type Accepted = (Hello, u16, Pipe);

/// Lanes of one channel, of which some have not arrived yet.
struct Lanes {
    agreed: Agreed,
    pipes: Vec<Option<Pipe>>,
}

/// The destination's end: accepts the connections of one session.
pub struct Acceptor {
    address: SocketAddr,
    accepted: mpsc::Receiver<Accepted>,
    incomplete: BTreeMap<Channel, Lanes>,
    /// One for each way in.
    tasks: JoinSet<()>,
}

impl Acceptor {
    /// Listens on the first free port of `ports` at `ip`, with a configuration that pins the source's key.
    ///
    /// # Errors
    /// [`WireError::Local`] if no port of the range is free.
    pub async fn bind(
        ip: IpAddr,
        ports: RangeInclusive<u16>,
        tls: Arc<ServerConfig>,
        key: SessionKey,
    ) -> Result<Self, WireError> {
        Self::bind_with_bulk(ip, ports, tls, key, None).await
    }

    /// As [`Self::bind`]; it also accepts channels through a spool.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub async fn bind_with_bulk(
        ip: std::net::IpAddr,
        ports: RangeInclusive<u16>,
        tls: Arc<ServerConfig>,
        key: SessionKey,
        bulk: Option<SpoolAcceptor>,
    ) -> Result<Self, WireError> {
        let listener = TcpAcceptor::bind(ip, ports, tls)?;
        let address = listener.address()?;
        let (found, accepted) = mpsc::channel(HANDSHAKES_MAX);
        let mut tasks = JoinSet::new();
        if let Some(bulk) = bulk {
            tasks.spawn(accept_all(bulk, key, found.clone()).in_current_span());
        }
        tasks.spawn(accept_all(listener, key, found).in_current_span());
        Ok(Self { address, accepted, incomplete: BTreeMap::new(), tasks })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection that presented the session's secret and has all its lanes; `None` when listening has ended.
    pub async fn accept(&mut self) -> Option<(Channel, Connection)> {
        loop {
            let accepted = self.accepted.recv().await?;
            if let Some(complete) = self.add(accepted) {
                return Some(complete);
            }
        }
    }

    /// Adds a lane to those of its channel; returns the channel if it was the last.
    fn add(&mut self, (hello, version, pipe): Accepted) -> Option<(Channel, Connection)> {
        // A dialer states what it asks for, not its abilities.
        let agreed = Agreed { version, terms: hello.terms, peer: Abilities::default() };
        let Hello { channel, lane, .. } = hello;
        let empty = || Lanes { agreed, pipes: (0..hello.terms.lanes).map(|_| None).collect() };
        if self.incomplete.len() >= INCOMPLETE_CHANNELS_MAX && !self.incomplete.contains_key(&channel) {
            warn!(?channel, "Too many channels miss lanes; this one was closed");
            return None;
        }
        let lanes = self.incomplete.entry(channel).or_insert_with(empty);
        // The dialer opens the channel again.
        if lanes.agreed != agreed || lanes.pipes[usize::from(lane)].is_some() {
            *lanes = empty();
        }
        lanes.pipes[usize::from(lane)] = Some(pipe);
        if lanes.pipes.iter().any(Option::is_none) {
            return None;
        }
        let Lanes { agreed, pipes } = self.incomplete.remove(&channel)?;
        Some((channel, Connection { lanes: pipes.into_iter().flatten().collect(), agreed }))
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

async fn accept_all<L: Listener>(listener: L, key: SessionKey, found: mpsc::Sender<Accepted>) {
    let pending = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let (from, opening) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the peer disconnected at once: other connections are not affected.
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
        let introduced = async move {
            let _permit = permit;
            let greeted = tokio::time::timeout(HANDSHAKE_DEADLINE, greet(opening, key)).await;
            match greeted.unwrap_or(Err(WireError::Timeout("no hello came"))) {
                Ok(accepted) => drop(found.send(accepted).await),
                Err(error) => warn!(%from, error = %chain(&error), "A connection to the carrier was refused"),
            }
        };
        tokio::spawn(introduced.in_current_span());
    }
}

async fn greet(opening: Opening<'static>, key: SessionKey) -> Result<Accepted, WireError> {
    let mut pipe = opening.await?;
    let refusal = match admit(listen(&mut pipe).await, key) {
        Ok((hello, version)) => {
            answer(&mut pipe, Ok(version)).await?;
            pipe.introduced();
            return Ok((hello, version, pipe));
        }
        Err(refusal) => refusal,
    };
    if let WireError::Refused(reason) = &refusal {
        answer(&mut pipe, Err(reason)).await?;
    }
    Err(refusal)
}

/// A hello that can be served, and the version agreed for it.
///
/// # Errors
/// [`WireError::Refused`] with the reason to send; any other error gets no answer.
fn admit(heard: Result<Hello, HelloError>, key: SessionKey) -> Result<(Hello, u16), WireError> {
    let is_known = |session: SessionId, secret: &Secret| session == key.session && same_secret(secret, &key.secret);
    let reason = match heard {
        Err(HelloError::NotOne(error)) => return Err(error),
        Err(HelloError::NotSupported { session, secret, what }) if is_known(session, &secret) => {
            format!("not supported: {what}")
        }
        Ok(hello) if is_known(hello.session, &hello.secret) => {
            match common_version(hello.version_min, hello.version_max) {
                Some(version) => return Ok((hello, version)),
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
        Pin::new(&mut self.lanes[0]).poll_read(context, out)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.lanes[0]).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.lanes[0]).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.lanes[0].is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.lanes[0]).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.lanes[0]).poll_shutdown(context)
    }
}
