//! The old file of a disk that has moved: removed unless something speaks for it.

use std::path::Path;

use ferry_core::files::cleanup::Obstacle;
use ferry_drivers::{file, identity::InUse};

use crate::AgentError;

/// Removes it, unless `stays` says why not, which is told what stands against it as a file. Gives why it stays; nothing, also for
/// one that is not there. Blocks.
///
/// # Errors
/// When that is not known, or it cannot be removed.
pub(crate) fn remove_unless<W>(
    path: &Path,
    used: &InUse,
    stays: impl FnOnce(Option<Obstacle>) -> Option<W>,
) -> Result<Option<W>, AgentError> {
    let fault = |source| AgentError::File { path: path.to_owned(), source };
    match stays(used.obstacle(path).map_err(fault)?) {
        Some(_) if path.symlink_metadata().is_err() => Ok(None),
        Some(why) => Ok(Some(why)),
        None => file::remove(path).map_err(fault).map(|()| None),
    }
}
