//! Failures of a command, and their exit codes.

use std::{io, path::PathBuf};

use ferry_client::ClientError;
use ferry_core::{api::problem::Problem, id::JobId, migration::Phase};
use thiserror::Error;

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The server refused the call, or did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server, its pin or the token is unknown.
    #[error("{0}")]
    NotLoggedIn(String),
    /// A file could not be read or written.
    #[error("Could not read or write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The arguments do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The job did not succeed.
    #[error("Job {job} {}: {summary}", phase.title())]
    Job {
        /// The job.
        job: JobId,
        /// Its phase.
        phase: Phase,
        /// Where the VM is, and what to do.
        summary: String,
    },
    /// Ctrl-C was pressed; the job continues.
    #[error("Interrupted; job {0} goes on: `ferry job watch {0}` follows it, `ferry job cancel {0}` ends it")]
    Interrupted(JobId),
}

impl Failure {
    /// The documented exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => client_code(error),
            Self::NotLoggedIn(_) => 6,
            Self::Usage(_) => 2,
            Self::File { .. } | Self::Job { .. } => 1,
            Self::Interrupted(_) => 130,
        }
    }

    /// The server's findings, if it refused the call.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Client(error) => error.problem(),
            Self::NotLoggedIn(_) | Self::File { .. } | Self::Usage(_) | Self::Job { .. } | Self::Interrupted(_) => None,
        }
    }
}

fn client_code(error: &ClientError) -> u8 {
    match error.problem() {
        Some(problem) => problem_code(problem),
        None if error.is_unreachable() => 5,
        None => 1,
    }
}

fn problem_code(problem: &Problem) -> u8 {
    match problem.status {
        401 | 403 => 6,
        404 => 4,
        status if status < 500 => 3,
        _ if !problem.findings.is_empty() => 3,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::finding::{Finding, FindingId};

    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let finding = || vec![Finding::of_text(FindingId::VmPaused, "x", "It is", "Do")];
        for (status, findings, code) in [
            (401, finding(), 6),
            (403, finding(), 6),
            (404, finding(), 4),
            (409, finding(), 3),
            (422, finding(), 3),
            (502, finding(), 3),
            (500, Vec::new(), 1),
        ] {
            assert_eq!(problem_code(&Problem::refused(status, "No", findings)), code, "{status}");
        }
        assert_eq!(Failure::Interrupted(JobId(1)).exit_code(), 130);
        assert_eq!(Failure::Usage(String::new()).exit_code(), 2);
        assert_eq!(Failure::NotLoggedIn(String::new()).exit_code(), 6);
    }
}
