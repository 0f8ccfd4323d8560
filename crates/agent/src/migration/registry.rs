//! Which migrations there are, and what the agent does around their carriers.

use std::{
    collections::HashMap,
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::{
        ConfirmRequest, DestinationReady, MigrationReport, PrepareDestination, PrepareSource, Role, ShareMount, Stage,
    },
    finding::{Finding, FindingId},
    id::{Generation, JobId, SessionId, VmId},
    migration::Presence,
};
use ferry_drivers::hypervisor::Hypervisor;
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::{
    carrier::{self, Answer, Ask, blocking, past_pivot},
    hold,
    journal::{Journal, Task},
};
use crate::{AgentError, config::Config, error::chain, files};

/// How long a carrier may take to be ready.
const READY_DEADLINE: Duration = Duration::from_secs(15);
/// How often it is looked at until then: on the way of every migration, so often.
const READY_LOOK: Duration = Duration::from_millis(3);
/// Migrations that one host takes part in at once: a bound on processes, far above what slots allow.
const MIGRATIONS_MAX: usize = 64;
/// Users as which distributions run QEMU.
const QEMU_USERS: [&str; 3] = ["libvirt-qemu", "qemu", "kvm"];

/// How a carrier is started.
#[derive(Clone)]
pub enum Launcher {
    /// As a process of this program, in a session of its own: it outlives the agent.
    Process {
        /// The program.
        program: PathBuf,
        /// Its configuration.
        config: PathBuf,
    },
    /// Inside this process, for tests with a fake hypervisor.
    Task,
}

/// The migrations.
pub struct Registry {
    config: Config,
    hypervisor: Arc<dyn Hypervisor>,
    launcher: Launcher,
    entries: Mutex<HashMap<JobId, Journal>>,
}

type Reported = Result<MigrationReport, AgentError>;

impl Registry {
    /// Reads the journals.
    ///
    /// # Errors
    /// When one cannot be read: a migration must not be forgotten silently.
    pub fn load(config: &Config, hypervisor: Arc<dyn Hypervisor>, launcher: Launcher) -> Result<Self, AgentError> {
        files::ensure_private_dir(&config.journal_dir())?;
        files::ensure_private_dir(&config.holds_dir())?;
        for dir in [&config.run_dir, &config.sessions_dir()] {
            let fault = |source| AgentError::File { path: dir.clone(), source };
            fs::create_dir_all(dir).map_err(fault)?;
            // QEMU goes through to its session's folder, whose name nobody else can list.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).map_err(fault)?;
        }
        let entries =
            Journal::read_all(&config.journal_dir())?.into_iter().map(|journal| (journal.job, journal)).collect();
        Ok(Self { config: config.clone(), hypervisor, launcher, entries: Mutex::new(entries) })
    }

    /// Looks after the migrations of an earlier life: logs which carriers still run, and runs a VM that was handed
    /// over to a carrier that died before it could.
    pub async fn find_again(&self) {
        for journal in self.entries.lock().await.values() {
            let alive = self.ask(journal, Ask::Report { after: 0, wait_ms: 0 }).await.is_some();
            info!(job = %journal.job, role = ?journal.task.role(), vm = %journal.task.vm(), alive, "found a migration again");
            if !alive {
                self.resume_if_handed_over(journal).await;
            }
        }
    }

    async fn resume_if_handed_over(&self, journal: &Journal) {
        let state = Journal::carrier_state(&self.config.journal_dir(), journal.job).unwrap_or_default();
        if journal.task.role() == Role::Destination && state.finish_delivered && !state.resumed {
            let vm = journal.task.vm();
            if let Err(error) = blocking(&self.hypervisor, move |hypervisor| hypervisor.resume(vm)).await {
                warn!(%vm, error = %chain(&error), "a VM that was handed over could not be resumed");
            }
        }
    }

