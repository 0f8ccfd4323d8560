//! Every real saga, every request: each is refused, lost, its answer lost, or the server dies before or after it, while the
//! move succeeds and while it is taken back.
//!
//! A host here does what it is asked at once: what is swept is what the sagas make of answers, not what hosts do meanwhile
//! (that is what [`super::simulation`] is for). At the end all is done, or all is taken back: never something between.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{
        ConfirmRequest, DestinationReady, DiskArrival, OfflineReady, PrepareDestination, PrepareSource, PrepareStorage,
        ReceiveOffline, Report, Role, SendOffline, Stage,
    },
    backoff::Backoff,
    files::{DiskMove, FileMove},
    finding::{Finding, FindingId},
    id::{Generation, JobId, SessionId, VmId},
    job::{Figures, JobKind},
    migration::{LogEvent, Phase, Presence, newest_attempt},
    pin::{Pin, Secret},
    vm::{VmFacts, VmState},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    executor::{Log, Patience, Saga, drive},
    migrate::Migrate,
    models::{self, away, refused},
    move_offline::MoveOffline,
    move_storage::MoveStorage,
    participant::{LiveParticipant, OfflineParticipant, Participant, Reported, StorageParticipant},
    site::{Check, Site, Told},
};
use crate::{
    jobs::running::Running,
    plan::{Kept as _, offline::OfflinePlan, storage::StoragePlan},
    preflight::offline::Sized as SizedFiles,
    store::{HostName, JobRecord, StoreError},
};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
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

const FAULTS: [Fault; 5] = [Fault::Refused, Fault::Lost, Fault::AnswerLost, Fault::DiesBefore, Fault::DiesAfter];
const IMPATIENT: Patience =
    Patience { backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(2)), tries_before_stuck: 3 };

/// What one host has of the attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Side {
    known: bool,
    held: bool,
    aborted: bool,
    delivered: bool,
    confirmed: bool,
    /// New files of disks that have not moved, or of a VM that is not there yet.
    files: bool,
    /// It has the VM: its definition, or, of a move of disks, its disks in the new files.
    has_vm: bool,
    runs: bool,
}

#[derive(Debug, Default)]
struct World {
    source: Side,
    destination: Side,
    log: Vec<LogEvent>,
    reserved: bool,
    /// Whether the move's Perform is to be refused: what was prepared is taken back.
    fails: bool,
    /// Requests so far, and the faults of some of them.
    requests: Vec<String>,
    faults: Vec<(usize, Fault)>,
    died: CancellationToken,
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().expect("nobody panics with it")
}

/// One host, or the one that moves its own disks.
struct Host {
    world: Shared,
    role: Role,
    kind: JobKind,
}

impl World {
    fn side(&mut self, role: Role) -> &mut Side {
        match role {
            Role::Source => &mut self.source,
            Role::Destination => &mut self.destination,
        }
    }

    /// At no moment is the VM nowhere, or does it run twice.
    fn check(&self) {
        let (here, there) = (&self.source, &self.destination);
        assert!(!(here.runs && there.runs), "it runs twice: {:#?}\n{:#?}", self.requests, self.log);
        assert!(here.has_vm || there.has_vm, "it is lost: {:#?}\n{:#?}", self.requests, self.log);
    }
}

impl Host {
    /// A request, with the fault that is planned for it.
    async fn call<T>(
        &self,
        what: &str,
        act: impl FnOnce(&mut World, &Host) -> Result<T, ClientError> + Send,
    ) -> Result<T, ClientError> {
        let fault = {
            let mut world = lock(&self.world);
            let number = world.requests.len();
            world.requests.push(format!("{:?}: {what}", self.role));
            assert!(number < 300, "the job hangs: {:#?}\n{:#?}", world.requests, world.log);
            world.faults.iter().find(|(at, _)| *at == number).map(|(_, fault)| *fault)
        };
        tokio::task::yield_now().await;
        match fault {
            Some(Fault::Refused) => return Err(refused(409, FindingId::JobOpen)),
            Some(Fault::Lost) => return Err(away()),
            Some(Fault::DiesBefore) => return die(&self.world).await,
            Some(Fault::AnswerLost | Fault::DiesAfter) | None => {}
        }
        let answer = {
            let mut world = lock(&self.world);
            let answer = act(&mut world, self);
            world.check();
            answer
        };
        match fault {
            Some(Fault::AnswerLost) => Err(away()),
            Some(Fault::DiesAfter) => die(&self.world).await,
            Some(Fault::Refused | Fault::Lost | Fault::DiesBefore) | None => answer,
        }
    }

