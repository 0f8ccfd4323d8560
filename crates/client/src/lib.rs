//! Typed clients: [`server::ServerClient`] of the REST API, [`agent::AgentClient`] of an agent's control API.
//!
//! Both know the other side by its pin, have a deadline on every call, and hide no retries except where a method
//! says so.

pub mod agent;
pub mod events;
mod http;
pub mod server;

use std::error::Error;

use ferry_core::{api::problem::Problem, pin::Pin};
use thiserror::Error;

/// Why a call did not succeed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The other side answered with a problem: its findings say what and how to mend it.
    #[error("{}", .0.title)]
    Refused(Box<Problem>),
    /// No answer: the call may have had no effect, or its effect is not known.
    #[error("Could not reach {peer}")]
    Unreachable {
        /// Whom.
        peer: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Somebody else answers there: nothing was sent to them.
    #[error("{peer} shows another key than the expected {pin}")]
    WrongKey {
        /// Where.
        peer: String,
        /// The key that was expected.
        pin: Pin,
    },
    /// The answer is not one that this version understands.
    #[error("Could not understand the answer of {peer}: {detail}")]
    NotUnderstood {
        /// Whose.
        peer: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The address or key given cannot be used.
    #[error("Could not use {what}: {detail}")]
    Unusable {
        /// Which setting.
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
            Self::Unreachable { .. } | Self::WrongKey { .. } | Self::NotUnderstood { .. } | Self::Unusable { .. } => {
                None
            }
        }
    }

    /// Whether the same call may succeed later without anybody's doing.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether the call broke off after it may have reached the other side.
    pub(crate) fn may_have_been_sent(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => {
                source.downcast_ref::<reqwest::Error>().is_some_and(|error| !error.is_connect() && !error.is_builder())
            }
            Self::Refused(_) | Self::WrongKey { .. } | Self::NotUnderstood { .. } | Self::Unusable { .. } => false,
        }
    }
}
