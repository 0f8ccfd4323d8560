//! Which codec the frames of a live move's stream are sent in.
//!
//! ```text
//! Raw ── the link is measured, and a codec gets the bytes across sooner ─▶ coded
//! coded ── raw would be as fast · the host's CPUs are crowded · it is time to measure the link again ─▶ cheaper, or Raw
//! ```
//! A frame is encoded while the one before it is sent, so a plain byte takes as long as the slower of the two: encoding it,
//! or sending what it becomes. [`next`] chooses the codec for which that is shortest, from what was measured: how fast
//! the link takes bytes, and what each codec makes of this stream ([`Yield`]). Guests come first: a codec that needs
//! more CPU is chosen only while a CPU is idle, and given up when others wait for one ([`CpuLoad`]).
//!
//! Encoders measure once an [`INTERVAL`]. A codec is kept for at least a second, and after a step to a cheaper one a
//! deeper one has to wait longer. Near the switchover nothing is tried: QEMU has measured the rate that it relies on.

mod choice;
mod gain;
mod skip;
mod yields;

use std::time::Duration;

use crate::switchover::Law;

pub use self::{
    choice::{CANDIDATES, Choice},
    gain::{Gain, NO_GAIN_PERCENT},
    skip::{Skip, shrinks},
    yields::{Trials, Yield},
};

/// How often an encoder measures and chooses: several round trips of most links.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// The link's rate is not measured earlier after a change: what was in flight before is gone by then, and the window has
/// found its size.
const SETTLING: Duration = Duration::from_millis(500);
/// A codec is kept for as long, unless raw is faster or the host's CPUs are crowded.
const DWELL: Duration = Duration::from_secs(1);
/// A deeper codec is not chosen for as long after a step to a cheaper one, so that equals do not take turns.
const PAUSE: Duration = Duration::from_secs(4);
/// The same after a step that crowded CPUs forced: as long as the kernel averages their pressure.
const PAUSE_OF_CROWDED: Duration = Duration::from_secs(10);
/// How long a measured rate of the link is believed while the encoder is the limit, at first and at most. To measure it
/// again takes [`SETTLING`] without a codec: at most a fifth of the time, later less than 2 %.
const BELIEF_MIN: Duration = Duration::from_secs(2);
const BELIEF_MAX: Duration = Duration::from_secs(30);
/// Another codec must be faster by this factor.
const WORTH: f64 = 1.15;
/// The current codec may be slower than raw by this factor: less is noise.
pub const WORSE_THAN_RAW_MAX: f64 = 1.1;
/// A codec is free where the input is the limit, if it needs no more than this share of a CPU for it.
const FREE_CPU: f64 = 0.25;
/// CPUs that must be idle for each encoder before it takes more of them.
const IDLE_CPUS_MIN: f64 = 1.0;
/// Less idle than this is none, as far as a sample of a second shows.
const IDLE_CPUS_NONE: f64 = 0.25;
/// Share of the last 10 s, in percent, in which some task waited for a CPU, from which on they are crowded.
const CROWDED_PERCENT: f64 = 25.0;

/// The host's CPUs in the last second or more.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuLoad {
    /// How many CPUs were idle. `None`: not known.
    pub idle_cpus: Option<f64>,
    /// Share of the last 10 s, in percent, in which some task waited for a CPU (PSI). `None`: the kernel does not tell.
    pub some_percent: Option<f64>,
}

/// What a [`CpuLoad`] lets an encoder do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// A CPU is idle, or nothing is known: it may take more.
    More,
    /// It may go on, and take no more.
    Same,
    /// Others wait for a CPU: it must take less.
    Less,
}

impl CpuLoad {
    /// What it lets an encoder do. On a host of many CPUs some tasks always wait (for one CPU, or at a quota): that
    /// counts only where no CPU is idle.
    pub fn room(self) -> Room {
        let is_idle = |cpus: f64| self.idle_cpus.is_some_and(|idle| idle >= cpus);
        match self.some_percent {
            _ if is_idle(IDLE_CPUS_MIN) => Room::More,
            Some(some) if some >= CROWDED_PERCENT => Room::Less,
            None if self.idle_cpus.is_some() && !is_idle(IDLE_CPUS_NONE) => Room::Less,
            None if self.idle_cpus.is_none() => Room::More,
            Some(_) | None => Room::Same,
        }
    }

