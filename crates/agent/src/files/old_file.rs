//! Removes the old file of a disk that has moved, unless there is a reason to keep it.

use std::path::Path;

use ferry_core::files::cleanup::Obstacle;
use ferry_drivers::{file, identity::InUse};

use crate::AgentError;

/// Removes the file, unless `stays` returns a reason to keep it, or `takes` makes another use of it; `stays` receives what
/// the file itself shows against removal. Returns that reason; none if the file is not there any more. Blocks.
///
/// # Errors
/// If that is unknown, or the file cannot be removed.
pub(crate) fn remove_unless<W>(
    path: &Path,
    used: &InUse,
    stays: impl FnOnce(Option<Obstacle>) -> Option<W>,
    takes: impl FnOnce(&Path) -> bool,
) -> Result<Option<W>, AgentError> {
    let fault = |source| AgentError::File { path: path.to_owned(), source };
    match stays(used.obstacle(path).map_err(fault)?) {
        Some(_) if path.symlink_metadata().is_err() => Ok(None),
        Some(why) => Ok(Some(why)),
        None if takes(path) => Ok(None),
        None => file::remove(path).map_err(fault).map(|()| None),
    }
}
