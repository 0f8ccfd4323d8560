//! One run: moves, a fault during them, and the observations until all is well or the waiting time is over.
//!
//! ```text
//! moves begin ─▶ the moment comes ─▶ fault ─▶ downtime ─▶ repair ─▶ settle ─▶ judge ─▶ (host back ─▶ settle ─▶ judge)
//! ```

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ferry_core::{
    api::server::JobView,
    files::{DiskProgress, DiskStage},
};

use super::{
    admin::{self, Act},
    aim::Aim,
    alias::Aliased,
    faults::{self, Hit, inflict},
    judge::{self, Broken, Case, Death, Silence},
    kind::Kind,
    mover::Mover,
    plan::{Moment, Move, Plan},
    processes::{Processor, has_qemu},
    sabotage::{self, Sabotage},
    stage::Stage,
};
use crate::{
    images,
    observe::{Heard, Observer, now},
    run::wait_for,
};

/// All must be well within this time after the last fault.
pub const SETTLE_WITHIN: Duration = Duration::from_secs(90);
/// The effect of a sabotage is permanent, so the harness waits no longer than an undisturbed move takes.
pub const SETTLE_WITHIN_SABOTAGED: Duration = Duration::from_secs(15);
/// How long the first move may take to be accepted, and its guest to fall silent. A plain move takes several seconds.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(10);
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(8);
/// How long the copy of a disk may take.
const PHASE_DEADLINE: Duration = Duration::from_secs(20);
/// A guest whose vCPU did not run for this long was stopped by QEMU: otherwise it wakes up every 2 ms.
const STOPPED: Duration = Duration::from_millis(20);
/// A guest sends a heartbeat every 10 ms; a silence of this length is a hand-over rather than a busy machine.
const SILENT: Duration = Duration::from_millis(60);
/// How long a guest may take to be heard from one host before the run: on a new stage it was just started.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// How long observation continues after all is well, to detect a second copy.
const AFTERWARDS: Duration = Duration::from_millis(1_500);
/// Waiting time while a host is down, because some jobs cannot end and a guest that the host had cannot return. The
/// same applies to a guest that was shut off by an act.
const RETURN_WITHIN: Duration = Duration::from_secs(12);
/// How long a guest may take to run again after its source's libvirtd, which was killed in the hand-over, was
/// restarted.
const RUNS_WITHIN: Duration = Duration::from_secs(30);
/// How long a guest may take to be heard from its destination.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(30);
/// How long libvirt may take a guest for not running that is heard.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);
/// libvirt ends the source's copy within this time after a complete hand-over.
const COPY_ENDS: Duration = Duration::from_secs(3);
const POLL_EVERY: Duration = Duration::from_millis(250);
/// How often the disk's file is read again if a write was in flight.
const DISK_READS: u32 = 5;

/// What is done in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The plan's fault.
    Fault,
    /// A fault that is not Ferry's, and that must be detected.
    Sabotage(Sabotage),
}

impl Deed {
    /// Its row in the table.
    pub fn title(self, plan: &Plan) -> String {
        match self {
            Self::Fault => plan.kind.to_string(),
            Self::Sabotage(sabotage) => format!("sabotage {}", sabotage.broken()),
        }
    }

    /// The whole plan in words.
    pub fn report(self, plan: &Plan) -> String {
        match self {
            Self::Fault => plan.to_string(),
            Self::Sabotage(sabotage) => format!("{} during or after one plain move", sabotage.broken()),
        }
    }
}

/// The result of a run.
pub struct Outcome {
    /// The effect of the fault; `None`: it had no target any more.
    pub hit: Option<String>,
    /// The first move's hand-over, as observed, and the position of the fault relative to it.
    pub silence: Option<Silence>,
    /// The jobs in their last known state.
    pub jobs: Vec<JobView>,
    /// Refused moves, with the messages.
    pub refused: Vec<String>,
    /// Broken promises.
    pub cases: Vec<Case>,
    /// Guests that ended with a dead host, or were shut off, with the reason.
    pub excused: Vec<String>,
    /// What the harness could not restore; then a new stage is needed.
    pub untidy: Option<String>,
    /// The heartbeats of each guest.
    pub heard: BTreeMap<String, Vec<Heard>>,
}

