//! Simulated live moves: two hosts with their agents, carriers and libvirts, a third host, and an administrator.
//! Everything advances at random.
//!
//! ```text
//! libvirt   Memory ─▶ Stopped ─▶ Finishing ─▶ Delivered          a channel that breaks before Delivered: the source runs on
//! source    Running   HandedOver HandedOver   Off
//! dest.     Receiving Receiving  Arrived      Arrived ─ told by its carrier, or asked by its agent ─▶ Running
//! ```
//! If the source's libvirtd dies after the memory was sent, it leaves the source's copy as it is (`Left`), whatever the
//! destination has. Where the storage locks disks, a source's copy cannot run while the destination's copy has them
//! (`Stopped`); its carrier resumes it as soon as they are free. A guest may crash wherever it runs (`Halted`) or shut
//! itself down (`Ended`, which libvirt knows for certain in this model). A source may lose power, and is then away for
//! long. An administrator who sees a paused VM may resume the copy at the destination, shut it off there, or move it on
//! to a third host: one of the inventory or, once the server has seen the copy at the destination, one that Ferry does
//! not know.
//!
//! At every moment, the VM does not run twice, and one complete copy exists somewhere.

mod requests;

use ferry_core::{
    api::agent::{Role, Stage},
    migration::{LogEvent, Phase, Presence, Step, phase},
};

use super::{
    super::{models::world::Server, participant::Reported},
    faults::Faults,
};

/// The longest time for which, in one run of the server, a copy that is known to be the VM, and could run, may stay
/// paused. An attempt to resume it takes about 12 moments, and may fail. A source without power, which must not be waited
/// for, is away for longer.
const IDLE_MAX: u32 = 60;

/// The progress of libvirt's migrate call.
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
    /// The carrier has recorded that the VM continued to run here.
    ran_on: bool,
    ending: bool,
    aborted: bool,
    confirmed: bool,
    ended: bool,
    /// Whether the host starts the VM at boot.
    autostart: bool,
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
            autostart: false,
        }
    }

    fn to(&mut self, stage: Stage) {
        self.stage = stage;
        self.sequence += 1;
    }

    /// Whether the VM's process locks the disks, where the storage has locks.
    fn has_disks(&self) -> bool {
        matches!(self.process, Presence::Arrived | Presence::Running | Presence::Halted)
    }
}

pub(super) struct World {
    faults: Faults,
    server: Server,
    flight: Flight,
    source: Side,
    destination: Side,
    /// The source has no power until this moment.
    dark_until: u32,
    /// The VM ended when its source lost power, before another copy was complete: the source's definition and disks are
    /// the VM.
    died_there: bool,
    /// The source has run since the destination's copy was complete, so that copy is outdated.
    copy_is_old: bool,
    /// Whether a third host has the VM.
    elsewhere: bool,
    /// Whether Ferry does not know that host.
    unknown: bool,
    /// The destination's copy was resumed by hand after the verdict that the source has the VM.
    against: bool,
    /// The destination's copy was ended by hand when it was outdated. As far as Ferry knows, it may have run before.
    ended_by_hand: bool,
    /// The number of successive moments in this run of the server in which a copy that is known to be the VM could have
    /// run, but did not.
    idle: u32,
    /// How many times in succession, in this run of the server, it was told of a complete copy at the destination when it
    /// asked which host has the VM.
    reports: u32,
    /// The number of successive moments in which a complete copy existed while the source did not answer.
    there: u32,
    /// The server was told of the copy, or could have asked, so often that it must know.
    seen: bool,
    /// The storage's locks keep the destination's copy from running while the source's copy has the disks.
    locks_hold: bool,
    /// Whether the source started the VM at boot.
    autostart: bool,
    /// Whether a disk migrates with the VM.
    with_disks: bool,
    /// Whether another VM needs the old files.
    needed: bool,
}

impl World {
    pub(super) fn new(number: u64, with_disks: bool) -> Self {
        let mut faults = Faults::new(number);
        let (autostart, locks_hold, needed) = (faults.one_in(3), faults.one_in(2), faults.one_in(4));
        Self {
            faults,
            server: Server::default(),
            flight: Flight::Not,
            source: Side { autostart, ..Side::new(Presence::Running) },
            destination: Side::new(Presence::Absent),
            dark_until: 0,
            died_there: false,
            copy_is_old: false,
            elsewhere: false,
            unknown: false,
            against: false,
            ended_by_hand: false,
            idle: 0,
            reports: 0,
            there: 0,
            seen: false,
            locks_hold,
            autostart,
            with_disks,
            needed,
        }
    }

    fn note(&mut self, what: impl AsRef<str>) {
        self.faults.note(what);
    }

