//! Ten thousand moves of which each meets other faults. Executor, perform, presence and verdict are the real ones; hosts,
//! agents, carriers and libvirt are a model of what `data-plane.md` says of them, which moves on by chance.
//!
//! ```text
//! libvirt   Memory ─▶ Stopped ─▶ Finishing ─▶ Delivered          any broken channel before Delivered: the source runs on
//! source    Running   HandedOver HandedOver   Off
//! dest.     Receiving Receiving  Arrived      Arrived ─ told by its carrier, or asked by its agent ─▶ Running
//! ```
//! A libvirtd of the source that dies once the memory is sent leaves the source's copy as it is (`Left`), whatever the
//! destination has. Where the storage locks disks, a source's copy does not run on as long as the destination's has them
//! (`Stopped`); its carrier runs it as soon as they are free. A guest may crash wherever it runs (`Halted`), or shut itself down
//! (`Ended`, which libvirt knows here for good). A source may lose its power, and is away for long then. An administrator
//! who sees a VM stand still runs the copy that is at the destination, may shut it off there, or move it on to a third host:
//! one of the inventory, or, once the server has seen that it was there, one that Ferry does not know.
//!
//! At every moment: the VM never runs twice, and one whole copy is somewhere. At the end: all is done or all is taken back.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::{
        agent::{MigrationReport, Role, Stage},
        problem::Problem,
    },
    error::chain,
    finding::{Finding, FindingId},
    id::{Generation, JobId, VmId},
    job::Figures,
    migration::{LogEvent, Phase, Presence, Step, phase},
    vm::VmState,
};
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    executor::{Log, Patience, Saga, StepFailed, drive},
    participant::gone_or,
    participants::{Logged, Memory, MoveAgent, Others, Participant, Participants, Told},
    perform, undo,
};
use crate::{jobs::running::Running, store::StoreError};

/// Unless `FERRY_SIMULATED_MOVES` asks for more.
const MOVES: u64 = 10_000;
/// Nothing goes wrong any more after so many moments; a job that does not end soon after that hangs.
const FAULTS_UNTIL: u32 = 300;
const MOMENTS_MAX: u32 = 3_000;
/// A job whose VM somebody moved on, or ran against what was decided, waits for a human: after so many moments it does.
const WAITS_SINCE: u32 = 1_000;

/// Chance, the same for each run of a number.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }
}

/// How far libvirt's migrate call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flight {
    Not,
    Memory,
    Stopped,
    Finishing,
    Delivered,
    Failed,
}

/// What one host has of the attempt.
#[derive(Clone, Debug)]
struct Side {
    process: Presence,
    held: bool,
    agent_is_up: bool,
    libvirt_is_up: bool,
    known: bool,
    carrier: bool,
    stage: Stage,
    sequence: u64,
    finish_delivered: bool,
    here: bool,
    /// The carrier has written down that the VM ran on here.
    ran_on: bool,
    ending: bool,
    aborted: bool,
    confirmed: bool,
    ended: bool,
}

impl Side {
    fn new(process: Presence) -> Self {
        Self {
            process,
            held: false,
            agent_is_up: true,
            libvirt_is_up: true,
            known: false,
            carrier: false,
            stage: Stage::Prepared,
            sequence: 0,
            finish_delivered: false,
            here: false,
            ran_on: false,
            ending: false,
            aborted: false,
            confirmed: false,
            ended: false,
        }
    }

    fn to(&mut self, stage: Stage) {
        self.stage = stage;
        self.sequence += 1;
    }

    /// Whether its process keeps others from the disks, where the storage locks them.
    fn has_disks(&self) -> bool {
        matches!(self.process, Presence::Arrived | Presence::Running | Presence::Halted)
    }
}

struct World {
    chance: Chance,
    moment: u32,
    flight: Flight,
    source: Side,
    destination: Side,
    log: Vec<LogEvent>,
    past: Vec<String>,
    reserved: bool,
    /// The source has no power until then.
    dark_until: u32,
    /// It ended with the power of its source, before another copy was complete: what it has of definition and disks is the VM.
    died_there: bool,
    /// The source has run since the destination's copy was complete, which is old.
    copy_is_old: bool,
    /// A third host has the VM.
    elsewhere: bool,
    /// Ferry does not know that host.
    unknown: bool,
    /// The destination's copy was run by hand when it had been decided that the VM is the source's.
    against: bool,
    /// How many times in succession the server was told of a complete copy at the destination, when it asked who has the VM.
    told: u32,
    /// For how many moments in succession a complete copy was there to be told of, while the source did not answer.
    there: u32,
    /// It was told so often, or could have asked so often, that it must know.
    seen: bool,
    /// The storage keeps the destination's copy from running while the source's has the disks.
    locks_hold: bool,
}

