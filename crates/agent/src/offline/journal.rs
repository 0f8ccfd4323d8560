//! The journal of an offline move, so that a restarted agent knows which host has the VM.

use std::path::{Path, PathBuf};

use ferry_core::{
    api::agent::{self, ReceiveOffline, Role, SendOffline},
    id::{Generation, JobId, VmId},
    units::ByteCount,
    vm::DiskFormat,
};
use serde::{Deserialize, Serialize};

use crate::files::{
    fingerprint::FileFingerprint,
    new_file::{FileIdentity, MadeFile},
};

/// The task of one end.
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
        /// Fingerprints of the files when the copy began, in the order of the request; empty before.
        #[serde(default, rename = "stamps")]
        fingerprints: Vec<FileFingerprint>,
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
        /// The definition received from the source.
        definition: Option<String>,
    },
}

/// An incoming file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IncomingFile {
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) form: Form,
    /// This attempt creates or has created the file: it may remove it.
    pub(super) made: bool,
    /// Its identity.
    #[serde(default, rename = "mark")]
    pub(super) identity: FileIdentity,
    /// It is complete, and on disk.
    #[serde(default)]
    pub(super) arrived: bool,
    /// It is being renamed to its final name, or has it.
    #[serde(default)]
    pub(super) named: bool,
}

/// How a file is received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Form {
    /// Under its final name from the start, as the previous version wrote files.
    #[default]
    Whole,
    /// Under this name until it is complete.
    Part(PathBuf),
    /// It already exists, for another VM that shares it: compared, and never written.
    Adopted,
}

impl IncomingFile {
    /// The file under its name while it is incomplete.
    pub(super) fn as_it_comes(&self) -> MadeFile<'_> {
        MadeFile { path: self.file(), ..self.as_named() }
    }

    /// The file under its final name.
    pub(super) fn as_named(&self) -> MadeFile<'_> {
        MadeFile { path: &self.path, identity: self.identity, format: DiskFormat::Raw, virtual_size: ByteCount(0) }
    }

    /// The path that is written during the copy.
    pub(super) fn file(&self) -> &Path {
        match &self.form {
            Form::Part(part) => part,
            Form::Whole | Form::Adopted => &self.path,
        }
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

    /// Applies a change to each incoming file.
    pub(super) fn each_incoming(&mut self, change: impl FnMut(&mut IncomingFile)) {
        if let Self::Destination { incoming_files, .. } = self {
            incoming_files.iter_mut().for_each(change);
        }
    }
}

/// The stage of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Prepared.
    Prepared,
    /// Files are being copied.
    Copying,
    /// Every file and the definition are at the destination, compared and on disk.
    Copied,
    /// Destination: the VM is defined here. The point of no return.
    Defined,
    /// Source: definition and old files are gone. Destination: autostart is set.
    Confirmed,
    /// It failed before the point of no return.
    Failed,
    /// It was ended by request before the point of no return.
    Aborted,
}

impl Stage {
    /// The stage as reported.
    pub(super) fn reported(self, role: Role) -> agent::Stage {
        match (self, role) {
            (Self::Prepared, _) => agent::Stage::Prepared,
            (Self::Copying, _) | (Self::Copied, Role::Destination) => agent::Stage::Performing,
            (Self::Copied, Role::Source) | (Self::Defined, Role::Destination) => agent::Stage::Delivered,
            (Self::Confirmed, _) => agent::Stage::Confirmed,
            // If the VM is still defined at the source, it has not moved.
            (Self::Failed, _) | (Self::Defined, Role::Source) => agent::Stage::Failed,
            (Self::Aborted, _) => agent::Stage::Aborted,
        }
    }
}

/// One attempt at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) job: JobId,
    pub(super) generation: Generation,
    pub(super) task: Task,
    pub(super) stage: Stage,
    pub(super) error: Option<String>,
    /// Remarks about the outcome, for people.
    #[serde(default)]
    pub(super) remarks: Vec<String>,
}

impl Journal {
    /// The journal of a new attempt.
    pub(super) fn new(job: JobId, generation: Generation, task: Task) -> Self {
        Self { job, generation, task, stage: Stage::Prepared, error: None, remarks: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// An agent that is upgraded during a move continues it.
    #[test]
    fn what_the_version_before_wrote_down_is_read_and_written_as_it_was() {
        for text in [
            include_str!("../../tests/journals/offline-source.json"),
            include_str!("../../tests/journals/offline-destination.json"),
        ] {
            let journal: Journal = serde_json::from_str(text).expect("a journal");
            let written = serde_json::to_value(&journal).expect("JSON");
            assert_eq!(written, serde_json::from_str::<Value>(text).expect("JSON"));
        }
    }
}
