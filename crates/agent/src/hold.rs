//! A hold: while its file is there, the libvirt hook vetoes a start of that VM on this host, by anyone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ferry_core::id::{JobId, VmId};

use crate::{AgentError, records};

fn path(holds: &Path, vm: VmId) -> PathBuf {
    holds.join(vm.to_string())
}

/// Holds a VM. May be repeated.
///
/// # Errors
/// When the file cannot be written.
pub fn ensure(holds: &Path, vm: VmId, job: JobId) -> Result<(), AgentError> {
    records::ensure_private_dir(holds)?;
    let path = path(holds, vm);
    let text = format!("job {job} moves it to another host; see `ferry job show {job}`");
    ferry_trust::write_private(&path, text.as_bytes()).map_err(|source| AgentError::File { path, source })
}

/// Lets a VM go. Ok if it was not held.
///
/// # Errors
/// When the file cannot be removed.
pub fn release(holds: &Path, vm: VmId) -> Result<(), AgentError> {
    records::remove(&path(holds, vm))
}

/// The VMs that are held, and what was written down of each. Files of other names are none.
///
/// # Errors
/// When the folder cannot be read; one that is not there holds nothing.
pub fn all(holds: &Path) -> Result<Vec<(VmId, String)>, AgentError> {
    let fault = |source| AgentError::File { path: holds.to_owned(), source };
    let entries = match fs::read_dir(holds) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fault(error)),
    };
    let mut held = Vec::new();
    for entry in entries {
        let name = entry.map_err(fault)?.file_name();
        if let Some(vm) = name.to_str().and_then(|name| name.parse().ok()) {
            // It may be released just now.
            held.push((vm, fs::read_to_string(holds.join(&name)).unwrap_or_default()));
        }
    }
    held.sort();
    Ok(held)
}

/// Whether a VM is held.
pub fn is_held(holds: &Path, vm: VmId) -> bool {
    path(holds, vm).exists()
}