    /// Makes ready to receive.
    ///
    /// # Errors
    /// `request.stale`, or why the carrier could not be started; nothing is left then.
    pub async fn prepare_destination(
        &self,
        job: JobId,
        generation: Generation,
        request: PrepareDestination,
        mounts: Vec<ShareMount>,
    ) -> Result<DestinationReady, AgentError> {
        let mut entries = self.entries.lock().await;
        let roots = mounts.iter().map(|mount| PathBuf::from(&mount.path)).collect();
        let socket_dir = self.socket_dir(request.session);
        // The VM may come home: a hold of an earlier move away is over.
        hold::release(&self.config.holds_dir(), request.vm)?;
        let task = Task::Destination { request, roots };
        let address = match self.begin(&mut entries, job, generation, task, socket_dir.clone(), false).await? {
            Answer::Report { address: Some(address), .. } => address,
            Answer::Report { address: None, .. } | Answer::Refused { .. } => {
                return Err(AgentError::Carrier("The carrier does not say where it listens".to_owned()));
            }
        };
        Ok(DestinationReady { carrier: address, mounts, socket_dir: socket_dir.display().to_string() })
    }

    /// Makes ready to send: holds the VM, clears autostart, connects to the destination.
    ///
    /// # Errors
    /// `request.stale`, or why the carrier could not be started or connect; nothing is changed then.
    pub async fn prepare_source(
        &self,
        job: JobId,
        generation: Generation,
        request: PrepareSource,
        mounts: &[ShareMount],
    ) -> Reported {
        let mut entries = self.entries.lock().await;
        let vm = request.vm;
        let facts = blocking(&self.hypervisor, move |hypervisor| hypervisor.vm(vm)).await?;
        let facts = facts.ok_or(ferry_drivers::hypervisor::HypervisorError::NoVm(vm))?;
        let translate = request
            .destination
            .mounts
            .iter()
            .filter_map(|there| {
                let here = mounts.iter().find(|here| here.share == there.share)?;
                Some((PathBuf::from(&here.path), PathBuf::from(&there.path)))
            })
            .collect();
        // The destination's QEMU listens at this path there, so it must be this path here.
        let socket_dir = PathBuf::from(&request.destination.socket_dir);
        if !is_session_dir(&socket_dir) {
            return Err(AgentError::Carrier(format!("{} is no folder for sockets", socket_dir.display())));
        }
        let repeated = entries.get(&job).filter(|entry| entry.generation == generation);
        let autostart = repeated.map_or(facts.autostart, |entry| entry.autostart);
        let task = Task::Source { request, translate, persistent: facts.persistent };
        let begun = self.begin(&mut entries, job, generation, task, socket_dir, autostart).await;
        let held = match begun {
            Ok(_) => self.hold(vm, job, autostart).await,
            Err(error) => Err(error),
        };
        let Some(journal) = entries.get(&job).cloned() else {
            return Err(AgentError::Carrier("The migration is gone".to_owned()));
        };
        if let Err(error) = held {
            self.let_go(&journal).await?;
            self.end(&mut entries, &journal).await?;
            return Err(error);
        }
        self.report_of(&journal, 0, 0).await
    }

    async fn hold(&self, vm: VmId, job: JobId, autostart: bool) -> Result<(), AgentError> {
        hold::ensure(&self.config.holds_dir(), vm, job)?;
        if autostart {
            blocking(&self.hypervisor, move |hypervisor| hypervisor.set_autostart(vm, false)).await?;
        }
        Ok(())
    }

    /// Takes back what [`Registry::hold`] did.
    async fn let_go(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        hold::release(&self.config.holds_dir(), vm)?;
        if journal.autostart {
            blocking(&self.hypervisor, move |hypervisor| hypervisor.set_autostart(vm, true)).await?;
        }
        Ok(())
    }

    /// Begins to move.
    ///
    /// # Errors
    /// `job.unknown`, `request.stale`, or that the carrier is gone.
    pub async fn perform(&self, job: JobId, generation: Generation) -> Reported {
        let journal = self.find(job, generation).await?;
        match self.ask(&journal, Ask::Perform).await {
            Some(answer) => reported(answer),
            None => self.report_of(&journal, 0, 0).await,
        }
    }

    /// How it stands, as soon as that is newer than `after`, or after `wait`.
    ///
    /// # Errors
    /// `job.unknown`, `request.stale`.
    pub async fn report(&self, job: JobId, generation: Generation, after: u64, wait: Duration) -> Reported {
        let journal = self.find(job, generation).await?;
        self.report_of(&journal, after, wait.as_millis() as u64).await
    }

