//! Handling of VM files on this host, shared by every kind of move.
//!
//! ```text
//! claims (promised space) ◀─ host_storage (where files may be) ◀─ space (is it enough?) ◀─┐
//! new_file (the life of a file that a move makes) ◀───────────────────────────────────────┴─ incoming (incoming disks)
//!        ▲
//!        └─ partial (unfinished copies, kept for the next attempt)
//! ```
//! A new file is removed by its identity, not by its name ([`new_file`]). Old ([`old_file`]) and new files are removed
//! only if no VM uses them ([`in_use`]). A [`fingerprint`] shows whether a file was written since.

pub(crate) mod chain;
pub(crate) mod claims;
pub(crate) mod fingerprint;
pub(crate) mod host_storage;
pub(crate) mod incoming;
pub(crate) mod new_file;
pub(crate) mod old_file;
pub(crate) mod partial;
pub(crate) mod space;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use ferry_drivers::identity::InUse;

use crate::AgentError;

/// Identities of files in use. Blocks, for some seconds if a file server is away.
///
/// # Errors
/// [`AgentError::File`].
pub(crate) fn in_use(paths: BTreeSet<PathBuf>) -> Result<InUse, AgentError> {
    InUse::of(paths).map_err(|source| AgentError::File { path: Path::new("/proc/self/mountinfo").to_owned(), source })
}
