//! Plans a run: a pure function of the seed and the run's number, so that a seed reproduces its plans.

use std::fmt;

use ferry_core::vm::DiskFormat;

use super::kind::{Comes, Kind};
use crate::images::Place;

/// Number of guests of the stage.
pub const GUESTS: usize = 2;
/// Number of hosts of the stage.
pub const HOSTS: usize = 3;
/// Longest delay of a move, and of an unaimed fault, after the event that it follows. Milliseconds.
const DELAY_MS_MAX: u64 = 600;
const FAULT_MS_MAX: u64 = 3_000;
/// Longest delay of a cancellation after the job was accepted: some come after the move. Milliseconds.
const CANCEL_MS_MAX: u64 = 3_000;
/// The hand-over of a small guest lasts several hundred milliseconds: the fault comes during it, or shortly afterwards.
const OFFSET_MS_MAX: u64 = 250;
/// Copying a disk of the stage, and sending its guest's memory, take several seconds: the fault comes during them.
const PHASE_MS_MAX: u64 = 2_000;
/// How long a killed program is down. Milliseconds.
const AWAY_MS: (u64, u64) = (2_000, 20_000);
/// How long a link is cut. Milliseconds.
const CUT_MS: (u64, u64) = (1_000, 60_000);
/// A fault that delays the reply of a hand-over must begin with the hand-over, or there is no reply left to delay.
const AT_ONCE_MS_MAX: u64 = 20;
/// A clone is made at the beginning of a copy: when the copy ends, the fate of the old file is decided.
const CLONE_MS_MAX: u64 = 500;
/// Bandwidth limits that extend a move to several seconds. MiB per second.
const BANDWIDTH_MIB_PER_S: (u64, u64) = (10, 40);

/// When the fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// This long after the first move was accepted. Milliseconds.
    After(u64),
    /// This long after the copy of the first move's disk has progressed. Milliseconds.
    Disks(u64),
    /// This long after the first move's disk was in sync, while memory is sent. Milliseconds.
    Memory(u64),
    /// This long after the first move's guest was stopped for its hand-over. Milliseconds.
    HandOver(u64),
    /// This long after the first move's guest was heard from its destination. Milliseconds.
    Arrival(u64),
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::After(ms) => format!("accepted+{ms}ms"),
            Self::Disks(ms) => format!("disks+{ms}ms"),
            Self::Memory(ms) => format!("memory+{ms}ms"),
            Self::HandOver(ms) => format!("hand-over+{ms}ms"),
            Self::Arrival(ms) => format!("arrival+{ms}ms"),
        };
        f.pad(&text)
    }
}

/// One move of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The guest's index, from 0.
    pub guest: usize,
    /// Distance to the destination, in hosts, circularly: 1 to [`HOSTS`] − 1.
    pub step: usize,
    /// Delay of the request after the run's start. Milliseconds.
    pub delay_ms: u64,
    /// Bandwidth limit. MiB per second.
    pub bandwidth_mib_per_s: Option<u64>,
    /// Delay of the cancellation after acceptance. Milliseconds.
    pub cancel_ms: Option<u64>,
    /// The destination of its disk; `None`: the disk stays on the share.
    pub files: Option<Files>,
}

/// The destination of a moving guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    /// The share, or the local disk of the host that the guest is on afterwards.
    pub place: Place,
    /// The format of the copy.
    pub format: DiskFormat,
    /// Whether the guest stays on its host, and only the disk moves.
    pub guest_stays: bool,
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Share => "the share",
            Place::Local => "the host",
        };
        write!(f, "disk to {place} as {}", self.format.name())
    }
}

/// The plan of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The campaign's seed.
    pub seed: u64,
    /// The run's number, from 1.
    pub run: u64,
    /// The moves; the fault is aimed at the first, whose ends are the source and the destination of [`Plan::kind`].
    pub moves: Vec<Move>,
    /// The kind of fault.
    pub kind: Kind,
    /// When it happens.
    pub moment: Moment,
    /// How long the killed program is down, or the link is cut. Milliseconds.
    pub away_ms: u64,
}

