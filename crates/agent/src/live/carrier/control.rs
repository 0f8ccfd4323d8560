//! The control socket of a carrier: JSON lines, one request and one answer per connection.
//!
//! It speaks [`CONTROL_VERSION`]: a carrier refuses an agent that speaks another version, with a reason. An agent of a
//! later version must still speak this one to carriers that were started before it.

use std::{path::Path, time::Duration};

use ferry_core::{
    api::agent::Report,
    carried::Carried,
    finding::{ByHand, Finding, FindingId, Message},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

/// Version of the control socket's messages.
pub const CONTROL_VERSION: u32 = 1;

/// Longest request or answer in bytes.
pub(super) const LINE_BYTES_MAX: u64 = 64 << 10;

/// Longest wait for a report.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);

/// A request of the agent to a carrier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// The report, as soon as its sequence is larger than `after`, or after `wait_ms`.
    Report {
        /// The last sequence seen.
        after: u64,
        /// At most 30,000.
        wait_ms: u64,
    },
    /// Source: begin the migration.
    Perform,
    /// Destination: run the VM; the verdict is that it is here.
    Resume,
    /// End the move before the point of no return.
    Abort,
    /// End the process.
    Leave,
}

/// A request on the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`CONTROL_VERSION`] of the agent.
    pub version: u32,
    /// The request itself.
    #[serde(flatten)]
    pub ask: Ask,
}

/// An answer on the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The state of the move.
    Report {
        /// The report.
        report: Box<Report>,
        /// Destination: the address on which its carrier listens.
        address: Option<String>,
        /// What its channels have carried so far.
        #[serde(default)]
        carried: Box<Carried>,
    },
    /// The request was refused.
    Refused {
        /// The reason, and what to do.
        finding: Box<Finding>,
    },
}

/// Sends a request to a carrier's control socket.
///
/// # Errors
/// I/O: the carrier is not running, or ended during the request.
pub async fn ask(socket: &Path, ask: Ask) -> std::io::Result<Answer> {
    let limit = match &ask {
        Ask::Report { wait_ms, .. } => Duration::from_millis(*wait_ms).min(WAIT_MAX) + Duration::from_secs(10),
        Ask::Perform | Ask::Resume | Ask::Abort | Ask::Leave => Duration::from_secs(60),
    };
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut text =
            serde_json::to_string(&Request { version: CONTROL_VERSION, ask }).map_err(std::io::Error::other)?;
        text.push('\n');
        stream.write_all(text.as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
        serde_json::from_str(&line).map_err(std::io::Error::other)
    };
    tokio::time::timeout(limit, exchange).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
}

/// Parses a request line, or returns why it cannot be understood: the agent speaks another version.
///
/// # Errors
/// If it is not a request at all.
pub(super) fn understood(line: &str) -> std::io::Result<Result<Ask, Box<Finding>>> {
    /// The fields common to every version.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_str(line).map_err(std::io::Error::other)?;
    if version != CONTROL_VERSION {
        return Ok(Err(Box::new(Finding::blocks(
            FindingId::HostVersion,
            "host",
            Message::CarrierVersion { carrier: CONTROL_VERSION, agent: version },
            ByHand::AgentBack,
        ))));
    }
    let request: Request = serde_json::from_str(line).map_err(std::io::Error::other)?;
    Ok(Ok(request.ask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_another_version_is_refused_before_it_is_read() {
        let line = |version: u32, ask: &str| format!("{{\"version\": {version}, \"ask\": \"{ask}\"}}");
        let request = understood(&line(CONTROL_VERSION, "abort")).expect("a request");
        assert_eq!(request.expect("of this version"), Ask::Abort);
        for (version, ask) in [(2, "abort"), (2, "something new"), (0, "abort")] {
            let finding = understood(&line(version, ask)).expect("a request").expect_err("of another version");
            let both = finding.message.to_string().contains("version 1")
                && finding.message.to_string().contains(&version.to_string());
            assert!(finding.id == FindingId::HostVersion && both, "{finding:?}");
        }
        for line in ["", "{}", "{\"ask\": \"abort\"}", &line(CONTROL_VERSION, "something new")] {
            understood(line).expect_err("no request");
        }
    }
}
