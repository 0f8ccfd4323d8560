//! Files that only root reads, written whole or not at all.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::AgentError;

fn fault(path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError::File { path, source }
}

/// Makes a folder that only root enters.
///
/// # Errors
/// [`AgentError::File`].
pub fn ensure_private_dir(path: &Path) -> Result<(), AgentError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fault(path))
}

/// Writes `value` as JSON, whole or not at all, and waits until it is on disk.
///
/// # Errors
/// [`AgentError::File`]; the file is then as it was.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), AgentError> {
    let text = serde_json::to_vec_pretty(value).expect("our own types are always JSON");
    ferry_trust::write_private(path, &text).map_err(fault(path))?;
    // The rename is on disk only when the folder is.
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(fault(parent))
}

/// Reads JSON; `None` if there is no file.
///
/// # Errors
/// [`AgentError::File`], [`AgentError::Content`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, AgentError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| AgentError::Content { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(path)(error)),
    }
}

/// Removes a file; Ok if there is none.
///
/// # Errors
/// [`AgentError::File`].
pub fn remove(path: &Path) -> Result<(), AgentError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(fault(path)(error)),
    }
}