impl World {
    fn new(number: u64) -> Self {
        Self {
            chance: Chance(number),
            moment: 0,
            flight: Flight::Not,
            source: Side::new(Presence::Running),
            destination: Side::new(Presence::Absent),
            log: vec![LogEvent::Accepted, LogEvent::Admitted, LogEvent::AttemptStarted { attempt: 1 }],
            past: Vec::new(),
            reserved: false,
            dark_until: 0,
            died_there: false,
            copy_is_old: false,
            elsewhere: false,
            unknown: false,
            against: false,
            told: 0,
            there: 0,
            seen: false,
            locks_hold: number.is_multiple_of(2),
        }
    }

    fn note(&mut self, what: &str) {
        self.past.push(format!("{}: {what}", self.moment));
    }

    /// Whether all that could happen by itself has happened to a VM that somebody has taken into his own hands.
    fn waits_for_a_human(&self) -> bool {
        (self.elsewhere || self.against) && self.moment > WAITS_SINCE
    }

    /// Whether the destination's copy could run now.
    fn may_run(&self) -> bool {
        let side = &self.destination;
        let gets_disks = !self.locks_hold || matches!(self.source.process, Presence::Off | Presence::Stopped);
        side.libvirt_is_up && side.process == Presence::Arrived && gets_disks
    }

    /// The destination has answered the question who has the VM. It is asked twice for one verdict, and once by a server that
    /// was away: after four answers one verdict at least is behind us.
    fn tell(&mut self, answer: &Reported) {
        let complete = answer.as_ref().is_ok_and(|report| is_complete(report.presence) && !report.gave_up);
        self.told = if complete && self.source.process != Presence::Running { self.told + 1 } else { 0 };
        self.seen |= self.told >= 4;
    }

    fn side(&mut self, role: Role) -> &mut Side {
        match role {
            Role::Source => &mut self.source,
            Role::Destination => &mut self.destination,
        }
    }

    /// A moment passes: libvirt goes on, and something may break.
    fn tick(&mut self) {
        self.moment += 1;
        assert!(self.moment < MOMENTS_MAX, "the job hangs: {:#?}\n{:#?}", self.log, self.past);
        if self.moment < FAULTS_UNTIL {
            if self.chance.one_in(12) {
                self.break_something();
            }
        } else {
            self.dark_until = 0;
            for role in [Role::Source, Role::Destination] {
                (self.side(role).agent_is_up, self.side(role).libvirt_is_up) = (true, true);
            }
        }
        if self.moment < self.dark_until && self.chance.one_in(6) {
            self.by_hand();
        }
        // Between a verdict and what is done about it.
        if self.moment < FAULTS_UNTIL && self.is_decided() && self.chance.one_in(2) {
            self.by_hand();
        }
        for role in [Role::Source, Role::Destination] {
            let dark = role == Role::Source && self.moment < self.dark_until;
            if !dark && self.chance.one_in(6) {
                self.side(role).agent_is_up = true;
            }
            if !dark && self.chance.one_in(6) {
                self.side(role).libvirt_is_up = true;
            }
        }
        if self.chance.one_in(2) {
            self.go_on();
        }
        self.copy_is_old |= self.source.process == Presence::Running && self.destination.process == Presence::Arrived;
        let side = &self.destination;
        let answers = side.agent_is_up && side.libvirt_is_up && side.known && !self.source.agent_is_up;
        let complete = is_complete(side.process) && !side.ending && self.source.process != Presence::Running;
        self.there = if answers && complete { self.there + 1 } else { 0 };
        // The source is asked every few moments.
        self.seen |= self.there >= 40;
        self.check();
    }

