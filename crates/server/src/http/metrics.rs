//! `/metrics` for Prometheus, at its own listener. It needs no token, because Prometheus should not hold the
//! administrator's, and it names hosts but no VMs. It is off unless a setting gives its address.

use std::sync::Arc;

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{Method, header::CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use ferry_core::metrics::MEDIA_TYPE;
use tokio::net::TcpListener;

use super::AppState;
use crate::{app::App, app::show_metrics::show_metrics, failure::Failure};

/// Answers until the server stops.
pub(crate) async fn serve(app: Arc<App>, listener: TcpListener) {
    let stop = app.stop.clone();
    let router = Router::new().route("/metrics", get(show)).with_state(app);
    // It never ends with an error: axum continues after a failed `accept`.
    let _ = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await;
}

async fn show(State(app): AppState) -> Response {
    match show_metrics(&app).await {
        Ok(text) => ([(CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
        Err(error) => Failure::Store(error).into_response(),
    }
}

/// Counts every answer by route and status.
pub(super) async fn count(State(app): AppState, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let answer = next.run(request).await;
    let method = if is_ours(&method) { method.as_str() } else { "other" };
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    app.metrics.request(method, route, answer.status().as_u16());
    answer
}

/// Whether our routes use the method: callers can invent any others.
fn is_ours(method: &Method) -> bool {
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method)
}
