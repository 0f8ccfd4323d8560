//! What is written down of an offline move, so that an agent that was restarted knows whose VM it is.

use std::path::{Path, PathBuf};

use ferry_core::{
    api::agent::{OfflineStage, ReceiveOffline, Role, SendOffline},
    id::{Generation, JobId, VmId},
    units::ByteCount,
    vm::DiskFormat,
};
use serde::{Deserialize, Serialize};

use super::stamp::Stamp;
use crate::{
    AgentError, files,
    migration::mark::{Made, Mark},
};

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
        /// How the files were when the copy began, in the order of the request; empty before.
        #[serde(default)]
        stamps: Vec<Stamp>,
    },
    /// Receive it.
    Destination {
        request: ReceiveOffline,
        /// The new files, in the order of the request.
        arrivals: Vec<Arrival>,
        /// Files that are not there at the source either, in the order of the request.
        #[serde(default)]
        absent: Vec<PathBuf>,
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
    #[serde(default)]
    pub(super) form: Form,
    /// This attempt makes the file, or has: it may remove it.
    pub(super) made: bool,
    /// How the file is known again.
    #[serde(default)]
    pub(super) mark: Mark,
    /// It is whole, and on disk.
    #[serde(default)]
    pub(super) arrived: bool,
    /// It is being given its own name, or has it.
    #[serde(default)]
    pub(super) named: bool,
}

/// How a file comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Form {
    /// Under its own name from the start, as the version before this one wrote files.
    #[default]
    Whole,
    /// Under this name until it is whole.
    Part(PathBuf),
    /// It is there already, for another VM that shares it: compared, and never written to.
    Adopted,
}

impl Arrival {
    /// The file, as it is called while it comes.
    pub(super) fn made_file(&self) -> Made<'_> {
        Made { path: self.file(), ..self.named_file() }
    }

    /// The file, as it is called when it is whole.
    pub(super) fn named_file(&self) -> Made<'_> {
        Made { path: &self.path, mark: self.mark, format: DiskFormat::Raw, virtual_size: ByteCount(0) }
    }

    /// What is written while the file comes.
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

    /// The files that come; none at the source.
    pub(super) fn arrivals(&self) -> &[Arrival] {
        match self {
            Self::Source { .. } => &[],
            Self::Destination { arrivals, .. } => arrivals,
        }
    }

    /// Changes what is known of files that come.
    pub(super) fn each_arrival(&mut self, change: impl FnMut(&mut Arrival)) {
        if let Self::Destination { arrivals, .. } = self {
            arrivals.iter_mut().for_each(change);
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
    /// What people should know of how it ended.
    #[serde(default)]
    pub(super) remarks: Vec<String>,
}

impl Journal {
    /// Of an attempt that begins.
    pub(super) fn new(job: JobId, generation: Generation, task: Task) -> Self {
        Self { job, generation, task, stage: OfflineStage::Prepared, error: None, remarks: Vec::new() }
    }

    fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.json", self.job))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), AgentError> {
        files::write_json(&self.path(folder), self)
    }

    pub(super) fn remove(&self, folder: &Path) -> Result<(), AgentError> {
        files::remove(&self.path(folder))
    }

    /// Every page of a folder; damaged ones are put aside.
    pub(super) fn read_all(folder: &Path) -> Result<Vec<Self>, AgentError> {
        files::read_pages(folder, |stem| stem.parse::<JobId>().is_ok())
    }
}
