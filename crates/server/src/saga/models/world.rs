//! What a model says: what hosts have and do, and what becomes of requests.

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
    /// The host does not do it, and says so.
    Refused,
    /// It does not reach the host.
    Lost,
    /// It is done, and its answer is lost.
    AnswerLost,
    /// The server dies before it is done.
    DiesBefore,
    /// The server dies after it was done.
    DiesAfter,
}

/// What the server has kept, and its life.
#[derive(Debug)]
pub(in super::super) struct Server {
    pub(in super::super) log: Vec<LogEvent>,
    pub(in super::super) reserved: bool,
    /// As it was stored last, if it was.
    pub(in super::super) plan: Option<String>,
    pub(in super::super) life: Life,
}

impl Default for Server {
    fn default() -> Self {
        let log = vec![LogEvent::Accepted, LogEvent::Admitted, LogEvent::AttemptStarted { attempt: 1 }];
        Self { log, reserved: false, plan: None, life: Life::default() }
    }
}

/// One life of the server, as far as the world ends it or asks something of it.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Life {
    /// It is over.
    pub(in super::super) died: CancellationToken,
    /// Somebody asked to cancel the job.
    pub(in super::super) cancelled: CancellationToken,
    /// All that could happen by itself has happened: the job waits for a human.
    pub(in super::super) waits: CancellationToken,
}

/// What hosts have of a move, and what they do when they are asked. A move of disks has a source only.
pub(in super::super) trait Model: Sized + Send + 'static {
    fn server(&mut self) -> &mut Server;
    /// What becomes of a request; `None`: it is done and answered.
    fn fault(&mut self, role: Role, what: &'static str) -> Option<Fault>;
    /// What must be true at every moment.
    fn check(&self);
    /// Whether this moment is the server's last, beside those of requests.
    fn server_dies(&mut self) -> bool {
        false
    }
    /// A moment passes.
    fn tick(&mut self) {}
    /// Whether a host that is asked for news newer than this answers now.
    fn has_news(&mut self, _: Role, _after: u64) -> bool {
        true
    }
    /// A host was asked what it has now, and this is what the server has heard.
    fn told(&mut self, _: Role, _: &Reported) {}
    /// What a third host says of the VM.
    fn third_host(&mut self) -> Result<Option<VmState>, ClientError> {
        Ok(None)
    }
    /// Whether somebody needs the old files.
    fn needs_old_files(&mut self) -> bool {
        false
    }
    /// Whether the host is seen to be without the VM.
    fn is_gone(&mut self, role: Role) -> bool;

    /// Ok: whether the host started the VM at boot.
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

/// What hosts do in a move of a VM that is shut off.
pub(in super::super) trait OfflineModel: Model {
    fn define(&mut self) -> Reported;
}

/// The server goes on, or this was its last moment: then it never returns.
pub(super) async fn server_goes_on<M: Model>(world: &Shared<M>) {
    let ends = lock(world).server_dies();
    if ends {
        return die(world).await;
    }
    // Another task of the server goes on first, now and then.
    tokio::task::yield_now().await;
}

pub(super) async fn die<M: Model, T>(world: &Shared<M>) -> T {
    lock(world).server().life.died.cancel();
    std::future::pending().await
}

/// How far a host is in the model's one attempt.
pub(in super::super) fn report(role: Role, sequence: u64, stage: Stage) -> Report {
    Report::new(JobId(1), Generation(1), role, sequence, stage)
}

/// The agent's answer is not there.
pub(in super::super) fn away() -> ClientError {
    ClientError::Unreachable { peer: "the agent".into(), source: "it is away".into() }
}

/// The agent refuses.
pub(in super::super) fn refused(status: u16, id: FindingId) -> ClientError {
    let finding = Finding::told(id, "job 1", "as the model has it", "nothing");
    ClientError::Refused(Box::new(Problem::refused(status, "refused", vec![finding])))
}