    fn report_of(&self, world: &mut World) -> Reported {
        let side = world.side(self.role);
        if !side.known {
            return Err(refused(404, FindingId::JobUnknown));
        }
        let presence = match (self.role, side.runs, side.has_vm) {
            (_, true, _) => Presence::Running,
            (Role::Source, false, true) => Presence::Off,
            (Role::Destination, false, true) => Presence::Arrived,
            (_, false, false) => Presence::Absent,
        };
        let stage = match side {
            Side { aborted: true, .. } => Stage::Aborted,
            Side { confirmed: true, .. } => Stage::Confirmed,
            Side { delivered: true, runs: true, .. } if self.role == Role::Destination => Stage::Resumed,
            Side { delivered: true, .. } => Stage::Delivered,
            Side { .. } => Stage::Prepared,
        };
        Ok(Report {
            presence,
            finish_delivered: side.delivered,
            ..Report::new(JobId(1), Generation(1), self.role, 1, stage)
        })
    }

    async fn prepared<T>(&self, what: &str, answer: T) -> Result<T, ClientError>
    where
        T: Send,
    {
        self.call(what, |world, host| {
            let side = world.side(host.role);
            side.known = true;
            side.held = host.role == Role::Source && host.kind != JobKind::Storage;
            side.files = host.role == Role::Destination || host.kind == JobKind::Storage;
            Ok(answer)
        })
        .await
    }
}

async fn die<T>(world: &Shared) -> T {
    lock(world).died.cancel();
    std::future::pending().await
}

impl Participant for Host {
    fn name(&self) -> &str {
        match self.role {
            Role::Source => "kvm1",
            Role::Destination => "kvm2",
        }
    }

    fn pin(&self) -> Pin {
        Pin([0; 32])
    }

    async fn perform(&self, _: Attempt) -> Reported {
        self.call("perform", |world, host| {
            if !world.source.known || (world.fails && !world.source.delivered) {
                return Err(refused(409, FindingId::JobOpen));
            }
            world.source.delivered = true;
            match host.kind {
                // All disks are copied and switched over.
                JobKind::Storage => world.source.files = false,
                // All is copied; the destination is asked to define the VM.
                JobKind::Offline => {}
                _ if world.source.confirmed || world.destination.delivered => {}
                _ => {
                    (world.source.runs, world.destination.runs) = (false, true);
                    (world.destination.has_vm, world.destination.delivered, world.destination.files) =
                        (true, true, false);
                }
            }
            host.report_of(world)
        })
        .await
    }

    async fn report(&self, _: Attempt, _: u64, _: Duration) -> Reported {
        self.call("report", |world, host| host.report_of(world)).await
    }

    async fn abort(&self, _: Attempt) -> Reported {
        self.call("abort", |world, host| {
            let (is_offline_source, side) =
                (host.kind == JobKind::Offline && host.role == Role::Source, world.side(host.role));
            if !side.known {
                return Err(refused(404, FindingId::JobUnknown));
            }
            if side.delivered && !is_offline_source {
                return Err(refused(409, FindingId::JobPastPivot));
            }
            (side.aborted, side.files) = (true, false);
            host.report_of(world)
        })
        .await
    }

    async fn confirm(&self, _: Attempt, _: &ConfirmRequest) -> Reported {
        self.call("confirm", |world, host| {
            let side = world.side(host.role);
            if !side.known {
                return Err(refused(404, FindingId::JobUnknown));
            }
            side.confirmed = true;
            if host.role == Role::Source && host.kind != JobKind::Storage {
                side.has_vm = false;
            }
            host.report_of(world)
        })
        .await
    }

    async fn release(&self, _: Attempt) -> Result<(), ClientError> {
        self.call("release", |world, host| {
            let side = world.side(host.role);
            (side.known, side.held, side.files) = (false, false, false);
            Ok(())
        })
        .await
    }
}

impl LiveParticipant for Host {
    async fn incoming(&self, _: VmId, _: &[DiskMove]) -> Result<Vec<DiskArrival>, Vec<Finding>> {
        Ok(Vec::new())
    }

    async fn prepare_destination(&self, _: Attempt, _: &PrepareDestination) -> Result<DestinationReady, ClientError> {
        let (mounts, files) = (Vec::new(), Vec::new());
        let ready = DestinationReady { carrier: String::new(), mounts, socket_dir: String::new(), files };
        self.prepared("prepare the destination", ready).await
    }

    async fn prepare_source(&self, _: Attempt, _: &PrepareSource) -> Result<bool, ClientError> {
        self.prepared("prepare the source", true).await
    }

    async fn resume(&self, _: Attempt) -> Reported {
        self.call("resume", |world, host| host.report_of(world)).await
    }

    async fn end_copy(&self, _: Attempt) -> Reported {
        self.call("end the copy", |world, host| host.report_of(world)).await
    }

