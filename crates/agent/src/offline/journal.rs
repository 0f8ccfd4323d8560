//! What is written down of an offline move, so that an agent that was restarted knows whose VM it is.

use std::path::{Path, PathBuf};

use ferry_core::{
    api::agent::{OfflineStage, ReceiveOffline, Role, SendOffline},
    id::{Generation, JobId, VmId},
};
use serde::{Deserialize, Serialize};

use crate::{AgentError, files};

/// One end's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub(super) enum Task {
    /// Send the VM.
    Source {
        request: SendOffline,
        /// The files here, in the order of the request.
        paths: Vec<PathBuf>,
        /// Folders and files here, and what they are called at the destination.
        translate: Vec<(PathBuf, PathBuf)>,
        /// Whether this host started the VM at boot.
        autostart: bool,
    },
    /// Receive it.
    Destination {
        request: ReceiveOffline,
        /// The new files, in the order of the request.
        arrivals: Vec<Arrival>,
        /// Folders and files that the definition may name.
        roots: Vec<PathBuf>,
        /// What came from the source.
        definition: Option<String>,
    },
}

/// A file that comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Arrival {
    pub(super) path: PathBuf,
    /// This attempt made the file: it may remove it.
    pub(super) made: bool,
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
}

/// One attempt at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) job: JobId,
    pub(super) generation: Generation,
    pub(super) task: Task,
    pub(super) stage: OfflineStage,
    pub(super) error: Option<String>,
}

impl Journal {
    fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.json", self.job))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), AgentError> {
        files::write_json(&self.path(folder), self)
    }

    pub(super) fn remove(&self, folder: &Path) -> Result<(), AgentError> {
        files::remove(&self.path(folder))
    }

    /// Every page of a folder. A damaged one is an error: a move must not be forgotten silently.
    pub(super) fn read_all(folder: &Path) -> Result<Vec<Self>, AgentError> {
        let fault = |source| AgentError::File { path: folder.to_owned(), source };
        let mut journals = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(fault)? {
            let path = entry.map_err(fault)?.path();
            if path.extension().is_some_and(|ending| ending == "json")
                && let Some(journal) = files::read_json(&path)?
            {
                journals.push(journal);
            }
        }
        Ok(journals)
    }
}
