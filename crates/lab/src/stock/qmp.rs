//! Talks to the QEMU of a machine.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

/// A connection to QEMU's monitor.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects; each answer must arrive within `within`.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub(super) fn connect(socket: &Path, within: Duration) -> anyhow::Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("Could not connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(within))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.read()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command, and returns its result.
    ///
    /// # Errors
    /// QEMU's error, or no answer.
    pub(super) fn ask(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        writeln!(self.stream.get_mut(), "{}", json!({"execute": command, "arguments": arguments}))?;
        loop {
            let mut answer = self.read()?;
            if answer.get("event").is_some() {
                continue;
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            return Ok(answer["return"].take());
        }
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line).context("QEMU does not answer")?;
        ensure!(length > 0, "QEMU's connection ended");
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
    }
}
