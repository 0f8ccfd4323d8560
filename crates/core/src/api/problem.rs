//! Errors on both APIs: problem details (RFC 9457) that carry findings.

use serde::{Deserialize, Serialize};

use crate::{finding::Finding, text::texts};

/// Media type of a problem.
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// The reason why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `about:blank`: the findings carry the kind.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// One sentence, in English: what was attempted, and on which object.
    pub title: String,
    /// The same, as data.
    #[serde(default, rename = "says", skip_serializing_if = "Option::is_none")]
    pub sentence: Option<Title>,
    /// HTTP status.
    pub status: u16,
    /// Findings with id, object and fix. Empty only for faults of the program itself.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// The chain of causes of a fault of the program itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The default `type` of a problem.
pub fn about_blank() -> String {
    "about:blank".to_owned()
}

impl Problem {
    /// A refusal by findings.
    pub fn refused(status: u16, title: impl Into<Title>, findings: Vec<Finding>) -> Self {
        let title = title.into();
        let text = title.to_string();
        let sentence = Some(title).filter(|title| !matches!(title, Title::Text { .. }));
        Self { kind: about_blank(), title: text, sentence, status, findings, detail: None }
    }

    /// A fault of the program itself, with its causes.
    pub fn fault(title: impl Into<Title>, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..Self::refused(500, title, Vec::new()) }
    }
}

texts! {
    /// What was attempted.
    pub enum Title {
        // Words of an agent, or of an earlier version of the server. They are not translated.
        Text { text: String } = "{text}",

        AddHost { host: String } = "Could not add host {host}",
        ShowHost { host: String } = "Could not show host {host}",
        SetLimits { host: String } = "Could not set the limits of host {host}",
        DrainHost { host: String } = "Could not drain host {host}",
        ResumeHost { host: String } = "Could not resume host {host}",
        RemoveHost { host: String } = "Could not remove host {host}",
        BrowseHost { host: String } = "Could not browse host {host}",
        AddStorage { host: String } = "Could not add a storage location to host {host}",
        RemoveStorage { host: String } = "Could not remove a storage location from host {host}",
        AddShare { share: String } = "Could not add share {share}",
        ShowShare { share: String } = "Could not show share {share}",
        RemoveShare { share: String } = "Could not remove share {share}",
        AttachShare { share: String, host: String } = "Could not attach share {share} on host {host}",
        DetachShare { share: String, host: String } = "Could not detach share {share} from host {host}",
        ShowVm { vm: String } = "Could not show VM {vm}",
        StartVm { vm: String } = "Could not start VM {vm}",
        ShutDownVm { vm: String } = "Could not shut VM {vm} down",
        FindHosts { vm: String } = "Could not look for hosts that can take VM {vm}",
        MoveVm { vm: String, host: String } = "Could not move VM {vm} to {host}",
        MoveVms { count: u64, host: String } = "Could not move {count} VMs to {host}",
        MoveDisks { vm: String } = "Could not move the disks of VM {vm}",
        ShowJob { job: String } = "Could not show job {job}",
        CancelJob { job: String } = "Could not cancel job {job}",
        RestartJob { job: String } = "Could not restart job {job}",
        RetryJob { job: String } = "Could not retry job {job}",
        UndoJob { job: String } = "Could not undo job {job}",
        DismissJob { job: String } = "Could not dismiss job {job}",
        NotWellFormed = "The request is not well formed",
        NotDone = "The request was not done",
        NotAuthorised = "The call is not authorised",
        DatabaseFailed = "The server's database failed",
    }
}

impl From<String> for Title {
    fn from(text: String) -> Self {
        Self::Text { text }
    }
}

impl From<&str> for Title {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<&Title> for Title {
    fn from(title: &Title) -> Self {
        title.clone()
    }
}
