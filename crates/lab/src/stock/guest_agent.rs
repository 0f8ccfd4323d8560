//! Runs programs in a machine through QEMU's guest agent, independently of the machine's network.
//!
//! The agent answers each line with one line of JSON. A program is started, and then polled until it has ended, so that
//! several programs may run at the same time over one connection.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::run::ProgramOutput;

/// How long the agent may take to answer a line: an emulated machine with busy processors is slow.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Interval between two polls of a program.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Marks the agent's answer to a synchronisation, which ends any earlier answers.
const SYNC_MARK: u8 = 0xff;

/// A machine's guest agent.
#[derive(Debug)]
pub struct GuestAgent {
    socket: PathBuf,
    connection: Mutex<Option<BufReader<UnixStream>>>,
}

impl GuestAgent {
    /// The agent behind a machine's socket; does not connect yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), connection: Mutex::new(None) }
    }

    /// Whether it answers within `within`.
    pub fn answers(&self, within: Duration) -> bool {
        self.ask_within(&json!({"execute": "guest-ping"}), within).is_ok()
    }

    /// Runs a shell script to its end.
    ///
    /// # Errors
    /// The agent does not answer, or the script has not ended at the deadline (it then keeps running).
    pub fn run(&self, script: &str, deadline: Duration) -> anyhow::Result<ProgramOutput> {
        let output = self.run_to_end(script, deadline);
        // The agent serves one connection at a time: release it, so that a user of the machine may connect beside a
        // test.
        self.connection.lock().expect("no thread panicked").take();
        output
    }

    fn run_to_end(&self, script: &str, deadline: Duration) -> anyhow::Result<ProgramOutput> {
        let until = Instant::now() + deadline;
        let started = self.ask(&json!({"execute": "guest-exec", "arguments": {
            "path": "/bin/sh", "arg": ["-c", script], "capture-output": true,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"],
        }}))?;
        let pid = started["pid"].as_i64().context("The guest agent started no process")?;
        loop {
            let status = self.ask(&json!({"execute": "guest-exec-status", "arguments": {"pid": pid}}))?;
            if status["exited"] == true {
                let code = status["exitcode"].as_i64().and_then(|code| i32::try_from(code).ok());
                return Ok(ProgramOutput { code, out: text(&status["out-data"])?, err: text(&status["err-data"])? });
            }
            if Instant::now() > until {
                bail!("{script:?} did not end within {} s", deadline.as_secs());
            }
            thread::sleep(ASK_EVERY);
        }
    }

    fn ask(&self, question: &Value) -> anyhow::Result<Value> {
        self.ask_within(question, ANSWER_WITHIN)
    }

    fn ask_within(&self, question: &Value, within: Duration) -> anyhow::Result<Value> {
        let mut connection = self.connection.lock().expect("no thread panicked");
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => connect(&self.socket, within)?,
        };
        // A connection is not used again after an error: a late answer would be taken for the next one.
        let answer = exchange(&mut stream, question, within)?;
        *connection = Some(stream);
        if let Some(error) = answer.get("error") {
            bail!("The guest agent refused {question}: {error}");
        }
        Ok(answer["return"].clone())
    }
}

/// Connects, and skips answers of the agent to an earlier connection.
fn connect(socket: &Path, within: Duration) -> anyhow::Result<BufReader<UnixStream>> {
    let stream = UnixStream::connect(socket).with_context(|| format!("Could not connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(within))?;
    let mut stream = BufReader::new(stream);
    let number = std::process::id();
    let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": number}});
    writeln!(stream.get_mut(), "{sync}")?;
    let until = Instant::now() + within;
    loop {
        let mut before = Vec::new();
        stream.read_until(SYNC_MARK, &mut before).context("The guest agent does not answer")?;
        let answer = read_line(&mut stream)?;
        if answer["return"].as_u64() == Some(u64::from(number)) {
            return Ok(stream);
        }
        if Instant::now() > until {
            bail!("The guest agent does not answer what it is asked");
        }
    }
}

fn exchange(stream: &mut BufReader<UnixStream>, question: &Value, within: Duration) -> anyhow::Result<Value> {
    stream.get_ref().set_read_timeout(Some(within))?;
    writeln!(stream.get_mut(), "{question}")?;
    read_line(stream)
}

fn read_line(stream: &mut BufReader<UnixStream>) -> anyhow::Result<Value> {
    let mut line = String::new();
    match stream.read_line(&mut line) {
        Ok(0) => bail!("The guest agent's connection ended"),
        Ok(_) => serde_json::from_str(&line).with_context(|| format!("The guest agent said {line:?}")),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            bail!("The guest agent does not answer")
        }
        Err(error) => Err(error.into()),
    }
}

/// Decodes a program's output in the agent's answer.
fn text(coded: &Value) -> anyhow::Result<String> {
    let Some(coded) = coded.as_str() else { return Ok(String::new()) };
    let bytes = BASE64_STANDARD.decode(coded).context("The guest agent's output is no base64")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_was_said_to_somebody_before_is_left_behind() {
        let folder = std::env::temp_dir().join(format!("ferry-agent-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&folder).expect("made");
        let socket = folder.join("s");
        let listener = UnixListener::bind(&socket).expect("bound");
        let served = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("asked");
            let mut stream = BufReader::new(stream);
            let sync = read_line(&mut stream).expect("a line");
            let id = &sync["arguments"]["id"];
            write!(stream.get_mut(), "{{\"return\": {{\"late\": 1}}}}\n\u{7f}").expect("written");
            stream.get_mut().write_all(&[SYNC_MARK]).expect("written");
            writeln!(stream.get_mut(), "{{\"return\": {id}}}").expect("written");
            assert_eq!(read_line(&mut stream).expect("a line")["execute"], "guest-exec");
            writeln!(stream.get_mut(), "{{\"return\": {{\"pid\": 7}}}}").expect("written");
            assert_eq!(read_line(&mut stream).expect("a line")["arguments"]["pid"], 7);
            let ended = "{\"return\": {\"exited\": true, \"exitcode\": 3, \"out-data\": \"Zm9v\"}}";
            writeln!(stream.get_mut(), "{ended}").expect("written");
        });
        let output = GuestAgent::new(&socket).run("true", Duration::from_secs(5)).expect("it ends");
        assert_eq!((output.code, output.out.as_str(), output.err.as_str()), (Some(3), "foo", ""));
        served.join().expect("as it was");
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