    /// What was done and has happened, for readers of a failure.
    fn story(&self) -> String {
        format!("{:#?}\n{:#?}", self.server.log, self.faults.past)
    }

    /// Whether everything that could happen by itself has happened, after an administrator took over the VM.
    fn waits_for_a_human(&self) -> bool {
        (self.elsewhere || self.against || self.ended_by_hand) && self.faults.is_late()
    }

    /// Whether the destination's copy could run now.
    fn may_run(&self) -> bool {
        let side = &self.destination;
        let gets_disks = !self.locks_hold || matches!(self.source.process, Presence::Off | Presence::Stopped);
        side.libvirt_is_up && side.process == Presence::Arrived && gets_disks
    }

    /// Records an answer of the destination to the question which host has the VM. It is asked twice for one verdict,
    /// and once by a server that was away. So after four answers at least one verdict has been reached.
    fn count_report(&mut self, answer: &Reported) {
        let complete = answer.as_ref().is_ok_and(|report| is_complete(report.presence) && !report.gave_up);
        self.reports = if complete && self.source.process != Presence::Running { self.reports + 1 } else { 0 };
        self.seen |= self.reports >= 4;
    }

    fn side(&mut self, role: Role) -> &mut Side {
        match role {
            Role::Source => &mut self.source,
            Role::Destination => &mut self.destination,
        }
    }

    /// Lets a moment pass: libvirt advances, and something may break.
    fn go_by(&mut self) {
        self.faults.pass(&self.server);
        if self.server.run.died.is_cancelled() {
            // The next run starts with nothing but the log.
            (self.reports, self.idle) = (0, 0);
        }
        if self.faults.is_hostile() {
            if self.faults.one_in(12) {
                self.break_something();
            }
        } else {
            self.dark_until = 0;
            for role in [Role::Source, Role::Destination] {
                (self.side(role).agent_is_up, self.side(role).libvirt_is_up) = (true, true);
            }
        }
        if self.faults.moment < self.dark_until && self.faults.one_in(6) {
            self.by_hand();
        }
        // Between a verdict and the actions that follow it.
        if self.faults.is_hostile() && self.is_decided() && self.faults.one_in(2) {
            self.by_hand();
        }
        for role in [Role::Source, Role::Destination] {
            let dark = role == Role::Source && self.faults.moment < self.dark_until;
            if !dark && self.faults.one_in(6) {
                self.side(role).agent_is_up = true;
            }
            if !dark && self.faults.one_in(6) {
                self.side(role).libvirt_is_up = true;
            }
        }
        if self.faults.one_in(2) {
            self.go_on();
        }
        self.copy_is_old |= self.source.process == Presence::Running && self.destination.process == Presence::Arrived;
        let side = &self.destination;
        let answers = side.agent_is_up && side.libvirt_is_up && side.known && !self.source.agent_is_up;
        let complete = is_complete(side.process) && !side.ending && self.source.process != Presence::Running;
        self.there = if answers && complete { self.there + 1 } else { 0 };
        // The source is asked every few moments.
        self.seen |= self.there >= 40;
        let could_run = side.agent_is_up && side.known && self.may_run();
        let is_decided = self.server.log.contains(&LogEvent::Succeeded { step: Step::Perform });
        self.idle = if could_run && is_decided { self.idle + 1 } else { 0 };
        assert!(self.idle < IDLE_MAX, "it stands still, and nobody runs it: {}", self.story());
        if self.waits_for_a_human() {
            self.server.run.waits.cancel();
        }
        self.is_one_vm();
    }

    /// Libvirt and the carriers take their next step.
    fn go_on(&mut self) {
        match self.flight {
            Flight::Not | Flight::Delivered | Flight::Failed => {}
            Flight::Memory if self.faults.one_in(3) => {
                self.flight = Flight::Stopped;
                self.source.process = Presence::HandedOver;
            }
            Flight::Memory => {}
            Flight::Stopped => {
                self.flight = Flight::Finishing;
                self.destination.process = Presence::Arrived;
            }
            // The most critical moment.
            Flight::Finishing if self.faults.is_hostile() && self.faults.one_in(8) => self.lose_power(),
            Flight::Finishing => {
                self.flight = Flight::Delivered;
                self.note("delivered");
                self.source.process = Presence::Off;
                if self.faults.one_in(8) {
                    self.note("the source's libvirtd dies over the reply");
                    (self.source.libvirt_is_up, self.source.process) = (false, Presence::Left);
                }
                // The carrier may die between writing the reply to libvirtd and reporting it.
                if self.faults.one_in(8) {
                    self.kill_carrier(Role::Source);
                    return;
                }
                self.source.finish_delivered = true;
                self.source.to(Stage::Delivered);
                if self.destination.carrier && !self.faults.one_in(8) && self.destination.stage != Stage::Aborted {
                    self.destination.finish_delivered = true;
                    self.destination.to(Stage::Delivered);
                }
            }
        }
        // The source's carrier resumes the copy that libvirt could not resume.
        let free = !self.destination.has_disks();
        if self.source.carrier && self.source.libvirt_is_up && self.source.process == Presence::Stopped && free {
            (self.source.process, self.source.ran_on) = (Presence::Running, true);
            self.note("run again by the carrier");
        }
        // The destination's carrier resumes the VM when it knows that it may.
        let may_run = self.may_run();
        let side = &mut self.destination;
        if side.carrier && side.finish_delivered && may_run {
            side.process = Presence::Running;
            side.to(Stage::Resumed);
            self.note("resumed by the carrier");
        }
    }

