//! Errors on both APIs: problem details (RFC 9457) that carry findings.

use serde::{Deserialize, Serialize};

use crate::finding::Finding;

/// Media type of a problem.
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// The reason why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `about:blank`: the findings carry the kind.
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    /// One sentence: what was attempted, and on which object.
    pub title: String,
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
    pub fn refused(status: u16, title: impl Into<String>, findings: Vec<Finding>) -> Self {
        Self { kind: about_blank(), title: title.into(), status, findings, detail: None }
    }

    /// A fault of the program itself, with its causes.
    pub fn fault(title: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            kind: about_blank(),
            title: title.into(),
            status: 500,
            findings: Vec::new(),
            detail: Some(detail.into()),
        }
    }
}