    /// Runs the VM here: the server asked both hosts, and it is here.
    ///
    /// # Errors
    /// Why it could not be resumed.
    pub async fn resume(&self, job: JobId, generation: Generation) -> Reported {
        let journal = self.find(job, generation).await?;
        if let Some(answer) = self.ask(&journal, Ask::Resume).await {
            return reported(answer);
        }
        let vm = journal.task.vm();
        blocking(&self.hypervisor, move |hypervisor| hypervisor.resume(vm)).await?;
        let mut state = Journal::carrier_state(&self.config.journal_dir(), job)?;
        state.finish_delivered = true;
        state.resumed = true;
        files::write_json(&Journal::state_path(&self.config.journal_dir(), job), &state)?;
        self.report_of(&journal, 0, 0).await
    }

    /// Ends it before the point of no return. Ok promises: at the source, the VM stays and may be started and moved again;
    /// at the destination, nothing of it is left.
    ///
    /// # Errors
    /// `job.past-pivot` (409); at the destination also when its copy could not be destroyed.
    pub async fn abort(&self, job: JobId, generation: Generation) -> Reported {
        let mut journal = self.find(job, generation).await?;
        let vm = journal.task.vm();
        if let Some(answer) = self.ask(&journal, Ask::Abort).await {
            reported(answer)?;
        } else {
            self.abort_without_carrier(&journal).await?;
        }
        match journal.task.role() {
            Role::Source => self.let_go(&journal).await?,
            Role::Destination => {
                blocking(&self.hypervisor, move |hypervisor| {
                    match hypervisor.presence(vm, Role::Destination)? {
                        Presence::Receiving | Presence::Arrived | Presence::Paused | Presence::HandedOver => {
                            hypervisor.destroy(vm)?;
                            hypervisor.undefine(vm)
                        }
                        Presence::Running | Presence::Absent | Presence::Unknown => Ok(()),
                    }
                })
                .await?;
            }
        }
        journal.aborted = true;
        self.put(journal.clone()).await?;
        self.report_of(&journal, 0, 0).await
    }

    async fn abort_without_carrier(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        let state = Journal::carrier_state(&self.config.journal_dir(), journal.job)?;
        if state.finish_delivered || state.resumed {
            return Err(AgentError::refused(409, *past_pivot(vm)));
        }
        if journal.task.role() == Role::Source {
            blocking(&self.hypervisor, move |hypervisor| hypervisor.abort_migration(vm)).await?;
        }
        Ok(())
    }

    /// Makes the move final: at the source the definition goes, at the destination autostart is set.
    ///
    /// # Errors
    /// When libvirt refuses; repeating it is safe. At the source also while the VM has a process here.
    pub async fn confirm(&self, job: JobId, generation: Generation, request: ConfirmRequest) -> Reported {
        let mut journal = self.find(job, generation).await?;
        let (vm, role) = (journal.task.vm(), journal.task.role());
        blocking(&self.hypervisor, move |hypervisor| match role {
            Role::Source => match hypervisor.presence(vm, role)? {
                Presence::Absent => hypervisor.undefine(vm),
                presence => Err(ferry_drivers::hypervisor::HypervisorError::Failed {
                    what: format!("Could not remove the definition of VM {vm} at the source"),
                    reason: format!("the VM still has a process here ({presence:?})"),
                }),
            },
            Role::Destination if request.autostart => hypervisor.set_autostart(vm, true),
            Role::Destination => Ok(()),
        })
        .await?;
        journal.confirmed = true;
        self.put(journal.clone()).await?;
        self.report_of(&journal, 0, 0).await
    }