    /// libvirt and the carriers do their next thing.
    fn go_on(&mut self) {
        match self.flight {
            Flight::Not | Flight::Delivered | Flight::Failed => {}
            Flight::Memory if self.chance.one_in(3) => {
                self.flight = Flight::Stopped;
                self.source.process = Presence::HandedOver;
            }
            Flight::Memory => {}
            Flight::Stopped => {
                self.flight = Flight::Finishing;
                self.destination.process = Presence::Arrived;
            }
            // The moment at which most depends on it.
            Flight::Finishing if self.moment < FAULTS_UNTIL && self.chance.one_in(8) => self.lose_power(),
            Flight::Finishing => {
                self.flight = Flight::Delivered;
                self.note("delivered");
                self.source.process = Presence::Off;
                if self.chance.one_in(8) {
                    self.note("the source's libvirtd dies over the reply");
                    (self.source.libvirt_is_up, self.source.process) = (false, Presence::Left);
                }
                // The carrier may die between writing the reply to libvirtd and telling anybody.
                if self.chance.one_in(8) {
                    self.kill_carrier(Role::Source);
                    return;
                }
                self.source.finish_delivered = true;
                self.source.to(Stage::Delivered);
                if self.destination.carrier && !self.chance.one_in(8) && self.destination.stage != Stage::Aborted {
                    self.destination.finish_delivered = true;
                    self.destination.to(Stage::Delivered);
                }
            }
        }
        // The source's carrier runs what libvirt could not run again.
        let free = !self.destination.has_disks();
        if self.source.carrier && self.source.libvirt_is_up && self.source.process == Presence::Stopped && free {
            (self.source.process, self.source.ran_on) = (Presence::Running, true);
            self.note("run again by the carrier");
        }
        // The destination's carrier runs the VM when it knows that it may.
        let may_run = self.may_run();
        let side = &mut self.destination;
        if side.carrier && side.finish_delivered && may_run {
            side.process = Presence::Running;
            side.to(Stage::Resumed);
            self.note("resumed by the carrier");
        }
    }

    /// A wish to cancel reaches the task that runs. Each moment may be the server's last: whether this is.
    fn moment_of_the_server(&mut self, cancelled: &CancellationToken) -> bool {
        if self.log.iter().any(|event| matches!(event, LogEvent::CancelRequested { .. })) {
            cancelled.cancel();
        }
        let dies = self.moment < FAULTS_UNTIL && self.chance.one_in(150);
        if dies {
            self.told = 0;
            self.note("the server dies");
        }
        dies
    }

    fn break_something(&mut self) {
        match self.chance.next() % 12 {
            0 => self.kill_carrier(Role::Source),
            1 => self.kill_carrier(Role::Destination),
            2 => self.source.agent_is_up = false,
            3 => self.destination.agent_is_up = false,
            4 => {
                self.note("the source's libvirtd dies");
                self.source.libvirt_is_up = false;
                // Whether all memory was sent when it stopped the VM is a matter of moments.
                let sent = match self.flight {
                    Flight::Stopped => self.chance.one_in(2),
                    Flight::Finishing => true,
                    Flight::Not | Flight::Memory | Flight::Delivered | Flight::Failed => false,
                };
                if sent {
                    self.source.process = Presence::Left;
                }
                self.fail_flight();
            }
            5 => {
                self.note("the destination's libvirtd dies");
                self.destination.libvirt_is_up = false;
                self.fail_flight();
            }
            6 | 7 => self.by_hand(),
            8 => self.end_guest(),
            9 if self.chance.one_in(4) => self.lose_power(),
            _ => {
                self.note("a cancel");
                let phase = phase(&self.log);
                if matches!(phase, Phase::Preparing | Phase::Migrating) {
                    self.log.push(LogEvent::CancelRequested { by: "admin".into() });
                }
            }
        }
    }

    /// Whether the server has decided that the VM is the source's.
    fn is_decided(&self) -> bool {
        self.log.iter().any(|event| matches!(event, LogEvent::Failed { step: Step::Perform, .. }))
    }

    /// The source loses its power, and has no process when it is back.
    fn lose_power(&mut self) {
        let complete = self.destination.has_disks() || self.destination.process == Presence::Off || self.elsewhere;
        let process = self.source.process;
        if process == Presence::Running && complete && !self.source.ran_on {
            // That it ran on is known to nobody: its carrier, which would have written it down, was killed before.
            return;
        }
        // Or it was decided that it has it.
        let had_it = self.is_decided() || matches!(process, Presence::Running | Presence::Halted | Presence::Ended);
        self.died_there |= process != Presence::Absent && (had_it || !complete);
        if process != Presence::Absent {
            self.source.process = if self.source.ran_on { Presence::Ended } else { Presence::Off };
        }
        self.note("the source loses its power");
        self.kill_carrier(Role::Source);
        self.fail_flight();
        (self.source.agent_is_up, self.source.libvirt_is_up) = (false, false);
        self.dark_until = self.moment + 100;
    }

