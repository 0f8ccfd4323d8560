//! `/api/v1/hosts`

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use ferry_core::api::{
    problem::Problem,
    server::{AddHost, AddStorageLocation, DrainHost, HostView, JobView, PlacesView, SetHost},
};
use serde::Deserialize;

use super::{Answer, AppState, Caller, form::Body};
use crate::app::{
    add_host, add_storage_location, browse_host, drain_host, remove_host, remove_storage_location, set_host, show_hosts,
};

/// Every host.
#[utoipa::path(get, path = "/api/v1/hosts", tag = "hosts", responses((status = 200, body = [HostView])))]
pub(super) async fn list(State(app): AppState) -> Answer<Json<Vec<HostView>>> {
    Ok(Json(show_hosts::list(&app).await?))
}

/// Adds a host with the token that its agent printed.
#[utoipa::path(post, path = "/api/v1/hosts", tag = "hosts", request_body = AddHost,
    params(("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 201, body = HostView), (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn add(State(app): AppState, Body(body): Body<AddHost>) -> Answer<(StatusCode, Json<HostView>)> {
    Ok((StatusCode::CREATED, Json(add_host::add_host(&app, &body).await?)))
}

/// One host.
#[utoipa::path(get, path = "/api/v1/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "Name or id")),
    responses((status = 200, body = HostView), (status = 404, body = Problem)))]
pub(super) async fn show(State(app): AppState, Path(host): Path<String>) -> Answer<Json<HostView>> {
    Ok(Json(show_hosts::one(&app, &host).await?))
}

/// Removes a host and drops its agent's pin.
#[utoipa::path(delete, path = "/api/v1/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "Name or id")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn remove(State(app): AppState, Path(host): Path<String>) -> Answer<StatusCode> {
    remove_host::remove_host(&app, &host).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sets how many moves a host may take part in at the same time.
#[utoipa::path(patch, path = "/api/v1/hosts/{host}", tag = "hosts", request_body = SetHost,
    params(("host" = String, Path, description = "Name or id")),
    responses((status = 200, body = HostView), (status = "4XX", body = Problem)))]
pub(super) async fn set(
    State(app): AppState,
    Path(host): Path<String>,
    Body(body): Body<SetHost>,
) -> Answer<Json<HostView>> {
    Ok(Json(set_host::set_host(&app, &host, body).await?))
}

/// Moves every running VM away from a host and keeps it free until it is resumed.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/drain", tag = "hosts", request_body = DrainHost,
    params(("host" = String, Path, description = "Name or id"),
        ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 202, description = "A job was accepted, with a part for each VM", body = JobView),
        (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn drain(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Path(host): Path<String>,
    Body(body): Body<DrainHost>,
) -> Answer<(StatusCode, Json<JobView>)> {
    Ok((StatusCode::ACCEPTED, Json(drain_host::drain_host(&app, &host, &body, &by).await?)))
}

/// Ends a host's maintenance: VMs may be placed there again.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/resume", tag = "hosts",
    params(("host" = String, Path, description = "Name or id"),
        ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 200, body = HostView), (status = 404, body = Problem)))]
pub(super) async fn resume(State(app): AppState, Path(host): Path<String>) -> Answer<Json<HostView>> {
    Ok(Json(drain_host::resume_host(&app, &host).await?))
}

#[derive(Deserialize)]
pub(super) struct Browse {
    location: Option<String>,
}

/// Lists the directories that a host offers for files, with free space, or the contents of a given location.
#[utoipa::path(get, path = "/api/v1/hosts/{host}/places", tag = "hosts",
    params(("host" = String, Path, description = "Name or id"),
        ("location" = Option<String>, Query, description = "/directory or \\\\server.domain\\share\\directory")),
    responses((status = 200, body = PlacesView), (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn places(
    State(app): AppState,
    Path(host): Path<String>,
    Query(browse): Query<Browse>,
) -> Answer<Json<PlacesView>> {
    Ok(Json(browse_host::browse_host(&app, &host, browse.location.as_deref()).await?))
}

/// Adds a storage location to a host, whose agent checks the directory first. Repeating it is safe.
#[utoipa::path(put, path = "/api/v1/hosts/{host}/storage-locations", tag = "hosts", request_body = AddStorageLocation,
    params(("host" = String, Path, description = "Name or id")),
    responses((status = 200, body = HostView), (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn add_storage_location(
    State(app): AppState,
    Path(host): Path<String>,
    Body(body): Body<AddStorageLocation>,
) -> Answer<Json<HostView>> {
    Ok(Json(add_storage_location::add_storage_location(&app, &host, &body.location).await?))
}

#[derive(Deserialize)]
pub(super) struct Which {
    location: String,
}

/// Removes a storage location from a host; the directory and its files stay.
#[utoipa::path(delete, path = "/api/v1/hosts/{host}/storage-locations", tag = "hosts",
    params(("host" = String, Path, description = "Name or id"),
        ("location" = String, Query, description = "/directory or \\\\server.domain\\share\\directory")),
    responses((status = 200, body = HostView), (status = "4XX", body = Problem)))]
pub(super) async fn remove_storage_location(
    State(app): AppState,
    Path(host): Path<String>,
    Query(which): Query<Which>,
) -> Answer<Json<HostView>> {
    Ok(Json(remove_storage_location::remove_storage_location(&app, &host, &which.location).await?))
}
