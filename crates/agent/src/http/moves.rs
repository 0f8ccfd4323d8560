//! Moves: live ones, those of disks, and those of VMs that are shut off.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use ferry_core::{
    api::agent::{
        CheckOffline, ConfirmRequest, ConfirmStorage, DestinationReady, DiskArrival, MigrationReport, OfflineReady,
        OfflineReport, PrepareDestination, PrepareSource, PrepareStorage, ReceiveOffline, SendOffline, SourceReady,
        StorageReport,
    },
    id::{Generation, HostId, JobId, ShareId, VmId},
    units::ByteCount,
};
use serde::Deserialize;
use uuid::Uuid;

use super::answer::{Answered, Body, Refusal, Shared, bounded, on_thread, within_answer};
use crate::{Agent, AgentError, files::host_storage::HostStorage, places};

pub(super) async fn check_arrivals(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Body(wanted): Body<Vec<DiskArrival>>,
) -> Result<StatusCode, Refusal> {
    let storage = host_storage(&agent, None)?;
    bounded(&agent, move |agent| agent.migrations.check_incoming(&storage, vm, &wanted)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) type Attempt = Path<(JobId, Generation)>;

/// Does what a request about an attempt asks for: alone for its job, and to its end.
async fn serialized<T, F>(agent: Arc<Agent>, job: JobId, request: impl FnOnce(Arc<Agent>) -> F) -> Result<T, AgentError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, AgentError>> + Send + 'static,
{
    let locks = Arc::clone(&agent.locks);
    locks.serialized(job, request(agent)).await
}

/// As [`serialized`], for what blocks: file systems may not answer, and the caller waits no longer than for other answers.
async fn serialized_blocking<T: Send + 'static>(
    agent: Arc<Agent>,
    job: JobId,
    request: impl FnOnce(&Agent) -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    within_answer(serialized(agent, job, |agent| async move { on_thread(&agent, request).await })).await
}

pub(super) async fn prepare_destination(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<PrepareDestination>,
) -> Answered<DestinationReady> {
    let mounts = agent.shares.mounts(&request.shares)?;
    let storage = host_storage(&agent, Some(job))?;
    let claim = Arc::clone(&storage.claim);
    let prepare = |agent: Arc<Agent>| async move {
        let _claim = claim;
        agent.migrations.prepare_destination(job, generation, request, mounts, storage).await
    };
    Ok(Json(serialized(agent, job, prepare).await?))
}

pub(super) async fn prepare_source(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<PrepareSource>,
) -> Answered<SourceReady> {
    let shares: Vec<ShareId> = request.destination.mounts.iter().map(|mount| mount.share).collect();
    let mounts = agent.shares.mounts(&shares)?;
    let prepare =
        |agent: Arc<Agent>| async move { agent.migrations.prepare_source(job, generation, request, &mounts).await };
    Ok(Json(serialized(agent, job, prepare).await?))
}

