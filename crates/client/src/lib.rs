//! Typed clients: [`server::ServerClient`] of the REST API, [`agent::AgentClient`] of an agent's control API.
//!
//! Both identify the other side by its pin, have a deadline on every call, and never retry a call unless its method
//! states that.

pub mod agent;
pub mod events;
mod http;
pub mod server;

use std::error::Error;

use ferry_core::{
    api::{agent::API_VERSION, problem::Problem},
    pin::Pin,
};
use thiserror::Error;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The other side answered with a problem: its findings state the reason and the fix.
    #[error("{}", .0.title)]
    Refused(Box<Problem>),
    /// No answer: the call may have had no effect, or its effect is unknown.
    #[error("Could not reach {peer}")]
    Unreachable {
        /// The other side.
        peer: String,
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Another program answers there: nothing was sent to it.
    #[error("{peer} shows another key than the expected {pin}")]
    WrongKey {
        /// The other side.
        peer: String,
        /// The expected key.
        pin: Pin,
    },
    /// This version does not understand the answer.
    #[error("Could not understand the answer of {peer}: {detail}")]
    NotUnderstood {
        /// The other side.
        peer: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The agent is of a version that does not know the route: what it has of a move it cannot be asked.
    #[error("The agent at {peer} speaks version 1 of the agent API only, and moves need version {API_VERSION}")]
    OldVersion {
        /// Whose.
        peer: String,
    },
    /// The address or key given cannot be used.
    #[error("Could not use {what}: {detail}")]
    Unusable {
        /// The setting.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

impl ClientError {
    /// The problem, if the other side answered with one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::Unreachable { .. }
            | Self::WrongKey { .. }
            | Self::NotUnderstood { .. }
            | Self::OldVersion { .. }
            | Self::Unusable { .. } => None,
        }
    }

    /// Whether the same call may succeed later without any action.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether the call failed after it may have reached the other side.
    pub(crate) fn may_have_been_sent(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => {
                source.downcast_ref::<reqwest::Error>().is_some_and(|error| !error.is_connect() && !error.is_builder())
            }
            Self::Refused(_)
            | Self::WrongKey { .. }
            | Self::NotUnderstood { .. }
            | Self::OldVersion { .. }
            | Self::Unusable { .. } => false,
        }
    }
}