impl Plan {
    /// The plan of a run, with or without migrated disks. `kinds` are the kinds to choose from; empty means all, at
    /// random. Given kinds are used in turn, so that as many runs as kinds cover each once.
    pub fn new(seed: u64, run: u64, kinds: &[Kind], storage: bool) -> Self {
        // Each run has its own random stream: run 7 is the same in a campaign of 10 and of 1,000.
        let mut random = SplitMix64::new(SplitMix64::new(seed ^ run.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next());
        let kind = match kinds {
            [] => *random.pick(&Kind::all(storage)),
            some => some[((run - 1) % some.len() as u64) as usize],
        };
        let comes = kind.comes();
        let half = random.chance(50);
        let aimed = comes == Comes::InHandOver || comes == Comes::Anytime && half;
        let (offset_ms, moment) = if aimed {
            let offset_ms = random.below(OFFSET_MS_MAX + 1);
            (offset_ms, Moment::HandOver(offset_ms))
        } else {
            let offset_ms = random.below(FAULT_MS_MAX + 1);
            (offset_ms, Moment::After(offset_ms))
        };
        let moment = match comes {
            Comes::Anytime | Comes::Before => moment,
            Comes::InHandOver => Moment::HandOver(offset_ms % (AT_ONCE_MS_MAX + 1)),
            Comes::Afterwards => Moment::Arrival(offset_ms % (OFFSET_MS_MAX + 1)),
            Comes::AtCopy => Moment::Disks(offset_ms % (CLONE_MS_MAX + 1)),
        };
        let away_ms = if kind == Kind::Link { random.skewed(CUT_MS, 4) } else { random.skewed(AWAY_MS, 3) };
        let mut moves = vec![random.a_move(0, aimed || comes == Comes::Afterwards)];
        if comes == Comes::Before {
            moves[0].bandwidth_mib_per_s = Some(BANDWIDTH_MIB_PER_S.0);
        }
        if random.chance(40) {
            let second = random.a_move(DELAY_MS_MAX, false);
            moves.push(Move { guest: 1 - moves[0].guest, ..second });
        }
        let plan = Self { seed, run, moves, kind, moment, away_ms };
        if storage { plan.with_storage() } else { plan }
    }

    /// The same plan with moving disks, alone or together with their guests; their copies take several seconds.
    fn with_storage(mut self) -> Self {
        // A separate random stream, so that plans without storage stay the same.
        let mut random =
            SplitMix64::new(SplitMix64::new(!self.seed ^ self.run.wrapping_mul(0x9e37_79b9_7f4a_7c15)).next());
        let needs_two_hosts = self.kind.needs_two_hosts();
        for (index, one) in self.moves.iter_mut().enumerate() {
            let place = *random.pick(&[Place::Share, Place::Local]);
            let format = *random.pick(&[DiskFormat::Raw, DiskFormat::Qcow2]);
            let guest_stays = random.chance(40) && !(index == 0 && needs_two_hosts);
            one.files = Some(Files { place, format, guest_stays });
            let cap = cap_of(&mut random);
            if random.chance(60) {
                one.bandwidth_mib_per_s = Some(one.bandwidth_mib_per_s.unwrap_or(cap));
            }
        }
        let first = &mut self.moves[0];
        let stays = first.files.is_some_and(|files| files.guest_stays);
        if self.kind == Kind::AdminMigrate {
            // Plain `virsh migrate` needs the disk at the third host.
            first.files = first.files.map(|files| Files { place: Place::Share, ..files });
        }
        match self.kind.comes() {
            // A guest that stays on its host is never paused.
            Comes::Anytime | Comes::Before if stays => self.moment = Moment::After(random.below(FAULT_MS_MAX + 1)),
            Comes::Anytime if random.chance(50) => {
                let offset_ms = random.below(PHASE_MS_MAX + 1);
                self.moment = if random.chance(50) { Moment::Disks(offset_ms) } else { Moment::Memory(offset_ms) };
                first.bandwidth_mib_per_s = Some(first.bandwidth_mib_per_s.unwrap_or(cap_of(&mut random)));
            }
            Comes::Anytime | Comes::Before => {}
            // The fault waits for this moment: a bandwidth limit would delay it.
            Comes::InHandOver | Comes::Afterwards => first.bandwidth_mib_per_s = None,
            Comes::AtCopy => {
                first.bandwidth_mib_per_s = Some(BANDWIDTH_MIB_PER_S.0);
                first.cancel_ms = None;
            }
        }
        self
    }

    /// A plan in which a guest moves to the next host with its disk, and meets this fault.
    pub fn with_disks(run: u64, kind: Kind, moment: Moment) -> Self {
        let format = if run.is_multiple_of(2) { DiskFormat::Raw } else { DiskFormat::Qcow2 };
        let one = Move {
            guest: 0,
            step: 1,
            delay_ms: 0,
            // Slow enough to be hit in each phase, except in the hand-over, which a bandwidth limit would delay.
            bandwidth_mib_per_s: (!matches!(moment, Moment::HandOver(_))).then_some(BANDWIDTH_MIB_PER_S.0),
            cancel_ms: None,
            files: Some(Files { place: Place::Local, format, guest_stays: false }),
        };
        let away_ms = if kind == Kind::Link { 3 * AWAY_MS.0 } else { AWAY_MS.0 };
        // Not a random plan: one number for each moment, so that the results of parallel campaigns are stored
        // separately.
        let seed = match moment {
            Moment::After(_) => 0,
            Moment::Disks(_) => 1,
            Moment::Memory(_) => 2,
            Moment::HandOver(_) => 3,
            Moment::Arrival(_) => 4,
        };
        Self { seed, run, moves: vec![one], kind, moment, away_ms }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} run {}: {} at {}", self.seed, self.run, self.kind, self.moment)?;
        if self.kind.is_healed() {
            write!(f, " for {} ms", self.away_ms)?;
        }
        for one in &self.moves {
            match one.files.filter(|files| files.guest_stays) {
                Some(_) => write!(f, "; guest {} stays, after {} ms its", one.guest + 1, one.delay_ms)?,
                None => write!(f, "; guest {} moves {} host(s) on after {} ms", one.guest + 1, one.step, one.delay_ms)?,
            }
            if let Some(files) = one.files {
                write!(f, " {files}")?;
            }
            if let Some(cap) = one.bandwidth_mib_per_s {
                write!(f, " at {cap} MiB/s")?;
            }
            if let Some(ms) = one.cancel_ms {
                write!(f, ", cancelled {ms} ms after it was accepted")?;
            }
        }
        Ok(())
    }
}

