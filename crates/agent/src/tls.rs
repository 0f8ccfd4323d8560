//! Serves HTTP over TLS to callers with a key, and passes the caller's key to handlers.

use std::{io, sync::Arc};

use axum::{Extension, middleware::AddExtension};
use axum_server::{
    accept::Accept,
    tls::TlsService,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use ferry_core::pin::Pin;
use ferry_trust::peer_pin;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tower::Layer as _;

/// The key that the caller proved in the handshake.
#[derive(Clone, Copy, Debug)]
pub struct Caller(pub Pin);

/// Accepts TLS connections from callers with any key; [`Caller`] holds it.
#[derive(Clone)]
pub struct PinAcceptor(RustlsAcceptor);

impl PinAcceptor {
    /// Uses a configuration that requests client keys.
    pub fn new(tls: Arc<ServerConfig>) -> Self {
        Self(RustlsAcceptor::new(RustlsConfig::from_config(tls)))
    }
}

type Accepting<S> = std::pin::Pin<
    Box<dyn Future<Output = io::Result<(TlsStream<TcpStream>, AddExtension<TlsService<S>, Caller>)>> + Send>,
>;

impl<S: Send + 'static> Accept<TcpStream, S> for PinAcceptor {
    type Stream = TlsStream<TcpStream>;
    type Service = AddExtension<TlsService<S>, Caller>;
    type Future = Accepting<S>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let accepting = self.0.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            let _ = stream.get_ref().0.set_nodelay(true);
            let caller = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(peer_pin)
                .ok_or_else(|| io::Error::other("the caller showed no key"))?;
            Ok((stream, Extension(Caller(caller)).layer(service)))
        })
    }
}
