//! A finding: something that blocks a request, or that its user should know, with a stable id and a fix.
//!
//! What it says and what helps are data ([`Message`], [`Fix`]): a key and arguments, which a client words in its user's
//! language. English is at hand everywhere, for logs and for who has no catalogue, and is never stored.

mod fix;
mod id;
mod message;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use fix::{Action, ByHand, Command, Fix, Fixes};
pub use id::FindingId;
pub use message::{Clauses, Message, Messages, Phrase};

/// Whether a finding stops the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It works, at a loss that the message names.
    Warns,
    /// It cannot work; nothing was changed.
    Blocks,
}

/// One thing found, on one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Body", into = "Body")]
pub struct Finding {
    /// Stable, documented in `docs/findings.md`.
    pub id: FindingId,
    /// Whether it stops the request.
    pub severity: Severity,
    /// The object it is about: a VM, host, share, disk or path, as the user names it.
    pub object: String,
    /// What was found, with values. In English: one sentence, capital letter, no full stop.
    pub message: Message,
    /// What to do about it; in English in the imperative.
    pub fix: Fix,
}

impl Finding {
    /// A finding that stops the request.
    pub fn blocks(id: FindingId, object: impl fmt::Display, message: impl Into<Message>, fix: impl Into<Fix>) -> Self {
        Self { id, severity: Severity::Blocks, object: object.to_string(), message: message.into(), fix: fix.into() }
    }

    /// A finding that stops the request, in words that have no key: as the version before says it. Nothing of this version
    /// is said so.
    pub fn of_text(
        id: FindingId,
        object: impl fmt::Display,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let (message, fix) = (Message::Text { text: message.into() }, ByHand::Text { text: fix.into() });
        Self::blocks(id, object, message, fix)
    }

    /// A finding that the user should know.
    pub fn warns(id: FindingId, object: impl fmt::Display, message: impl Into<Message>, fix: impl Into<Fix>) -> Self {
        Self { severity: Severity::Warns, ..Self::blocks(id, object, message, fix) }
    }

    /// As it is stored: without texts, but those that have no key.
    pub fn stored(&self) -> impl Serialize + use<> {
        let mut body = Body::from(self.clone());
        body.message.take_if(|_| body.sentence.is_some());
        body.fix.take_if(|_| body.fix_sentence.is_some());
        body
    }
}

/// A finding as it is sent and stored. An English text stands beside each key: for people without a catalogue, and for
/// the version before this one, which knows no keys.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
struct Body {
    /// Stable, documented in `docs/findings.md`.
    id: FindingId,
    /// Whether it stops the request.
    severity: Severity,
    /// The object it is about: a VM, host, share, disk or path, as the user names it.
    object: String,
    /// What was found, with values, in English.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(required = true, nullable = false))]
    message: Option<String>,
    /// What to do about it, in English.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(required = true, nullable = false))]
    fix: Option<String>,
    /// What was found, as data.
    #[serde(default, rename = "says", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(nullable = false))]
    sentence: Option<Message>,
    /// What to do about it, as data.
    #[serde(default, rename = "fix_says", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(nullable = false))]
    fix_sentence: Option<Fix>,
}

impl From<Finding> for Body {
    fn from(finding: Finding) -> Self {
        let Finding { id, severity, object, message, fix } = finding;
        Self {
            id,
            severity,
            object,
            message: Some(message.to_string()),
            fix: Some(fix.to_string()),
            sentence: Some(message).filter(|sentence| !matches!(sentence, Message::Text { .. })),
            fix_sentence: Some(fix).filter(|sentence| !matches!(sentence, Fix::ByHand(ByHand::Text { .. }))),
        }
    }
}

impl From<Body> for Finding {
    fn from(body: Body) -> Self {
        let Body { id, severity, object, message, fix, sentence, fix_sentence } = body;
        // A later version's sentence is told by its own English.
        let sentence = sentence.filter(|sentence| !sentence.is_unknown());
        let fix_sentence = fix_sentence.filter(|sentence| !sentence.is_unknown());
        let of_text = |message| Message::Text { text: message };
        let fix_of_text = |text: Option<String>| text.map_or(ByHand::SameVersion, |text| ByHand::Text { text }).into();
        Self {
            id,
            severity,
            object,
            message: sentence.unwrap_or_else(|| of_text(message.unwrap_or_else(|| id.meaning().to_owned()))),
            fix: fix_sentence.unwrap_or_else(|| fix_of_text(fix)),
        }
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for Finding {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        Body::schema()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for Finding {
    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
        Body::schemas(schemas);
    }
}

/// Whether any finding stops the request.
pub fn any_blocks(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Blocks)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn finding() -> Finding {
        let fix = Command::DeleteSnapshots { vm: "web01".into() };
        Finding::blocks(FindingId::VmSnapshot, "web01", Message::VmSnapshots { vm: "web01".into(), count: 2 }, fix)
    }

    fn read(value: Value) -> Finding {
        serde_json::from_value(value).expect("a finding")
    }

    #[test]
    fn a_finding_is_sent_as_data_with_its_english_beside_it() {
        let sent = json!({
            "id": "vm.snapshot", "severity": "blocks", "object": "web01",
            "message": "VM web01 has 2 snapshot(s), which do not move with it",
            "fix": "Delete them: `virsh snapshot-list web01`, then `virsh snapshot-delete web01 SNAPSHOT`",
            "says": {"key": "vm-snapshots", "args": {"vm": "web01", "count": 2}},
            "fix_says": {"kind": "command", "key": "delete-snapshots", "args": {"vm": "web01"}},
        });
        assert_eq!(serde_json::to_value(finding()).expect("JSON"), sent);
        assert_eq!(read(sent), finding());
    }

    #[test]
    fn no_sentence_is_stored() {
        let stored = serde_json::to_value(finding().stored()).expect("JSON");
        assert!(stored.get("message").is_none() && stored.get("fix").is_none(), "{stored}");
        assert_eq!(read(stored), finding());
        let plain = Finding::of_text(FindingId::VmPaused, "web01", "It is paused", "Resume it");
        assert_eq!(read(serde_json::to_value(plain.stored()).expect("JSON")), plain, "what has no key is kept");
    }

    #[test]
    fn a_finding_of_the_version_before_is_told_as_it_says_it() {
        let old = json!({"id": "vm.paused", "severity": "blocks", "object": "web01", "message": "It is paused",
            "fix": "Resume it"});
        assert_eq!(read(old), Finding::of_text(FindingId::VmPaused, "web01", "It is paused", "Resume it"));
    }

    #[test]
    fn a_sentence_of_a_later_version_is_told_in_its_english_else_by_its_id() {
        let sentence = json!({"key": "vm-dreams", "args": {"vm": "web01"}});
        let fix_sentence = json!({"kind": "action", "key": "wake-vm"});
        let mut new = json!({
            "id": "vm.paused", "severity": "blocks", "object": "web01", "message": "VM web01 dreams", "fix": "Wake it",
            "says": sentence, "fix_says": fix_sentence,
        });
        assert_eq!(read(new.clone()), Finding::of_text(FindingId::VmPaused, "web01", "VM web01 dreams", "Wake it"));
        let fields = new.as_object_mut().expect("an object");
        for field in ["message", "fix"] {
            fields.remove(field);
        }
        let known = read(new);
        assert_eq!(known.message.to_string(), FindingId::VmPaused.meaning());
        assert_eq!(known.fix, ByHand::SameVersion.into());
    }
}
