//! The model: two hosts with their agents, carriers and libvirts, a third host, and an administrator. Moves on by chance.

use ferry_core::{
    api::agent::{Role, Stage},
    migration::{LogEvent, Phase, Presence, Step, phase},
};
use tokio_util::sync::CancellationToken;

use super::super::participant::Reported;

/// Nothing goes wrong any more after so many moments; a job that does not end soon after that hangs.
pub(super) const FAULTS_UNTIL: u32 = 300;
const MOMENTS_MAX: u32 = 3_000;
/// A job whose VM somebody moved on, or ran against what was decided, waits for a human: after so many moments it does.
const WAITS_SINCE: u32 = 1_000;

/// Chance, the same for each run of a number.
pub(super) struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }
}

/// How far libvirt's migrate call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flight {
    Not,
    Memory,
    Stopped,
    Finishing,
    Delivered,
    Failed,
}

/// What one host has of the attempt.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) process: Presence,
    pub(super) held: bool,
    pub(super) agent_is_up: bool,
    pub(super) libvirt_is_up: bool,
    pub(super) known: bool,
    pub(super) carrier: bool,
    pub(super) stage: Stage,
    pub(super) sequence: u64,
    pub(super) finish_delivered: bool,
    pub(super) here: bool,
    /// The carrier has written down that the VM ran on here.
    pub(super) ran_on: bool,
    pub(super) ending: bool,
    pub(super) aborted: bool,
    pub(super) confirmed: bool,
    pub(super) ended: bool,
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

    pub(super) fn to(&mut self, stage: Stage) {
        self.stage = stage;
        self.sequence += 1;
    }

    /// Whether its process keeps others from the disks, where the storage locks them.
    pub(super) fn has_disks(&self) -> bool {
        matches!(self.process, Presence::Arrived | Presence::Running | Presence::Halted)
    }
}

pub(super) struct World {
    pub(super) chance: Chance,
    pub(super) moment: u32,
    pub(super) flight: Flight,
    pub(super) source: Side,
    pub(super) destination: Side,
    pub(super) log: Vec<LogEvent>,
    pub(super) past: Vec<String>,
    pub(super) reserved: bool,
    /// The source has no power until then.
    pub(super) dark_until: u32,
    /// It ended with the power of its source, before another copy was complete: what it has of definition and disks is the VM.
    pub(super) died_there: bool,
    /// The source has run since the destination's copy was complete, which is old.
    pub(super) copy_is_old: bool,
    /// A third host has the VM.
    pub(super) elsewhere: bool,
    /// Ferry does not know that host.
    pub(super) unknown: bool,
    /// The destination's copy was run by hand when it had been decided that the VM is the source's.
    pub(super) against: bool,
    /// How many times in succession the server was told of a complete copy at the destination, when it asked who has the VM.
    pub(super) told: u32,
    /// For how many moments in succession a complete copy was there to be told of, while the source did not answer.
    pub(super) there: u32,
    /// It was told so often, or could have asked so often, that it must know.
    pub(super) seen: bool,
    /// The storage keeps the destination's copy from running while the source's has the disks.
    pub(super) locks_hold: bool,
    /// The source starts the VM at boot.
    pub(super) autostart: bool,
    /// The life of the server.
    pub(super) life: ServerLife,
}

/// One life of the server, as far as the world ends it or asks something of it.
#[derive(Clone, Default)]
pub(super) struct ServerLife {
    /// It is over.
    pub(super) died: CancellationToken,
    /// Somebody asked to cancel the job.
    pub(super) cancelled: CancellationToken,
    /// All that could happen by itself has happened.
    pub(super) waits: CancellationToken,
}

impl World {
    pub(super) fn new(number: u64) -> Self {
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
            autostart: number.is_multiple_of(3),
            life: ServerLife::default(),
        }
    }

    pub(super) fn note(&mut self, what: &str) {
        self.past.push(format!("{}: {what}", self.moment));
    }

    /// Whether all that could happen by itself has happened to a VM that somebody has taken into his own hands.
    fn waits_for_a_human(&self) -> bool {
        (self.elsewhere || self.against) && self.moment > WAITS_SINCE
    }

    /// Whether the destination's copy could run now.
    pub(super) fn may_run(&self) -> bool {
        let side = &self.destination;
        let gets_disks = !self.locks_hold || matches!(self.source.process, Presence::Off | Presence::Stopped);
        side.libvirt_is_up && side.process == Presence::Arrived && gets_disks
    }

    /// The destination has answered the question who has the VM. It is asked twice for one verdict, and once by a server that
    /// was away: after four answers one verdict at least is behind us.
    pub(super) fn tell(&mut self, answer: &Reported) {
        let complete = answer.as_ref().is_ok_and(|report| is_complete(report.presence) && !report.gave_up);
        self.told = if complete && self.source.process != Presence::Running { self.told + 1 } else { 0 };
        self.seen |= self.told >= 4;
    }

    pub(super) fn side(&mut self, role: Role) -> &mut Side {
        match role {
            Role::Source => &mut self.source,
            Role::Destination => &mut self.destination,
        }
    }

    /// A moment passes: libvirt goes on, and something may break.
    pub(super) fn tick(&mut self) {
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
        if self.waits_for_a_human() {
            self.life.waits.cancel();
        }
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

    /// Whether this moment is the server's last: what was asked is done or not, and nobody waits for the answer.
    pub(super) fn ends_server(&mut self) -> bool {
        let dies = self.moment < FAULTS_UNTIL && self.chance.one_in(40);
        if dies {
            self.told = 0;
            self.note("the server dies");
            self.life.died.cancel();
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
                    self.life.cancelled.cancel();
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
    pub(super) fn fail_flight(&mut self) {
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

    pub(super) fn check(&self) {
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
