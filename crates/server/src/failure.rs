//! Why a request failed: because of findings, on which the caller can act, or because of a fault of the program.

use ferry_client::ClientError;
use ferry_core::{
    api::problem::{Problem, Title},
    error::chain,
    finding::{Action, ByHand, Command, Finding, FindingId, Message, Messages},
    job_text::{JobText, Remarks},
};
use thiserror::Error;

use crate::store::StoreError;

/// Why a request failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// The request was refused, or a host did not carry it out. Nothing was changed unless a finding says so.
    #[error("{}", .0.title)]
    Refused(Box<Problem>),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure {
    /// A refusal with the HTTP status of its first finding.
    pub(crate) fn refused(title: impl Into<Title>, findings: Vec<Finding>) -> Self {
        let status = findings.first().map_or(500, |finding| status_of(finding.id));
        Self::Refused(Box::new(Problem::refused(status, title, findings)))
    }

    /// A refusal because of one finding.
    pub(crate) fn found(title: impl Into<Title>, finding: Finding) -> Self {
        Self::refused(title, vec![finding])
    }

    /// Translates an agent's answer to `title` for the caller of the REST API.
    pub(crate) fn of_agent(title: impl Into<Title>, host: &str, error: &ClientError) -> Self {
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
                Problem::fault(Title::DatabaseFailed, error.to_string())
            }
        }
    }
}

/// The finding about a host without a valid answer.
pub(crate) fn fault_finding(host: &str, error: &ClientError) -> Finding {
    let (name, reason) = (host.to_owned(), chain(&error));
    match error {
        ClientError::WrongKey { .. } => Finding::blocks(
            FindingId::AuthKey,
            host,
            Message::HostIsOther { host: name.clone(), reason },
            Action::RemoveAndAdd { host: name },
        ),
        ClientError::NotUnderstood { .. } => Finding::blocks(
            FindingId::HostVersion,
            host,
            Message::HostNotUnderstood { host: name, reason },
            ByHand::SameVersion,
        ),
        ClientError::OldVersion { .. } => Finding::blocks(
            FindingId::HostVersion,
            host,
            Message::HostNeedsNewer { host: name.clone(), reason: error.to_string() },
            ByHand::UpgradeMeanwhile { host: name },
        ),
        ClientError::Refused(problem) => match problem.findings.iter().find(|finding| finding.id == FindingId::AuthKey)
        {
            Some(_) => Finding::blocks(
                FindingId::AuthKey,
                host,
                Message::HostObeysOther { host: name.clone() },
                Action::TakeHostOver { host: name },
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
        Message::HostSilentBecause { host: host.to_owned(), reason: chain(&error) },
        Command::StartAgent { host: host.to_owned() },
    )
}

/// An agent's refusal or silence, as the reason of a finding.
pub(crate) fn answered(host: &str, error: &ClientError) -> Message {
    let ClientError::Refused(problem) = error else { return fault_finding(host, error).message };
    let verbatim = || Message::Verbatim { text: problem.detail.as_ref().unwrap_or(&problem.title).clone() };
    let message = problem.findings.first().map_or_else(verbatim, |finding| finding.message.clone());
    Message::SaidBy { message: message.into(), host: host.to_owned() }
}

/// An agent's refusal or silence, for a job's log.
pub(crate) fn describe(host: &str, error: &ClientError) -> JobText {
    match error {
        ClientError::Refused(problem) => {
            let what = match problem.findings.is_empty() {
                true => vec![JobText::Text { text: problem.detail.as_ref().unwrap_or(&problem.title).clone() }],
                false => problem.findings.iter().map(with_fix).collect(),
            };
            JobText::HostSays { host: host.to_owned(), what: Remarks(what) }
        }
        ClientError::Unreachable { .. }
        | ClientError::WrongKey { .. }
        | ClientError::NotUnderstood { .. }
        | ClientError::OldVersion { .. }
        | ClientError::Unusable { .. } => JobText::Found { found: Messages(vec![fault_finding(host, error).message]) },
    }
}

/// A finding, for a job's log.
pub(crate) fn with_fix(finding: &Finding) -> JobText {
    JobText::FoundWithFix { found: finding.message.clone().into(), fix: finding.fix.clone().into() }
}

/// Whether an agent refused a request with this finding.
pub(crate) fn has_finding(error: &ClientError, id: FindingId) -> bool {
    error.problem().is_some_and(|problem| problem.findings.iter().any(|finding| finding.id == id))
}

/// The HTTP status of a refusal with this finding.
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
        | Id::HostNetwork
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
        // The agent or the file server is at fault; this server only passes it on.
        Id::HostUnreachable | Id::HostVersion | Id::ShareUnreachable | Id::AuthKey => 502,
    }
}
