//! Routes of moves of every kind.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use ferry_core::{
    api::agent::{Check, Prepare, Ready, Report, Verb},
    id::{Generation, JobId},
    units::ByteCount,
};
use serde::Deserialize;

use super::answer::{Answered, Body, Refusal, Shared};

/// An attempt of a job.
pub(super) type Attempt = Path<(JobId, Generation)>;

pub(super) async fn check(State(agent): Shared, Body(check): Body<Check>) -> Answered<Vec<ByteCount>> {
    Ok(Json(agent.check(check).await?))
}

pub(super) async fn prepare(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(part): Body<Prepare>,
) -> Answered<Ready> {
    Ok(Json(agent.prepare(job, generation, part).await?))
}

pub(super) async fn act(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(verb): Body<Verb>,
) -> Answered<Report> {
    Ok(Json(agent.act(job, generation, verb).await?))
}

/// The newest known report, and how long to wait for a newer one.
#[derive(Deserialize)]
pub(super) struct News {
    #[serde(default)]
    pub(super) after: u64,
    #[serde(default)]
    wait_ms: u64,
}

impl News {
    pub(super) fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }
}

pub(super) async fn report(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Query(news): Query<News>,
) -> Answered<Report> {
    Ok(Json(agent.report(job, generation, news.after, news.wait()).await?))
}

pub(super) async fn release(State(agent): Shared, Path((job, generation)): Attempt) -> Result<StatusCode, Refusal> {
    agent.release(job, generation).await?;
    Ok(StatusCode::NO_CONTENT)
}
