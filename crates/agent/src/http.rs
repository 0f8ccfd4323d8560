//! The control API: `ferry_core::api::agent` says what each route takes and gives.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use ferry_core::{
    api::{
        agent::{
            AttachRequest, CheckOffline, ConfirmRequest, ConfirmStorage, DestinationReady, DiskArrival, DiskSize,
            EPOCH_HEADER, EnrolRequest, FileSize, LockStep, MigrationReport, Observation, OfflineReady, OfflineReport,
            Power, PowerRequest, PrepareDestination, PrepareSource, PrepareStorage, ReceiveOffline, SendOffline,
            ShareToken, SourceReady, StorageReport,
        },
        problem::{PROBLEM_MEDIA_TYPE, Problem},
    },
    finding::{Finding, FindingId},
    host::HostFacts,
    id::{Generation, HostId, Incarnation, JobId, ShareId, VmId},
    location::Location,
    place::{DirectoryListing, OfferedPlace},
    share::AttachedShare,
    units::ByteCount,
};
use ferry_drivers::hypervisor::HypervisorError;
use ferry_trust::{Clients, server_config};
use serde::{Deserialize, de::DeserializeOwned};
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    Agent, AgentError,
    blocking::{blocking, blocking_within},
    files::host_storage::HostStorage,
    host, offline, places,
    tls::{Caller, PinAcceptor},
};

/// How long an address may still be in use by an agent that has just ended.
const ADDRESS_WAIT: Duration = Duration::from_secs(10);
const ADDRESS_PAUSE: Duration = Duration::from_millis(50);
/// Largest body: a request of a migration holds a few hundred paths at most.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest answer in which people's words are looked for: a report of a move holds some lines for each of its disks.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How long a request may wait for file systems: a little less than the server waits for it.
const ANSWER_WAIT: Duration = Duration::from_secs(80);
/// How long libvirt may take to say what the host is: less than the server waits. At its first connection it looks at every
/// emulator, which took 15 s on a slow host.
const HOST_WAIT: Duration = Duration::from_secs(25);
/// How long requests in flight may go on when the agent is ended.
const GRACE: Duration = Duration::from_secs(2);

/// An error as an answer.
struct Refusal(AgentError);

impl<E: Into<AgentError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = self.0.problem();
        if problem.status >= 500 {
            error!(title = problem.title, detail = problem.detail, "a request failed");
        } else {
            info!(title = problem.title, status = problem.status, "a request was refused");
        }
        answer_problem(&problem)
    }
}

fn answer_problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, PROBLEM_MEDIA_TYPE)], Json(problem)).into_response()
}

type Answered<T> = Result<Json<T>, Refusal>;
type Shared = State<Arc<Agent>>;

/// A JSON body; anything else is a problem with `request.invalid`.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(invalid(rejection.status().as_u16(), rejection.body_text())),
        }
    }
}

fn invalid(status: u16, message: String) -> Refusal {
    let fix = "Use a server of the same or the next version as the agent";
    Refusal(AgentError::refused(status, Finding::blocks(FindingId::RequestInvalid, "request", message, fix)))
}

