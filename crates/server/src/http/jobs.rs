//! `/api/v1/jobs`

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
};
use ferry_core::api::{
    problem::Problem,
    server::{AuditPage, JobView},
};
use serde::Deserialize;

use super::{Answer, AppState, Caller, form::Number};
use crate::app::{cancel_job, repair_job, show_jobs};

/// The query of a list of jobs.
#[derive(Debug, Deserialize)]
pub(super) struct Selection {
    since_ms: Option<Number>,
    limit: Option<Number>,
}

/// The newest jobs, newest first.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs",
    params(("since_ms" = Option<u64>, Query, description = "Only jobs accepted at this time or later, in Unix milliseconds"),
        ("limit" = Option<u64>, Query, description = "The maximum length of the list: 50 by default, at most 500")),
    responses((status = 200, body = [JobView])))]
pub(super) async fn list(State(app): AppState, Query(which): Query<Selection>) -> Answer<Json<Vec<JobView>>> {
    let limit = which.limit.map(|limit| u32::try_from(u64::from(limit)).unwrap_or(u32::MAX));
    Ok(Json(show_jobs::list(&app, which.since_ms.map(u64::from), limit).await?))
}

/// The query of the audit.
#[derive(Debug, Deserialize)]
pub(super) struct Part {
    since_ms: Option<Number>,
    after: Option<Number>,
}

/// The records of jobs that ended, oldest first, in pages.
#[utoipa::path(get, path = "/api/v1/audit", tag = "jobs",
    params(("since_ms" = Option<u64>, Query, description = "Only jobs accepted at this time or later, in Unix milliseconds"),
        ("after" = Option<u64>, Query, description = "Only jobs after this one: the `next` of the previous page")),
    responses((status = 200, body = AuditPage)))]
pub(super) async fn audit(State(app): AppState, Query(part): Query<Part>) -> Answer<Json<AuditPage>> {
    Ok(Json(show_jobs::audit(&app, part.since_ms.map(u64::from), part.after.map(u64::from)).await?))
}

/// One job.
#[utoipa::path(get, path = "/api/v1/jobs/{job}", tag = "jobs", params(("job" = u64, Path)),
    responses((status = 200, body = JobView), (status = 404, body = Problem)))]
pub(super) async fn show(State(app): AppState, Path(job): Path<String>) -> Answer<Json<JobView>> {
    Ok(Json(show_jobs::one(&app, &job).await?))
}

/// Cancels a job before the switchover.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/cancel", tag = "jobs",
    params(("job" = u64, Path), ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 200, body = JobView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn cancel(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Path(job): Path<String>,
) -> Answer<Json<JobView>> {
    Ok(Json(cancel_job::cancel_job(&app, &job, &by).await?))
}

/// Starts another attempt of a job that failed or was cancelled.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/restart", tag = "jobs",
    params(("job" = u64, Path), ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 200, body = JobView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn restart(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Path(job): Path<String>,
) -> Answer<Json<JobView>> {
    Ok(Json(repair_job::restart_job(&app, &job, &by).await?))
}

/// Repeats the failing action of a stuck job now, without waiting for its next retry.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/retry", tag = "jobs",
    params(("job" = u64, Path), ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 200, body = JobView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn retry(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Path(job): Path<String>,
) -> Answer<Json<JobView>> {
    Ok(Json(repair_job::retry_job(&app, &job, &by).await?))
}

/// Reverts the changes of a job, before the switchover.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/undo", tag = "jobs",
    params(("job" = u64, Path), ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 200, body = JobView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn undo(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Path(job): Path<String>,
) -> Answer<Json<JobView>> {
    Ok(Json(repair_job::undo_job(&app, &job, &by).await?))
}

/// Ends a stuck job as it is: Ferry does nothing more for it.
#[utoipa::path(post, path = "/api/v1/jobs/{job}/dismiss", tag = "jobs",
    params(("job" = u64, Path), ("Idempotency-Key" = Option<String>, Header, description = "Executes the request only once")),
    responses((status = 200, body = JobView), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn dismiss(
    State(app): AppState,
    Extension(Caller(by)): Extension<Caller>,
    Path(job): Path<String>,
) -> Answer<Json<JobView>> {
    Ok(Json(repair_job::dismiss_job(&app, &job, &by).await?))
}
