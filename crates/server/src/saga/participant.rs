//! One host of a job: what its agent's answers mean to a saga, and what every kind of move asks of it.

use ferry_client::{
    ClientError,
    agent::{AgentClient, Attempt},
};

use super::executor::StepFailed;
use crate::{failure::describe, inventory::Host, plan::Plan};

/// What a host said against a step.
pub(super) fn failed(host: &Host, error: &ClientError) -> StepFailed {
    StepFailed(describe(host.name(), error))
}

/// For what takes something away: an agent that knows nothing of the attempt has nothing of it.
pub(super) fn gone_or(host: &str, answer: Result<(), ClientError>) -> Result<(), StepFailed> {
    match answer {
        Err(error) if !is_unknown(&error) => Err(StepFailed(describe(host, &error))),
        _ => Ok(()),
    }
}

/// Whether the agent knows nothing of the attempt.
pub(super) fn is_unknown(error: &ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.status == 404)
}

/// Ends a job of any kind at one host, before the point of no return.
pub(crate) async fn abort(plan: &Plan, agent: &AgentClient, attempt: Attempt) -> Result<(), ClientError> {
    match plan {
        Plan::Live(_) => agent.abort(attempt).await.map(drop),
        Plan::Offline(_) => agent.abort_offline(attempt).await.map(drop),
        Plan::Storage(_) => agent.abort_storage(attempt).await.map(drop),
    }
}

/// Takes away what one host has of a job of any kind.
pub(crate) async fn release(plan: &Plan, agent: &AgentClient, attempt: Attempt) -> Result<(), ClientError> {
    match plan {
        Plan::Live(_) => agent.release(attempt).await,
        Plan::Offline(_) => agent.release_offline(attempt).await,
        Plan::Storage(_) => agent.release_storage(attempt).await,
    }
}