/// The routes, behind the check of the caller's key.
pub fn router(agent: Arc<Agent>) -> Router {
    let enrolled = Router::new()
        .route("/v1/host", get(get_host))
        .route("/v1/observe", get(observe))
        .route("/v1/shares/{share}", put(attach_share).delete(detach_share))
        .route("/v1/shares/{share}/token/{name}", put(write_token).get(read_token).delete(remove_token))
        .route("/v1/shares/{share}/locks/{name}", put(try_locks).delete(end_lock_trial))
        .route("/v1/places", get(get_places))
        .route("/v1/directory", get(list_directory))
        .route("/v1/directory/check", put(check_directory))
        .route("/v1/vms/{vm}/power", put(power))
        .route("/v1/vms/{vm}/disks", get(get_disks))
        .route("/v1/vms/{vm}/arrivals/check", put(check_arrivals))
        .route("/v1/migrations/{job}/{generation}/destination", put(prepare_destination))
        .route("/v1/migrations/{job}/{generation}/source", put(prepare_source))
        .route("/v1/migrations/{job}/{generation}/perform", put(perform))
        .route("/v1/migrations/{job}/{generation}/resume", put(resume))
        .route("/v1/migrations/{job}/{generation}/end-copy", put(end_copy))
        .route("/v1/migrations/{job}/{generation}/abort", put(abort))
        .route("/v1/migrations/{job}/{generation}/confirm", put(confirm))
        .route("/v1/migrations/{job}/{generation}", get(report))
        .route("/v1/migrations/{job}/{generation}", delete(release))
        .route("/v1/vms/{vm}/files", get(get_files))
        .route("/v1/offline-moves/check", put(check_offline))
        .route("/v1/offline-moves/{job}/{generation}", get(report_offline).delete(release_offline))
        .route("/v1/offline-moves/{job}/{generation}/destination", put(receive_offline))
        .route("/v1/offline-moves/{job}/{generation}/source", put(send_offline))
        .route("/v1/offline-moves/{job}/{generation}/perform", put(perform_offline))
        .route("/v1/offline-moves/{job}/{generation}/define", put(define_offline))
        .route("/v1/offline-moves/{job}/{generation}/abort", put(abort_offline))
        .route("/v1/offline-moves/{job}/{generation}/confirm", put(confirm_offline))
        .route("/v1/storage-moves/check", put(check_storage))
        .route("/v1/storage-moves/{job}/{generation}", put(prepare_storage).get(report_storage).delete(release_storage))
        .route("/v1/storage-moves/{job}/{generation}/perform", put(perform_storage))
        .route("/v1/storage-moves/{job}/{generation}/abort", put(abort_storage))
        .route("/v1/storage-moves/{job}/{generation}/confirm", put(confirm_storage))
        .fallback(|| async { invalid(404, "There is no such route".to_owned()) })
        .method_not_allowed_fallback(|| async { invalid(405, "The route does not take this method".to_owned()) })
        .layer(middleware::from_fn_with_state(Arc::clone(&agent), authorise));
    Router::new()
        .route("/v1/enrol", post(enrol))
        .merge(enrolled)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(agent)
}

/// Listens at `address`. Waits up to 10 s for it to be free: an agent that was just killed may not have let it go.
///
/// # Errors
/// When it stays in use, or is none of this host's.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let until = Instant::now() + ADDRESS_WAIT;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < until => {
                tokio::time::sleep(ADDRESS_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Serves until `stop` is told, then lets requests in flight end. Carriers go on.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve_on(
    agent: Arc<Agent>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<SocketAddr> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let tls = server_config(&agent.key, Clients::AnyKey)?;
    let handle = axum_server::Handle::new();
    let ending = handle.clone();
    tokio::spawn(async move {
        stop.await;
        ending.graceful_shutdown(Some(GRACE));
    });
    info!(%address, "the control API listens");
    axum_server::Server::<SocketAddr>::from_listener(tokio::net::TcpListener::from_std(listener)?)
        .acceptor(PinAcceptor::new(tls))
        .handle(handle)
        .serve(router(agent).into_make_service())
        .await?;
    Ok(address)
}

async fn authorise(
    State(agent): Shared,
    Extension(Caller(pin)): Extension<Caller>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    agent.enrolment.authorise(pin)?;
    let epoch = request.headers().get(EPOCH_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(epoch) = epoch {
        agent.enrolment.enter_epoch(epoch)?;
    }
    let is_of_a_move = ["/v1/migrations/", "/v1/offline-moves/", "/v1/storage-moves/"]
        .iter()
        .any(|prefix| request.uri().path().starts_with(prefix));
    let mut response = next.run(request).await;
    if is_of_a_move || !response.status().is_success() {
        response = told_to_people(&agent, response).await;
    }
    // A long poll may have outlived its caller's right to the answer.
    agent.enrolment.authorise(pin)?;
    Ok(response)
}

/// The answer with what people read in it told in their words. One that is no JSON, or too long, goes as it is.
async fn told_to_people(agent: &Agent, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, ANSWER_BYTES_MAX).await else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "The answer is too long").into_response();
    };
    let body = match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(mut answer) => {
            agent.told().rewrite(&mut answer);
            parts.headers.remove(header::CONTENT_LENGTH);
            answer.to_string().into()
        }
        Err(_) => bytes,
    };
    Response::from_parts(parts, body.into())
}

