//! What can go wrong in the agent, and how it is told.

use std::{error::Error, io, path::PathBuf};

use ferry_core::{
    api::problem::Problem,
    error::chain,
    finding::{Finding, FindingId},
};
use ferry_drivers::{hypervisor::HypervisorError, places::RootsError, share::ShareError};
use thiserror::Error;

/// What can go wrong. Each variant is told differently.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The configuration is wrong.
    #[error("Configuration {} cannot be used: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// A file of the agent's own could not be read or written.
    #[error("Could not read or write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the agent's own holds something else.
    #[error("{} is damaged", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Keys.
    #[error(transparent)]
    Trust(#[from] ferry_trust::TrustError),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The request is refused, and here is why.
    #[error("{}", finding.message)]
    Refused {
        /// HTTP status.
        status: u16,
        /// Why, and what to do.
        finding: Box<Finding>,
    },
    /// Something else could not be done: nobody but people decides by what it was.
    #[error("{what}")]
    Failed {
        /// What, and on what.
        what: String,
        /// Why, where that is an error of its own.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
}

impl AgentError {
    /// A refusal.
    pub fn refused(status: u16, finding: Finding) -> Self {
        Self::Refused { status, finding: Box::new(finding) }
    }

    /// What could not be done, and why as far as the sentence says.
    pub(crate) fn failed(what: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), source: None }
    }

    /// What could not be done, by another error.
    pub(crate) fn because(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed { what: what.into(), source: Some(source.into()) }
    }

    /// How it is told to the server.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Refused { status, finding } => {
                Problem::refused(*status, finding.message.clone(), vec![(**finding).clone()])
            }
            Self::Hypervisor(HypervisorError::NoVm(vm)) => Problem::refused(
                404,
                self.to_string(),
                vec![Finding::blocks(FindingId::VmUnknown, vm, self.to_string(), "List the VMs with `ferry vm list`")],
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