    /// The same CPUs, as each of `encoders` sees them that run at once.
    #[must_use]
    pub fn shared(self, encoders: u8) -> Self {
        Self { idle_cpus: self.idle_cpus.map(|idle| idle / f64::from(encoders.max(1))), ..self }
    }
}

/// What the stream had to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Its local socket.
    Input,
    /// The encoder.
    Encoder,
    /// The lane, or acknowledgements: whatever lies behind the encoder.
    Link,
}

/// What an encoder did in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    /// The share of the time in which it encoded, 0 to 1.
    pub encoding: f64,
    /// The share in which it waited for its lane.
    pub lane: f64,
    /// Whether the window was full.
    pub held_back: bool,
}

impl Shares {
    /// What the stream had to wait for.
    pub fn limit(self) -> Limit {
        if self.encoding >= 0.8 {
            Limit::Encoder
        } else if self.held_back || self.lane >= 0.1 {
            Limit::Link
        } else {
            Limit::Input
        }
    }
}

/// What was measured in the last interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Plain bytes that the encoder took, per second.
    pub input_bytes_per_s: f64,
    /// Bytes on the wire that the other end acknowledged, per second.
    pub wire_bytes_per_s: f64,
    /// What the stream had to wait for.
    pub limit: Limit,
    /// What each of the [`CANDIDATES`] makes of the stream. `None`: not tried, or not agreed with the peer.
    pub yields: [Option<Yield>; CANDIDATES.len()],
    /// The host's CPUs.
    pub cpu: CpuLoad,
    /// Whether the switchover is near.
    pub law: Law,
}

/// The rate of a link.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Link {
    bytes_per_s: f64,
    /// When it was measured.
    at: Duration,
}

/// What an encoder has chosen and keeps in mind. Times count from the channel's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct State {
    choice: Choice,
    /// When it was chosen.
    since: Duration,
    /// `None`: not measured yet.
    link: Option<Link>,
    /// How often the link was measured again because the encoder was the limit.
    rechecks: u32,
    /// No deeper codec before.
    paused_until: Duration,
}

impl State {
    /// The codec of the next frames.
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// How fast the link takes bytes, if that was measured.
    pub fn link_bytes_per_s(&self) -> Option<f64> {
        self.link.map(|link| link.bytes_per_s)
    }

    fn with(self, choice: Choice, now: Duration) -> Self {
        Self { choice, since: now, ..self }
    }

    fn paused(self, now: Duration, pause: Duration) -> Self {
        Self { paused_until: self.paused_until.max(now + pause), ..self }
    }

    /// The rate of the link is measured where the link is the limit; elsewhere it is at least what was acknowledged. It
    /// rises at once, and falls by half of the difference.
    fn measured(self, rates: &Rates, now: Duration) -> Self {
        let wire = rates.wire_bytes_per_s;
        let is_settled = now.saturating_sub(self.since) >= SETTLING;
        let link = match (self.link, rates.limit) {
            (None, Limit::Link) if is_settled && wire > 0.0 => Some(Link { bytes_per_s: wire, at: now }),
            (Some(link), Limit::Link) if is_settled && wire > 0.0 => {
                Some(Link { bytes_per_s: wire.max(f64::midpoint(link.bytes_per_s, wire)), at: now })
            }
            (Some(link), _) => Some(Link { bytes_per_s: link.bytes_per_s.max(wire), ..link }),
            (None, _) => None,
        };
        Self { link, ..self }
    }

    /// Whether the link's rate is too old to be believed.
    fn is_doubtful(&self, now: Duration) -> bool {
        let belief = BELIEF_MIN.saturating_mul(1 << self.rechecks.min(4)).min(BELIEF_MAX);
        self.link.is_none_or(|link| now.saturating_sub(link.at) >= belief)
    }
}

/// How long a plain byte takes in this codec, in seconds. `None`: not known.
pub fn seconds_per_byte(choice: Choice, state: &State, rates: &Rates) -> Option<f64> {
    let input = match rates.limit {
        Limit::Input if rates.input_bytes_per_s > 0.0 => 1.0 / rates.input_bytes_per_s,
        Limit::Input | Limit::Encoder | Limit::Link => 0.0,
    };
    let link = state.link.map_or(0.0, |link| 1.0 / link.bytes_per_s);
    let Yield { ratio, bytes_per_s } = match choice {
        Choice::Raw => return Some(link.max(input)),
        Choice::Lz4 | Choice::Zstd(_) | Choice::ZstdLong(_) => rates.yields[depth(choice)?.checked_sub(1)?]?,
    };
    Some((link / ratio).max(1.0 / bytes_per_s).max(input))
}