    /// Forgets it: the carrier leaves, its sockets and journal go, the hold is released unless `keep_hold`.
    ///
    /// # Errors
    /// `request.stale`, or files that cannot be removed; repeating it is safe. Ok if it is not known.
    pub async fn release(&self, job: JobId, generation: Generation, keep_hold: bool) -> Result<(), AgentError> {
        let journal = match self.find(job, generation).await {
            Ok(journal) => journal,
            Err(AgentError::Refused { status: 404, .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if journal.task.role() == Role::Source && !keep_hold {
            hold::release(&self.config.holds_dir(), journal.task.vm())?;
        }
        let mut entries = self.entries.lock().await;
        self.end(&mut entries, &journal).await
    }

    async fn end(&self, entries: &mut HashMap<JobId, Journal>, journal: &Journal) -> Result<(), AgentError> {
        // A carrier that does not answer has left already, or is ended with the host.
        let _ = self.ask(journal, Ask::Leave).await;
        let folder = self.config.journal_dir();
        files::remove(&Journal::state_path(&folder, journal.job))?;
        files::remove(&Journal::path(&folder, journal.job))?;
        entries.remove(&journal.job);
        match fs::remove_dir_all(&journal.socket_dir) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(AgentError::File { path: journal.socket_dir.clone(), source }),
        }
    }

    /// Writes the journal, then starts the carrier, and waits until it is ready. Repeating it finds the carrier there.
    async fn begin(
        &self,
        entries: &mut HashMap<JobId, Journal>,
        job: JobId,
        generation: Generation,
        task: Task,
        socket_dir: PathBuf,
        autostart: bool,
    ) -> Result<Answer, AgentError> {
        if let Some(known) = entries.get(&job).cloned() {
            if known.generation > generation {
                return Err(stale(job, generation, known.generation));
            }
            if known.generation == generation {
                if let Some(answer) = self.ask(&known, Ask::Report { after: 0, wait_ms: 0 }).await {
                    return Ok(answer);
                }
            }
            self.end(entries, &known).await?;
        }
        if entries.len() >= MIGRATIONS_MAX {
            return Err(AgentError::Carrier(format!("This host takes part in {MIGRATIONS_MAX} migrations already")));
        }
        make_socket_dir(&socket_dir)?;
        let journal =
            Journal { job, generation, task, socket_dir, autostart, confirmed: false, aborted: false };
        journal.write(&self.config.journal_dir())?;
        entries.insert(job, journal.clone());
        let started = self.launch(&journal).await;
        if started.is_err() {
            self.end(entries, &journal).await?;
        }
        started
    }

    async fn launch(&self, journal: &Journal) -> Result<Answer, AgentError> {
        let path = Journal::path(&self.config.journal_dir(), journal.job);
        let (failed, mut failure) = tokio::sync::mpsc::channel(1);
        match &self.launcher {
            Launcher::Process { program, config } => {
                let (mut child, errors) = spawn(program, config, &path)?;
                std::thread::spawn(move || {
                    let status = child.wait();
                    let said = std::io::read_to_string(errors).unwrap_or_default();
                    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason");
                    let reason = status.map_or_else(|error| error.to_string(), |status| format!("{status}: {last}"));
                    let _ = failed.try_send(reason);
                });
            }
            Launcher::Task => {
                let (config, hypervisor) = (self.config.clone(), Arc::clone(&self.hypervisor));
                tokio::spawn(async move {
                    if let Err(error) = carrier::run(config, &path, hypervisor).await {
                        let _ = failed.try_send(chain(&error));
                    }
                });
            }
        }
        let until = Instant::now() + READY_DEADLINE;
        loop {
            if let Some(answer) = self.ask(journal, Ask::Report { after: 0, wait_ms: 0 }).await {
                return Ok(answer);
            }
            if let Ok(reason) = failure.try_recv() {
                return Err(AgentError::Carrier(format!("The carrier could not make ready: {reason}")));
            }
            if Instant::now() > until {
                return Err(AgentError::Carrier("The carrier was not ready in time".to_owned()));
            }
            tokio::time::sleep(READY_LOOK).await;
        }
    }

    /// Asks the carrier; `None` if it is not there.
    async fn ask(&self, journal: &Journal, ask: Ask) -> Option<Answer> {
        carrier::ask(&carrier::control_socket(journal), ask).await.ok()
    }

    async fn report_of(&self, journal: &Journal, after: u64, wait_ms: u64) -> Reported {
        let mut report = match self.ask(journal, Ask::Report { after, wait_ms }).await {
            Some(answer) => reported(answer)?,
            None => self.report_without_carrier(journal).await?,
        };
        if journal.aborted {
            report.stage = Stage::Aborted;
        } else if journal.confirmed {
            report.stage = Stage::Confirmed;
        }
        Ok(report)
    }

    /// The carrier is gone: what it wrote down, and what the hypervisor says.
    async fn report_without_carrier(&self, journal: &Journal) -> Reported {
        let (vm, role) = (journal.task.vm(), journal.task.role());
        let state = Journal::carrier_state(&self.config.journal_dir(), journal.job)?;
        let presence = blocking(&self.hypervisor, move |hypervisor| hypervisor.presence(vm, role)).await;
        let presence = presence.unwrap_or(Presence::Unknown);
        let stage = match (role, state.resumed || presence == Presence::Running, state.finish_delivered) {
            (Role::Destination, true, _) => Stage::Resumed,
            (_, _, true) => Stage::Delivered,
            // libvirt goes on with a migration whose caller died; without the channels it fails soon.
            (Role::Source | Role::Destination, _, false) => Stage::Failed,
        };
        Ok(MigrationReport {
            job: journal.job,
            generation: journal.generation,
            role,
            sequence: u64::MAX,
            stage,
            finish_delivered: state.finish_delivered,
            presence,
            progress: None,
            figures: state.figures,
            error: Some("The process that carried the migration is gone".to_owned()),
        })
    }

    async fn find(&self, job: JobId, generation: Generation) -> Result<Journal, AgentError> {
        let entries = self.entries.lock().await;
        let Some(journal) = entries.get(&job) else {
            return Err(AgentError::refused(
                404,
                Finding::blocks(
                    FindingId::JobUnknown,
                    job,
                    format!("This host takes no part in job {job}"),
                    "Ask again with `ferry job show`",
                ),
            ));
        };
        if journal.generation != generation {
            return Err(stale(job, generation, journal.generation));
        }
        Ok(journal.clone())
    }

    async fn put(&self, journal: Journal) -> Result<(), AgentError> {
        journal.write(&self.config.journal_dir())?;
        self.entries.lock().await.insert(journal.job, journal);
        Ok(())
    }

    fn socket_dir(&self, session: SessionId) -> PathBuf {
        self.config.sessions_dir().join(session.0.simple().to_string())
    }
}

fn reported(answer: Answer) -> Reported {
    match answer {
        Answer::Report { report, .. } => Ok(*report),
        Answer::Refused { finding } => Err(AgentError::Refused { status: 409, finding }),
    }
}

fn stale(job: JobId, asked: Generation, known: Generation) -> AgentError {
    AgentError::refused(
        409,
        Finding::blocks(
            FindingId::RequestStale,
            job,
            format!("The request is of attempt {asked} of job {job}, and attempt {known} is known here"),
            "Nothing: an older life of the server asked",
        ),
    )
}

/// `…/m/<32 hex digits>`: the only kind of folder that another host may name.
fn is_session_dir(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let plain = path.components().all(|part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_)));
    plain
        && path.is_absolute()
        && name.len() == 32
        && name.bytes().all(|byte| byte.is_ascii_hexdigit())
        && path.parent().is_some_and(|parent| parent.ends_with("m"))
        && path.as_os_str().len() < 80
}

