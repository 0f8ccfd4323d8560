//! The journal of an offline move, so that a restarted agent knows which host has the VM.

use std::path::{Path, PathBuf};

use ferry_core::{
    api::agent::{self, OfflineFile, ReceiveOffline, Role, SendOffline},
    finding::Finding,
    id::{Generation, JobId, VmId},
    vm::DiskFormat,
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Value, json};

use crate::files::{
    fingerprint::FileFingerprint,
    new_file::{Lifecycle, Naming, NewFile},
};

/// The task of one end, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub(super) enum Task {
    /// Send the VM.
    Source {
        request: SendOffline,
        /// The files here, in the order of the request.
        paths: Vec<PathBuf>,
        /// Maps folders and files here to their paths at the destination.
        translate: Vec<(PathBuf, PathBuf)>,
        /// Whether this host started the VM at boot.
        autostart: bool,
        #[serde(flatten)]
        state: SourceState,
    },
    /// Receive the VM.
    Destination {
        request: ReceiveOffline,
        /// The new files, in the order of the request.
        #[serde(rename = "arrivals")]
        incoming_files: Vec<IncomingFile>,
        /// Files that do not exist at the source either, in the order of the request.
        #[serde(default)]
        absent: Vec<PathBuf>,
        /// Folders and files that the definition may name.
        roots: Vec<PathBuf>,
        #[serde(flatten)]
        state: DestinationState,
    },
}

/// The state of the source.
///
/// ```text
/// Prepared → Copying → Copied → Confirmed
///     └─────────┴─────────┴─→ Failed | Aborted
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(super) enum SourceState {
    /// The VM is held.
    Prepared,
    /// Files are being copied.
    Copying,
    /// The destination has everything.
    Copied {
        /// Fingerprints of the files when the copy began, in the order of the request.
        #[serde(default, rename = "stamps")]
        fingerprints: Vec<FileFingerprint>,
    },
    /// Definition and old files are gone.
    Confirmed {
        /// Old files that stay.
        #[serde(default)]
        findings: Vec<Finding>,
    },
    /// The copy failed.
    Failed { error: String },
    /// It was ended by request.
    Aborted,
}

/// The state of the destination.
///
/// ```text
/// Prepared → Copying → Copied → Defined → Confirmed
///     └─────────┴─────────┴─→ Aborted
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(super) enum DestinationState {
    /// It listens.
    Prepared,
    /// Files are being copied.
    Copying,
    /// Every file is here, compared and on disk.
    Copied {
        /// The definition, as the source sent it after the files.
        definition: String,
    },
    /// The VM is defined here. The point of no return.
    Defined,
    /// Autostart is set.
    Confirmed,
    /// It was ended by request before the point of no return.
    Aborted,
}

impl DestinationState {
    /// Whether files may still come.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Prepared | Self::Copying | Self::Copied { .. } => true,
            Self::Defined | Self::Confirmed | Self::Aborted => false,
        }
    }
}

/// An incoming file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub(super) enum IncomingFile {
    /// It already exists, for another VM that shares it: compared, and never written.
    Adopted {
        path: PathBuf,
        /// It is what the source has.
        #[serde(rename = "arrived")]
        compared: bool,
    },
    /// It has another name until the VM gets it.
    Part {
        path: PathBuf,
        /// Its name until then.
        part: PathBuf,
        #[serde(flatten)]
        lifecycle: Lifecycle,
    },
}

impl IncomingFile {
    /// Its final path.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Adopted { path, .. } | Self::Part { path, .. } => path,
        }
    }

    /// Everything of it is here, and is on disk.
    pub(super) fn has_arrived(&self) -> bool {
        match self {
            Self::Adopted { compared, .. } => *compared,
            Self::Part { lifecycle, .. } => matches!(lifecycle, Lifecycle::Complete(_) | Lifecycle::HandedOver(_)),
        }
    }

    /// The file that the move makes, under the name that it has now; none if it already exists. Blocks.
    pub(super) fn new_file<'a>(&'a self, of: &'a OfflineFile) -> Option<NewFile<'a>> {
        let Self::Part { path, part, lifecycle } = self else { return None };
        // It has its final name, unless renaming it was interrupted.
        let is_named = matches!(lifecycle, Lifecycle::HandedOver(_)) && part.symlink_metadata().is_err();
        Some(NewFile {
            device: &of.file.device,
            path: if is_named { path } else { part },
            // Whatever its content is.
            format: DiskFormat::Raw,
            virtual_size: of.length,
            naming: Naming::OfVm,
            lifecycle: *lifecycle,
        })
    }
}

impl Task {
    pub(super) fn role(&self) -> Role {
        match self {
            Self::Source { .. } => Role::Source,
            Self::Destination { .. } => Role::Destination,
        }
    }

    pub(super) fn vm(&self) -> VmId {
        match self {
            Self::Source { request, .. } => request.vm,
            Self::Destination { request, .. } => request.vm,
        }
    }

    /// The incoming files; none at the source.
    pub(super) fn incoming_files(&self) -> &[IncomingFile] {
        match self {
            Self::Source { .. } => &[],
            Self::Destination { incoming_files, .. } => incoming_files,
        }
    }

    /// The files of the request.
    pub(super) fn files(&self) -> &[OfflineFile] {
        match self {
            Self::Source { request, .. } => &request.files,
            Self::Destination { request, .. } => &request.files,
        }
    }