fn cap_of(random: &mut SplitMix64) -> u64 {
    let (least, most) = BANDWIDTH_MIB_PER_S;
    least + random.below(most - least + 1)
}

/// A small generator of random numbers: sufficient for choices, and the same everywhere and always. Source: Steele,
/// Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bounds here are far below 2^32, so the bias is negligible.
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    /// A number from `least` to `most`, more often low: the higher the power, the lower.
    fn skewed(&mut self, (least, most): (u64, u64), power: u32) -> u64 {
        let share = self.below(1_001) as f64 / 1_000.0;
        least + ((most - least) as f64 * share.powi(power as i32)) as u64
    }

    /// A move. If a fault waits for its hand-over (`awaited`), it is not slowed, and seldom cancelled.
    fn a_move(&mut self, delay_ms_max: u64, awaited: bool) -> Move {
        let guest = self.below(GUESTS as u64) as usize;
        let step = 1 + self.below(HOSTS as u64 - 1) as usize;
        let delay_ms = self.below(delay_ms_max + 1);
        let cap = cap_of(self);
        let bandwidth_mib_per_s = (self.chance(35) && !awaited).then_some(cap);
        let cancel = self.below(CANCEL_MS_MAX + 1);
        let cancel_ms = self.chance(if awaited { 10 } else { 30 }).then_some(cancel);
        Move { guest, step, delay_ms, bandwidth_mib_per_s, cancel_ms, files: None }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn the_generator_gives_its_published_numbers() {
        let mut random = SplitMix64::new(1_234_567);
        let numbers: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn a_seed_replays_its_plans_whatever_the_number_of_runs() {
        for run in 1..=50 {
            assert_eq!(Plan::new(7, run, &[], false), Plan::new(7, run, &[], false));
        }
        let kinds = |seed| (1..=50).map(|run| Plan::new(seed, run, &[], false).kind).collect::<Vec<_>>();
        assert_ne!(kinds(7), kinds(8));
    }

    #[test]
    fn plans_stay_within_their_bounds_and_reach_everything() {
        let plans: Vec<Plan> = (1..=1_000).map(|run| Plan::new(3, run, &[], false)).collect();
        for kind in Kind::value_variants() {
            let comes = plans.iter().any(|plan| plan.kind == *kind);
            assert_eq!(comes, !kind.needs_storage(), "{kind} comes: {comes}");
        }
        let aimed = plans.iter().filter(|plan| matches!(plan.moment, Moment::HandOver(_))).count();
        assert!((400..=550).contains(&aimed), "{aimed} of 1,000 are aimed at the hand-over");
        assert!(plans.iter().any(|plan| plan.moves.len() == 2 && plan.moves[0].cancel_ms.is_some()));
        let cuts = plans.iter().filter(|plan| plan.kind == Kind::Link).map(|plan| plan.away_ms);
        assert!(cuts.clone().all(|ms| (1_000..=60_000).contains(&ms)) && cuts.max() > Some(30_000));
        for plan in &plans {
            assert!(plan.kind == Kind::Link || (2_000..=20_000).contains(&plan.away_ms), "{plan}");
            assert!(plan.moves.iter().all(|one| one.guest < GUESTS && (1..HOSTS).contains(&one.step)), "{plan}");
            assert!(plan.moves.len() == 1 || plan.moves[0].guest != plan.moves[1].guest, "{plan}");
        }
        let mean = plans.iter().map(|plan| plan.away_ms).sum::<u64>() / 1_000;
        assert!(mean < 9_000, "what is killed is away for {mean} ms on average");
    }

    #[test]
    fn with_storage_disks_move_everywhere_in_every_way_and_the_rest_stays() {
        let plans: Vec<Plan> = (1..=500).map(|run| Plan::new(5, run, &[], true)).collect();
        let files: Vec<Files> = plans.iter().flat_map(|plan| &plan.moves).filter_map(|one| one.files).collect();
        for place in [Place::Share, Place::Local] {
            for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
                for guest_stays in [true, false] {
                    assert!(files.contains(&Files { place, format, guest_stays }));
                }
            }
        }
        for in_phase in [|moment| matches!(moment, Moment::Disks(_)), |moment| matches!(moment, Moment::Memory(_))] {
            assert!(plans.iter().filter(|plan| in_phase(plan.moment)).count() > 50);
        }
        for (plan, run) in plans.iter().zip(1..) {
            assert_eq!(plan.moves.len(), Plan::new(5, run, &[], false).moves.len());
            assert_eq!(*plan, Plan::new(5, run, &[], true));
            let stays = plan.moves[0].files.is_some_and(|files| files.guest_stays);
            assert!(!stays || matches!(plan.moment, Moment::After(_)) || plan.kind == Kind::Alias, "{plan}");
            assert!(!stays || !plan.kind.needs_two_hosts(), "{plan}");
        }
        for kind in Kind::value_variants() {
            assert!(plans.iter().any(|plan| plan.kind == *kind), "{kind} never comes");
        }
    }

    #[test]
    fn what_can_come_at_one_moment_only_comes_then_with_storage_too() {
        for storage in [false, true] {
            for (kind, is_then) in [
                (Kind::SourceLibvirtdBeforeFinish, (|moment| matches!(moment, Moment::HandOver(0..=20))) as fn(_) -> _),
                (Kind::SourceLibvirtdAfterFinish, |moment| matches!(moment, Moment::HandOver(0..=20))),
                (Kind::AdminMigrate, |moment| matches!(moment, Moment::Arrival(0..=250))),
                (Kind::AdminStart, |moment| matches!(moment, Moment::HandOver(0..=20))),
                (Kind::GuestCrash, |moment| matches!(moment, Moment::After(_))),
                (Kind::Alias, |moment| matches!(moment, Moment::Disks(0..=500))),
            ] {
                for run in 1..=100 {
                    let plan = Plan::new(11, run, &[kind], storage);
                    assert!(is_then(plan.moment), "{plan}");
                }
            }
        }
    }

    #[test]
    fn given_kinds_come_in_turn() {
        let kinds = [Kind::Smbd, Kind::Link];
        let planned: Vec<Kind> = (1..=4).map(|run| Plan::new(1, run, &kinds, false).kind).collect();
        assert_eq!(planned, [Kind::Smbd, Kind::Link, Kind::Smbd, Kind::Link]);
    }
}
