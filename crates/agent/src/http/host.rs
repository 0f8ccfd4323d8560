//! Routes of the host: enrolment, facts, state, and the power of its VMs.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use ferry_core::{
    api::agent::{DiskSize, EnrolRequest, FileSize, Observation, Power, PowerRequest},
    host::HostFacts,
    id::{Generation, Incarnation, VmId},
};
use ferry_drivers::hypervisor::HypervisorError;
use serde::Deserialize;
use tracing::info;

use super::answer::{Answered, Body, Refusal, Shared, on_thread};
use crate::{Agent, AgentError, host, offline, places, tls::Caller};

/// Time limit for libvirt's facts about the host: less than the server waits. At its first connection libvirt examines
/// every emulator, which took 15 s on a slow host.
const HOST_WAIT: Duration = Duration::from_secs(25);

pub(super) async fn enrol(
    State(agent): Shared,
    Extension(Caller(pin)): Extension<Caller>,
    Body(request): Body<EnrolRequest>,
) -> Answered<HostFacts> {
    agent.enrolment.check(pin, &request)?;
    // Before the secret is used up: a server that receives no facts does not add the host, and tries again.
    let facts = host_facts(&agent).await?;
    agent.enrolment.enrol(pin, &request)?;
    info!(server = %pin, host = %request.host, "Enrolled with a server");
    Ok(Json(facts))
}

pub(super) async fn get_host(State(agent): Shared) -> Answered<HostFacts> {
    Ok(Json(host_facts(&agent).await?))
}

async fn host_facts(agent: &Arc<Agent>) -> Result<HostFacts, AgentError> {
    let facts = on_thread(agent, |agent| Ok(host::facts(&agent.config, &*agent.hypervisor)?));
    match tokio::time::timeout(HOST_WAIT, facts).await {
        Ok(facts) => facts,
        Err(_) => Err(AgentError::Hypervisor(HypervisorError::Unreachable(format!(
            "it gave no answer within {} s; the agent goes on asking it, so try again",
            HOST_WAIT.as_secs()
        )))),
    }
}

#[derive(Deserialize)]
pub(super) struct Cursor {
    incarnation: Option<Incarnation>,
    generation: Option<Generation>,
    #[serde(default)]
    wait_ms: u64,
    /// Refresh first: the answer is no older than the request.
    #[serde(default)]
    fresh: bool,
}

pub(super) async fn observe(State(agent): Shared, Query(cursor): Query<Cursor>) -> Answered<Observation> {
    let wait = Duration::from_millis(cursor.wait_ms);
    if cursor.fresh {
        agent.observer.refresh().await;
    }
    let mut enrolled = agent.enrolment.watch_host();
    let newer = agent.observer.newer(cursor.incarnation.zip(cursor.generation), wait);
    let found = tokio::select! {
        found = newer => found,
        // The agent belongs to another server from now on: a waiting caller is answered at once.
        _ = enrolled.changed() => agent.observer.newer(None, Duration::ZERO).await,
    };
    match found {
        Some(observation) => Ok(Json(observation)),
        None => Err(Refusal(AgentError::Hypervisor(HypervisorError::Unreachable(
            "it has not answered since the agent was started".to_owned(),
        )))),
    }
}

pub(super) async fn power(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Body(request): Body<PowerRequest>,
) -> Result<StatusCode, Refusal> {
    let call = move |agent: &Agent| match request.power {
        Power::Start => agent.hypervisor.start(vm).map_err(AgentError::from),
        Power::Shutdown => agent.hypervisor.shutdown(vm).map_err(AgentError::from),
    };
    on_thread(&agent, call).await?;
    agent.observer.refresh().await;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn get_disks(State(agent): Shared, Path(vm): Path<VmId>) -> Answered<Vec<DiskSize>> {
    Ok(Json(on_thread(&agent, move |agent| places::disks(agent, vm)).await?))
}

#[derive(Deserialize)]
pub(super) struct Only {
    /// Comma-separated devices; all if absent.
    only: Option<String>,
}

pub(super) async fn get_files(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Query(Only { only }): Query<Only>,
) -> Answered<Vec<FileSize>> {
    let call = move |agent: &Agent| {
        let only: Option<Vec<&str>> = only.as_ref().map(|only| only.split(',').collect());
        offline::files_of(&*agent.hypervisor, vm, only.as_deref())
    };
    Ok(Json(on_thread(&agent, call).await?))
}