    async fn state_of(&self, _: VmId) -> Result<Option<VmState>, ClientError> {
        self.call("look", |world, host| {
            let side = world.side(host.role);
            Ok(match (side.runs, side.has_vm) {
                (true, _) => Some(VmState::Running),
                (false, true) => Some(VmState::ShutOff),
                (false, false) => None,
            })
        })
        .await
    }
}

impl StorageParticipant for Host {
    async fn check(&self, _: &PrepareStorage) -> Result<(), ClientError> {
        self.call("check", |_, _| Ok(())).await
    }

    async fn prepare(&self, _: Attempt, _: &PrepareStorage) -> Reported {
        self.prepared("prepare", ()).await?;
        self.report_of(&mut lock(&self.world))
    }
}

impl OfflineParticipant for Host {
    async fn sizes(&self, _: VmId, _: &[FileMove]) -> Result<SizedFiles, Vec<Finding>> {
        self.call("sizes", |_, _| Ok(SizedFiles::default())).await.map_err(|_| Vec::new())
    }

    async fn prepare_destination(&self, _: Attempt, _: &ReceiveOffline) -> Result<OfflineReady, ClientError> {
        let ready = OfflineReady {
            address: String::new(),
            mounts: Vec::new(),
            paths: Vec::new(),
            absent: Vec::new(),
            adopted: Vec::new(),
        };
        self.prepared("prepare the destination", ready).await
    }

    async fn prepare_source(&self, _: Attempt, _: &SendOffline) -> Reported {
        self.prepared("prepare the source", ()).await?;
        self.report_of(&mut lock(&self.world))
    }

    async fn define(&self, _: Attempt) -> Reported {
        self.call("define", |world, host| {
            let side = &mut world.destination;
            if !side.known || side.aborted {
                return Err(refused(409, FindingId::RequestStale));
            }
            (side.delivered, side.has_vm, side.files) = (true, true, false);
            host.report_of(world)
        })
        .await
    }
}

/// The server of one move, with its database in memory.
#[derive(Clone)]
struct Model(Shared, JobKind);

impl Log for Model {
    async fn events(&self, _: JobId) -> Result<Vec<LogEvent>, StoreError> {
        Ok(lock(&self.0).log.clone())
    }

    async fn append(&self, _: JobId, events: &[LogEvent]) -> Result<(), StoreError> {
        lock(&self.0).log.extend_from_slice(events);
        Ok(())
    }
}

impl Site for Model {
    type Host = Host;

    fn host(&self, name: &HostName) -> Option<Host> {
        let role = if name.name == "kvm1" { Role::Source } else { Role::Destination };
        Some(Host { world: self.0.clone(), role, kind: self.1 })
    }

    async fn reserve(&self, _: VmId, job: JobId) -> Result<JobId, StoreError> {
        lock(&self.0).reserved = true;
        Ok(job)
    }

    async fn unreserve(&self, _: JobId) -> Result<(), StoreError> {
        lock(&self.0).reserved = false;
        Ok(())
    }

