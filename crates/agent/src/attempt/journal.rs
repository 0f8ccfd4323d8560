//! Journals of the attempts of one kind: one file per job, `JOB.json` in the kind's folder, written before each action
//! that it records.

use std::path::{Path, PathBuf};

use ferry_core::id::JobId;
use serde::{Serialize, de::DeserializeOwned};

use crate::{AgentError, records};

/// The path of a job's record.
pub(crate) fn path(folder: &Path, job: JobId) -> PathBuf {
    folder.join(format!("{job}.json"))
}

/// Writes a record. It is on disk when this returns.
///
/// # Errors
/// [`AgentError::File`]; the previous record is then intact.
pub(crate) fn write(folder: &Path, job: JobId, journal: &impl Serialize) -> Result<(), AgentError> {
    records::write_json(&path(folder, job), journal)
}

/// Removes a record; Ok if there is none.
///
/// # Errors
/// [`AgentError::File`].
pub(crate) fn remove(folder: &Path, job: JobId) -> Result<(), AgentError> {
    records::remove(&path(folder, job))
}

/// Reads all records of a folder, which is created if it does not exist. Damaged records are put aside.
///
/// # Errors
/// If the folder cannot be used, or a damaged record cannot be put aside.
pub(crate) fn read_all<J: DeserializeOwned>(folder: &Path) -> Result<Vec<J>, AgentError> {
    records::ensure_private_dir(folder)?;
    records::read_all(folder, |stem| stem.parse::<JobId>().is_ok())
}
