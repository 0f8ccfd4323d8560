//! Hands over to a system on a disk, which finds this program in its `/run`.

use std::{
    env, fs, io,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::sys;

const ROOT: &str = "/root";
/// How long drivers may take to find a disk: less than a second if the machine is not busy.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);

/// Returns only if it fails.
pub(crate) fn enter(device: &str) -> io::Error {
    match prepare(device) {
        Ok(()) => Command::new("/sbin/init").exec(),
        Err(error) => error,
    }
}

fn prepare(device: &str) -> io::Result<()> {
    let started = Instant::now();
    while !Path::new(device).exists() && started.elapsed() < APPEARS_WITHIN {
        thread::sleep(Duration::from_millis(20));
    }
    sys::mount(device, ROOT, "ext4");
    // systemd keeps a /run that is already mounted.
    let run = format!("{ROOT}/run");
    sys::mount("tmpfs", &run, "tmpfs");
    let program = format!("{run}/ticker");
    fs::copy("/init", &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    env::set_current_dir(ROOT)?;
    sys::become_root_here()
}