/// A run in progress.
struct Round<'a> {
    stage: &'a mut Stage,
    plan: &'a Plan,
    observer: Observer,
    /// Jobs up to this number belong to earlier runs.
    jobs_before: u64,
    jobs: Vec<JobView>,
    answers: bool,
    death: Option<Death>,
    /// The act on the first move's guest.
    act: Option<Act>,
    /// The clone that needs its old disk.
    aliased: Option<Aliased>,
    /// The first move's guest must run again within [`RUNS_WITHIN`] of this time.
    due: Option<(String, Duration)>,
    /// Guests whose QEMU, on a living host where they were last heard, was gone when another host had died.
    ended_copies: Vec<String>,
}

/// Performs a run.
///
/// # Errors
/// What prevented the harness from performing or judging it.
pub fn play(stage: &mut Stage, plan: &Plan, deed: Deed) -> anyhow::Result<Outcome> {
    let observer = Observer::start(&stage.ferry.lab)?;
    let jobs_before = stage.jobs_after(0)?.last().map_or(0, |job| job.id.0);
    let mut round = Round {
        stage,
        plan,
        observer,
        jobs_before,
        jobs: Vec::new(),
        answers: true,
        death: None,
        act: None,
        aliased: None,
        due: None,
        ended_copies: Vec::new(),
    };
    round.play(deed)
}

