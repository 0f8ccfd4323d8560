//! `/api/v1/hosts`

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use ferry_core::api::{
    problem::Problem,
    server::{AddHost, HostView},
};

use super::{Answer, AppState};
use crate::app::{add_host, remove_host, show_hosts};

/// Every host.
#[utoipa::path(get, path = "/api/v1/hosts", tag = "hosts", responses((status = 200, body = [HostView])))]
pub(super) async fn list(State(app): AppState) -> Json<Vec<HostView>> {
    Json(show_hosts::list(&app))
}

/// Adds a host with the token that its agent printed.
#[utoipa::path(post, path = "/api/v1/hosts", tag = "hosts", request_body = AddHost,
    params(("Idempotency-Key" = Option<String>, Header, description = "Does the request once")),
    responses((status = 201, body = HostView), (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn add(State(app): AppState, Json(body): Json<AddHost>) -> Answer<(StatusCode, Json<HostView>)> {
    Ok((StatusCode::CREATED, Json(add_host::add_host(&app, &body).await?)))
}

/// One host.
#[utoipa::path(get, path = "/api/v1/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "Name or id")),
    responses((status = 200, body = HostView), (status = 404, body = Problem)))]
pub(super) async fn show(State(app): AppState, Path(host): Path<String>) -> Answer<Json<HostView>> {
    Ok(Json(show_hosts::one(&app, &host)?))
}

/// Removes a host and drops its agent's pin.
#[utoipa::path(delete, path = "/api/v1/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "Name or id")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn remove(State(app): AppState, Path(host): Path<String>) -> Answer<StatusCode> {
    remove_host::remove_host(&app, &host).await?;
    Ok(StatusCode::NO_CONTENT)
}