/// Runs what blocks in the agent.
async fn on_thread<T: Send + 'static>(
    agent: &Arc<Agent>,
    call: impl FnOnce(&Agent) -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    let agent = Arc::clone(agent);
    blocking(move || call(&agent)).await
}

async fn enrol(
    State(agent): Shared,
    Extension(Caller(pin)): Extension<Caller>,
    Body(request): Body<EnrolRequest>,
) -> Answered<HostFacts> {
    agent.enrolment.check(pin, &request)?;
    // Before the secret is used up: a server that hears nothing of the host does not add it, and asks again.
    let facts = host_facts(&agent).await?;
    agent.enrolment.enrol(pin, &request)?;
    info!(server = %pin, host = %request.host, "enrolled with a server");
    Ok(Json(facts))
}

async fn get_host(State(agent): Shared) -> Answered<HostFacts> {
    Ok(Json(host_facts(&agent).await?))
}

async fn host_facts(agent: &Arc<Agent>) -> Result<HostFacts, AgentError> {
    let facts = on_thread(agent, |agent| Ok(host::facts(&agent.config, &*agent.hypervisor)?));
    match tokio::time::timeout(HOST_WAIT, facts).await {
        Ok(facts) => facts,
        Err(_) => Err(AgentError::Hypervisor(HypervisorError::Unreachable(format!(
            "it gave no answer within {} s; the agent goes on asking it, so try again",
            HOST_WAIT.as_secs()
        )))),
    }
}

#[derive(Deserialize)]
struct Cursor {
    incarnation: Option<Incarnation>,
    generation: Option<Generation>,
    #[serde(default)]
    wait_ms: u64,
    /// Look first: the answer is no older than the question.
    #[serde(default)]
    fresh: bool,
}

async fn observe(State(agent): Shared, Query(cursor): Query<Cursor>) -> Answered<Observation> {
    let wait = Duration::from_millis(cursor.wait_ms);
    if cursor.fresh {
        agent.observer.look_again().await;
    }
    let mut enrolled = agent.enrolment.watch_host();
    let newer = agent.observer.newer(cursor.incarnation.zip(cursor.generation), wait);
    let found = tokio::select! {
        found = newer => found,
        // Another server's agent from now on: whoever waits is told so at once.
        _ = enrolled.changed() => agent.observer.newer(None, Duration::ZERO).await,
    };
    match found {
        Some(observation) => Ok(Json(observation)),
        None => Err(Refusal(AgentError::Hypervisor(HypervisorError::Unreachable(
            "it has not answered since the agent was started".to_owned(),
        )))),
    }
}

async fn attach_share(
    State(agent): Shared,
    Path(share): Path<ShareId>,
    Body(request): Body<AttachRequest>,
) -> Answered<AttachedShare> {
    Ok(Json(on_thread(&agent, move |agent| agent.shares.attach(share, &request)).await?))
}

