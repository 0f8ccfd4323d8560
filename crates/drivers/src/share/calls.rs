//! Programs and system calls on mounts, each with a time limit, even if the file server or the mount is dead.

use std::{fs, io, path::Path, process::Command, time::Duration};

use ferry_core::{place::Space, share_source::ShareSource, units::ByteCount};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};

use super::{
    ShareError,
    mounts::{self, Mount},
};
use crate::run::{Ended, run, within};

/// Time limit for mounting; the server has just answered.
pub const MOUNT_WAIT: Duration = Duration::from_secs(20);
/// Time limit for a probe of a mounted share. A file server that is slower cannot serve a VM's disk.
pub const EXAMINE_WAIT: Duration = Duration::from_secs(5);
/// Time limit for unmounting: the kernel writes back cached data.
const UNMOUNT_WAIT: Duration = Duration::from_secs(20);

/// Total and free blocks and their size, as `stat -f` prints them.
fn stat_space(output: &str) -> Option<Space> {
    let mut numbers = output.split_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    let (total, free, block_bytes) = (next()?, next()?, next()?);
    let bytes = |blocks: u64| blocks.checked_mul(block_bytes).map(ByteCount);
    (total > 0).then_some(())?;
    Some(Space { total: bytes(total)?, free: bytes(free)? })
}

pub fn host(what: String) -> impl FnOnce(io::Error) -> ShareError {
    move |source| ShareError::Host { what, source }
}

pub fn all_mounts() -> Result<Vec<Mount>, ShareError> {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(host("read /proc/self/mountinfo".to_owned()))?;
    Ok(mounts::parse(&text))
}

pub fn mount_at(point: &Path) -> Result<Option<Mount>, ShareError> {
    Ok(mounts::at(&all_mounts()?, point).cloned())
}

/// Runs `command`, which mounts something of `share` at `at`.
pub fn must(command: &mut Command, wait: Duration, share: impl Into<ShareSource>, at: &Path) -> Result<(), ShareError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let outcome = run(command, wait).map_err(host(format!("run {program}")))?;
    if outcome.is_ok() {
        return Ok(());
    }
    let reason = format!("{program}: {}", outcome.reason());
    Err(ShareError::Mount { share: share.into(), at: at.to_owned(), reason })
}

/// Reads the first entry of the directory, which requires an answer of the file server.
pub fn examine(path: &Path, share: impl Into<ShareSource>, at: &Path) -> Result<(), ShareError> {
    asked(Command::new("find").arg(path).args(["-maxdepth", "0", "-empty"]), share, at).map(|_| ())
}

/// Queries the file system's space, which requires an answer of its file server but no permission to read there.
pub fn ask_space(path: &Path, share: impl Into<ShareSource>) -> Result<Option<Space>, ShareError> {
    let output = asked(Command::new("stat").args(["-f", "-c", "%b %a %S", "--"]).arg(path), share, path)?;
    Ok(stat_space(&output))
}

/// Runs a program that accesses the share's files, and returns its output.
fn asked(command: &mut Command, share: impl Into<ShareSource>, at: &Path) -> Result<String, ShareError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let outcome = run(command, EXAMINE_WAIT).map_err(host(format!("run {program}")))?;
    match outcome.ended {
        Ended::TimedOut => Err(ShareError::Stuck { share: share.into(), at: at.to_owned(), waited: EXAMINE_WAIT }),
        Ended::Exited(status) if status.success() => Ok(outcome.output),
        Ended::Exited(_) => Err(ShareError::Unreachable { share: share.into(), reason: outcome.reason() }),
    }
}

/// Unmounts all mounts at `point`.
pub fn unmount(point: &Path, how: MntFlags, share: impl Into<ShareSource>) -> Result<(), ShareError> {
    let share = share.into();
    while mount_at(point)?.is_some() {
        let target = point.to_owned();
        let (share, at) = (share.clone(), point.to_owned());
        match within(UNMOUNT_WAIT, move || umount2(&target, how | MntFlags::UMOUNT_NOFOLLOW)) {
            Some(Ok(()) | Err(Errno::EINVAL)) => {}
            Some(Err(Errno::EBUSY)) => return Err(ShareError::Busy { share, at }),
            Some(Err(error)) => return Err(ShareError::Mount { share, at, reason: format!("umount: {error}") }),
            None => return Err(ShareError::Stuck { share, at, waited: UNMOUNT_WAIT }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_of_a_mount_is_read() {
        let space = Space { total: ByteCount::kib(8), free: ByteCount::kib(4) };
        assert_eq!(stat_space("2 1 4096\n"), Some(space));
        for nothing in ["", "0 0 4096", "1 2", "x 1 1", "stat: cannot read"] {
            assert_eq!(stat_space(nothing), None, "{nothing}");
        }
    }
}
