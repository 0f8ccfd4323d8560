//! Starts carriers, and creates the folders in which they meet libvirt and QEMU.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use ferry_core::error::chain;
use ferry_drivers::hypervisor::Hypervisor;
use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{runtime::Handle, sync::mpsc};
use tracing::warn;

use super::{
    carrier::{
        self,
        control::{self, Answer, Ask},
    },
    journal::Journal,
};
use crate::{AgentError, attempt::journal, config::Config};

/// How long a carrier may take to get ready.
const READY_DEADLINE: Duration = Duration::from_secs(15);
/// Poll interval until then: short, because every migration waits for it.
const READY_POLL: Duration = Duration::from_millis(3);

/// How a carrier is started.
#[derive(Clone)]
pub enum Launcher {
    /// As a process of this program, in its own session: it outlives the agent.
    Process {
        /// The program.
        program: PathBuf,
        /// Its configuration.
        config: PathBuf,
    },
    /// Inside this process, for tests with a fake hypervisor.
    Task,
    /// As [`Launcher::Task`], on a separate runtime: shutting that down kills every carrier on it.
    On(Handle),
}

/// Starts the carrier of a written journal, and waits until it is ready.
pub(super) async fn launch(
    launcher: &Launcher,
    config: &Config,
    hypervisor: &Arc<dyn Hypervisor>,
    journal: &Journal,
) -> Result<Answer, AgentError> {
    let path = journal::path(&config.journal_dir(), journal.job);
    let (failed, failure) = mpsc::channel(1);
    match launcher {
        Launcher::Process { program, config } => {
            let (child, reason_file) = spawn(program, config, &path)?;
            std::thread::spawn(move || {
                let _ = failed.try_send(last_words(child, reason_file));
            });
        }
        Launcher::Task => run_here(&Handle::current(), config, hypervisor, path, failed),
        Launcher::On(runtime) => run_here(runtime, config, hypervisor, path, failed),
    }
    wait_ready(journal, failure).await
}

fn run_here(
    runtime: &Handle,
    config: &Config,
    hypervisor: &Arc<dyn Hypervisor>,
    path: PathBuf,
    failed: mpsc::Sender<AgentError>,
) {
    let (config, hypervisor) = (config.clone(), Arc::clone(hypervisor));
    runtime.spawn(async move {
        if let Err(error) = carrier::run(config, &path, hypervisor).await {
            let _ = failed.try_send(match error {
                refusal @ AgentError::Refused { .. } => refusal,
                error @ (AgentError::Config { .. }
                | AgentError::File { .. }
                | AgentError::Content { .. }
                | AgentError::Trust(_)
                | AgentError::Hypervisor(_)
                | AgentError::Failed { .. }) => not_ready(&chain(&error)),
            });
        }
    });
}

fn not_ready(reason: &str) -> AgentError {
    AgentError::failed(format!("The carrier could not make ready: {reason}"))
}

async fn wait_ready(journal: &Journal, mut failure: mpsc::Receiver<AgentError>) -> Result<Answer, AgentError> {
    let until = Instant::now() + READY_DEADLINE;
    loop {
        if let Ok(answer) = control::ask(&journal.control, Ask::Report { after: 0, wait_ms: 0 }).await {
            return Ok(answer);
        }
        if let Ok(error) = failure.try_recv() {
            return Err(error);
        }
        if Instant::now() > until {
            return Err(AgentError::failed("The carrier was not ready in time"));
        }
        tokio::time::sleep(READY_POLL).await;
    }
}

/// Starts a carrier process, which creates its own session. It logs to where the agent logs; if it cannot begin, it
/// writes the reason to a file that is read here.
fn spawn(program: &Path, config: &Path, journal: &Path) -> Result<(Child, fs::File), AgentError> {
    let reason_file = journal.with_extension("said");
    let fault = |path: &Path, source| AgentError::File { path: path.to_owned(), source };
    fs::write(&reason_file, "").map_err(|error| fault(&reason_file, error))?;
    let reader = fs::File::open(&reason_file).map_err(|error| fault(&reason_file, error))?;
    let mut command = Command::new(program);
    command.arg("carry").arg("--config").arg(config).arg("--journal").arg(journal).arg("--said").arg(&reason_file);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let child = command.spawn().map_err(|error| fault(program, error))?;
    Ok((child, reader))
}