    /// A guest crashes where it runs, and its process is kept, or it shuts itself down. libvirt ends a move of it.
    fn end_guest(&mut self) {
        for role in [Role::Source, Role::Destination] {
            if self.side(role).process == Presence::Running && self.chance.one_in(4) {
                let ends = match (self.chance.one_in(2), role) {
                    (true, _) => Presence::Halted,
                    (false, Role::Source) => Presence::Ended,
                    (false, Role::Destination) => Presence::Off,
                };
                self.note(&format!("the guest at the {role:?} ends: {ends:?}"));
                self.side(role).process = ends;
                if role == Role::Source {
                    self.fail_flight();
                }
            }
        }
    }

    /// What an administrator does by `virsh` about a VM that stands still, or has been run so.
    fn by_hand(&mut self) {
        let still = match self.source.process {
            Presence::Off | Presence::Left => true,
            // Its carrier runs it when the disks are free, whoever had them.
            Presence::Stopped => !self.source.carrier,
            _ => false,
        };
        match self.destination.process {
            Presence::Arrived if still && self.may_run() => {
                self.note("run by hand");
                self.against = self.is_decided();
                self.destination.process = Presence::Running;
            }
            Presence::Running if self.chance.one_in(2) => {
                self.note("shut off at the destination");
                self.destination.process = Presence::Off;
            }
            Presence::Running if self.chance.one_in(2) => {
                // What nobody ever told Ferry, nor any host can tell, it cannot know.
                self.unknown = self.seen && self.chance.one_in(2);
                self.note(if self.unknown { "moved on to an unknown host" } else { "moved on by hand" });
                (self.destination.process, self.elsewhere) = (Presence::Absent, true);
            }
            _ => {}
        }
    }

    fn kill_carrier(&mut self, role: Role) {
        if std::mem::take(&mut self.side(role).carrier) {
            self.note(&format!("the carrier of the {role:?} dies"));
            self.fail_flight();
        }
    }

    /// A channel of libvirt's broke: before the reply to Finish is delivered the source runs on.
    fn fail_flight(&mut self) {
        match self.flight {
            Flight::Not | Flight::Delivered | Flight::Failed => return,
            Flight::Memory | Flight::Stopped => self.destination.process = Presence::Absent,
            // The destination's libvirt has given its answer and keeps the copy, paused.
            Flight::Finishing => {}
        }
        self.note("libvirt's call fails");
        self.flight = Flight::Failed;
        if self.source.process == Presence::HandedOver {
            let locked = self.locks_hold && self.destination.has_disks();
            self.source.process = if locked { Presence::Stopped } else { Presence::Running };
        }
        // Its carrier writes it down.
        self.source.ran_on |= self.source.carrier && self.source.process == Presence::Running;
        if self.source.carrier && matches!(self.source.stage, Stage::Prepared | Stage::Performing) {
            self.source.to(Stage::Failed);
        }
    }

    fn check(&self) {
        let (source, destination) = (self.source.process, self.destination.process);
        let runs = [source, destination].iter().filter(|process| **process == Presence::Running).count();
        assert!(runs + usize::from(self.elsewhere) < 2, "it runs twice: {:#?}\n{:#?}", self.log, self.past);
        let has = matches!(destination, Presence::Arrived | Presence::Running | Presence::Halted | Presence::Off);
        assert!(
            !self.copy_is_old || destination != Presence::Running,
            "an old copy runs: {:#?}\n{:#?}",
            self.log,
            self.past
        );
        let here = source != Presence::Absent && (source != Presence::Off || self.died_there);
        let whole = here || has || self.elsewhere;
        assert!(whole, "it is lost: {:#?}\n{:#?}", self.log, self.past);
    }
}

/// Whether a destination has all of the VM.
fn is_complete(process: Presence) -> bool {
    matches!(process, Presence::Arrived | Presence::Running | Presence::Halted | Presence::Off)
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().expect("nobody panics with it")
}

