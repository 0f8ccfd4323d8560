//! A carrier: one side of one migration, in a process of its own.
//!
//! ```text
//! agent ─ control socket (JSON lines) ─▶ serve ─▶ Side::perform / resume / abort
//!                                          └───── Board: the report, and news of it
//! ```
//! The control socket speaks [`CONTROL_VERSION`]: a carrier refuses an agent that speaks another, and says so. An agent that
//! learns another version goes on speaking this one to carriers that were started before it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use ferry_core::{
    api::agent::{MigrationReport, Role, Stage},
    files::DiskProgress,
    finding::{Finding, FindingId},
    id::{Generation, JobId, VmId},
    job::Progress,
    migration::Presence,
};
use ferry_drivers::hypervisor::{Hypervisor, HypervisorError};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};
use tracing::{debug, error, info, warn};

use super::{
    destination::Destination,
    journal::{CarrierState, Journal},
    source::Source,
};
use crate::{AgentError, config::Config, error::chain, files};

/// Version of the control socket's messages.
pub const CONTROL_VERSION: u32 = 1;
/// Longest request or answer.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Longest a report may be waited for.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(30);

/// What the agent asks of a carrier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// The report, as soon as its sequence is larger than `after`, or after `wait_ms`.
    Report {
        /// The last one seen.
        after: u64,
        /// Up to 30,000.
        wait_ms: u64,
    },
    /// Source: begin.
    Perform,
    /// Destination: run the VM; the verdict is that it is here.
    Resume,
    /// End it before the point of no return.
    Abort,
    /// End the process.
    Leave,
}

/// A request on the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`CONTROL_VERSION`] of the agent.
    pub version: u32,
    /// What it wants.
    #[serde(flatten)]
    pub ask: Ask,
}

/// An answer on the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// How it stands.
    Report {
        /// The report.
        report: Box<MigrationReport>,
        /// Destination: where its carrier listens.
        address: Option<String>,
    },
    /// Refused.
    Refused {
        /// Why, and what to do.
        finding: Box<Finding>,
    },
}

/// What a carrier knows, published to whoever waits for news.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) sequence: u64,
    pub(super) stage: Stage,
    pub(super) progress: Option<Progress>,
    pub(super) disks: Vec<DiskProgress>,
    pub(super) error: Option<String>,
    pub(super) state: CarrierState,
}

/// The carrier's state, its journal page, its readers, and its tasks.
pub(super) struct Board {
    pub(super) job: JobId,
    pub(super) generation: Generation,
    pub(super) role: Role,
    pub(super) vm: VmId,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    state_path: PathBuf,
    known: watch::Sender<Known>,
    writing: tokio::sync::Mutex<()>,
    tasks: Mutex<JoinSet<()>>,
}

impl Board {
    fn new(journal: &Journal, journal_dir: &Path, hypervisor: Arc<dyn Hypervisor>) -> Self {
        let state = CarrierState { pid: std::process::id(), ..CarrierState::default() };
        Self {
            job: journal.job,
            generation: journal.generation,
            role: journal.task.role(),
            vm: journal.task.vm(),
            hypervisor,
            state_path: Journal::state_path(journal_dir, journal.job),
            known: watch::Sender::new(Known {
                sequence: 1,
                stage: Stage::Prepared,
                progress: None,
                disks: Vec::new(),
                error: None,
                state,
            }),
            writing: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// What is known now.
    pub(super) fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    /// Changes what is known; readers hear of it.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Known)) {
        self.change(|known| {
            change(known);
            true
        });
    }

    /// Looks and changes in one go: two that exclude each other cannot both happen. Gives what `change` gives: whether
    /// it changed something.
    pub(super) fn change(&self, change: impl FnOnce(&mut Known) -> bool) -> bool {
        self.known.send_if_modified(|known| {
            let changed = change(known);
            known.sequence += u64::from(changed);
            changed
        })
    }

    /// Writes down what libvirt cannot be asked afterwards: as it is known when this is called, or later.
    pub(super) async fn write_down(&self) {
        let _one_at_a_time = self.writing.lock().await;
        let (path, state) = (self.state_path.clone(), self.known().state);
        let written = tokio::task::spawn_blocking(move || files::write_json(&path, &state)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(error = %chain(&error), "the carrier's journal could not be written"),
            Err(error) => error!(%error, "the carrier's journal could not be written"),
        }
    }

    /// Runs a task until it ends by itself, or the carrier does.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("nobody panics while holding it");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Ends every task: connections break, nothing is listened at any more.
    pub(super) fn end_tasks(&self) {
        self.tasks.lock().expect("nobody panics while holding it").abort_all();
    }

    /// Waits until `is` holds of what is known.
    pub(super) async fn wait_for(&self, is: impl FnMut(&Known) -> bool) {
        let mut known = self.known.subscribe();
        // The board holds the sender, so waiting cannot fail.
        let _ = known.wait_for(is).await;
    }

    /// Asks the hypervisor and puts the report together.
    pub(super) async fn report(&self) -> MigrationReport {
        let (vm, role) = (self.vm, self.role);
        let presence = blocking(&self.hypervisor, move |hypervisor| hypervisor.presence(vm, role)).await;
        let known = self.known();
        MigrationReport {
            job: self.job,
            generation: self.generation,
            role,
            sequence: known.sequence,
            stage: known.stage,
            finish_delivered: known.state.finish_delivered,
            gave_up: known.state.given_up,
            presence: known.state.sees(presence.unwrap_or(Presence::Unknown)),
            progress: known.progress,
            disks: known.disks,
            figures: known.state.figures,
            findings: Vec::new(),
            error: known.error,
        }
    }
}

/// Runs a blocking call of the hypervisor on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    hypervisor: &Arc<dyn Hypervisor>,
    call: impl FnOnce(&dyn Hypervisor) -> Result<T, HypervisorError> + Send + 'static,
) -> Result<T, HypervisorError> {
    let hypervisor = Arc::clone(hypervisor);
    match tokio::task::spawn_blocking(move || call(&*hypervisor)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(HypervisorError::Unreachable(error.to_string())),
    }
}

