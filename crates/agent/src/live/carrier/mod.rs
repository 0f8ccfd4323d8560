//! A carrier: one side of one migration, in its own process.
//!
//! ```text
//! agent ─ control socket (control.rs) ─▶ serve ─▶ Side::perform / resume / abort (source/, destination/)
//!                                          └───── Board: the report and its changes (board.rs)
//! ```

pub(super) mod board;
mod channel;
pub mod control;
mod destination;
mod meters;
pub(super) mod source;

use std::{path::Path, sync::Arc, time::Duration};

use ferry_core::{api::agent::Role, carried::Carried, error::chain, finding::Finding};
use ferry_drivers::hypervisor::Hypervisor;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};
use tracing::{Instrument as _, debug, info, warn};

use self::{
    board::Board,
    control::{Answer, Ask, LINE_BYTES_MAX, WAIT_MAX, understood},
    destination::Destination,
    source::Source,
};
use super::journal::Journal;
use crate::{AgentError, attempt::table::Entry as _, config::Config, records};

/// The carrier's tasks; they end when this is dropped.
struct Tasks(Arc<Board>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.end_tasks();
    }
}

enum Side {
    Source(Source),
    Destination(Destination),
}

impl Side {
    /// What its channels have carried so far.
    fn carried(&self) -> Carried {
        match self {
            Self::Source(source) => source.carried(),
            Self::Destination(destination) => destination.carried(),
        }
    }
}

/// Runs one side of a migration until it is asked to leave.
///
/// # Errors
/// If it could not be prepared; later failures are in the report.
pub async fn run(config: Config, journal_path: &Path, hypervisor: Arc<dyn Hypervisor>) -> Result<(), AgentError> {
    ferry_trust::install_provider();
    let journal: Journal = records::read_json(journal_path)?
        .ok_or_else(|| AgentError::failed(format!("There is no journal {}", journal_path.display())))?;
    carry(&config, &journal, hypervisor).instrument(journal.attempt().span()).await
}

async fn carry(config: &Config, journal: &Journal, hypervisor: Arc<dyn Hypervisor>) -> Result<(), AgentError> {
    let board = Arc::new(Board::new(journal, &config.journal_dir(), hypervisor));
    // The tasks end with this function, however it returns.
    let _tasks = Tasks(Arc::clone(&board));
    board.begin()?;
    let (side, address) = match journal.task.role() {
        Role::Source => (Side::Source(Source::start(config, journal, Arc::clone(&board)).await?), None),
        Role::Destination => {
            let destination = Destination::start(config, journal, Arc::clone(&board)).await?;
            let address = destination.address();
            (Side::Destination(destination), Some(address))
        }
    };
    let socket = &journal.control;
    records::remove(socket)?;
    let listener = UnixListener::bind(socket).map_err(|source| AgentError::File { path: socket.clone(), source })?;
    fail::fail_point!("carrier-after-prepare", |_| Err(AgentError::failed("it was made to fail")));
    info!(role = ?board.role, "Carrier is ready");
    let leave = Arc::new(tokio::sync::Notify::new());
    let side = Arc::new(side);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(error = %chain(&error), "A control connection could not be accepted");
                    continue;
                }
            },
            () = leave.notified() => break,
        };
        let (board, side, leave, address) =
            (Arc::clone(&board), Arc::clone(&side), Arc::clone(&leave), address.clone());
        let served = async move {
            if let Err(error) = serve(stream, &board, &side, &leave, address).await {
                // The caller lost interest or is gone.
                debug!(error = %chain(&error), "A control connection ended early");
            }
        };
        tokio::spawn(served.in_current_span());
    }
    info!(role = ?board.role, "Carrier leaves");
    let _ = records::remove(socket);
    Ok(())
}

async fn serve(
    stream: UnixStream,
    board: &Board,
    side: &Side,
    leave: &tokio::sync::Notify,
    address: Option<String>,
) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let ask = understood(&line)?;
    let leaves = matches!(ask, Ok(Ask::Leave));
    let outcome = match ask {
        Err(finding) => Err(finding),
        Ok(ask) => done(ask, board, side).await,
    };
    let answer = match outcome {
        Ok(()) => Answer::Report { report: Box::new(board.report().await), address, carried: Box::new(side.carried()) },
        Err(finding) => Answer::Refused { finding },
    };
    let mut text = serde_json::to_string(&answer).map_err(std::io::Error::other)?;
    text.push('\n');
    let answered = writer.write_all(text.as_bytes()).await;
    // After the answer, because it ends with the process.
    if leaves {
        leave.notify_one();
    }
    answered
}

async fn done(ask: Ask, board: &Board, side: &Side) -> Result<(), Box<Finding>> {
    match ask {
        Ask::Report { after, wait_ms } => {
            let wait = Duration::from_millis(wait_ms).min(WAIT_MAX);
            let _ = tokio::time::timeout(wait, board.wait_for(|known| known.sequence > after)).await;
            Ok(())
        }
        Ask::Perform => match side {
            Side::Source(source) => {
                source.perform();
                Ok(())
            }
            Side::Destination(_) => Ok(()),
        },
        Ask::Resume => match side {
            Side::Source(_) => Ok(()),
            Side::Destination(destination) => destination.resume_by_verdict().await,
        },
        Ask::Abort => match side {
            Side::Source(source) => source.abort().await,
            Side::Destination(destination) => destination.abort(),
        },
        Ask::Leave => Ok(()),
    }
}
