//! Runs commands as root where a chore needs that, and explains why.

use std::{process::Command, sync::Once};

use anyhow::{Context as _, ensure};

/// Whether this runs as root.
pub(crate) fn is_root() -> bool {
    // The standard library has no function for this; the owner of /proc/self is the effective user.
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// A command that runs as root. The first call prints the reason, and asks for the password if sudo requires one.
///
/// # Errors
/// The process is not root and sudo is not installed.
pub(crate) fn as_root(program: &str, why: &str) -> anyhow::Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    static ASKED: Once = Once::new();
    let mut granted = Ok(true);
    ASKED.call_once(|| {
        eprintln!("sudo: {why}");
        granted = Command::new("sudo").arg("-v").status().map(|status| status.success());
    });
    ensure!(granted.context("This needs root, and there is no sudo: run it as root")?, "sudo refused, and {why}");
    let mut command = Command::new("sudo");
    // The lab finds programs and caches by environment variables.
    command.args(["--preserve-env", program]);
    Ok(command)
}