/// What a carrier writes if it cannot begin: one line, the finding that refuses it as JSON, or the reason in words.
pub fn reason(error: &AgentError) -> String {
    let refusal = match error {
        AgentError::Refused { finding, .. } => serde_json::to_string(finding).ok(),
        AgentError::Config { .. }
        | AgentError::File { .. }
        | AgentError::Content { .. }
        | AgentError::Trust(_)
        | AgentError::Hypervisor(_)
        | AgentError::Failed { .. } => None,
    };
    refusal.unwrap_or_else(|| chain(error)) + "\n"
}

/// Waits for a carrier's end: how it ended, and the reason that it wrote.
fn last_words(mut child: Child, reason_file: fs::File) -> AgentError {
    let status = child.wait();
    let reason = io::read_to_string(reason_file).unwrap_or_default();
    let last = reason.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason");
    if let Ok(finding) = serde_json::from_str(last) {
        return AgentError::refused(409, finding);
    }
    not_ready(&status.map_or_else(|error| error.to_string(), |status| format!("{last} ({status})")))
}

/// Kills a carrier process that does not answer any more, if it still exists.
pub(super) fn end_process(pid: u32, journal: &Path) {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_ours = command.split(|byte| *byte == 0).any(|word| Path::new(&*String::from_utf8_lossy(word)) == journal);
    // Never this process itself, in which tests run carriers.
    if is_ours && pid != std::process::id() {
        warn!(pid, "A carrier does not answer and is killed");
        let _ = nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
}

/// `…/m/<32 hex digits>`: the only kind of folder that another host may specify.
pub(super) fn is_session_dir(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    plain
        && path.is_absolute()
        && name.len() == 32
        && name.bytes().all(|byte| byte.is_ascii_hexdigit())
        && path.parent().is_some_and(|parent| parent.ends_with("m"))
        && path.as_os_str().len() < 80
}

/// Creates a folder that only root and QEMU's user can enter.
pub(super) fn make_socket_dir(path: &Path, user: u32) -> Result<(), AgentError> {
    let fault = |source| AgentError::File { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(fault)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(fault)?;
    if nix::unistd::geteuid().is_root() {
        nix::unistd::chown(path, Some(user.into()), None).map_err(|error| fault(error.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use ferry_core::finding::{ByHand, Finding, FindingId, Message};

    use super::*;

    #[test]
    fn what_a_carrier_refuses_is_told_as_that_and_anything_else_in_its_words() {
        let told = |error: &AgentError| {
            let mut file = tempfile::tempfile().expect("a file");
            file.write_all(reason(error).as_bytes()).expect("written");
            file.rewind().expect("a file");
            last_words(Command::new("true").spawn().expect("a program"), file)
        };
        let finding = Finding::blocks(FindingId::HostNetwork, "10.78.0.0/24", Message::Empty, ByHand::LetItFinish);
        let refused = told(&AgentError::refused(409, finding.clone()));
        assert!(matches!(refused, AgentError::Refused { status: 409, finding: told } if *told == finding));
        let failed = told(&AgentError::failed("No port is free")).to_string();
        assert!(failed.contains("could not make ready: No port is free"), "{failed}");
    }

    #[test]
    fn only_a_session_folder_may_be_named_by_another_host() {
        for (path, good) in [
            ("/run/ferry/m/0123456789abcdef0123456789abcdef", true),
            ("/run/ferry/m/0123456789abcdef0123456789abcdeg", false),
            ("/run/ferry/x/0123456789abcdef0123456789abcdef", false),
            ("/run/ferry/m/../m/0123456789abcdef0123456789abcdef", false),
            ("run/m/0123456789abcdef0123456789abcdef", false),
            ("/etc", false),
        ] {
            assert_eq!(is_session_dir(Path::new(path)), good, "{path}");
        }
    }
}
