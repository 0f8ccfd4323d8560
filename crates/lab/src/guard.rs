//! Takes a lab down, however its owner ends.
//!
//! The owner starts a guardian with a pipe as its stdin. When the pipe ends because the owner has ended, the guardian
//! ends every process of the lab by its id and namespace, deletes the namespaces, and removes the folder.

use std::{
    fs,
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    local::wait_detached,
    record::{Record, start_time},
    run::{run, run_within, wait_for},
};
use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The owner writes this to keep the lab.
const KEEP: u8 = b'k';

/// The owner's end of a guardian.
pub struct Guardian {
    child: Child,
}

impl Guardian {
    /// Starts the guardian of a lab.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let child = Command::new(program)
            .arg("guard")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // In a process group of its own, so that Ctrl-C at the terminal ends the owner, but not the guardian.
            .process_group(0)
            .spawn()
            .with_context(|| format!("Could not start {}", program.display()))?;
        Ok(Self { child })
    }

    /// Keeps the lab.
    pub fn keep(mut self) {
        if let Some(mut pipe) = self.child.stdin.take() {
            let _ = std::io::Write::write_all(&mut pipe, &[KEEP]);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Runs as the guardian.
///
/// # Errors
/// What could not be taken down.
pub fn guard(folder: &Path) -> anyhow::Result<()> {
    let mut output = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut output);
    if output.first() == Some(&KEEP) {
        return Ok(());
    }
    take_down(folder)
}

/// Ends all processes that a lab started and removes everything it created.
///
/// # Errors
/// What could not be taken down.
pub fn take_down(folder: &Path) -> anyhow::Result<()> {
    let record = Record::read(folder)?;
    for (pid, started) in &record.processes {
        if start_time(*pid) == Some(*started) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
    for namespace in &record.namespaces {
        wait_for(&format!("the processes of {namespace} end"), Duration::from_secs(20), || {
            let pids = pids_in(namespace);
            for pid in &pids {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            pids.is_empty().then_some(())
        })?;
    }
    for namespace in &record.namespaces {
        if PathBuf::from(format!("/run/netns/{namespace}")).exists() {
            run("ip", &["netns", "del", namespace])?;
        }
    }
    // The hosts' mounts disappear with their namespaces, loop devices a moment later.
    wait_detached(folder)?;
    wait_for("the lab's folder can be removed", Duration::from_secs(20), || fs::remove_dir_all(folder).ok())
}

fn pids_in(namespace: &str) -> Vec<i32> {
    let mut command = Command::new("ip");
    command.args(["netns", "pids", namespace]);
    let output = run_within(command, Duration::from_secs(10));
    output.map(|output| output.out.lines().filter_map(|line| line.trim().parse().ok()).collect()).unwrap_or_default()
}