/// The agent of one host.
struct Agent {
    world: Shared,
    role: Role,
}

type Reported = Result<MigrationReport, ClientError>;

impl Agent {
    /// A request reaches the agent, or not; the answer may be lost after it was done.
    async fn call<T>(&self, act: impl FnOnce(&mut World) -> Result<T, ClientError>) -> Result<T, ClientError> {
        tokio::task::yield_now().await;
        let answer = {
            let mut world = lock(&self.world);
            world.tick();
            if !world.side(self.role).agent_is_up {
                return Err(away());
            }
            let answer = act(&mut world);
            world.check();
            if world.moment < FAULTS_UNTIL && world.chance.one_in(20) { Err(away()) } else { answer }
        };
        // Also the server may die here: what was done is not known to it.
        tokio::task::yield_now().await;
        answer
    }

    fn known<'a>(&self, world: &'a mut World) -> Result<&'a mut Side, ClientError> {
        let side = world.side(self.role);
        if side.known { Ok(side) } else { Err(refused(404, FindingId::JobUnknown)) }
    }

    fn report_of(&self, world: &mut World) -> Reported {
        let role = self.role;
        let side = self.known(world)?;
        let process = if side.libvirt_is_up { side.process } else { Presence::Unknown };
        let stage = match (side.carrier, role) {
            _ if side.aborted => Stage::Aborted,
            _ if side.confirmed => Stage::Confirmed,
            (true, _) => side.stage,
            (false, Role::Destination) if matches!(process, Presence::Running | Presence::Halted) => Stage::Resumed,
            (false, _) if side.finish_delivered || side.here => Stage::Delivered,
            (false, _) => Stage::Failed,
        };
        Ok(MigrationReport {
            job: JobId(1),
            generation: Generation(1),
            role,
            sequence: side.sequence,
            stage,
            finish_delivered: side.finish_delivered || side.here,
            gave_up: side.ending,
            presence: process,
            progress: None,
            disks: Vec::new(),
            figures: Figures::default(),
            findings: Vec::new(),
            error: None,
        })
    }

    async fn prepare(&self) -> Result<(), ClientError> {
        self.call(|world| {
            let side = world.side(self.role);
            if side.ended {
                return Err(refused(409, FindingId::RequestStale));
            }
            if !side.known {
                (side.known, side.carrier, side.held) = (true, true, self.role == Role::Source);
            }
            Ok(())
        })
        .await
    }

    async fn confirm(&self) -> Result<(), ClientError> {
        self.call(|world| {
            let role = self.role;
            let side = self.known(world)?;
            if role == Role::Source {
                let left = matches!(side.process, Presence::Left | Presence::Stopped);
                let gone = left || matches!(side.process, Presence::Absent | Presence::Off | Presence::Ended);
                if !side.libvirt_is_up || !gone {
                    return Err(refused(409, FindingId::JobOpen));
                }
                side.process = Presence::Absent;
            }
            side.confirmed = true;
            Ok(())
        })
        .await
    }
}

fn away() -> ClientError {
    ClientError::Unreachable { peer: "the agent".into(), source: "it is away".into() }
}

fn refused(status: u16, id: FindingId) -> ClientError {
    let finding = Finding::blocks(id, "job 1", "as the model has it", "nothing");
    ClientError::Refused(Box::new(Problem::refused(status, "refused", vec![finding])))
}

impl MoveAgent for Agent {
    async fn perform(&self, _: Attempt) -> Reported {
        self.call(|world| {
            let side = self.known(world)?;
            if side.carrier && side.stage == Stage::Prepared && side.libvirt_is_up {
                side.to(Stage::Performing);
                let answers = world.destination.carrier && world.destination.libvirt_is_up;
                world.flight = Flight::Memory;
                world.destination.process = Presence::Receiving;
                if world.destination.stage == Stage::Prepared {
                    world.destination.to(Stage::Performing);
                }
                if !answers {
                    world.destination.process = Presence::Absent;
                    world.fail_flight();
                }
            }
            self.report_of(world)
        })
        .await
    }

