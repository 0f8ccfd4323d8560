//! What is written down of the attempts of one kind: a file for each job, `JOB.json` in the kind's folder, written before
//! what it tells of happens.

use std::path::{Path, PathBuf};

use ferry_core::id::JobId;
use serde::{Serialize, de::DeserializeOwned};

use crate::{AgentError, records};

/// Where the record of a job is.
pub(crate) fn path(folder: &Path, job: JobId) -> PathBuf {
    folder.join(format!("{job}.json"))
}

/// Writes a record. On the disk when it returns.
///
/// # Errors
/// [`AgentError::File`]; what was there before is whole then.
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

/// Every record there is, in a folder that is made if it is not there. A damaged one is put aside.
///
/// # Errors
/// When the folder cannot be used, or a record not be put aside.
pub(crate) fn read_all<J: DeserializeOwned>(folder: &Path) -> Result<Vec<J>, AgentError> {
    records::ensure_private_dir(folder)?;
    records::read_all(folder, |stem| stem.parse::<JobId>().is_ok())
}
