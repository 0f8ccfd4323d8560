//! Routes of shares and places: where files of VMs may be.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use ferry_core::{
    api::agent::{AttachRequest, LockStep, ShareToken},
    finding::Message,
    id::ShareId,
    location::Location,
    place::{DirectoryListing, OfferedPlace},
    share::AttachedShare,
};

use super::answer::{Answered, Body, Refusal, Shared, invalid, on_thread};
use crate::{Agent, places};

pub(super) async fn attach_share(
    State(agent): Shared,
    Path(share): Path<ShareId>,
    Body(request): Body<AttachRequest>,
) -> Answered<AttachedShare> {
    Ok(Json(on_thread(&agent, move |agent| agent.shares.attach(share, &request)).await?))
}

pub(super) async fn detach_share(State(agent): Shared, Path(share): Path<ShareId>) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| agent.shares.detach(share)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn write_token(
    State(agent): Shared,
    Path((share, name)): Path<(ShareId, String)>,
    Body(token): Body<ShareToken>,
) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| agent.shares.write_token(share, &name, &token)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn read_token(
    State(agent): Shared,
    Path((share, name)): Path<(ShareId, String)>,
) -> Answered<ShareToken> {
    match on_thread(&agent, move |agent| agent.shares.read_token(share, &name)).await? {
        Some(token) => Ok(Json(token)),
        None => Err(invalid(404, Message::NoTokenFile)),
    }
}

pub(super) async fn remove_token(
    State(agent): Shared,
    Path((share, name)): Path<(ShareId, String)>,
) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| agent.shares.remove_token(share, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn try_locks(
    State(agent): Shared,
    Path((share, name)): Path<(ShareId, String)>,
    Body(step): Body<LockStep>,
) -> Result<StatusCode, Refusal> {
    let call = move |agent: &Agent| agent.lock_trials.step(&name, &agent.shares.lock_path(share, &name)?, step);
    on_thread(&agent, call).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn end_lock_trial(
    State(agent): Shared,
    Path((share, name)): Path<(ShareId, String)>,
) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| agent.lock_trials.end(&name, &agent.shares.lock_path(share, &name)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn get_places(State(agent): Shared) -> Answered<Vec<OfferedPlace>> {
    Ok(Json(on_thread(&agent, places::offered).await?))
}

pub(super) async fn list_directory(
    State(agent): Shared,
    Query(location): Query<Location>,
) -> Answered<DirectoryListing> {
    Ok(Json(on_thread(&agent, move |agent| places::list(agent, &location)).await?))
}

pub(super) async fn check_directory(
    State(agent): Shared,
    Body(location): Body<Location>,
) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| places::check(agent, &location)).await?;
    Ok(StatusCode::NO_CONTENT)
}
