//! The agent's own records: files readable by root only, written atomically.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use ferry_core::error::chain;
use nix::errno::Errno;
use serde::{Serialize, de::DeserializeOwned};
use tracing::warn;

use crate::AgentError;

fn fault(path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError::File { path, source }
}

/// Creates a folder accessible to root only.
///
/// # Errors
/// [`AgentError::File`].
pub fn ensure_private_dir(path: &Path) -> Result<(), AgentError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fault(path))
}

/// Writes `value` as JSON, atomically, and waits until it is on disk.
///
/// # Errors
/// [`AgentError::File`]; the file is then unchanged.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), AgentError> {
    let text = serde_json::to_vec_pretty(value).expect("our own types are always JSON");
    ferry_trust::write_private(path, &text).map_err(fault(path))?;
    // The rename is on disk only when the folder is synced.
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

/// Added to the name of a damaged file that is put aside, followed by a number.
const ASIDE: &str = ".damaged-";
/// Limit of damaged files kept for one name; a further one replaces the last.
const ASIDE_MAX: u32 = 9;

/// As [`read_json`], but a file that has invalid content or cannot be read from its disk is put aside and treated as
/// absent. It stays there, and is reported ([`put_aside`]), until someone removes it.
///
/// # Errors
/// [`AgentError::File`], also if the file cannot be put aside.
pub fn read_or_put_aside<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, AgentError> {
    let error = match read_json(path) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    let is_damaged = match &error {
        AgentError::Content { .. } => true,
        AgentError::File { source, .. } => {
            matches!(source.raw_os_error(), Some(code) if code == Errno::EIO as i32 || code == Errno::EUCLEAN as i32)
        }
        AgentError::Config { .. }
        | AgentError::Trust(_)
        | AgentError::Hypervisor(_)
        | AgentError::Refused { .. }
        | AgentError::Failed { .. } => false,
    };
    if !is_damaged {
        return Err(error);
    }
    let aside = (1..ASIDE_MAX).map(|number| aside(path, number)).find(|aside| aside.symlink_metadata().is_err());
    let aside = aside.unwrap_or_else(|| self::aside(path, ASIDE_MAX));
    fs::rename(path, &aside).map_err(fault(path))?;
    warn!(file = %path.display(), aside = %aside.display(), error = %chain(&error), "A damaged file was put aside");
    Ok(None)
}

fn aside(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{ASIDE}{number}"));
    PathBuf::from(name)
}

/// Reads every record of a folder, `NAME.json`, whose name `is_one` accepts; damaged ones are put aside.
///
/// # Errors
/// As [`read_or_put_aside`].
pub fn read_all<T: DeserializeOwned>(folder: &Path, is_one: impl Fn(&str) -> bool) -> Result<Vec<T>, AgentError> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault(folder))? {
        let path = entry.map_err(fault(folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.strip_suffix(".json").is_some_and(&is_one) {
            records.extend(read_or_put_aside(&path)?);
        }
    }
    Ok(records)
}

/// The files that were put aside in a folder, by name.
pub fn put_aside(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_aside = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(ASIDE));
    let mut found: Vec<PathBuf> = entries.filter(is_aside).collect();
    found.sort();
    found
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