    async fn report(&self, _: Attempt, after: u64, wait: Duration) -> Reported {
        if !wait.is_zero() {
            for _ in 0..5 {
                let has_news = {
                    let mut world = lock(&self.world);
                    let is_there = world.side(self.role).agent_is_up;
                    // One that is not there lets nobody wait.
                    !is_there || self.known(&mut world).is_ok_and(|side| side.sequence > after)
                };
                if has_news {
                    break;
                }
                tokio::time::sleep(wait / 5).await;
                lock(&self.world).tick();
            }
        }
        let answer = self.call(|world| self.report_of(world)).await;
        if wait.is_zero() && self.role == Role::Destination {
            lock(&self.world).tell(&answer);
        }
        answer
    }

    async fn abort(&self, _: Attempt) -> Reported {
        self.call(|world| {
            let past_pivot = || refused(409, FindingId::JobPastPivot);
            let flight = world.flight;
            let side = self.known(world)?;
            if side.aborted {
                return self.report_of(world);
            }
            if side.confirmed || side.here || side.finish_delivered {
                return Err(past_pivot());
            }
            if !side.libvirt_is_up {
                return Err(refused(409, FindingId::JobOpen));
            }
            match self.role {
                Role::Source => {
                    if side.carrier && matches!(side.stage, Stage::Prepared | Stage::Performing) {
                        side.to(Stage::Aborted);
                    }
                    match flight {
                        // It is too late to abort: the outcome is waited for.
                        Flight::Finishing => return Err(past_pivot()),
                        _ => world.fail_flight(),
                    }
                    // It may have moved, or may be run at the destination: then the hold stays.
                    world.source.held = !matches!(world.source.process, Presence::Running | Presence::Halted);
                }
                Role::Destination => {
                    match side.process {
                        Presence::Running | Presence::Halted => return Err(past_pivot()),
                        Presence::Off if !side.ending => return Err(past_pivot()),
                        Presence::Absent => {}
                        _ => side.ending = true,
                    }
                    if side.carrier {
                        side.to(Stage::Aborted);
                    }
                    side.process = Presence::Absent;
                    world.fail_flight();
                    world.destination.process = Presence::Absent;
                }
            }
            world.side(self.role).aborted = true;
            self.report_of(world)
        })
        .await
    }

    async fn resume(&self, _: Attempt) -> Reported {
        self.call(|world| {
            let may_run = world.may_run();
            let side = self.known(world)?;
            if side.aborted {
                return Err(refused(409, FindingId::RequestStale));
            }
            side.here = true;
            if may_run {
                side.process = Presence::Running;
                side.to(Stage::Resumed);
                world.note("resumed by request");
            }
            self.report_of(world)
        })
        .await
    }

    async fn release(&self, _: Attempt) -> Result<(), ClientError> {
        self.call(|world| {
            let free = !world.locks_hold || !world.destination.has_disks();
            let elsewhere = world.elsewhere && self.role == Role::Source;
            let side = world.side(self.role);
            if side.known && !side.libvirt_is_up && self.role == Role::Source {
                return Err(refused(409, FindingId::JobOpen));
            }
            if side.confirmed || side.aborted || side.process != Presence::Off {
                side.held = false;
            }
            let let_go = !side.held && side.process != Presence::Absent;
            let runs_again = side.aborted && matches!(side.process, Presence::Left | Presence::Stopped);
            if runs_again {
                side.process = Presence::Running;
            }
            (side.known, side.carrier, side.ended) = (false, false, true);
            let story = || format!("{:#?}\n{:#?}", world.log, world.past);
            assert!(!let_go || !elsewhere, "a source is let go of what is elsewhere: {}", story());
            assert!(!runs_again || free, "it is let go while the other copy has its disks: {}", story());
            if world.flight == Flight::Memory || world.flight == Flight::Stopped || world.flight == Flight::Finishing {
                world.fail_flight();
            }
            Ok(())
        })
        .await
    }

    async fn end_copy(&self, _: Attempt) -> Reported {
        self.call(|world| {
            let side = self.known(world)?;
            match side.process {
                Presence::Absent | Presence::Off | Presence::Ended => {}
                Presence::Left if side.libvirt_is_up => side.process = Presence::Off,
                _ => return Err(refused(409, FindingId::JobOpen)),
            }
            self.report_of(world)
        })
        .await
    }

    async fn state_of(&self, _: VmId) -> Result<Option<VmState>, ClientError> {
        self.call(|world| {
            let side = world.side(self.role);
            if !side.libvirt_is_up {
                return Err(away());
            }
            Ok(match side.process {
                Presence::Running => Some(VmState::Running),
                Presence::Halted => Some(VmState::Crashed),
                Presence::Off | Presence::Ended => Some(VmState::ShutOff),
                Presence::Absent => None,
                _ => Some(VmState::Paused),
            })
        })
        .await
    }
}