    fn break_something(&mut self) {
        match self.faults.one_of(12) {
            0 => self.kill_carrier(Role::Source),
            1 => self.kill_carrier(Role::Destination),
            2 => self.source.agent_is_up = false,
            3 => self.destination.agent_is_up = false,
            4 => {
                self.note("the source's libvirtd dies");
                self.source.libvirt_is_up = false;
                // It is random whether all memory was sent before libvirtd stopped the VM.
                let sent = match self.flight {
                    Flight::Stopped => self.faults.one_in(2),
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
            9 if self.faults.one_in(4) => self.lose_power(),
            _ => {
                self.note("a cancel");
                let phase = phase(&self.server.log);
                if matches!(phase, Phase::Preparing | Phase::Migrating) {
                    self.server.log.push(LogEvent::CancelRequested { by: "admin".into() });
                    self.server.run.cancelled.cancel();
                }
            }
        }
    }

    /// Whether the server has decided that the source has the VM.
    fn is_decided(&self) -> bool {
        self.server.log.iter().any(|event| matches!(event, LogEvent::Failed { step: Step::Perform, .. }))
    }

    /// The source loses power, and has no process afterwards.
    fn lose_power(&mut self) {
        let complete = self.destination.has_disks() || self.destination.process == Presence::Off || self.elsewhere;
        let process = self.source.process;
        if process == Presence::Running && complete && !self.source.ran_on {
            // Nobody knows that it continued to run: its carrier was killed before it could record that.
            return;
        }
        // Or the server had decided that the source has the VM.
        let had_it = self.is_decided() || matches!(process, Presence::Running | Presence::Halted | Presence::Ended);
        self.died_there |= process != Presence::Absent && (had_it || !complete);
        if process != Presence::Absent {
            self.source.process = if self.source.ran_on { Presence::Ended } else { Presence::Off };
        }
        self.note("the source loses its power");
        self.kill_carrier(Role::Source);
        self.fail_flight();
        (self.source.agent_is_up, self.source.libvirt_is_up) = (false, false);
        self.dark_until = self.faults.moment + 100;
    }

    /// A guest crashes where it runs, so that its process stays, or shuts itself down. In both cases libvirt ends the
    /// move.
    fn end_guest(&mut self) {
        for role in [Role::Source, Role::Destination] {
            if self.side(role).process == Presence::Running && self.faults.one_in(4) {
                let process = match (self.faults.one_in(2), role) {
                    (true, _) => Presence::Halted,
                    (false, Role::Source) => Presence::Ended,
                    (false, Role::Destination) => Presence::Off,
                };
                self.note(format!("the guest at the {role:?} ends: {process:?}"));
                self.side(role).process = process;
                if role == Role::Source {
                    self.fail_flight();
                }
            }
        }
    }

    /// An administrator acts by `virsh` on a VM that is paused, or that was resumed in that way.
    fn by_hand(&mut self) {
        let is_paused = match self.source.process {
            Presence::Off | Presence::Left => true,
            // The carrier resumes the VM when the disks are free, whichever copy had them.
            Presence::Stopped => !self.source.carrier,
            _ => false,
        };
        match self.destination.process {
            Presence::Arrived if is_paused && self.may_run() => {
                self.note("run by hand");
                self.against = self.is_decided();
                self.destination.process = Presence::Running;
            }
            Presence::Arrived if self.source.process == Presence::Ended => {
                self.note("the old copy is ended by hand");
                self.destination.process = Presence::Off;
                self.ended_by_hand = true;
            }
            Presence::Running if self.faults.one_in(2) => {
                self.note("shut off at the destination");
                self.destination.process = Presence::Off;
            }
            Presence::Running if self.faults.one_in(2) => {
                // Ferry cannot know a copy that no host has ever reported or can report.
                self.unknown = self.seen && self.faults.one_in(2);
                self.note(if self.unknown { "moved on to an unknown host" } else { "moved on by hand" });
                (self.destination.process, self.elsewhere) = (Presence::Absent, true);
            }
            _ => {}
        }
    }

    fn kill_carrier(&mut self, role: Role) {
        if std::mem::take(&mut self.side(role).carrier) {
            self.note(format!("the carrier of the {role:?} dies"));
            self.fail_flight();
        }
    }

    /// A channel of libvirt breaks: until the reply to Finish is delivered, the source continues to run.
    fn fail_flight(&mut self) {
        match self.flight {
            Flight::Not | Flight::Delivered | Flight::Failed => return,
            Flight::Memory | Flight::Stopped => self.destination.process = Presence::Absent,
            // The destination's libvirt has sent its answer and keeps the copy, paused.
            Flight::Finishing => {}
        }
        self.note("libvirt's call fails");
        self.flight = Flight::Failed;
        if self.source.process == Presence::HandedOver {
            let locked = self.locks_hold && self.destination.has_disks();
            self.source.process = if locked { Presence::Stopped } else { Presence::Running };
        }
        // The source's carrier records it.
        self.source.ran_on |= self.source.carrier && self.source.process == Presence::Running;
        if self.source.carrier && matches!(self.source.stage, Stage::Prepared | Stage::Performing) {
            self.source.to(Stage::Failed);
        }
    }

    fn is_one_vm(&self) {
        let (source, destination) = (self.source.process, self.destination.process);
        let runs = [source, destination].iter().filter(|process| **process == Presence::Running).count();
        assert!(runs + usize::from(self.elsewhere) < 2, "it runs twice: {}", self.story());
        let has = matches!(destination, Presence::Arrived | Presence::Running | Presence::Halted | Presence::Off);
        assert!(!self.copy_is_old || destination != Presence::Running, "an old copy runs: {}", self.story());
        let here = source != Presence::Absent && (source != Presence::Off || self.died_there);
        let whole = here || has || self.elsewhere;
        assert!(whole, "it is lost: {}", self.story());
    }

    /// Judges the state after the last run of the server. Ok: whether the job has ended; otherwise it waits for a
    /// human.
    pub(super) fn judge(&self, phase: Phase) -> Result<bool, String> {
        let (source, destination) = (&self.source, &self.destination);
        let (process, place) = match phase {
            Phase::Succeeded => {
                let process = match destination.process {
                    // An administrator has dealt with it.
                    seen @ (Presence::Off | Presence::Halted) => seen,
                    Presence::Absent if self.elsewhere => Presence::Absent,
                    _ => Presence::Running,
                };
                ([Presence::Absent, process], destination)
            }
            Phase::Failed | Phase::Cancelled => {
                let process = match source.process {
                    seen @ (Presence::Halted | Presence::Ended) => seen,
                    Presence::Off if self.died_there => Presence::Off,
                    _ => Presence::Running,
                };
                ([process, Presence::Absent], source)
            }
            // An administrator took over the VM, and its hand-over was not known to be complete: nothing is removed or
            // released.
            Phase::Migrating | Phase::RollingBack | Phase::Stuck
                if (self.elsewhere || self.against || self.ended_by_hand)
                    && (self.flight != Flight::Delivered
                        || !self.server.log.contains(&LogEvent::Succeeded { step: Step::Perform })) =>
            {
                let is_paused = match source.process {
                    Presence::Ended => self.ended_by_hand,
                    process => matches!(process, Presence::Off | Presence::Left | Presence::Stopped),
                };
                // A source that ran when it was released may have ended since.
                let kept = source.held || self.ended_by_hand;
                return if is_paused && kept { Ok(false) } else { Err(self.story()) };
            }
            Phase::Queued
            | Phase::Preparing
            | Phase::Migrating
            | Phase::Completing
            | Phase::RollingBack
            | Phase::Stuck => return Err(format!("it has not ended: {}", self.story())),
        };
        let is_clean = |side: &Side| !side.known && !side.held;
        let whole = is_clean(source) && is_clean(destination) && !self.server.reserved;
        let placed = [source.process, destination.process] == process && place.autostart == self.autostart;
        if whole && placed { Ok(true) } else { Err(format!("{source:#?}\n{destination:#?}\n{}", self.story())) }
    }
}

/// Whether a destination has the complete VM.
fn is_complete(process: Presence) -> bool {
    matches!(process, Presence::Arrived | Presence::Running | Presence::Halted | Presence::Off)
}
