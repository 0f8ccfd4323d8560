//! The control API; `ferry_core::api::agent` defines the input and output of each route.

mod answer;
mod host;
pub mod metrics;
mod moves;
mod places;
mod v1;

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use ferry_core::api::agent::EPOCH_HEADER;
use ferry_core::finding::Message;
use ferry_trust::{Clients, server_config};
use tracing::{Instrument as _, Span, info};

use self::{
    answer::{Refusal, Shared, invalid},
    host::{enrol, get_disks, get_files, get_host, observe, power},
    moves::{act, check, prepare, release, report},
    places::{
        attach_share, check_directory, detach_share, end_lock_trial, get_places, list_directory, read_token,
        remove_token, try_locks, write_token,
    },
};
use crate::{
    Agent, attempt,
    tls::{Caller, PinAcceptor},
};

/// How long an agent that has just ended may still occupy the address.
const ADDRESS_WAIT: Duration = Duration::from_secs(10);
const ADDRESS_PAUSE: Duration = Duration::from_millis(50);
/// Largest body: a migration request holds a few hundred paths at most.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest answer in which texts for people are rewritten: a move's report holds a few lines for each of its disks.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long requests in flight may continue when the agent stops.
const GRACE: Duration = Duration::from_secs(2);

/// The routes, all behind the check of the caller's key.
pub fn router(agent: Arc<Agent>) -> Router {
    let enrolled = Router::new()
        .route("/v1/host", get(get_host))
        .route("/v1/observe", get(observe))
        .route("/v1/shares/{share}", put(attach_share).delete(detach_share))
        .route("/v1/shares/{share}/token/{name}", put(write_token).get(read_token).delete(remove_token))
        .route("/v1/shares/{share}/locks/{name}", put(try_locks).delete(end_lock_trial))
        .route("/v1/places", get(get_places))
        .route("/v1/directory", get(list_directory))
        .route("/v1/directory/check", put(check_directory))
        .route("/v1/vms/{vm}/power", put(power))
        .route("/v1/vms/{vm}/disks", get(get_disks))
        .route("/v1/vms/{vm}/files", get(get_files))
        .route("/v2/moves/check", put(check))
        .route("/v2/moves/{job}/{generation}", get(report).put(prepare).post(act).delete(release))
        .merge(v1::routes())
        .fallback(|| async { invalid(404, Message::NoRoute) })
        .method_not_allowed_fallback(|| async { invalid(405, Message::NoMethod) })
        .layer(middleware::from_fn_with_state(Arc::clone(&agent), authorise));
    Router::new()
        .route("/v1/enrol", post(enrol))
        .merge(enrolled)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&agent), metrics::count))
        .with_state(agent)
}

/// Listens at `address`. Waits up to 10 s until it is free: an agent that was just killed may still occupy it.
///
/// # Errors
/// If it stays in use, or is not an address of this host.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let until = Instant::now() + ADDRESS_WAIT;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < until => {
                tokio::time::sleep(ADDRESS_PAUSE).await;
            }
            outcome @ (Ok(_) | Err(_)) => return outcome,
        }
    }
}

/// Serves until `stop` is signalled, then lets requests in flight finish. Carriers continue.
///
/// # Errors
/// If the listener cannot be used.
pub async fn serve_on(
    agent: Arc<Agent>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<SocketAddr> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let tls = server_config(&agent.key, Clients::AnyKey)?;
    let handle = axum_server::Handle::new();
    let ending = handle.clone();
    tokio::spawn(async move {
        stop.await;
        ending.graceful_shutdown(Some(GRACE));
    });
    info!(%address, "The control API listens");
    axum_server::Server::<SocketAddr>::from_listener(tokio::net::TcpListener::from_std(listener)?)
        .acceptor(PinAcceptor::new(tls))
        .handle(handle)
        .serve(router(agent).into_make_service())
        .await?;
    Ok(address)
}

async fn authorise(
    State(agent): Shared,
    Extension(Caller(pin)): Extension<Caller>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    agent.enrolment.authorise(pin)?;
    let epoch = request.headers().get(EPOCH_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(epoch) = epoch {
        agent.enrolment.enter_epoch(epoch)?;
    }
    let of_a_move = ["/v2/moves/", "/v1/migrations/", "/v1/offline-moves/", "/v1/storage-moves/"]
        .iter()
        .find_map(|prefix| request.uri().path().strip_prefix(prefix));
    let attempt = of_a_move.and_then(|rest| {
        let mut parts = rest.split('/');
        Some(attempt::span(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    });
    let is_of_a_move = of_a_move.is_some();
    let mut response = next.run(request).instrument(attempt.unwrap_or(Span::none())).await;
    if is_of_a_move || !response.status().is_success() {
        response = rewrite_response(&agent, response).await;
    }
    // The caller may have lost its right to the answer during a long poll.
    agent.enrolment.authorise(pin)?;
    Ok(response)
}

/// Rewrites the texts in an answer that people read. Answers that are not JSON, or too long, are passed on unchanged.
async fn rewrite_response(agent: &Agent, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, ANSWER_BYTES_MAX).await else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "The answer is too long").into_response();
    };
    let body = match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(mut answer) => {
            agent.rewriter().rewrite(&mut answer);
            parts.headers.remove(header::CONTENT_LENGTH);
            answer.to_string().into()
        }
        Err(_) => bytes,
    };
    Response::from_parts(parts, body.into())
}
