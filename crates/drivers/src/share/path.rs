//! Paths with the same content on several hosts, according to an administrator: any file system that is mounted there.

use std::{fs, io, path::Path};

use ferry_core::{place::Space, share_source::SharedPath};

use super::{
    ShareError,
    calls::{EXAMINE_WAIT, all_mounts, ask_space, examine},
    mounts,
};
use crate::run::within;

/// Accepts a directory only by its canonical path: VMs name their files by it, and file lookups do not follow links.
pub fn adopt(shared: &SharedPath, path: &Path) -> Result<(), ShareError> {
    let refused = |found: String| ShareError::NotAMount { share: shared.into(), at: path.to_owned(), found };
    let asked = path.to_owned();
    let seen: Option<io::Result<_>> =
        within(EXAMINE_WAIT, move || Ok((fs::canonicalize(&asked)?, fs::metadata(&asked)?.is_dir())));
    match seen {
        None => Err(ShareError::Stuck { share: shared.into(), at: path.to_owned(), waited: EXAMINE_WAIT }),
        Some(Err(error)) => Err(refused(error.to_string())),
        Some(Ok((_, false))) => Err(refused("it is not a directory".to_owned())),
        Some(Ok((own, true))) if own != path => Err(refused(format!("its own name is {}", own.display()))),
        Some(Ok((_, true))) => check(shared, path),
    }
}

pub fn check(shared: &SharedPath, path: &Path) -> Result<(), ShareError> {
    on_its_own(shared, path)?;
    examine(path, shared, path)
}

pub fn space(shared: &SharedPath, path: &Path) -> Option<Space> {
    on_its_own(shared, path).ok()?;
    ask_space(path, shared).ok()?
}

/// After a boot the directory may exist before its file system is mounted; then it lies on the root file system.
fn on_its_own(shared: &SharedPath, path: &Path) -> Result<(), ShareError> {
    let refused =
        |found: &str| ShareError::NotAMount { share: shared.into(), at: path.to_owned(), found: found.to_owned() };
    let all = all_mounts()?;
    let mount = mounts::holding(&all, path).ok_or_else(|| refused("it is no absolute path"))?;
    if mount.point == Path::new("/") {
        return Err(refused("it lies on the host's root file system"));
    }
    Ok(())
}
