//! Files of VMs on this host, as every kind of move handles them.
//!
//! ```text
//! claims (what is promised) ◀─ host_storage (where files may be) ◀─ space (is there room?) ◀─┐
//! new_file (what this attempt made, and how it is known again) ◀──────────────────────────────┼─ incoming (the files of disks that come)
//!        ▲                                       └─ partial (unfinished copies, kept for the next attempt)
//! ```
//! A new file is removed by what it is, not by its name ([`new_file`]), an old one ([`old_file`]) and a new one only if no VM uses it ([`in_use`]). Whether something
//! has written to a file since says its [`fingerprint`].

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

/// Used files by what they are. Blocks, for some seconds if a file server is away.
///
/// # Errors
/// [`AgentError::File`].
pub(crate) fn in_use(paths: BTreeSet<PathBuf>) -> Result<InUse, AgentError> {
    InUse::of(paths).map_err(|source| AgentError::File { path: Path::new("/proc/self/mountinfo").to_owned(), source })
}