impl Round<'_> {
    fn play(&mut self, deed: Deed) -> anyhow::Result<Outcome> {
        let places = self.places()?;
        let aim = self.aim(&self.plan.moves[0], &places);
        let movers = self.start_movers(&places)?;
        let (hit, fault_at) = match deed {
            Deed::Fault => self.strike(aim, &movers)?,
            Deed::Sabotage(sabotage) => {
                let at = now();
                (Some(sabotage::commit(self.stage, &self.observer, sabotage, &aim, || movers[0].is_over())?), at)
            }
        };
        let mut refused = Vec::new();
        for mover in movers {
            let output = mover.wait();
            // In their state at acceptance, in case the server never answers again.
            self.jobs.extend(output.job);
            refused.extend(output.refusal);
        }
        let within = if deed == Deed::Fault { SETTLE_WITHIN } else { SETTLE_WITHIN_SABOTAGED };
        let excuses = self.settle(now(), within)?;
        let mut cases = self.judge(&excuses);
        if cases.is_empty() {
            cases = self.judge_afterwards(&excuses)?;
        }
        let back = self.death.take().map_or(Ok(()), |death| self.welcome_back(&death, &excuses, &mut cases));
        // Before the stage is restored: guests that are then started again do not belong to this run.
        let heard = self.stage.guests.iter().map(|guest| (guest.name.clone(), self.observer.heard(&guest.name)));
        let heard: BTreeMap<String, Vec<Heard>> = heard.collect();
        let name = &self.stage.guests[self.plan.moves[0].guest].name;
        let silence = judge::silence(&heard[name], fault_at, SILENT);
        let untidy = match back {
            Err(error) => Some(format!("{error:#}")),
            Ok(()) if cases.is_empty() => self.tidy(),
            Ok(()) => Some("it is the scene of a finding".to_owned()),
        };
        let (jobs, excused) = (std::mem::take(&mut self.jobs), excuses.into_values().collect());
        Ok(Outcome { hit, silence, jobs, refused, cases, excused, untidy, heard })
    }

    /// The one host that each guest is heard from.
    fn places(&self) -> anyhow::Result<Vec<usize>> {
        let place = |name: &str| {
            let host = wait_for(&format!("{name} is heard from one host"), START_DEADLINE, || {
                <[String; 1]>::try_from(self.observer.runs_on(name)).ok()
            })?;
            self.stage.host_index(&host[0])
        };
        self.stage.guests.iter().map(|guest| place(&guest.name)).collect()
    }

    fn aim(&self, one: &Move, places: &[usize]) -> Aim {
        let source = places[one.guest];
        let stays = one.files.is_some_and(|files| files.guest_stays);
        let destination = if stays { source } else { (source + one.step) % self.stage.hosts().len() };
        Aim { guest: self.stage.guests[one.guest].name.clone(), job: None, source, destination }
    }

    fn start_movers(&self, places: &[usize]) -> anyhow::Result<Vec<Mover>> {
        self.plan.moves.iter().map(|one| Mover::start(self.stage, one, &self.aim(one, places), self.plan.run)).collect()
    }

    /// Waits for the moment, injects the fault, and repairs it when its time is over.
    fn strike(&mut self, mut aim: Aim, movers: &[Mover]) -> anyhow::Result<(Option<String>, Duration)> {
        let answer = wait_for("the move is accepted or refused", ACCEPT_DEADLINE, || movers[0].answered());
        aim.job = answer.ok().flatten();
        match self.plan.moment {
            Moment::After(ms) => sleep(Duration::from_millis(ms)),
            Moment::Disks(offset_ms) => {
                if self.wait_disk(&aim, |disk| disk.copied.0 > 0 && disk.stage == DiskStage::Copying) {
                    sleep(Duration::from_millis(offset_ms));
                }
            }
            Moment::Memory(offset_ms) => {
                if self.wait_disk(&aim, |disk| disk.stage == DiskStage::Ready) {
                    sleep(Duration::from_millis(offset_ms));
                }
            }
            Moment::HandOver(offset_ms) => {
                if self.wait_hand_over(&aim) {
                    sleep(Duration::from_millis(offset_ms));
                }
            }
            Moment::Arrival(offset_ms) => {
                if self.wait_arrival(&aim) {
                    sleep(Duration::from_millis(offset_ms));
                }
            }
        }
        let kind = self.plan.kind;
        let at = now();
        let hit = inflict(self.stage, &self.observer, kind, &aim, self.plan.run)?;
        if kind.is_host() {
            self.note_death(if kind == Kind::SourceHost { aim.source } else { aim.destination }, at);
        }
        if hit.is_some() && kind.is_healed() {
            sleep(Duration::from_millis(self.plan.away_ms));
        }
        faults::heal(self.stage, kind, &aim)?;
        if hit.is_some() && kind.runs_again_soon() {
            self.due = Some((aim.guest, now()));
        }
        let Some(Hit { description, act, aliased }) = hit else { return Ok((None, at)) };
        (self.act, self.aliased) = (act, aliased);
        Ok((Some(description), at))
    }

    /// Whether the state of the move's disk satisfied `is`; false if the job ended first, or at the time limit.
    fn wait_disk(&self, aim: &Aim, is: impl Fn(&DiskProgress) -> bool) -> bool {
        let Some(job) = aim.job else { return false };
        let seen = wait_for("the disk is so far", PHASE_DEADLINE, || {
            let jobs = self.stage.jobs_after(self.jobs_before).ok()?;
            let view = jobs.into_iter().find(|view| view.id.0 == job)?;
            let is_there = view.disks.first().is_some_and(&is);
            (is_there || view.phase.ended()).then_some(is_there)
        });
        seen.unwrap_or(false)
    }

    /// Whether the guest was stopped for its hand-over; false if its QEMU is gone from the source, or at the time
    /// limit.
    fn wait_hand_over(&self, aim: &Aim) -> bool {
        let Some(mut processor) = Processor::find(&self.stage.hosts()[aim.source], &aim.guest) else { return false };
        let until = Instant::now() + HAND_OVER_DEADLINE;
        while Instant::now() < until {
            match processor.idle_for() {
                None => return false,
                Some(idle) if idle >= STOPPED => return true,
                Some(_) => sleep(Duration::from_millis(2)),
            }
        }
        false
    }

    /// Whether the guest was heard from its destination; false if its job ended first, or at the time limit.
    fn wait_arrival(&self, aim: &Aim) -> bool {
        let destination = &self.stage.hosts()[aim.destination].name;
        let arrived = || self.observer.last(&aim.guest).is_some_and(|heard| heard.host == *destination).then_some(());
        wait_for("it arrives", ARRIVAL_DEADLINE, arrived).is_ok()
    }

    /// Records which guests have no QEMU any more on the living host where they were last heard.
    fn note_death(&mut self, place: usize, at: Duration) {
        self.death = Some(Death { host: self.stage.hosts()[place].name.clone(), at });
        sleep(COPY_ENDS);
        let has_copy = |name: &str| {
            let last = self.observer.last(name)?;
            let host = self.stage.hosts().iter().find(|host| host.name == last.host)?;
            Some(has_qemu(host, name))
        };
        let names = self.stage.guests.iter().map(|guest| guest.name.clone());
        self.ended_copies = names.filter(|name| has_copy(name) == Some(false)).collect();
    }

    /// Waits until every guest is well and every job has ended, or until no more can be expected, and a little longer.
    /// Returns the guests that may be silent, with the reason.
    fn settle(&mut self, calm: Duration, within: Duration) -> anyhow::Result<BTreeMap<String, String>> {
        let until = calm + within;
        loop {
            self.ask_jobs();
            let excuses = self.excuses();
            let is_well = |name: &str| judge::is_well(&self.observer.heard(name), calm, now());
            let unwell: Vec<&str> =
                self.stage.guests.iter().map(|guest| guest.name.as_str()).filter(|name| !is_well(name)).collect();
            let all_is_well = unwell.is_empty() && self.all_ended();
            let gone_at = self.death.as_ref().map(|death| death.at).or(self.act.as_ref().map(|act| act.done));
            let none_can_return = gone_at.is_some_and(|at| now() > at + RETURN_WITHIN)
                && unwell.iter().all(|name| excuses.contains_key(*name))
                && self.jobs.iter().all(|job| judge::of_job(job, self.answers).is_none());
            if all_is_well || none_can_return || now() > until {
                let unverified = unwell.iter().find(|name| !self.observer.runs_on(name).is_empty());
                if let Some(name) = unverified.filter(|name| !self.is_broken(name)) {
                    anyhow::bail!("{name} is heard, but did not verify its memory and disk in time");
                }
                sleep(AFTERWARDS);
                return Ok(excuses);
            }
            sleep(POLL_EVERY);
        }
    }

    fn all_ended(&self) -> bool {
        self.answers && self.jobs.iter().all(|job| job.phase.ended())
    }

    fn is_broken(&self, name: &str) -> bool {
        !judge::of_guest(name, &self.observer.heard(name), now(), None).is_empty()
    }

    fn judge(&self, excuses: &BTreeMap<String, String>) -> Vec<Case> {
        let mut cases = self.judge_guests(excuses);
        cases.extend(self.jobs.iter().filter_map(|job| judge::of_job(job, self.answers)));
        cases.extend(self.judge_disks(excuses));
        let late = self
            .due
            .as_ref()
            .and_then(|(name, from)| judge::late(name, &self.observer.heard(name), *from, RUNS_WITHIN));
        // A guest that does not run at all is already reported as lost.
        cases.extend(late.filter(|_| !cases.iter().any(|case| case.broken == Broken::Lost)));
        cases
    }

    /// Checks that need further actions: libvirt's state of guests that are heard; and that a guest that was shut off,
    /// and a clone, start again.
    fn judge_afterwards(&self, excuses: &BTreeMap<String, String>) -> anyhow::Result<Vec<Case>> {
        let mut cases = self.judge_states(excuses);
        if let Some(aliased) = &self.aliased {
            cases.extend(aliased.judge(self.stage, &self.observer)?);
        }
        if let Some(act) = self.act.as_ref().filter(|act| excuses.contains_key(&act.guest)) {
            cases.extend(admin::start_again(self.stage, &self.observer, act));
        }
        Ok(cases)
    }

    /// A running guest that libvirt believes to be stopped would be refused every move.
    fn judge_states(&self, excuses: &BTreeMap<String, String>) -> Vec<Case> {
        let names = self.stage.guests.iter().map(|guest| &guest.name).filter(|name| !excuses.contains_key(*name));
        let judged = names.filter_map(|name| {
            let [host] = <[String; 1]>::try_from(self.observer.runs_on(name)).ok()?;
            let place = self.stage.host_index(&host).ok()?;
            let state = || admin::state(&self.stage.hosts()[place], name);
            let known = wait_for("it is known to run", KNOWN_WITHIN, || (state()? == "running").then_some(()));
            let text = || format!("{name} is heard from {host}, and is {:?} to its libvirt", state());
            known.is_err().then(|| Case { broken: Broken::Stuck, text: text() })
        });
        judged.collect()
    }

    fn judge_guests(&self, excuses: &BTreeMap<String, String>) -> Vec<Case> {
        let until = now();
        let judged = self.stage.guests.iter().flat_map(|guest| {
            let excuse = excuses.get(&guest.name).map(String::as_str);
            judge::of_guest(&guest.name, &self.observer.heard(&guest.name), until, excuse)
        });
        judged.collect()
    }

    fn ask_jobs(&mut self) {
        match self.stage.jobs_after(self.jobs_before) {
            Ok(jobs) => (self.jobs, self.answers) = (jobs, true),
            Err(_) => self.answers = false,
        }
    }

    fn excuses(&self) -> BTreeMap<String, String> {
        let excuse = |name: &String| {
            let heard = self.observer.heard(name);
            let dead =
                self.death.as_ref().and_then(|death| judge::excuse(&heard, death, self.ended_copies.contains(name)));
            let crashed =
                |host: &str| admin::state(self.stage.ferry.lab.host(host), name).as_deref() == Some("crashed");
            let by_act = || admin::excuse(&heard, self.act.as_ref().filter(|act| act.guest == *name)?, crashed);
            let why = dead.or_else(by_act)?;
            Some((name.clone(), format!("{name}: {why}")))
        };
        self.stage.guests.iter().filter_map(|guest| excuse(&guest.name)).collect()
    }

    fn judge_disks(&self, excuses: &BTreeMap<String, String>) -> Vec<Case> {
        let living = self.stage.guests.iter().filter(|guest| !excuses.contains_key(&guest.name));
        // Two copies write one disk, and each counts its own writes: that is part of the split, and not reported again.
        let single = living.filter(|guest| judge::split(&self.observer.heard(&guest.name)).is_none());
        let judged = single.filter_map(|guest| {
            let text = self.judge_disk(&guest.name).err()?;
            Some(Case { broken: Broken::Corrupt, text: format!("{}: {text}", guest.name) })
        });
        judged.collect()
    }

    fn judge_disk(&self, name: &str) -> Result<(), String> {
        let host = self.observer.last(name).map(|heard| heard.host).unwrap_or_default();
        let (path, format) = self.stage.disk_of(name, &host).map_err(|error| format!("{error:#}"))?;
        let data_mib = self.stage.data_mib();
        if !images::holds_data(&path, format, data_mib).map_err(|error| format!("{error:#}"))? {
            return Err(format!("{} does not hold the data that were in it from the beginning", path.display()));
        }
        let writes = || self.observer.last(name).map_or(0, |heard| heard.beat.writes);
        let mut outcome = Ok(());
        for _ in 0..DISK_READS {
            let before = writes();
            let disk = images::head(&path, format, judge::DISK_BYTES).map_err(|error| format!("{error:#}"))?;
            let sum = judge::sum_of_sequences(&disk);
            // A heartbeat that was sent after the file was read.
            let read = now();
            let beat =
                wait_for("a beat", Duration::from_secs(1), || self.observer.last(name).filter(|last| last.at > read));
            // A guest that has ended may have written after its last heartbeat: how much is unknown.
            let after = beat.is_ok().then(writes);
            outcome = sum.and_then(|sum| judge::of_disk(sum, before, after));
            if outcome.is_ok() {
                return Ok(());
            }
        }
        outcome
    }

    /// Restarts the dead host: open jobs must end, and guests that survived must still be well.
    fn welcome_back(
        &mut self,
        death: &Death,
        excuses: &BTreeMap<String, String>,
        cases: &mut Vec<Case>,
    ) -> anyhow::Result<()> {
        let place = self.stage.host_index(&death.host)?;
        self.stage.boot_again(place).with_context(|| format!("{} does not come back", death.host))?;
        let ended = wait_for("every job ends", SETTLE_WITHIN, || {
            self.ask_jobs();
            self.all_ended().then_some(())
        });
        if ended.is_err() {
            let open = self.jobs.iter().filter_map(|job| judge::of_job(job, self.answers));
            cases.extend(open.map(|case| Case { text: format!("{}, {} being back", case.text, death.host), ..case }));
        }
        sleep(AFTERWARDS);
        let known: Vec<Broken> = cases.iter().map(|case| case.broken).collect();
        cases.extend(self.judge_guests(excuses).into_iter().filter(|case| !known.contains(&case.broken)));
        Ok(())
    }

    fn tidy(&mut self) -> Option<String> {
        if let Some(job) = self.jobs.iter().find(|job| !job.phase.ended()) {
            return Some(format!("job {} is {}: {}", job.id, job.phase.title(), job.summary));
        }
        self.stage.tidy(&self.observer).err().map(|error| format!("{error:#}"))
    }
}