pub(super) async fn perform(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<MigrationReport> {
    Ok(Json(agent.migrations.perform(job, generation).await?))
}

pub(super) async fn resume(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<MigrationReport> {
    Ok(Json(serialized(agent, job, |agent| async move { agent.migrations.resume(job, generation).await }).await?))
}

pub(super) async fn end_copy(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<MigrationReport> {
    Ok(Json(serialized(agent, job, |agent| async move { agent.migrations.end_copy(job, generation).await }).await?))
}

pub(super) async fn abort(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<MigrationReport> {
    Ok(Json(serialized(agent, job, |agent| async move { agent.migrations.abort(job, generation).await }).await?))
}

pub(super) async fn confirm(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<ConfirmRequest>,
) -> Answered<MigrationReport> {
    let confirm = |agent: Arc<Agent>| async move {
        let report = agent.migrations.confirm(job, generation, request).await?;
        // libvirt tells nobody that autostart was set; the next move asks what it is.
        agent.observer.look_again().await;
        Ok(report)
    };
    Ok(Json(serialized(agent, job, confirm).await?))
}

#[derive(Deserialize)]
pub(super) struct News {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_ms: u64,
}

pub(super) async fn report(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Query(news): Query<News>,
) -> Answered<MigrationReport> {
    let wait = Duration::from_millis(news.wait_ms);
    Ok(Json(agent.migrations.report(job, generation, news.after, wait).await?))
}

pub(super) async fn release(State(agent): Shared, Path((job, generation)): Attempt) -> Result<StatusCode, Refusal> {
    serialized(agent, job, |agent| async move { agent.migrations.release(job, generation).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a job that makes new files needs to know of this host's places, and of the others' copies there. Asks no file
/// system: what does is asked by whoever checks the room, on a thread of its own. The room is the request's as long as
/// the claim in it lives.
fn host_storage(agent: &Arc<Agent>, job: Option<JobId>) -> Result<HostStorage, AgentError> {
    let host = *agent.enrolment.watch_host().borrow();
    let places = agent.shares.places(host.unwrap_or(HostId(Uuid::nil())));
    let all = Arc::clone(agent);
    let reserved = Box::new(move || {
        let all = [all.storage.reserved(), all.migrations.reserved(), all.offline.reserved()].concat();
        all.into_iter().filter(|reserved| Some(reserved.job) != job).collect()
    });
    let (shares, qemu_conf) = (Arc::clone(&agent.shares), agent.config.qemu_conf.clone());
    Ok(HostStorage {
        places,
        roots: places::roots(agent)?,
        shares,
        qemu_conf,
        reserved,
        claim: agent.claims.claim(job),
    })
}

pub(super) async fn check_storage(
    State(agent): Shared,
    Body(request): Body<PrepareStorage>,
) -> Answered<Vec<ByteCount>> {
    let storage = host_storage(&agent, None)?;
    Ok(Json(bounded(&agent, move |agent| agent.storage.check(&request, &storage)).await?))
}

pub(super) async fn prepare_storage(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<PrepareStorage>,
) -> Answered<StorageReport> {
    let storage = host_storage(&agent, Some(job))?;
    Ok(Json(
        serialized_blocking(Arc::clone(&agent), job, move |agent| {
            agent.storage.prepare(job, generation, request, &storage)
        })
        .await?,
    ))
}

pub(super) async fn perform_storage(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<StorageReport> {
    Ok(Json(serialized_blocking(Arc::clone(&agent), job, move |agent| agent.storage.perform(job, generation)).await?))
}

pub(super) async fn report_storage(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Query(news): Query<News>,
) -> Answered<StorageReport> {
    let mut report = agent.storage.watch(job, generation)?;
    let wait = Duration::from_millis(news.wait_ms).min(crate::observer::WAIT_MAX);
    let _ = tokio::time::timeout(wait, report.wait_for(|report| report.sequence > news.after)).await;
    let report = report.borrow().clone();
    Ok(Json(report))
}

pub(super) async fn abort_storage(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<StorageReport> {
    Ok(Json(serialized_blocking(Arc::clone(&agent), job, move |agent| agent.storage.abort(job, generation)).await?))
}

pub(super) async fn confirm_storage(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<ConfirmStorage>,
) -> Answered<StorageReport> {
    let report =
        serialized_blocking(Arc::clone(&agent), job, move |agent| agent.storage.confirm(job, generation, request))
            .await?;
    // libvirt tells nobody that a VM uses another file.
    agent.observer.look_again().await;
    Ok(Json(report))
}

pub(super) async fn release_storage(
    State(agent): Shared,
    Path((job, generation)): Attempt,
) -> Result<StatusCode, Refusal> {
    serialized_blocking(Arc::clone(&agent), job, move |agent| agent.storage.release(job, generation)).await?;
    agent.observer.look_again().await;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn check_offline(
    State(agent): Shared,
    Body(request): Body<CheckOffline>,
) -> Result<StatusCode, Refusal> {
    let storage = host_storage(&agent, None)?;
    bounded(&agent, move |agent| agent.offline.check(&request, &storage)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn receive_offline(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<ReceiveOffline>,
) -> Answered<OfflineReady> {
    let mounts = agent.shares.mounts(&request.shares)?;
    let storage = host_storage(&agent, Some(job))?;
    let claim = Arc::clone(&storage.claim);
    let prepare = |agent: Arc<Agent>| async move {
        let _claim = claim;
        Arc::clone(&agent.offline).prepare_destination(job, generation, request, mounts, storage).await
    };
    Ok(Json(serialized(agent, job, prepare).await?))
}

pub(super) async fn send_offline(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<SendOffline>,
) -> Answered<OfflineReport> {
    let shares: Vec<ShareId> = request.destination.mounts.iter().map(|mount| mount.share).collect();
    let mounts = agent.shares.mounts(&shares)?;
    let storage = host_storage(&agent, Some(job))?;
    let prepare = |agent: Arc<Agent>| async move {
        Arc::clone(&agent.offline).prepare_source(job, generation, request, mounts, storage).await
    };
    Ok(Json(serialized(agent, job, prepare).await?))
}

pub(super) async fn perform_offline(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<OfflineReport> {
    let perform = |agent: Arc<Agent>| async move { agent.offline.perform(job, generation) };
    Ok(Json(serialized(agent, job, perform).await?))
}

pub(super) async fn report_offline(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Query(news): Query<News>,
) -> Answered<OfflineReport> {
    let wait = Duration::from_millis(news.wait_ms).min(crate::observer::WAIT_MAX);
    Ok(Json(agent.offline.report(job, generation, news.after, wait).await?))
}

pub(super) async fn define_offline(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<OfflineReport> {
    let define = |agent: Arc<Agent>| async move { agent.offline.define(job, generation).await };
    let report = serialized(Arc::clone(&agent), job, define).await?;
    agent.observer.look_again().await;
    Ok(Json(report))
}

pub(super) async fn abort_offline(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<OfflineReport> {
    Ok(Json(serialized(agent, job, |agent| async move { agent.offline.abort(job, generation).await }).await?))
}

pub(super) async fn confirm_offline(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<ConfirmRequest>,
) -> Answered<OfflineReport> {
    let confirm = |agent: Arc<Agent>| async move { Arc::clone(&agent.offline).confirm(job, generation, request).await };
    let report = serialized(Arc::clone(&agent), job, confirm).await?;
    agent.observer.look_again().await;
    Ok(Json(report))
}

pub(super) async fn release_offline(
    State(agent): Shared,
    Path((job, generation)): Attempt,
) -> Result<StatusCode, Refusal> {
    let release = |agent: Arc<Agent>| async move { agent.offline.release(job, generation).await };
    serialized(Arc::clone(&agent), job, release).await?;
    agent.observer.look_again().await;
    Ok(StatusCode::NO_CONTENT)
}