    /// The stage as reported.
    pub(super) fn stage(&self) -> agent::Stage {
        match self {
            Self::Source { state, .. } => match state {
                SourceState::Prepared => agent::Stage::Prepared,
                SourceState::Copying => agent::Stage::Performing,
                SourceState::Copied { .. } => agent::Stage::Delivered,
                SourceState::Confirmed { .. } => agent::Stage::Confirmed,
                SourceState::Failed { .. } => agent::Stage::Failed,
                SourceState::Aborted => agent::Stage::Aborted,
            },
            Self::Destination { state, .. } => match state {
                DestinationState::Prepared => agent::Stage::Prepared,
                DestinationState::Copying | DestinationState::Copied { .. } => agent::Stage::Performing,
                DestinationState::Defined => agent::Stage::Delivered,
                DestinationState::Confirmed => agent::Stage::Confirmed,
                DestinationState::Aborted => agent::Stage::Aborted,
            },
        }
    }
}

/// One attempt at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Journal {
    pub(super) job: JobId,
    pub(super) generation: Generation,
    pub(super) task: Task,
}

impl Journal {
    /// The state of the source, if this is one.
    pub(super) fn source(&mut self) -> Option<&mut SourceState> {
        match &mut self.task {
            Task::Source { state, .. } => Some(state),
            Task::Destination { .. } => None,
        }
    }

    /// The state of the destination, if this is one.
    pub(super) fn destination(&mut self) -> Option<&mut DestinationState> {
        match &mut self.task {
            Task::Source { .. } => None,
            Task::Destination { state, .. } => Some(state),
        }
    }

    /// An incoming file, if this is the destination.
    pub(super) fn incoming(&mut self, index: usize) -> Option<&mut IncomingFile> {
        match &mut self.task {
            Task::Source { .. } => None,
            Task::Destination { incoming_files, .. } => incoming_files.get_mut(index),
        }
    }
}

impl<'de> Deserialize<'de> for Journal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Written {
            job: JobId,
            generation: Generation,
            task: Task,
        }
        let value = upgraded(Value::deserialize(deserializer)?);
        let Written { job, generation, task } = serde_json::from_value(value).map_err(D::Error::custom)?;
        Ok(Self { job, generation, task })
    }
}

/// Converts what the version before wrote: it kept the state beside the task, and old files that stay as sentences.
fn upgraded(mut journal: Value) -> Value {
    if journal.get("stage").is_none() {
        return journal;
    }
    let sentence = |text: &Value| {
        json!({
            "id": "file.kept", "severity": "warns", "object": text, "message": text,
            "fix": "Look what has written to it or uses it, and remove it when nothing needs it",
        })
    };
    let findings: Vec<Value> = journal["remarks"].as_array().into_iter().flatten().map(sentence).collect();
    let (stage, error) = (journal["stage"].take(), journal["error"].take());
    let task = &mut journal["task"];
    (task["stage"], task["error"], task["findings"]) = (stage, error, findings.into());
    for file in task["arrivals"].as_array_mut().into_iter().flatten() {
        if let Some(part) = file["form"].get_mut("part").map(Value::take) {
            (file["form"], file["part"]) = ("part".into(), part);
        }
    }
    journal
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::new_file::FileIdentity;

    /// An agent that is upgraded during a move continues it.
    #[test]
    fn what_the_version_before_wrote_down_is_read_and_what_is_written_is_read_again() {
        let read = |text: &str| serde_json::from_str::<Journal>(text).expect("a journal");
        let is_read_again = |journal: &Journal| {
            assert_eq!(read(&serde_json::to_string(journal).expect("JSON")), *journal);
        };
        let text = include_str!("../../tests/journals/offline-source.json");
        let mut journal = read(text);
        let Task::Source { state: SourceState::Copied { fingerprints }, .. } = &journal.task else {
            panic!("{journal:?}")
        };
        assert_eq!(fingerprints.len(), 1);
        is_read_again(&journal);
        for state in [
            SourceState::Prepared,
            SourceState::Confirmed { findings: Vec::new() },
            SourceState::Failed { error: "no".to_owned() },
        ] {
            *journal.source().expect("a source") = state;
            is_read_again(&journal);
        }
        let confirmed =
            text.replace("\"copied\"", "\"confirmed\"").replace("\"remarks\": []", "\"remarks\": [\"It stays\"]");
        let Task::Source { state: SourceState::Confirmed { findings }, .. } = read(&confirmed).task else {
            panic!("{confirmed}")
        };
        assert_eq!(findings[0].message.to_string(), "It stays");

        let mut journal = read(include_str!("../../tests/journals/offline-destination.json"));
        let Task::Destination { state: DestinationState::Copied { definition }, incoming_files, .. } = &journal.task
        else {
            panic!("{journal:?}")
        };
        let identity = FileIdentity::File { inode: 131, born_ns: Some(1_760_000_000_000_000_000) };
        let IncomingFile::Part { part, lifecycle, .. } = &incoming_files[0] else { panic!("{journal:?}") };
        assert_eq!((&**definition, *lifecycle), ("<domain/>", Lifecycle::Complete(identity)));
        assert!(part.extension().is_some_and(|ending| ending == "ferry-part"));
        is_read_again(&journal);
        *journal.incoming(0).expect("a file") = IncomingFile::Adopted { path: "/x".into(), compared: true };
        *journal.destination().expect("a destination") = DestinationState::Defined;
        is_read_again(&journal);
    }
}