/// Its place among the candidates, from 1; 0 for raw.
fn depth(choice: Choice) -> Option<usize> {
    match choice {
        Choice::Raw => Some(0),
        Choice::Lz4 | Choice::Zstd(_) | Choice::ZstdLong(_) => {
            CANDIDATES.iter().position(|candidate| *candidate == choice).map(|place| place + 1)
        }
    }
}

fn at_depth(depth: usize) -> Choice {
    depth.checked_sub(1).and_then(|place| CANDIDATES.get(place).copied()).unwrap_or_default()
}

/// The choice for the next interval, from the one before and what was measured until `now`.
pub fn next(before: &State, rates: &Rates, now: Duration) -> State {
    let state = before.measured(rates, now);
    let depth = depth(state.choice).unwrap_or_default();
    let room = rates.cpu.room();
    if room == Room::Less {
        let state = state.paused(now, PAUSE_OF_CROWDED);
        // The load shows a step only after a while.
        let is_due = now.saturating_sub(state.since) >= DWELL;
        return if depth > 0 && is_due { state.with(at_depth(depth - 1), now) } else { state };
    }
    if rates.law == Law::Tail {
        return state;
    }
    if depth > 0 && rates.limit == Limit::Encoder && state.is_doubtful(now) {
        // Only raw shows whether the link would be faster.
        return State { rechecks: state.rechecks + 1, ..state.with(Choice::Raw, now) };
    }
    if state.link.is_none() && rates.limit != Limit::Input {
        return state;
    }
    let time = |choice| seconds_per_byte(choice, &state, rates);
    let raw = time(Choice::Raw).unwrap_or_default();
    let Some(current) = time(state.choice).filter(|current| *current <= raw * WORSE_THAN_RAW_MAX || depth == 0) else {
        return state.with(Choice::Raw, now).paused(now, PAUSE);
    };
    let stays = if depth == 0 { SETTLING } else { DWELL };
    if now.saturating_sub(state.since) < stays {
        return state;
    }
    let deepest = if room == Room::More && now >= state.paused_until { CANDIDATES.len() } else { depth };
    let chosen = match rates.limit {
        Limit::Input => fewest_bytes(rates, deepest),
        Limit::Encoder | Limit::Link => fastest(time, deepest).filter(|(_, best)| best * WORTH <= current),
    };
    match chosen {
        Some((choice, _)) if choice != state.choice => {
            let is_deeper = self::depth(choice) > Some(depth);
            let state = state.with(choice, now);
            if is_deeper { state } else { state.paused(now, PAUSE) }
        }
        Some(_) | None => state,
    }
}

/// The cheapest of those that take the least time, or hardly more, up to a depth.
fn fastest(time: impl Fn(Choice) -> Option<f64>, deepest: usize) -> Option<(Choice, f64)> {
    let timed = || (0..=deepest).map(at_depth).filter_map(|choice| Some((choice, time(choice)?)));
    let least = timed().map(|(_, time)| time).min_by(f64::total_cmp)?;
    timed().find(|(_, time)| *time <= least * 1.03)
}

/// The one that makes the fewest bytes, of those that take little of a CPU for this input, up to a depth: where the input
/// is the limit, none makes the move faster. `None`: none is free, and none need be given up.
fn fewest_bytes(rates: &Rates, deepest: usize) -> Option<(Choice, f64)> {
    let input = rates.input_bytes_per_s;
    let is_free = |found: &Yield| input > 0.0 && input <= FREE_CPU * found.bytes_per_s && found.ratio >= WORTH;
    let free = CANDIDATES.into_iter().zip(rates.yields).take(deepest).filter_map(|(choice, found)| {
        let found = found.filter(is_free)?;
        Some((choice, found.ratio))
    });
    free.reduce(|best, other| if other.1 >= best.1 * 1.03 { other } else { best })
}

#[cfg(test)]
mod tests;
