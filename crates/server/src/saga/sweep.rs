//! All real sagas and all their requests. Each request is refused or lost, its answer is lost, or the server dies
//! before or after it, both while the move succeeds and while it is undone.
//!
//! A host here does at once what it is asked. The sweep tests the sagas' reactions to answers; the hosts' own behaviour
//! is tested by [`super::simulation`]. At the end everything is done or everything is undone, never something in
//! between.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ferry_client::ClientError;
use ferry_core::{
    api::agent::{ConfirmRequest, Report, Role, Stage},
    backoff::Backoff,
    finding::FindingId,
    job::JobKind,
    migration::{Phase, Presence},
    vm::VmState,
};

use super::{
    executor::RetryPolicy,
    migrate::Migrate,
    models::{
        jobs,
        site::run_of_server,
        world::{Fault, LiveModel, Model, OfflineModel, Server, Shared, lock, refused, report},
    },
    move_offline::MoveOffline,
    move_storage::MoveStorage,
    participant::Reported,
};

const FAULTS: [Fault; 5] = [Fault::Refused, Fault::Lost, Fault::AnswerLost, Fault::DiesBefore, Fault::DiesAfter];
const QUICK: RetryPolicy =
    RetryPolicy { backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(2)), tries_before_stuck: 3 };

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
    /// Whether it has the VM: its definition or, in a storage move, its disks in the new files.
    has_vm: bool,
    runs: bool,
}

#[derive(Debug)]
struct World {
    kind: JobKind,
    server: Server,
    source: Side,
    destination: Side,
    /// Whether Perform is to be refused, so that the preparations are undone.
    fails: bool,
    /// The requests so far, and the faults of some of them.
    requests: Vec<(Role, &'static str)>,
    faults: Vec<(usize, Fault)>,
}

impl World {
    fn new(kind: JobKind, fails: bool, faults: Vec<(usize, Fault)>) -> Self {
        let source = Side { has_vm: true, runs: kind != JobKind::Offline, ..Side::default() };
        let (server, destination, requests) = (Server::default(), Side::default(), Vec::new());
        Self { kind, server, source, destination, fails, requests, faults }
    }

    fn side(&mut self, role: Role) -> &mut Side {
        match role {
            Role::Source => &mut self.source,
            Role::Destination => &mut self.destination,
        }
    }

    fn known(&mut self, role: Role) -> Result<&mut Side, ClientError> {
        let side = self.side(role);
        if side.known { Ok(side) } else { Err(refused(404, FindingId::JobUnknown)) }
    }
}

impl Model for World {
    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn fault(&mut self, role: Role, what: &'static str) -> Option<Fault> {
        let number = self.requests.len();
        self.requests.push((role, what));
        assert!(number < 300, "the job hangs: {self:#?}");
        self.faults.iter().find(|(at, _)| *at == number).map(|(_, fault)| *fault)
    }

    /// At no moment is the VM nowhere, or does it run twice.
    fn check(&self) {
        let (here, there) = (&self.source, &self.destination);
        assert!(!(here.runs && there.runs), "it runs twice: {self:#?}");
        assert!(here.has_vm || there.has_vm, "it is lost: {self:#?}");
    }

    fn is_gone(&mut self, role: Role) -> bool {
        !self.side(role).has_vm
    }

    fn prepare(&mut self, role: Role) -> Result<bool, ClientError> {
        let in_place = self.kind == JobKind::Storage;
        let side = self.side(role);
        side.known = true;
        side.held = role == Role::Source && !in_place;
        side.files = role == Role::Destination || in_place;
        Ok(true)
    }

    fn perform(&mut self) -> Reported {
        if !self.source.known || (self.fails && !self.source.delivered) {
            return Err(refused(409, FindingId::JobOpen));
        }
        self.source.delivered = true;
        match self.kind {
            // All disks are copied, and the VM uses the copies.
            JobKind::Storage => self.source.files = false,
            // Everything is copied; next the destination is asked to define the VM.
            JobKind::Offline => {}
            JobKind::Live | JobKind::LiveVsm if self.source.confirmed || self.destination.delivered => {}
            JobKind::Live | JobKind::LiveVsm => {
                (self.source.runs, self.destination.runs) = (false, true);
                (self.destination.has_vm, self.destination.delivered, self.destination.files) = (true, true, false);
            }
            JobKind::Several | JobKind::Drain => panic!("no job of one VM"),
        }
        self.report(Role::Source)
    }

