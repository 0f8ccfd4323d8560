//! What handlers accept and return: bodies, answers, and refusals as problems.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequest, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use ferry_core::{
    api::problem::{PROBLEM_MEDIA_TYPE, Problem},
    finding::{ByHand, Finding, FindingId, Message},
};
use serde::de::DeserializeOwned;
use tracing::{error, info};

use crate::{Agent, AgentError, blocking::blocking};

/// An error as an HTTP answer.
pub(super) struct Refusal(pub(super) AgentError);

impl<E: Into<AgentError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = self.0.problem();
        if problem.status >= 500 {
            error!(title = problem.title, detail = problem.detail, "A request failed");
        } else {
            info!(title = problem.title, status = problem.status, "A request was refused");
        }
        answer_problem(&problem)
    }
}

fn answer_problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, PROBLEM_MEDIA_TYPE)], Json(problem)).into_response()
}

pub(super) type Answered<T> = Result<Json<T>, Refusal>;
pub(super) type Shared = State<Arc<Agent>>;

/// A JSON body; anything else gives a problem with `request.invalid`.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => {
                Err(invalid(rejection.status().as_u16(), Message::Verbatim { text: rejection.body_text() }))
            }
        }
    }
}

pub(super) fn invalid(status: u16, message: Message) -> Refusal {
    let finding = Finding::blocks(FindingId::RequestInvalid, "request", message, ByHand::NextVersion);
    Refusal(AgentError::refused(status, finding))
}

/// Runs a blocking call of the agent.
pub(super) async fn on_thread<T: Send + 'static>(
    agent: &Arc<Agent>,
    call: impl FnOnce(&Agent) -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    let agent = Arc::clone(agent);
    blocking(move || call(&agent)).await
}
