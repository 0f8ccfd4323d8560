//! Errors of the agent, and how they are reported.

use std::{error::Error, io, path::PathBuf};

use ferry_core::{
    api::problem::Problem,
    error::chain,
    finding::{Action, Finding, FindingId, Message},
};
use ferry_drivers::{hypervisor::HypervisorError, places::RootsError, share::ShareError};
use thiserror::Error;

/// An error of the agent. Each variant is reported differently.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The configuration is wrong.
    #[error("Configuration {} cannot be used: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// A file of the agent could not be read or written.
    #[error("Could not read or write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file of the agent has invalid content.
    #[error("{} is damaged", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The problem.
        #[source]
        source: serde_json::Error,
    },
    /// Keys.
    #[error(transparent)]
    Trust(#[from] ferry_trust::TrustError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The request is refused for the reason given.
    #[error("{}", finding.message)]
    Refused {
        /// HTTP status.
        status: u16,
        /// The reason, and what to do.
        finding: Box<Finding>,
    },
    /// Another failure: programs do not decide by its cause, only people do.
    #[error("{what}")]
    Failed {
        /// What failed, and on which object.
        what: String,
        /// The underlying error, if there is one.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
}

impl AgentError {
    /// A refusal.
    pub fn refused(status: u16, finding: Finding) -> Self {
        Self::Refused { status, finding: Box::new(finding) }
    }

    /// A failure described by a sentence alone.
    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), source: None }
    }

    /// A failure caused by another error.
    pub(crate) fn because(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed { what: what.into(), source: Some(source.into()) }
    }

    /// The error as reported to the server.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Refused { status, finding } => {
                Problem::refused(*status, finding.message.to_string(), vec![(**finding).clone()])
            }
            Self::Hypervisor(HypervisorError::NoVm(vm)) => Problem::refused(
                404,
                self.to_string(),
                vec![Finding::blocks(
                    FindingId::VmUnknown,
                    vm,
                    Message::VmNotHere { vm: vm.to_string() },
                    Action::ListAllVms,
                )],
            ),
            Self::Config { .. }
            | Self::File { .. }
            | Self::Content { .. }
            | Self::Trust(_)
            | Self::Hypervisor(_)
            | Self::Failed { .. } => Problem::fault(self.to_string(), chain(self)),
        }
    }
}

impl From<ShareError> for AgentError {
    fn from(error: ShareError) -> Self {
        let status = match &error {
            ShareError::Unreachable { .. } | ShareError::Stuck { .. } => 502,
            ShareError::Busy { .. } => 409,
            ShareError::NoShare { .. }
            | ShareError::Password { .. }
            | ShareError::Dialect { .. }
            | ShareError::Mount { .. }
            | ShareError::NotAMount { .. } => 422,
            ShareError::Host { .. } => 500,
        };
        Self::refused(status, error.finding())
    }
}

impl From<RootsError> for AgentError {
    fn from(error: RootsError) -> Self {
        let status = match &error {
            RootsError::Missing { .. } => 404,
            RootsError::Outside { .. }
            | RootsError::NotAttached { .. }
            | RootsError::NotADirectory { .. }
            | RootsError::Unreadable { .. }
            | RootsError::NotWritable { .. } => 422,
            RootsError::Stuck { .. } => 502,
        };
        Self::refused(status, error.finding())
    }
}
