//! The interface of a model: what hosts have and do, and what happens to requests.

use std::sync::{Arc, Mutex, MutexGuard};

use ferry_client::ClientError;
use ferry_core::{
    api::{
        agent::{ConfirmRequest, Report, Role, Stage},
        problem::Problem,
    },
    finding::{Finding, FindingId},
    id::{Generation, JobId},
    migration::LogEvent,
    vm::VmState,
};
use tokio_util::sync::CancellationToken;

use super::super::participant::Reported;

/// A model that the server and both hosts share.
pub(in super::super) type Shared<M> = Arc<Mutex<M>>;

pub(in super::super) fn lock<M>(world: &Shared<M>) -> MutexGuard<'_, M> {
    world.lock().expect("nobody panics with it")
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Fault {
    /// The host refuses it.
    Refused,
    /// It does not reach the host.
    Lost,
    /// It is executed, and its answer is lost.
    AnswerLost,
    /// The server dies before the request is executed.
    DiesBefore,
    /// The server dies after the request was executed.
    DiesAfter,
}

/// The server's stored data, and its current run.
#[derive(Debug)]
pub(in super::super) struct Server {
    pub(in super::super) log: Vec<LogEvent>,
    pub(in super::super) reserved: bool,
    /// The plan as it was last stored, if it was.
    pub(in super::super) plan: Option<String>,
    pub(in super::super) run: ServerRun,
}

impl Default for Server {
    fn default() -> Self {
        let log = vec![LogEvent::Accepted, LogEvent::Admitted, LogEvent::AttemptStarted { attempt: 1 }];
        Self { log, reserved: false, plan: None, run: ServerRun::default() }
    }
}

/// One run of the server, and the signals between it and the model.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct ServerRun {
    /// This run is over.
    pub(in super::super) died: CancellationToken,
    /// A user asked to cancel the job.
    pub(in super::super) cancelled: CancellationToken,
    /// Everything that could happen by itself has happened: the job waits for a human.
    pub(in super::super) waits: CancellationToken,
}

/// What hosts have of a move, and what they do on request. A storage move has a source only.
pub(in super::super) trait Model: Sized + Send + 'static {
    fn server(&mut self) -> &mut Server;
    /// What happens to a request; `None`: it is executed and answered.
    fn fault(&mut self, role: Role, what: &'static str) -> Option<Fault>;
    /// Checks what must be true at every moment.
    fn check(&self);
    /// Whether the server dies at this moment, apart from the moments of requests.
    fn server_dies(&mut self) -> bool {
        false
    }
    /// Lets a moment pass.
    fn tick(&mut self) {}
    /// Whether a host that is asked for anything newer than this answers now.
    fn has_news(&mut self, _: Role, _after: u64) -> bool {
        true
    }
    /// Notes that a host was asked for its current state, and the answer that the server received.
    fn reported(&mut self, _: Role, _: &Reported) {}
    /// What a third host reports about the VM.
    fn third_host(&mut self) -> Result<Option<VmState>, ClientError> {
        Ok(None)
    }
    /// Whether another VM needs the old files.
    fn needs_old_files(&mut self) -> bool {
        false
    }
    /// Whether the host is seen to be without the VM.
    fn is_gone(&mut self, role: Role) -> bool;

    /// Prepares a host. Ok: whether it started the VM at boot.
    fn prepare(&mut self, role: Role) -> Result<bool, ClientError>;
    fn perform(&mut self) -> Reported;
    fn report(&mut self, role: Role) -> Reported;
    fn abort(&mut self, role: Role) -> Reported;
    fn confirm(&mut self, role: Role, body: &ConfirmRequest) -> Reported;
    fn release(&mut self, role: Role) -> Result<(), ClientError>;
}

/// What hosts do in a live move.
pub(in super::super) trait LiveModel: Model {
    fn resume(&mut self) -> Reported;
    fn end_copy(&mut self) -> Reported;
    fn state_of(&mut self, role: Role) -> Result<Option<VmState>, ClientError>;
}

/// What hosts do in an offline move.
pub(in super::super) trait OfflineModel: Model {
    fn define(&mut self) -> Reported;
}

/// Continues, unless this was the server's last moment: then it never returns.
pub(super) async fn server_goes_on<M: Model>(world: &Shared<M>) {
    let dies = lock(world).server_dies();
    if dies {
        return die(world).await;
    }
    // Lets another task of the server go first, now and then.
    tokio::task::yield_now().await;
}

pub(super) async fn die<M: Model, T>(world: &Shared<M>) -> T {
    lock(world).server().run.died.cancel();
    std::future::pending().await
}

/// A host's report about the model's only attempt.
pub(in super::super) fn report(role: Role, sequence: u64, stage: Stage) -> Report {
    Report::new(JobId(1), Generation(1), role, sequence, stage)
}

/// The error of a request without an answer.
pub(in super::super) fn away() -> ClientError {
    ClientError::Unreachable { peer: "the agent".into(), source: "it is away".into() }
}

/// The error of a request that the agent refused.
pub(in super::super) fn refused(status: u16, id: FindingId) -> ClientError {
    let finding = Finding::of_text(id, "job 1", "as the model has it", "nothing");
    ClientError::Refused(Box::new(Problem::refused(status, "refused", vec![finding])))
}
