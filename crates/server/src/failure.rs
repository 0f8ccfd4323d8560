//! Why a request was not done: by findings (the caller can act) or by a fault of the program.

use ferry_client::ClientError;
use ferry_core::{
    api::problem::Problem,
    error::chain,
    finding::{Finding, FindingId},
};
use thiserror::Error;

use crate::store::StoreError;

/// Why a request was not done.
#[derive(Debug, Error)]
pub enum Failure {
    /// It is refused, or a host did not do it; nothing was changed unless a finding says so.
    #[error("{}", .0.title)]
    Refused(Box<Problem>),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure {
    /// A refusal with the HTTP status of its first finding.
    pub(crate) fn refused(title: impl Into<String>, findings: Vec<Finding>) -> Self {
        let status = findings.first().map_or(500, |finding| status_of(finding.id));
        Self::Refused(Box::new(Problem::refused(status, title, findings)))
    }

    /// A refusal by one finding.
    pub(crate) fn found(title: impl Into<String>, finding: Finding) -> Self {
        Self::refused(title, vec![finding])
    }

    /// What an agent's answer to `title` means to the caller of the REST API.
    pub(crate) fn of_agent(title: impl Into<String>, host: &str, error: &ClientError) -> Self {
        let title = title.into();
        match error {
            ClientError::Refused(problem) if problem.findings.is_empty() => {
                let detail = problem.detail.as_deref().unwrap_or("it said no more");
                let problem =
                    Problem::fault(title, format!("The agent on host {host} failed: {}: {detail}", problem.title));
                Self::Refused(Box::new(problem))
            }
            ClientError::Refused(problem) => Self::refused(title, problem.findings.clone()),
            ClientError::Unreachable { .. }
            | ClientError::WrongKey { .. }
            | ClientError::NotUnderstood { .. }
            | ClientError::OldVersion { .. }
            | ClientError::Unusable { .. } => Self::found(title, fault_finding(host, error)),
        }
    }

    /// The problem that the caller gets.
    pub(crate) fn into_problem(self) -> Problem {
        match self {
            Self::Refused(problem) => *problem,
            Self::Store(error) => {
                tracing::error!(error = %chain(&error), "The database failed");
                Problem::fault("The server's database failed", error.to_string())
            }
        }
    }
}

/// The finding of a host that gave no sensible answer.
pub(crate) fn fault_finding(host: &str, error: &ClientError) -> Finding {
    match error {
        ClientError::WrongKey { .. } => Finding::blocks(
            FindingId::AuthKey,
            host,
            format!("What answers for host {host} is not the agent that was added: {}", chain(&error)),
            format!("If the agent was set up anew, remove the host and add it again: `ferry host remove {host}`"),
        ),
        ClientError::NotUnderstood { .. } => Finding::blocks(
            FindingId::HostVersion,
            host,
            format!("The agent on host {host} answers what this server does not understand: {}", chain(&error)),
            "Bring server and agents to the same version",
        ),
        ClientError::OldVersion { .. } => Finding::blocks(
            FindingId::HostVersion,
            host,
            format!("Host {host} needs a newer agent: {error}"),
            format!("Upgrade ferry-agent on {host}; what moves there goes on meanwhile"),
        ),
        ClientError::Refused(problem) => match problem.findings.iter().find(|finding| finding.id == FindingId::AuthKey)
        {
            Some(_) => Finding::blocks(
                FindingId::AuthKey,
                host,
                format!("The agent on host {host} does not obey this server: it is enrolled with another one"),
                format!("If it is to be this one's, remove the host and add it again: `ferry host remove {host}`"),
            ),
            None => not_answering(host, error),
        },
        ClientError::Unreachable { .. } | ClientError::Unusable { .. } => not_answering(host, error),
    }
}

fn not_answering(host: &str, error: &ClientError) -> Finding {
    Finding::blocks(
        FindingId::HostUnreachable,
        host,
        format!("The agent on host {host} does not answer: {}", chain(&error)),
        format!("Check that the host is up and `ferry-agent run` is running on it; see `ferry host show {host}`"),
    )
}

/// An agent's refusal or silence in one or two sentences, for a job's log.
pub(crate) fn describe(host: &str, error: &ClientError) -> String {
    match error {
        ClientError::Refused(problem) => {
            let mut text = format!("Host {host}: {}", problem.title);
            for finding in &problem.findings {
                if finding.message != problem.title {
                    text.push_str(&format!(": {}", finding.message));
                }
                text.push_str(&format!(" ({})", finding.fix));
            }
            text.extend(problem.detail.iter().map(|detail| format!(": {detail}")));
            text
        }
        ClientError::Unreachable { .. }
        | ClientError::WrongKey { .. }
        | ClientError::NotUnderstood { .. }
        | ClientError::OldVersion { .. }
        | ClientError::Unusable { .. } => fault_finding(host, error).message,
    }
}

/// Whether an agent refused something for this reason.
pub(crate) fn has_finding(error: &ClientError, id: FindingId) -> bool {
    error.problem().is_some_and(|problem| problem.findings.iter().any(|finding| finding.id == id))
}

/// The HTTP status of a refusal by this finding.
pub(crate) fn status_of(id: FindingId) -> u16 {
    use FindingId as Id;
    match id {
        Id::RequestInvalid | Id::ShareNotQualified | Id::ShareForm | Id::PlaceForm => 400,
        Id::AuthToken => 401,
        Id::AuthEnrolment => 403,
        Id::VmUnknown | Id::HostUnknown | Id::ShareUnknown | Id::JobUnknown | Id::PlaceMissing | Id::StorageUnknown => {
            404
        }
        Id::VmAmbiguous
        | Id::VmNotRunning
        | Id::VmRunning
        | Id::VmPaused
        | Id::VmCrashed
        | Id::VmSuspended
        | Id::VmAlreadyThere
        | Id::VmRunsTwice
        | Id::VmBusy
        | Id::VmSnapshot
        | Id::VmCheckpoint
        | Id::VmTpm
        | Id::VmLocalMedia
        | Id::VmHostDevice
        | Id::VmNameTaken
        | Id::VmNotResumed
        | Id::VmUuidTaken
        | Id::VmMachine
        | Id::DiskNotShared
        | Id::DiskUnsafe
        | Id::DiskUnknown
        | Id::DiskShareable
        | Id::DiskReadOnly
        | Id::DiskNotAFile
        | Id::DiskTwice
        | Id::DiskMovedMeanwhile
        | Id::DiskThick
        | Id::DiskFlattened
        | Id::DiskNvram
        | Id::DiskEncrypted
        | Id::DiskBusy
        | Id::DiskOdd
        | Id::FileExists
        | Id::FilePlace
        | Id::FileSpace
        | Id::FileKept
        | Id::DefinitionNotKept
        | Id::HostTwice
        | Id::HostBusy
        | Id::HostMaintenance
        | Id::HostNone
        | Id::HostMemory
        | Id::HostSharedFilesystems
        | Id::HostRelease
        | Id::HostHook
        | Id::HostConfinement
        | Id::HostDamaged
        | Id::ShareTwice
        | Id::ShareInUse
        | Id::ShareNotAttached
        | Id::ShareNotSame
        | Id::ShareLocks
        | Id::ShareSoft
        | Id::StorageTooMany
        | Id::RequestStale
        | Id::RequestIdempotency
        | Id::JobEnded
        | Id::JobOpen
        | Id::JobPastPivot
        | Id::JobUndecided
        | Id::JobUnreadable => 409,
        Id::ShareDialect
        | Id::SharePassword
        | Id::ShareMount
        | Id::PlaceOutside
        | Id::PlaceNotADirectory
        | Id::PlaceUnreadable
        | Id::PlaceNotWritable => 422,
        // The agent's or file server's fault, as seen through this server.
        Id::HostUnreachable | Id::HostVersion | Id::ShareUnreachable | Id::AuthKey => 502,
    }
}
