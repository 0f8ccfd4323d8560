//! `/api/v1/shares`

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use ferry_core::api::{
    problem::Problem,
    server::{AddShare, AttachShare, ShareView},
};

use super::{Answer, AppState, form::Body};
use crate::app::{add_share, attach_share, detach_share, remove_share, show_shares};

/// Every share.
#[utoipa::path(get, path = "/api/v1/shares", tag = "shares", responses((status = 200, body = [ShareView])))]
pub(super) async fn list(State(app): AppState) -> Answer<Json<Vec<ShareView>>> {
    Ok(Json(show_shares::list(&app).await?))
}

/// Adds a share to the inventory.
#[utoipa::path(post, path = "/api/v1/shares", tag = "shares", request_body = AddShare,
    params(("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 201, body = ShareView), (status = "4XX", body = Problem)))]
pub(super) async fn add(State(app): AppState, Body(body): Body<AddShare>) -> Answer<(StatusCode, Json<ShareView>)> {
    Ok((StatusCode::CREATED, Json(add_share::add_share(&app, &body).await?)))
}

/// One share.
#[utoipa::path(get, path = "/api/v1/shares/{share}", tag = "shares",
    params(("share" = String, Path, description = "Name or id")),
    responses((status = 200, body = ShareView), (status = 404, body = Problem)))]
pub(super) async fn show(State(app): AppState, Path(share): Path<String>) -> Answer<Json<ShareView>> {
    Ok(Json(show_shares::one(&app, &share).await?))
}

/// Removes a share that is attached nowhere.
#[utoipa::path(delete, path = "/api/v1/shares/{share}", tag = "shares",
    params(("share" = String, Path, description = "Name or id")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn remove(State(app): AppState, Path(share): Path<String>) -> Answer<StatusCode> {
    remove_share::remove_share(&app, &share).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Attaches a share on a host.
#[utoipa::path(put, path = "/api/v1/shares/{share}/hosts/{host}", tag = "shares", request_body = AttachShare,
    params(("share" = String, Path, description = "Name or id"), ("host" = String, Path, description = "Name or id")),
    responses((status = 200, body = ShareView), (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn attach(
    State(app): AppState,
    Path((share, host)): Path<(String, String)>,
    Body(body): Body<AttachShare>,
) -> Answer<Json<ShareView>> {
    Ok(Json(attach_share::attach_share(&app, &share, &host, body).await?))
}

/// Detaches a share from a host.
#[utoipa::path(delete, path = "/api/v1/shares/{share}/hosts/{host}", tag = "shares",
    params(("share" = String, Path, description = "Name or id"), ("host" = String, Path, description = "Name or id")),
    responses((status = 200, body = ShareView), (status = "4XX", body = Problem), (status = 502, body = Problem)))]
pub(super) async fn detach(
    State(app): AppState,
    Path((share, host)): Path<(String, String)>,
) -> Answer<Json<ShareView>> {
    Ok(Json(detach_share::detach_share(&app, &share, &host).await?))
}