async fn detach_share(State(agent): Shared, Path(share): Path<ShareId>) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| agent.shares.detach(share)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn write_token(
    State(agent): Shared,
    Path((share, name)): Path<(ShareId, String)>,
    Body(token): Body<ShareToken>,
) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| agent.shares.write_token(share, &name, &token)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn read_token(State(agent): Shared, Path((share, name)): Path<(ShareId, String)>) -> Answered<ShareToken> {
    match on_thread(&agent, move |agent| agent.shares.read_token(share, &name)).await? {
        Some(token) => Ok(Json(token)),
        None => Err(invalid(404, "The token file is not on the share".to_owned())),
    }
}

async fn remove_token(
    State(agent): Shared,
    Path((share, name)): Path<(ShareId, String)>,
) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| agent.shares.remove_token(share, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn try_locks(
    State(agent): Shared,
    Path((share, name)): Path<(ShareId, String)>,
    Body(step): Body<LockStep>,
) -> Result<StatusCode, Refusal> {
    let call = move |agent: &Agent| agent.lock_trials.step(&name, &agent.shares.lock_path(share, &name)?, step);
    on_thread(&agent, call).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn end_lock_trial(
    State(agent): Shared,
    Path((share, name)): Path<(ShareId, String)>,
) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| agent.lock_trials.end(&name, &agent.shares.lock_path(share, &name)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn get_places(State(agent): Shared) -> Answered<Vec<OfferedPlace>> {
    Ok(Json(on_thread(&agent, places::offered).await?))
}

async fn list_directory(State(agent): Shared, Query(location): Query<Location>) -> Answered<DirectoryListing> {
    Ok(Json(on_thread(&agent, move |agent| places::list(agent, &location)).await?))
}

async fn check_directory(State(agent): Shared, Body(location): Body<Location>) -> Result<StatusCode, Refusal> {
    on_thread(&agent, move |agent| places::check(agent, &location)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn power(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Body(request): Body<PowerRequest>,
) -> Result<StatusCode, Refusal> {
    let call = move |agent: &Agent| match request.power {
        Power::Start => agent.hypervisor.start(vm).map_err(AgentError::from),
        Power::Shutdown => agent.hypervisor.shutdown(vm).map_err(AgentError::from),
    };
    on_thread(&agent, call).await?;
    agent.observer.look_again().await;
    Ok(StatusCode::NO_CONTENT)
}

async fn get_disks(State(agent): Shared, Path(vm): Path<VmId>) -> Answered<Vec<DiskSize>> {
    Ok(Json(on_thread(&agent, move |agent| places::disks(agent, vm)).await?))
}

async fn check_arrivals(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Body(wanted): Body<Vec<DiskArrival>>,
) -> Result<StatusCode, Refusal> {
    let storage = host_storage(&agent, None)?;
    bounded(&agent, move |agent| agent.migrations.check_incoming(&storage, vm, &wanted)).await?;
    Ok(StatusCode::NO_CONTENT)
}

type Attempt = Path<(JobId, Generation)>;

/// Runs an operation on a migration to its end, also if whoever asked goes away meanwhile: a half of it is worse than
/// either none or all. It owns its turn, so a repeated request waits for it.
async fn to_its_end<T: Send + 'static>(
    operation: impl Future<Output = Result<T, AgentError>> + Send + 'static,
) -> Result<T, AgentError> {
    let outcome = tokio::spawn(operation).await;
    outcome.unwrap_or_else(|error| Err(AgentError::Carrier(error.to_string())))
}

async fn prepare_destination(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<PrepareDestination>,
) -> Answered<DestinationReady> {
    let mounts = agent.shares.mounts(&request.shares)?;
    let storage = host_storage(&agent, Some(job))?;
    let claim = Arc::clone(&storage.claim);
    let prepare = async move {
        let _claim = claim;
        agent.migrations.prepare_destination(job, generation, request, mounts, storage).await
    };
    Ok(Json(to_its_end(prepare).await?))
}

async fn prepare_source(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<PrepareSource>,
) -> Answered<SourceReady> {
    let shares: Vec<ShareId> = request.destination.mounts.iter().map(|mount| mount.share).collect();
    let mounts = agent.shares.mounts(&shares)?;
    let prepare = async move { agent.migrations.prepare_source(job, generation, request, &mounts).await };
    Ok(Json(to_its_end(prepare).await?))
}

async fn perform(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<MigrationReport> {
    Ok(Json(agent.migrations.perform(job, generation).await?))
}

async fn resume(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<MigrationReport> {
    Ok(Json(to_its_end(async move { agent.migrations.resume(job, generation).await }).await?))
}

async fn end_copy(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<MigrationReport> {
    Ok(Json(to_its_end(async move { agent.migrations.end_copy(job, generation).await }).await?))
}

async fn abort(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<MigrationReport> {
    Ok(Json(to_its_end(async move { agent.migrations.abort(job, generation).await }).await?))
}

async fn confirm(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<ConfirmRequest>,
) -> Answered<MigrationReport> {
    let confirm = async move {
        let report = agent.migrations.confirm(job, generation, request).await?;
        // libvirt tells nobody that autostart was set; the next move asks what it is.
        agent.observer.look_again().await;
        Ok(report)
    };
    Ok(Json(to_its_end(confirm).await?))
}

#[derive(Deserialize)]
struct News {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_ms: u64,
}

async fn report(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Query(news): Query<News>,
) -> Answered<MigrationReport> {
    let wait = Duration::from_millis(news.wait_ms);
    Ok(Json(agent.migrations.report(job, generation, news.after, wait).await?))
}

async fn release(State(agent): Shared, Path((job, generation)): Attempt) -> Result<StatusCode, Refusal> {
    to_its_end(async move { agent.migrations.release(job, generation).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a job that makes new files needs to know of this host's places, and of the others' copies there. Asks no file
/// system: what does is asked by whoever checks the room, on a thread of its own. The room is the request's as long as
/// the claim in it lives.
fn host_storage(agent: &Arc<Agent>, job: Option<JobId>) -> Result<HostStorage, AgentError> {
    let host = *agent.enrolment.watch_host().borrow();
    let places = agent.shares.places(host.unwrap_or(HostId(Uuid::nil())));
    let all = Arc::clone(agent);
    let reserved = Box::new(move || {
        let all = [all.storage.reserved(), all.migrations.reserved(), all.offline.reserved()].concat();
        all.into_iter().filter(|reserved| Some(reserved.job) != job).collect()
    });
    let (shares, qemu_conf) = (Arc::clone(&agent.shares), agent.config.qemu_conf.clone());
    Ok(HostStorage {
        places,
        roots: places::roots(agent)?,
        shares,
        qemu_conf,
        reserved,
        claim: agent.claims.claim(job),
    })
}

/// As [`on_thread`], for what asks file systems that may not answer. The thread ends when they do; whatever it holds is of
/// this job alone.
async fn bounded<T: Send + 'static>(
    agent: &Arc<Agent>,
    call: impl FnOnce(&Agent) -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    let agent = Arc::clone(agent);
    blocking_within(ANSWER_WAIT, "A file system of this host", move || call(&agent)).await
}

async fn check_storage(State(agent): Shared, Body(request): Body<PrepareStorage>) -> Answered<Vec<ByteCount>> {
    let storage = host_storage(&agent, None)?;
    Ok(Json(bounded(&agent, move |agent| agent.storage.check(&request, &storage)).await?))
}

async fn prepare_storage(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<PrepareStorage>,
) -> Answered<StorageReport> {
    let storage = host_storage(&agent, Some(job))?;
    Ok(Json(bounded(&agent, move |agent| agent.storage.prepare(job, generation, request, &storage)).await?))
}

async fn perform_storage(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<StorageReport> {
    Ok(Json(bounded(&agent, move |agent| agent.storage.perform(job, generation)).await?))
}

async fn report_storage(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Query(news): Query<News>,
) -> Answered<StorageReport> {
    let mut report = agent.storage.watch(job, generation)?;
    let wait = Duration::from_millis(news.wait_ms).min(crate::observer::WAIT_MAX);
    let _ = tokio::time::timeout(wait, report.wait_for(|report| report.sequence > news.after)).await;
    let report = report.borrow().clone();
    Ok(Json(report))
}

async fn abort_storage(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<StorageReport> {
    Ok(Json(bounded(&agent, move |agent| agent.storage.abort(job, generation)).await?))
}

async fn confirm_storage(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<ConfirmStorage>,
) -> Answered<StorageReport> {
    let report = bounded(&agent, move |agent| agent.storage.confirm(job, generation, request)).await?;
    // libvirt tells nobody that a VM uses another file.
    agent.observer.look_again().await;
    Ok(Json(report))
}

async fn release_storage(State(agent): Shared, Path((job, generation)): Attempt) -> Result<StatusCode, Refusal> {
    bounded(&agent, move |agent| agent.storage.release(job, generation)).await?;
    agent.observer.look_again().await;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Only {
    /// Devices, with commas between them; all, if it is not there.
    only: Option<String>,
}

async fn get_files(
    State(agent): Shared,
    Path(vm): Path<VmId>,
    Query(Only { only }): Query<Only>,
) -> Answered<Vec<FileSize>> {
    let call = move |agent: &Agent| {
        let only: Option<Vec<&str>> = only.as_ref().map(|only| only.split(',').collect());
        offline::files_of(&*agent.hypervisor, vm, only.as_deref())
    };
    Ok(Json(on_thread(&agent, call).await?))
}

async fn check_offline(State(agent): Shared, Body(request): Body<CheckOffline>) -> Result<StatusCode, Refusal> {
    let storage = host_storage(&agent, None)?;
    bounded(&agent, move |agent| agent.offline.check(&request, &storage)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn receive_offline(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<ReceiveOffline>,
) -> Answered<OfflineReady> {
    let mounts = agent.shares.mounts(&request.shares)?;
    let storage = host_storage(&agent, Some(job))?;
    let _claim = Arc::clone(&storage.claim);
    Ok(Json(agent.offline.prepare_destination(job, generation, request, mounts, storage).await?))
}

async fn send_offline(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<SendOffline>,
) -> Answered<OfflineReport> {
    let shares: Vec<ShareId> = request.destination.mounts.iter().map(|mount| mount.share).collect();
    let mounts = agent.shares.mounts(&shares)?;
    let storage = host_storage(&agent, Some(job))?;
    Ok(Json(agent.offline.prepare_source(job, generation, request, mounts, storage).await?))
}

async fn perform_offline(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<OfflineReport> {
    Ok(Json(agent.offline.perform(job, generation).await?))
}

async fn report_offline(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Query(news): Query<News>,
) -> Answered<OfflineReport> {
    let wait = Duration::from_millis(news.wait_ms).min(crate::observer::WAIT_MAX);
    Ok(Json(agent.offline.report(job, generation, news.after, wait).await?))
}

async fn define_offline(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<OfflineReport> {
    let report = agent.offline.define(job, generation).await?;
    agent.observer.look_again().await;
    Ok(Json(report))
}

async fn abort_offline(State(agent): Shared, Path((job, generation)): Attempt) -> Answered<OfflineReport> {
    Ok(Json(agent.offline.abort(job, generation).await?))
}

async fn confirm_offline(
    State(agent): Shared,
    Path((job, generation)): Attempt,
    Body(request): Body<ConfirmRequest>,
) -> Answered<OfflineReport> {
    let report = agent.offline.confirm(job, generation, request).await?;
    agent.observer.look_again().await;
    Ok(Json(report))
}

async fn release_offline(State(agent): Shared, Path((job, generation)): Attempt) -> Result<StatusCode, Refusal> {
    agent.offline.release(job, generation).await?;
    agent.observer.look_again().await;
    Ok(StatusCode::NO_CONTENT)
}