/// A third host.
impl Others for Mutex<World> {
    fn state_of(&self, _: VmId) -> BoxFuture<'_, Vec<Told>> {
        let mut world = self.lock().expect("nobody panics with it");
        world.tick();
        let state = match world.moment < FAULTS_UNTIL && world.chance.one_in(4) {
            true => Err(away()),
            false => Ok((world.elsewhere && !world.unknown).then_some(VmState::Running)),
        };
        ready(vec![("kvm3".to_owned(), state)]).boxed()
    }
}

struct MemoryLog(Shared);

impl Log for MemoryLog {
    async fn events(&self, _: JobId) -> Result<Vec<LogEvent>, StoreError> {
        Ok(lock(&self.0).log.clone())
    }

    async fn append(&self, _: JobId, events: &[LogEvent]) -> Result<(), StoreError> {
        tokio::task::yield_now().await;
        lock(&self.0).log.extend_from_slice(events);
        tokio::task::yield_now().await;
        Ok(())
    }
}

/// One life of the server.
struct Life {
    world: Shared,
    source: Agent,
    destination: Agent,
    running: Running,
    log: MemoryLog,
}

impl Life {
    fn new(world: &Shared) -> Self {
        let agent = |role| Agent { world: world.clone(), role };
        let (source, destination) = (agent(Role::Source), agent(Role::Destination));
        let (running, log) = (Running::default(), MemoryLog(world.clone()));
        Self { world: world.clone(), source, destination, running, log }
    }

    fn memory(&self) -> Logged<'_, MemoryLog> {
        Logged::new(&self.log, JobId(1), &self.running)
    }

    fn attempt(&self) -> Attempt {
        Attempt { job: JobId(1), generation: Generation(1) }
    }

    fn ends<'a>(&'a self, memory: &'a dyn Memory) -> Participants<'a, Agent> {
        Participants {
            vm: VmId(Uuid::nil()),
            attempt: self.attempt(),
            source: Participant { name: "kvm1", agent: &self.source },
            destination: Participant { name: "kvm2", agent: &self.destination },
            others: &*self.world,
            memory,
            running: &self.running,
        }
    }
}

fn failed(error: ClientError) -> StepFailed {
    StepFailed(chain(&error))
}

impl Saga for Life {
    fn steps(&self) -> &'static [Step] {
        &Step::ALL
    }

    async fn probe(&self, step: Step) -> bool {
        step == Step::Perform && perform::has_arrived(&self.ends(&self.memory())).await
    }

    async fn run(&self, step: Step) -> Result<(), StepFailed> {
        match step {
            Step::Preflight => Ok(()),
            Step::Reserve => {
                lock(&self.world).reserved = true;
                Ok(())
            }
            Step::PrepareDestination => self.destination.prepare().await.map_err(failed),
            Step::PrepareSource => {
                self.destination.prepare().await.map_err(failed)?;
                self.source.prepare().await.map_err(failed)
            }
            Step::Perform => perform::perform(&self.ends(&self.memory()), |_| {}, || {}).await,
            Step::Resume => perform::resume(&self.ends(&self.memory())).await.map(drop),
            Step::Confirm => {
                gone_or("kvm2", self.destination.confirm().await)?;
                self.source.confirm().await.map_err(failed)
            }
            Step::Release => {
                gone_or("kvm2", self.destination.release(self.attempt()).await)?;
                gone_or("kvm1", self.source.release(self.attempt()).await)?;
                lock(&self.world).reserved = false;
                Ok(())
            }
        }
    }

    async fn undo(&self, step: Step) -> Result<(), StepFailed> {
        match step {
            Step::Preflight => Ok(()),
            Step::Reserve => {
                lock(&self.world).reserved = false;
                Ok(())
            }
            Step::PrepareDestination => undo::destination(&self.ends(&self.memory())).await,
            Step::PrepareSource => undo::source(&self.ends(&self.memory())).await,
            Step::Perform | Step::Resume | Step::Confirm | Step::Release => panic!("{step:?} is taken back"),
        }
    }

    fn running(&self) -> &Running {
        &self.running
    }

    async fn pause(&self, pause: Duration) {
        lock(&self.world).tick();
        tokio::time::sleep(pause).await;
    }
}