    fn report(&mut self, role: Role) -> Reported {
        let side = self.known(role)?;
        let presence = match (role, side.runs, side.has_vm) {
            (_, true, _) => Presence::Running,
            (Role::Source, false, true) => Presence::Off,
            (Role::Destination, false, true) => Presence::Arrived,
            (_, false, false) => Presence::Absent,
        };
        let stage = match side {
            Side { aborted: true, .. } => Stage::Aborted,
            Side { confirmed: true, .. } => Stage::Confirmed,
            Side { delivered: true, runs: true, .. } if role == Role::Destination => Stage::Resumed,
            Side { delivered: true, .. } => Stage::Delivered,
            Side { .. } => Stage::Prepared,
        };
        Ok(Report { presence, finish_delivered: side.delivered, ..report(role, 1, stage) })
    }

    fn abort(&mut self, role: Role) -> Reported {
        let is_offline_source = self.kind == JobKind::Offline && role == Role::Source;
        let side = self.known(role)?;
        if side.delivered && !is_offline_source {
            return Err(refused(409, FindingId::JobPastPivot));
        }
        (side.aborted, side.files) = (true, false);
        self.report(role)
    }

    fn confirm(&mut self, role: Role, _: &ConfirmRequest) -> Reported {
        let in_place = self.kind == JobKind::Storage;
        let side = self.known(role)?;
        side.confirmed = true;
        if role == Role::Source && !in_place {
            side.has_vm = false;
        }
        self.report(role)
    }

    fn release(&mut self, role: Role) -> Result<(), ClientError> {
        let side = self.side(role);
        (side.known, side.held, side.files) = (false, false, false);
        Ok(())
    }
}

impl LiveModel for World {
    fn resume(&mut self) -> Reported {
        self.report(Role::Destination)
    }

    fn end_copy(&mut self) -> Reported {
        self.report(Role::Source)
    }

    fn state_of(&mut self, role: Role) -> Result<Option<VmState>, ClientError> {
        let side = self.side(role);
        Ok(match (side.runs, side.has_vm) {
            (true, _) => Some(VmState::Running),
            (false, true) => Some(VmState::ShutOff),
            (false, false) => None,
        })
    }
}

impl OfflineModel for World {
    fn define(&mut self) -> Reported {
        let side = &mut self.destination;
        if !side.known || side.aborted {
            return Err(refused(409, FindingId::RequestStale));
        }
        (side.delivered, side.has_vm, side.files) = (true, true, false);
        self.report(Role::Destination)
    }
}

/// Runs a job of this kind to its end.
async fn play(kind: JobKind, fails: bool, faults: Vec<(usize, Fault)>) -> (Phase, World) {
    let world: Shared<World> = Arc::new(Mutex::new(World::new(kind, fails, faults)));
    let job = jobs::job(kind, true);
    let phase = match kind {
        JobKind::Live | JobKind::LiveVsm => run_of_server(&world, &job, QUICK, Migrate::new).await,
        JobKind::Offline => run_of_server(&world, &job, QUICK, MoveOffline::new).await,
        JobKind::Storage => run_of_server(&world, &job, QUICK, MoveStorage::new).await,
        JobKind::Several | JobKind::Drain => panic!("no job of one VM"),
    };
    let ended = std::mem::replace(&mut *lock(&world), World::new(kind, false, Vec::new()));
    (phase, ended)
}

/// Checks that everything is done or everything is undone.
fn is_whole(kind: JobKind, phase: Phase, world: &World) -> Result<(), String> {
    let (here, there) = (&world.source, &world.destination);
    let clean = |side: &Side| !side.known && !side.held && !side.files;
    let one_place = kind == JobKind::Storage;
    let placed = match phase {
        Phase::Succeeded => here.has_vm == one_place && there.has_vm != one_place,
        Phase::Failed => here.has_vm && !there.has_vm && here.runs == (kind != JobKind::Offline),
        Phase::Queued
        | Phase::Preparing
        | Phase::Migrating
        | Phase::Completing
        | Phase::RollingBack
        | Phase::Cancelled
        | Phase::Stuck => false,
    };
    match placed && clean(here) && clean(there) && !world.server.reserved {
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
                    whole.unwrap_or_else(|error| panic!("{fault:?} at {:?}: {error}", plain.requests[request]));
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
                    // The second fault follows soon, while the first one is still being repaired.
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
