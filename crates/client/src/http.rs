//! One JSON call over HTTPS with a pinned key.

use std::{error::Error, io, time::Duration};

use ferry_core::{api::problem::Problem, pin::Pin};
use ferry_trust::KeyPair;
use reqwest::{Client, Method, RequestBuilder, Response, Url, header::HeaderMap};
use serde::de::DeserializeOwned;

use crate::ClientError;

/// A host that does not accept a TCP connection within this time counts as unreachable.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Limit of a response's length: more than a list of about ten thousand VMs needs.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// How long idle connections are kept: a new TLS handshake would cost several milliseconds at the start of a move.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// The server or agent to call, and how.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    client: Client,
    base: Url,
    pin: Pin,
}

impl Peer {
    /// `headers` are sent with every call.
    pub(crate) fn new(base: &str, pin: Pin, me: Option<&KeyPair>, headers: HeaderMap) -> Result<Self, ClientError> {
        let base = Url::parse(base)
            .map_err(|error| ClientError::Unusable { what: "address", detail: format!("{base}: {error}") })?;
        if base.scheme() != "https" || base.host_str().is_none() {
            let detail = format!("{base} does not begin with https:// and a host");
            return Err(ClientError::Unusable { what: "address", detail });
        }
        let tls = ferry_trust::client_config(me, pin)
            .map_err(|error| ClientError::Unusable { what: "key", detail: error.to_string() })?;
        let client = Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .default_headers(headers)
            .connect_timeout(CONNECT_DEADLINE)
            .pool_idle_timeout(IDLE_MAX)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(15))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| ClientError::Unusable { what: "key", detail: error.to_string() })?;
        Ok(Self { client, base, pin })
    }

    /// A request for `segments` below the base; each segment is percent-encoded.
    pub(crate) fn request(&self, method: Method, segments: &[&str], deadline: Duration) -> RequestBuilder {
        self.endless(method, segments).timeout(deadline)
    }

    /// As [`Self::request`], for a response without an end.
    pub(crate) fn endless(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an https URL has a path").pop_if_empty().extend(segments);
        self.client.request(method, url)
    }

    /// Sends the request; Ok is a successful response.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| self.fault(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.body(response).await?;
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => ClientError::Refused(Box::new(problem)),
            Err(_) => {
                let start = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
                self.not_understood(format!("status {status} without a problem: {start}"))
            }
        })
    }

    /// Sends the request and parses the response as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.not_understood(error.to_string()))
    }

    /// Sends the request and ignores the response's body.
    pub(crate) async fn done(&self, request: RequestBuilder) -> Result<(), ClientError> {
        let response = self.send(request).await?;
        self.body(response).await.map(|_| ())
    }

    /// Reads the body to its end, so that the connection can be reused.
    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.fault(error))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.not_understood(format!("it is longer than {ANSWER_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The error of a call without a complete response.
    pub(crate) fn fault(&self, error: reqwest::Error) -> ClientError {
        // `peer` already contains the URL.
        let error = error.without_url();
        if shows_wrong_key(&error) {
            return ClientError::WrongKey { peer: self.name(), pin: self.pin };
        }
        ClientError::Unreachable { peer: self.name(), source: Box::new(error) }
    }

    /// The error for a response that cannot be parsed.
    pub(crate) fn not_understood(&self, detail: String) -> ClientError {
        ClientError::NotUnderstood { peer: self.name(), detail }
    }

    /// `HOST:PORT`, for messages.
    pub(crate) fn name(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        match self.base.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }
}

/// Whether rustls rejected the peer's certificate: the verifier rejects only a wrong key.
fn shows_wrong_key(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        let tls = error
            .downcast_ref::<rustls::Error>()
            .or_else(|| inner.and_then(|error| error.downcast_ref::<rustls::Error>()));
        if let Some(rustls::Error::InvalidCertificate(_)) = tls {
            return true;
        }
        // An io::Error's source() skips the error it wraps.
        cause = match inner {
            Some(inner) if tls.is_none() => Some(inner as &(dyn Error + 'static)),
            _ => error.source(),
        };
    }
    false
}