/// Lives of the server, one after another, until the job has ended.
async fn play(number: u64) -> (World, Phase) {
    let world: Shared = Arc::new(Mutex::new(World::new(number)));
    let log = MemoryLog(world.clone());
    let phase = loop {
        let life = Life::new(&world);
        let died = CancellationToken::new();
        let cancelled = life.running.cancelled.clone();
        let waits = CancellationToken::new();
        let watch = async {
            loop {
                tokio::task::yield_now().await;
                if lock(&world).waits_for_a_human() {
                    waits.cancel();
                }
                if lock(&world).moment_of_the_server(&cancelled) {
                    died.cancel();
                }
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        };
        tokio::select! {
            phase = drive(&log, JobId(1), &life, Patience::USUAL) => break phase,
            () = waits.cancelled() => break phase(&lock(&world).log),
            () = died.cancelled() => {}
            () = watch => {}
        }
        lock(&world).tick();
    };
    let ended = std::mem::replace(&mut *lock(&world), World::new(0));
    (ended, phase)
}

/// Wherever a crash cuts the log, what is left folds to a phase that the job may be in.
fn every_prefix_is_legal(log: &[LogEvent]) -> Result<(), String> {
    let mut arrived = false;
    for length in 1..=log.len() {
        let (event, now) = (&log[length - 1], phase(&log[..length]));
        arrived |= *event == LogEvent::Succeeded { step: Step::Perform };
        let undone = matches!(event, LogEvent::Undone { .. } | LogEvent::UndoFailed { .. });
        let forward = matches!(now, Phase::Completing | Phase::Succeeded | Phase::Stuck);
        if arrived && (undone || !forward) {
            return Err(format!("after the pivot, line {length} is {event:?}, which makes it {now:?}"));
        }
        if now.ended() && length < log.len() {
            return Err(format!("the job ended with line {length} and went on"));
        }
    }
    Ok(())
}

#[test]
fn ten_thousand_moves_with_faults_neither_lose_nor_double_a_vm() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let mut ends = std::collections::BTreeMap::<&str, u32>::new();
    let asked = std::env::var("FERRY_SIMULATED_MOVES").ok().map(|text| text.parse().expect("a number"));
    let moves: u64 = asked.unwrap_or(MOVES);
    for number in 0..moves {
        let (world, phase) = runtime.block_on(play(number));
        let story = || format!("move {number} {phase:?}: {:#?}\n{:#?}", world.log, world.past);
        every_prefix_is_legal(&world.log).unwrap_or_else(|error| panic!("{error}: {}", story()));
        let (source, destination) = (&world.source, &world.destination);
        let here = (source.process, source.held, source.known);
        let there = (destination.process, destination.known, world.reserved);
        match phase {
            Phase::Succeeded => {
                assert_eq!(here, (Presence::Absent, false, false), "{}", story());
                let process = match destination.process {
                    // An administrator has seen to it.
                    seen @ (Presence::Off | Presence::Halted) => seen,
                    Presence::Absent if world.elsewhere => Presence::Absent,
                    _ => Presence::Running,
                };
                assert_eq!(there, (process, false, false), "{}", story());
            }
            Phase::Failed | Phase::Cancelled => {
                let process = match source.process {
                    seen @ (Presence::Halted | Presence::Ended) => seen,
                    Presence::Off if world.died_there => Presence::Off,
                    _ => Presence::Running,
                };
                assert_eq!(here, (process, false, false), "{}", story());
                assert_eq!(there, (Presence::Absent, false, false), "{}", story());
            }
            // Somebody has it in his own hands: nothing is taken away or let go.
            Phase::Migrating | Phase::RollingBack | Phase::Stuck if world.elsewhere || world.against => {
                let still = matches!(source.process, Presence::Off | Presence::Left | Presence::Stopped);
                assert!(still && source.held, "{}", story());
                continue;
            }
            _ => panic!("it has not ended: {}", story()),
        }
        *ends.entry(phase.title()).or_default() += 1;
    }
    // Every end is met often: the faults are neither too few nor too many.
    assert!(ends.len() == 3 && ends.values().all(|count| u64::from(*count) > moves / 20), "{ends:?}");
}
