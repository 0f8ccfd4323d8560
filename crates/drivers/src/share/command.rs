//! Runs a program with a deadline.

use std::{
    ffi::OsStr,
    io::Read as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What a program said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) success: bool,
    /// stdout and then stderr, up to [`OUTPUT_BYTES_MAX`] each.
    pub(super) text: String,
}

const OUTPUT_BYTES_MAX: u64 = 256 << 10;
/// How often a running program is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Runs `program` to its end, or ends it at the deadline.
///
/// # Errors
/// Why it could not be run, or that the deadline passed.
pub(super) fn run<S: AsRef<OsStr>>(
    program: &str,
    arguments: &[S],
    environment: &[(&str, &OsStr)],
    deadline: Duration,
) -> Result<Said, String> {
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program} could not be run: {error}"))?;
    let mut pipes = Vec::new();
    let (sent, received) = std::sync::mpsc::channel();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    if let Some(out) = out {
        pipes.push(thread::spawn(reader(0, out, sent.clone())));
    }
    if let Some(err) = err {
        pipes.push(thread::spawn(reader(1, err, sent)));
    }
    let until = Instant::now() + deadline;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => thread::sleep(LOOK_EVERY),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program} did not end within {} s", deadline.as_secs()));
            }
            Err(error) => return Err(format!("{program} could not be waited for: {error}")),
        }
    };
    // A daemon that the program left behind may keep the pipes open: what came until now is what it said.
    let mut texts = [String::new(), String::new()];
    for _ in &pipes {
        let left = Duration::from_secs(1);
        let Ok((index, text)) = received.recv_timeout(left) else { break };
        texts[index] = text;
    }
    Ok(Said { success: status.success(), text: texts.concat() })
}

fn reader(
    index: usize,
    pipe: impl std::io::Read + Send + 'static,
    sent: std::sync::mpsc::Sender<(usize, String)>,
) -> impl FnOnce() + Send + 'static {
    move || {
        let mut bytes = Vec::new();
        let _ = pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        let _ = sent.send((index, String::from_utf8_lossy(&bytes).into_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_outcome_are_told_and_a_deadline_ends_it() {
        let said = run("sh", &["-c", "echo out; echo err >&2; exit 3"], &[], Duration::from_secs(10)).expect("runs");
        assert!(!said.success && said.text == "out\nerr\n", "{said:?}");
        let error = run("sleep", &["60"], &[], Duration::from_millis(50)).expect_err("too slow");
        assert!(error.contains("did not end"), "{error}");
        assert!(run("no-such-program-here", &["x"], &[], Duration::from_secs(1)).is_err());
    }
}
