//! What is written down of a storage move before it happens, so that a restarted agent goes on with it.

use std::path::{Path, PathBuf};

use ferry_core::{
    api::agent::{PrepareStorage, StorageStage},
    id::{Generation, JobId},
    units::ByteCount,
};
use serde::{Deserialize, Serialize};

use crate::{AgentError, files};

/// One disk: its files on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disk {
    /// The disk's name in the definition.
    pub(super) device: String,
    /// The old file.
    pub(super) from: PathBuf,
    /// The new file.
    pub(super) to: PathBuf,
    /// The new file was made by this attempt: it may be removed by it.
    pub(super) made: bool,
    /// What the old file took.
    pub(super) allocated: ByteCount,
}

/// One file for each move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) job: JobId,
    pub(super) generation: Generation,
    pub(super) request: PrepareStorage,
    /// In the order of the request.
    pub(super) disks: Vec<Disk>,
    pub(super) stage: StorageStage,
    pub(super) error: Option<String>,
}

impl Journal {
    fn path(folder: &Path, job: JobId) -> PathBuf {
        folder.join(format!("{job}.json"))
    }

    /// On the disk when it returns.
    pub(super) fn write(&self, folder: &Path) -> Result<(), AgentError> {
        files::write_json(&Self::path(folder, self.job), self)
    }

    pub(super) fn remove(&self, folder: &Path) -> Result<(), AgentError> {
        files::remove(&Self::path(folder, self.job))
    }

    /// Every journal there is.
    pub(super) fn read_all(folder: &Path) -> Result<Vec<Self>, AgentError> {
        let fault = |source| AgentError::File { path: folder.to_owned(), source };
        let mut journals = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(fault)? {
            let path = entry.map_err(fault)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                journals.extend(files::read_json(&path)?);
            }
        }
        Ok(journals)
    }
}