    async fn put_plan(&self, _: JobId, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put_findings(&self, _: JobId, _: &[Finding]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put_figures(&self, _: JobId, _: &Figures) -> Result<(), StoreError> {
        Ok(())
    }

    async fn note(&self, _: JobId, _: &[String]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn check(&self, _: JobId, _: VmId, _: Check<'_>, _: [&Host; 2]) -> Result<Vec<Finding>, StoreError> {
        Ok(Vec::new())
    }

    async fn ask_others(&self, _: VmId, _: [&Host; 2]) -> Vec<Told> {
        Vec::new()
    }

    fn seen_elsewhere(&self, _: VmId, _: [&Host; 2]) -> Option<String> {
        None
    }

    async fn needed_by_others(&self, _: VmId, _: &[DiskMove]) -> Vec<String> {
        Vec::new()
    }

    async fn is_gone(&self, host: &Host, _: VmId) -> bool {
        !lock(&self.0).side(host.role).has_vm
    }

    async fn wait_until(&self, _: &Host, _: VmId, _: impl Fn(Option<&VmFacts>) -> bool + Send + Sync) {}
}

/// The job of a kind of move.
fn job(kind: JobKind) -> JobRecord {
    let live = |along| models::live_plan(along, true);
    let plan = match kind {
        JobKind::Storage => {
            let request = PrepareStorage {
                vm: VmId(Uuid::nil()),
                vm_name: "web01".to_owned(),
                disks: vec![models::disk()],
                bandwidth_bytes_per_s: None,
                whole: false,
            };
            StoragePlan { generation: Generation(1), request, keep_source: false, disks: Vec::new() }.to_json()
        }
        JobKind::Offline => OfflinePlan {
            session: SessionId(Uuid::nil()),
            secret: Secret([0; 32]),
            generation: Generation(1),
            files: Vec::new(),
            shares: Vec::new(),
            keep_source: false,
            autostart: true,
            progress: Vec::new(),
        }
        .to_json(),
        JobKind::LiveVsm => live(vec![models::disk()]).to_json(),
        JobKind::Live => live(Vec::new()).to_json(),
        JobKind::Several | JobKind::Drain => panic!("{kind:?} is done by other jobs"),
    };
    models::record(kind, plan)
}

/// Lives of the server, one after another, until the job has ended.
async fn play(kind: JobKind, fails: bool, faults: Vec<(usize, Fault)>) -> (Phase, World) {
    let source = Side { has_vm: true, runs: kind != JobKind::Offline, ..Side::default() };
    let log = vec![LogEvent::Accepted, LogEvent::Admitted, LogEvent::AttemptStarted { attempt: 1 }];
    let world: Shared = Arc::new(Mutex::new(World { source, log, fails, faults, ..World::default() }));
    let site = Model(world.clone(), kind);
    let phase = loop {
        let (running, died) = (Arc::new(Running::default()), CancellationToken::new());
        lock(&world).died = died.clone();
        if newest_attempt(&lock(&world).log).iter().any(|event| matches!(event, LogEvent::CancelRequested { .. })) {
            running.cancelled.cancel();
        }
        let (site, record) = (site.clone(), job(kind));
        let driven = match kind {
            JobKind::Storage => life(site.clone(), MoveStorage::new(site, record, running), &died).await,
            JobKind::Offline => life(site.clone(), MoveOffline::new(site, record, running), &died).await,
            _ => life(site.clone(), Migrate::new(site, record, running), &died).await,
        };
        if let Some(phase) = driven {
            break phase;
        }
    };
    let ended = std::mem::take(&mut *lock(&world));
    (phase, ended)
}

/// One life of the server: how the job ended, unless the server died first.
async fn life(site: Model, saga: Result<impl Saga, String>, died: &CancellationToken) -> Option<Phase> {
    let mut saga = saga.expect("its hosts and plan are there");
    tokio::select! {
        biased;
        () = died.cancelled() => None,
        phase = drive(&site, JobId(1), &mut saga, IMPATIENT) => Some(phase),
    }
}

/// All is done, or all is taken back.
fn is_whole(kind: JobKind, phase: Phase, world: &World) -> Result<(), String> {
    let (here, there) = (&world.source, &world.destination);
    let clean = |side: &Side| !side.known && !side.held && !side.files;
    let one_place = kind == JobKind::Storage;
    let placed = match phase {
        Phase::Succeeded => here.has_vm == one_place && there.has_vm != one_place,
        Phase::Failed => here.has_vm && !there.has_vm && here.runs == (kind != JobKind::Offline),
        _ => false,
    };
    match placed && clean(here) && clean(there) && !world.reserved {
        true => Ok(()),
        false => Err(format!("{kind:?} {phase:?}: {world:#?}")),
    }
}

const KINDS: [JobKind; 4] = [JobKind::Live, JobKind::LiveVsm, JobKind::Offline, JobKind::Storage];

#[tokio::test(start_paused = true)]
async fn whatever_becomes_of_one_request_all_is_done_or_all_is_taken_back() {
    for kind in KINDS {
        for fails in [false, true] {
            let (phase, plain) = play(kind, fails, Vec::new()).await;
            assert_eq!(phase, if fails { Phase::Failed } else { Phase::Succeeded }, "{kind:?}: {plain:#?}");
            is_whole(kind, phase, &plain).expect("whole");
            for request in 0..plain.requests.len() {
                for fault in FAULTS {
                    let (phase, world) = play(kind, fails, vec![(request, fault)]).await;
                    let whole = is_whole(kind, phase, &world);
                    whole.unwrap_or_else(|error| panic!("{fault:?} at {}: {error}", plain.requests[request]));
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_becomes_of_two_requests_all_is_done_or_all_is_taken_back() {
    for kind in KINDS {
        for fails in [false, true] {
            for first in 0..play(kind, fails, Vec::new()).await.1.requests.len() {
                for fault in FAULTS {
                    // The second follows soon: while what the first did is mended.
                    for second in first + 1..first + 7 {
                        for other in FAULTS {
                            let faults = vec![(first, fault), (second, other)];
                            let (phase, world) = play(kind, fails, faults.clone()).await;
                            is_whole(kind, phase, &world).unwrap_or_else(|error| panic!("{faults:?}: {error}"));
                        }
                    }
                }
            }
        }
    }
}
