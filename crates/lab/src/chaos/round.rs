//! One run: moves, a fault among them, and what was seen until all is well or patience ends.
//!
//! ```text
//! moves begin ─▶ the moment comes ─▶ fault ─▶ away ─▶ heal ─▶ settle ─▶ judge ─▶ (host back ─▶ settle ─▶ judge)
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

/// How long after the last fault everything must be well.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// A sabotage is known to heal by nothing: it is not waited for longer than an untouched move takes.
pub const PATIENCE_WITH_SABOTAGE: Duration = Duration::from_secs(15);
/// How long the first move may take to be accepted, and its guest to fall silent. A plain move takes some seconds.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(10);
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(8);
/// How long a disk may take to be copied.
const PHASE_DEADLINE: Duration = Duration::from_secs(20);
/// A guest whose processor stands still for so long was stopped by QEMU: otherwise it wakes up every 2 ms.
const STOPPED: Duration = Duration::from_millis(20);
/// A guest beats every 10 ms; so long a silence is a hand-over rather than a busy machine.
const SILENT: Duration = Duration::from_millis(60);
/// How long a guest may take to be heard from one host before the run: on a new stage it has just been started.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// How long all is watched after it is well, for a second copy.
const AFTERWARDS: Duration = Duration::from_millis(1_500);
/// While a host is away some jobs cannot end, and a guest that it had cannot return: this long they are waited for. So it
/// is with a guest that somebody shut off.
const AWAY_PATIENCE: Duration = Duration::from_secs(12);
/// How long a guest may take to run again once its source's libvirtd is back, which had died in the hand-over.
const RUNS_WITHIN: Duration = Duration::from_secs(30);
/// How long a guest may take to be heard from its destination.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(30);
/// How long libvirt may take a guest that is heard for one that does not run.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);
/// libvirt ends the source's copy within this of a complete hand-over.
const COPY_ENDS: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the disk's file is read again when a write was just under way.
const DISK_READS: u32 = 5;

/// What is done to the fabric in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The plan's fault.
    Fault,
    /// Something that Ferry cannot be blamed for, and that must be found.
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
    pub fn tell(self, plan: &Plan) -> String {
        match self {
            Self::Fault => plan.to_string(),
            Self::Sabotage(sabotage) => format!("{} during or after one plain move", sabotage.broken()),
        }
    }
}

/// What came of a run.
pub struct Outcome {
    /// What the fault did; `None`: there was nothing to hit any more.
    pub hit: Option<String>,
    /// The first move's hand-over, as it was heard, and where the fault lies to it.
    pub silence: Option<Silence>,
    /// The jobs, as they were seen last.
    pub jobs: Vec<JobView>,
    /// Moves that were refused, with what was said.
    pub refused: Vec<String>,
    /// Broken promises.
    pub cases: Vec<Case>,
    /// Guests that went with a host that died, or were shut off, and why.
    pub excused: Vec<String>,
    /// What the harness could not make ready again; then a new stage is needed.
    pub untidy: Option<String>,
    /// What was heard, by guest.
    pub heard: BTreeMap<String, Vec<Heard>>,
}

/// A run that goes on.
struct Round<'a> {
    stage: &'a mut Stage,
    plan: &'a Plan,
    observer: Observer,
    /// Jobs up to this are of earlier runs.
    jobs_before: u64,
    jobs: Vec<JobView>,
    answers: bool,
    death: Option<Death>,
    /// What somebody did to the first move's guest.
    act: Option<Act>,
    /// What needs its old disk.
    aliased: Option<Aliased>,
    /// The first move's guest must run again within [`RUNS_WITHIN`] of this.
    due: Option<(String, Duration)>,
    /// Guests that have no QEMU any more on the living host that they were last heard from when a host had died.
    ended_copies: Vec<String>,
}