/// The carrier's tasks, which end when this is dropped.
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

/// Runs one side of a migration until it is told to leave.
///
/// # Errors
/// When it could not make ready; what went wrong later is in the report.
pub async fn run(config: Config, journal_path: &Path, hypervisor: Arc<dyn Hypervisor>) -> Result<(), AgentError> {
    ferry_trust::install_provider();
    let journal: Journal = files::read_json(journal_path)?
        .ok_or_else(|| AgentError::Carrier(format!("There is no journal {}", journal_path.display())))?;
    let board = Arc::new(Board::new(&journal, &config.journal_dir(), hypervisor));
    // Ends with this function, however it ends.
    let _tasks = Tasks(Arc::clone(&board));
    files::write_json(&board.state_path, &board.known().state)?;
    let (side, address) = match journal.task.role() {
        Role::Source => (Side::Source(Source::start(&config, &journal, Arc::clone(&board)).await?), None),
        Role::Destination => {
            let destination = Destination::start(&config, &journal, Arc::clone(&board)).await?;
            let address = destination.address();
            (Side::Destination(destination), Some(address))
        }
    };
    let socket = &journal.control;
    files::remove(socket)?;
    let listener = UnixListener::bind(socket).map_err(|source| AgentError::File { path: socket.clone(), source })?;
    fail::fail_point!("carrier-after-prepare", |_| Err(AgentError::Carrier("it was made to fail".to_owned())));
    info!(job = %board.job, role = ?board.role, vm = %board.vm, "carrier is ready");
    let leave = Arc::new(tokio::sync::Notify::new());
    let side = Arc::new(side);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "a control connection could not be accepted");
                    continue;
                }
            },
            () = leave.notified() => break,
        };
        let (board, side, leave, address) =
            (Arc::clone(&board), Arc::clone(&side), Arc::clone(&leave), address.clone());
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &board, &side, &leave, address).await {
                // Whoever asked was not interested any more, or is gone.
                debug!(%error, "a control connection ended early");
            }
        });
    }
    info!(job = %board.job, role = ?board.role, "carrier leaves");
    let _ = files::remove(socket);
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
        Ok(()) => Answer::Report { report: Box::new(board.report().await), address },
        Err(finding) => Answer::Refused { finding },
    };
    let mut text = serde_json::to_string(&answer).map_err(std::io::Error::other)?;
    text.push('\n');
    let answered = writer.write_all(text.as_bytes()).await;
    // After the answer: the process ends with it.
    if leaves {
        leave.notify_one();
    }
    answered
}

/// What a line asks for, or why that is not known: it is of an agent that speaks another version.
///
/// # Errors
/// It is no request at all.
fn understood(line: &str) -> std::io::Result<Result<Ask, Box<Finding>>> {
    /// What every version begins with.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_str(line).map_err(std::io::Error::other)?;
    if version != CONTROL_VERSION {
        return Ok(Err(Box::new(Finding::blocks(
            FindingId::HostVersion,
            "host",
            format!(
                "The carrier of a move speaks version {CONTROL_VERSION} of its control socket, the agent {version}"
            ),
            "Bring the agent back to the version that began the move until it has ended",
        ))));
    }
    let request: Request = serde_json::from_str(line).map_err(std::io::Error::other)?;
    Ok(Ok(request.ask))
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

/// Asks a carrier at its control socket.
///
/// # Errors
/// I/O: the carrier is not there, or gone while it was asked.
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

/// The refusal of an abort that comes too late.
pub(super) fn past_pivot(vm: VmId) -> Box<Finding> {
    Box::new(Finding::blocks(
        FindingId::JobPastPivot,
        vm,
        format!("VM {vm} has switched over to the destination; the move can no longer be cancelled"),
        "Let it finish, then move the VM back",
    ))
}

/// Logs why a channel ended; gives the reason if it ended badly.
pub(super) fn channel_ended(name: &str, outcome: Result<(), ferry_wire::WireError>) -> Option<String> {
    match outcome {
        Ok(()) => {
            info!(channel = name, "channel is complete");
            None
        }
        Err(error) => {
            let reason = chain(&error);
            error!(channel = name, error = reason, "channel failed");
            Some(reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_another_version_is_refused_before_it_is_read() {
        let line = |version: u32, ask: &str| format!("{{\"version\": {version}, \"ask\": \"{ask}\"}}");
        let told = understood(&line(CONTROL_VERSION, "abort")).expect("a request");
        assert_eq!(told.expect("of this version"), Ask::Abort);
        for (version, ask) in [(2, "abort"), (2, "something new"), (0, "abort")] {
            let finding = understood(&line(version, ask)).expect("a request").expect_err("of another version");
            let both = finding.message.contains("version 1") && finding.message.contains(&version.to_string());
            assert!(finding.id == FindingId::HostVersion && both, "{finding:?}");
        }
        for line in ["", "{}", "{\"ask\": \"abort\"}", &line(CONTROL_VERSION, "something new")] {
            understood(line).expect_err("no request");
        }
    }
}
