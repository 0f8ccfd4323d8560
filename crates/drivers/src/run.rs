//! Runs a program for a bounded time: a file server or mount that does not answer must not block the caller.

use std::{
    io::{self, Read, Seek},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, killpg},
    },
    unistd::Pid,
};

/// Limit of a program's output that is kept. The programs used here print a few lines.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;
/// Interval between two checks of the child.
const POLL_EVERY: Duration = Duration::from_millis(5);
/// How long a killed child may take to end. A child that hangs in the kernel takes longer, and is left to a thread.
const KILL_WAIT: Duration = Duration::from_millis(500);

/// How a program ended.
#[derive(Debug)]
pub enum Ended {
    /// It exited by itself.
    Exited(ExitStatus),
    /// It was killed at its deadline.
    TimedOut,
}

/// The result of a program.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub ended: Ended,
    /// Its output, both streams in order of arrival, cut at 64 KiB.
    pub output: String,
}

impl Outcome {
    /// Whether it ended in time and successfully.
    pub fn is_ok(&self) -> bool {
        matches!(&self.ended, Ended::Exited(status) if status.success())
    }

    /// The last line of its output, or how it ended.
    pub fn reason(&self) -> String {
        let last = self.output.lines().map(str::trim).rfind(|line| !line.is_empty());
        match (&self.ended, last) {
            (Ended::TimedOut, _) => "no answer in time".to_owned(),
            (Ended::Exited(_), Some(line)) => line.to_owned(),
            (Ended::Exited(status), None) => status.to_string(),
        }
    }
}

/// Calls `call` in a thread and waits for its result; `None` if that takes too long. The thread ends when the call
/// does.
pub fn within<T: Send + 'static>(deadline: Duration, call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || sender.send(call()));
    receiver.recv_timeout(deadline).ok()
}

/// Runs `command` in a process group of its own, without input, and kills the group at the deadline.
///
/// A daemon that `command` leaves behind in a session of its own stays.
///
/// # Errors
/// The program could not be started.
pub fn run(command: &mut Command, deadline: Duration) -> io::Result<Outcome> {
    let mut output = std::fs::File::from(memfd_create(c"output", MFdFlags::MFD_CLOEXEC)?);
    let child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .env("LC_ALL", "C.UTF-8")
        .spawn()?;
    let ended = match wait(child, Instant::now() + deadline)? {
        Waited::Exited(status) => Ended::Exited(status),
        Waited::Running(child) => {
            kill(child)?;
            Ended::TimedOut
        }
    };
    let mut bytes = Vec::new();
    output.rewind()?;
    output.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Outcome { ended, output: String::from_utf8_lossy(&bytes).into_owned() })
}

enum Waited {
    Exited(ExitStatus),
    Running(Child),
}

fn wait(mut child: Child, until: Instant) -> io::Result<Waited> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Waited::Exited(status));
        }
        if Instant::now() >= until {
            return Ok(Waited::Running(child));
        }
        thread::sleep(POLL_EVERY);
    }
}

fn kill(child: Child) -> io::Result<()> {
    // It is not reaped yet, so the process id still belongs to this child.
    let group = Pid::from_raw(child.id().cast_signed());
    let _ = killpg(group, Signal::SIGKILL);
    if let Waited::Running(mut child) = wait(child, Instant::now() + KILL_WAIT)? {
        thread::spawn(move || child.wait());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_ends_tells_its_status_and_output() {
        let outcome = run(&mut shell("echo one; echo two >&2; exit 3"), Duration::from_secs(10)).expect("runs");
        assert!(!outcome.is_ok());
        assert_eq!(outcome.output, "one\ntwo\n");
        assert_eq!(outcome.reason(), "two");
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_its_children() {
        let started = Instant::now();
        let outcome = run(&mut shell("sleep 60 & sleep 60"), Duration::from_millis(100)).expect("runs");
        assert!(matches!(outcome.ended, Ended::TimedOut));
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let error = run(&mut Command::new("/nonexistent/program"), Duration::from_secs(1)).expect_err("missing");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