/// Plays a run.
///
/// # Errors
/// What kept the harness from playing or judging it.
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
            let said = mover.wait();
            // As they were accepted: should the server never answer again, this is what is known of them.
            self.jobs.extend(said.job);
            refused.extend(said.refusal);
        }
        let patience = if deed == Deed::Fault { PATIENCE } else { PATIENCE_WITH_SABOTAGE };
        let excuses = self.settle(now(), patience)?;
        let mut cases = self.judge(&excuses);
        if cases.is_empty() {
            cases = self.judge_afterwards(&excuses)?;
        }
        let back = self.death.take().map_or(Ok(()), |death| self.welcome_back(&death, &excuses, &mut cases));
        // Before it is tidied: guests that are started anew are none of this run's.
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

    /// Where each guest is heard from: one host.
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

    /// Waits for the moment, inflicts the fault, and heals it when its time is over.
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
        let Some(Hit { told, act, aliased }) = hit else { return Ok((None, at)) };
        (self.act, self.aliased) = (act, aliased);
        Ok((Some(told), at))
    }

    /// Whether the disk of the move was seen as `is` wants it; not if the job ended before, or never in time.
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

    /// Whether the guest was stopped for its hand-over; not if its QEMU is gone from the source, or never in time.
    fn wait_hand_over(&self, aim: &Aim) -> bool {
        let Some(mut processor) = Processor::find(&self.stage.hosts()[aim.source], &aim.guest) else { return false };
        let until = Instant::now() + HAND_OVER_DEADLINE;
        while Instant::now() < until {
            match processor.stands_still() {
                None => return false,
                Some(still) if still >= STOPPED => return true,
                Some(_) => sleep(Duration::from_millis(2)),
            }
        }
        false
    }

    /// Whether the guest was heard from its destination; not if its job ended before, or never in time.
    fn wait_arrival(&self, aim: &Aim) -> bool {
        let destination = &self.stage.hosts()[aim.destination].name;
        let arrived = || self.observer.last(&aim.guest).is_some_and(|heard| heard.host == *destination).then_some(());
        wait_for("it arrives", ARRIVAL_DEADLINE, arrived).is_ok()
    }

    /// Notes which guests have no QEMU any more where they were heard last, on a host that lives.
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

    /// Waits until every guest is well and every job has ended, or nothing more can be expected, and a little longer.
    /// Gives the guests that may be silent, and why.
    fn settle(&mut self, calm: Duration, patience: Duration) -> anyhow::Result<BTreeMap<String, String>> {
        let until = calm + patience;
        loop {
            self.ask_jobs();
            let excuses = self.excuses();
            let is_well = |name: &str| judge::is_well(&self.observer.heard(name), calm, now());
            let unwell: Vec<&str> =
                self.stage.guests.iter().map(|guest| guest.name.as_str()).filter(|name| !is_well(name)).collect();
            let all_is_well = unwell.is_empty() && self.all_ended();
            let gone_at = self.death.as_ref().map(|death| death.at).or(self.act.as_ref().map(|act| act.done));
            let none_can_return = gone_at.is_some_and(|at| now() > at + AWAY_PATIENCE)
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
            sleep(LOOK_EVERY);
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
        // One that does not run at all is lost already.
        cases.extend(late.filter(|_| !cases.iter().any(|case| case.broken == Broken::Lost)));
        cases
    }

    /// What is seen only by doing more: what libvirt says of guests that are heard; and a guest that was shut off starts again,
    /// and so does a clone.
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

    /// A guest that runs and is not known to do so is refused every move.
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
        // Two copies write one disk, and each counts its own writes: that is the split, no second finding.
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
            // A beat that was sent after the file was read.
            let read = now();
            let beat =
                wait_for("a beat", Duration::from_secs(1), || self.observer.last(name).filter(|last| last.at > read));
            // A guest that has ended may have written after its last beat: how much is not known.
            let after = beat.is_ok().then(writes);
            outcome = sum.and_then(|sum| judge::of_disk(sum, before, after));
            if outcome.is_ok() {
                return Ok(());
            }
        }
        outcome
    }

    /// The dead host comes back: what is open must end, and a guest that lived must still be well.
    fn welcome_back(
        &mut self,
        death: &Death,
        excuses: &BTreeMap<String, String>,
        cases: &mut Vec<Case>,
    ) -> anyhow::Result<()> {
        let place = self.stage.host_index(&death.host)?;
        self.stage.boot_again(place).with_context(|| format!("{} does not come back", death.host))?;
        let ended = wait_for("every job ends", PATIENCE, || {
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