/// A folder that root and QEMU's user enter, and nobody else.
fn make_socket_dir(path: &Path) -> Result<(), AgentError> {
    let fault = |source| AgentError::File { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(fault)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(fault)?;
    if nix::unistd::geteuid().is_root()
        && let Some(user) = QEMU_USERS.iter().find_map(|name| nix::unistd::User::from_name(name).ok().flatten())
    {
        nix::unistd::chown(path, Some(user.uid), None).map_err(|error| fault(error.into()))?;
    }
    Ok(())
}

/// Starts a carrier process in a session of its own, so that it outlives the agent. Its log goes where the agent's
/// goes; what it says when it cannot begin is kept.
fn spawn(program: &Path, config: &Path, journal: &Path) -> Result<(std::process::Child, fs::File), AgentError> {
    let fault = |source| AgentError::File { path: program.to_owned(), source };
    let log = journal.with_extension("log");
    let errors = fs::File::create(&log).map_err(|source| AgentError::File { path: log.clone(), source })?;
    let mut command = Command::new(program);
    command.arg("carry").arg("--config").arg(config).arg("--journal").arg(journal);
    command.arg("--said").arg(&log).stdin(Stdio::null()).stdout(Stdio::null());
    command.process_group(0);
    let child = command.spawn().map_err(fault)?;
    drop(errors);
    let errors = fs::File::open(&log).map_err(|source| AgentError::File { path: log, source })?;
    Ok((child, errors))
}

#[cfg(test)]
mod tests {
    use super::*;

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
