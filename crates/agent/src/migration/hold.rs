//! A hold: while its file is there, the libvirt hook vetoes a start of that VM on this host, by anyone.

use std::path::{Path, PathBuf};

use ferry_core::id::{JobId, VmId};

use crate::{AgentError, files};

fn path(holds: &Path, vm: VmId) -> PathBuf {
    holds.join(vm.to_string())
}

/// Holds a VM. May be repeated.
///
/// # Errors
/// When the file cannot be written.
pub fn ensure(holds: &Path, vm: VmId, job: JobId) -> Result<(), AgentError> {
    files::ensure_private_dir(holds)?;
    let path = path(holds, vm);
    let text = format!("job {job} moves it to another host; see `ferry job show {job}`");
    ferry_trust::write_private(&path, text.as_bytes()).map_err(|source| AgentError::File { path, source })
}

/// Lets a VM go. Ok if it was not held.
///
/// # Errors
/// When the file cannot be removed.
pub fn release(holds: &Path, vm: VmId) -> Result<(), AgentError> {
    files::remove(&path(holds, vm))
}

/// Whether a VM is held.
pub fn is_held(holds: &Path, vm: VmId) -> bool {
    path(holds, vm).exists()
}
