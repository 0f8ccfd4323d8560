//! `/api/v1/jobs`

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
};
use ferry_core::api::{problem::Problem, server::JobView};
use serde::Deserialize;

use super::{Answer, AppState, Caller};
use crate::app::{cancel_job, show_jobs};

/// How many jobs a list shall hold.
#[derive(Debug, Deserialize)]
pub(super) struct Limit {
    limit: Option<u32>,
}

/// The newest jobs, newest first.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs",
    params(("limit" = Option<u32>, Query, description = "At most so many; 50 if not given, 500 at most")),
    responses((status = 200, body = [JobView])))]
pub(super) async fn list(State(app): AppState, Query(limit): Query<Limit>) -> Answer<Json<Vec<JobView>>> {
    Ok(Json(show_jobs::list(&app, limit.limit).await?))
}

/// One job.
#[utoipa::path(get, path = "/api/v1/jobs/{job}", tag = "jobs", params(("job" = u64, Path)),
    responses((status = 200, body = JobView), (status = 404, body = Problem)))]
pub(super) async fn show(State(app): AppState, Path(job): Path<String>) -> Answer<Json<JobView>> {
    Ok(Json(show_jobs::one(&app, &job).await?))
}

/// Cancels a job before the switchover.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/cancel", tag = "jobs",
    params(("job" = u64, Path), ("Idempotency-Key" = Option<String>, Header, description = "Does the request once")),
    responses((status = 200, body = JobView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn cancel(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Path(job): Path<String>,
) -> Answer<Json<JobView>> {
    Ok(Json(cancel_job::cancel_job(&app, &job, &by).await?))
}
