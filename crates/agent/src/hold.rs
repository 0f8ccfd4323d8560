//! Holds: while a VM's hold file exists, the libvirt hook vetoes every start of that VM on this host.

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

/// Releases a VM. Ok if it was not held.
///
/// # Errors
/// If the file cannot be removed.
pub fn release(holds: &Path, vm: VmId) -> Result<(), AgentError> {
    records::remove(&path(holds, vm))
}

/// The VMs that are held, with the content of each hold file. Files with other names are ignored.
///
/// # Errors
/// If the folder cannot be read; a folder that does not exist holds nothing.
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
            // It may have been released in between.
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
