//! Runs programs with deadlines, and waits for conditions.

use std::{
    ffi::OsStr,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// The result of a program.
#[derive(Clone, Debug)]
pub struct ProgramOutput {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to stdout.
    pub out: String,
    /// What it wrote to stderr.
    pub err: String,
}

impl ProgramOutput {
    /// Whether it succeeded.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }
}

/// Default time limit of the lab's programs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a program to its end, or kills it at the deadline.
///
/// # Errors
/// It cannot be run, or did not end in time.
pub fn run_within(mut command: Command, deadline: Duration) -> anyhow::Result<ProgramOutput> {
    let name = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Could not run {name}"))?;
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let code = wait(&mut child, deadline).with_context(|| format!("{name} did not end"))?;
    let text =
        |reader: std::sync::mpsc::Receiver<String>| reader.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
    Ok(ProgramOutput { code, out: text(out), err: text(err) })
}

fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> std::sync::mpsc::Receiver<String> {
    let (sent, received) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sent.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    received
}

/// Waits for a child; kills it at the deadline.
///
/// # Errors
/// The deadline passed.
pub fn wait(child: &mut Child, deadline: Duration) -> anyhow::Result<Option<i32>> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the deadline of {} s passed", deadline.as_secs());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program that must succeed.
///
/// # Errors
/// Its output.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    checked(command, DEADLINE)
}

/// Runs a command that must succeed.
///
/// # Errors
/// Its output.
pub fn checked(command: Command, deadline: Duration) -> anyhow::Result<String> {
    let name = format!("{command:?}");
    let output = run_within(command, deadline)?;
    if output.ok() {
        return Ok(output.out);
    }
    bail!("{name} ended with {:?}: {}{}", output.code, output.out, output.err)
}

/// Waits until `is` returns a value.
///
/// # Errors
/// The deadline passed: the message contains `what`.
pub fn wait_for<T>(what: &str, deadline: Duration, mut is: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(found) = is() {
            return Ok(found);
        }
        if Instant::now() > until {
            bail!("{what}: not within {} s", deadline.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Calls `work` for all items at the same time; returns the results in the items' order.
///
/// # Panics
/// If `work` does.
pub fn at_once<T: Sync, R: Send>(of: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let threads: Vec<_> = of.iter().map(|one| scope.spawn(|| work(one))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panicked")).collect()
    })
}
