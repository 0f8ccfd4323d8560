//! Chooses the codec of each frame of a lane: measures, and lets [`ferry_core::compression`] decide.
//!
//! What each codec would make of the stream is measured on small samples of it, in all codecs: their result is not sent,
//! and their time is bounded ([`SAMPLE_BYTES`] in each codec, once an interval).

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use ferry_core::{
    compression::{CANDIDATES, Choice, CpuLoad, INTERVAL, Rates, Room, Shares, Skip, State, Trials, next},
    switchover::Law,
};
use tracing::debug;

use super::{
    assembly::FRAMES_MAX,
    coder::{Encoder, Sent},
};
use crate::{
    codec::{Codecs, Encoders, codec_of},
    frame::Codec,
};

/// Tells how busy the host's CPUs are. It is asked once in [`INTERVAL`] by each encoder, and must not block for long.
pub type CpuSource = Arc<dyn Fn() -> CpuLoad + Send + Sync>;

/// How a sender chooses among the codecs that were agreed.
#[derive(Clone, Default)]
pub struct Compression {
    /// This one for all frames, for instance to measure it. `None`: adapted to what is measured.
    pub fixed: Option<Choice>,
    /// The host's CPUs. `None`: nothing is known of them, and as much is used as helps.
    pub cpu: Option<CpuSource>,
}

impl fmt::Debug for Compression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Compression").field("fixed", &self.fixed).field("cpu", &self.cpu.is_some()).finish()
    }
}

/// Of a frame, a piece of this length is tried in all candidates: 1 to 3 ms, so about 1 % of a CPU.
const SAMPLE_BYTES: usize = 64 << 10;
/// Samples until the codecs can be compared, which are taken five times as often.
const FIRST_SAMPLES: u32 = 8;

/// The encoder of a lane.
pub(super) struct Adaptive {
    codecs: Codecs,
    lanes: u8,
    compression: Compression,
    encoders: Encoders,
    sampler: Sampler,
    skip: Skip,
    state: State,
    started: Instant,
    cpu: CpuLoad,
    law: Law,
    interval: Interval,
    /// Frames that are not acknowledged: their ends in the stream, and their bytes on the wire. At most [`FRAMES_MAX`].
    unacked: VecDeque<(u64, usize)>,
}

/// What was measured since it began.
struct Interval {
    began: Instant,
    plain: u64,
    /// Acknowledged bytes on the wire.
    wire: u64,
    encoding: Duration,
    lane: Duration,
    /// How often the window had been full at the interval's start.
    held_back: u64,
}

struct Sampler {
    encoders: Encoders,
    trials: Trials,
    samples: u32,
    last: Option<Instant>,
    coded: Vec<u8>,
}

impl Adaptive {
    /// The encoder of one of so many lanes.
    pub(super) fn new(codecs: Codecs, lanes: u8, compression: Compression) -> Self {
        let sampler = Sampler {
            encoders: Encoders::new(lanes),
            trials: Trials::default(),
            samples: 0,
            last: None,
            coded: Vec::new(),
        };
        Self {
            codecs,
            lanes,
            compression,
            encoders: Encoders::new(lanes),
            sampler,
            skip: Skip::default(),
            state: State::default(),
            started: Instant::now(),
            cpu: CpuLoad::default(),
            law: Law::default(),
            interval: Interval::new(0),
            unacked: VecDeque::new(),
        }
    }

    fn choice(&self) -> Choice {
        let choice = self.compression.fixed.unwrap_or(self.state.choice());
        if self.codecs.contain(codec_of(choice)) { choice } else { Choice::Raw }
    }

    /// Chooses for the next interval.
    fn decide(&mut self, held_back: u64) {
        let Interval { began, plain, wire, encoding, lane, held_back: before } = self.interval;
        let seconds = began.elapsed().as_secs_f64();
        let share = |time: Duration| time.as_secs_f64() / seconds;
        let shares = Shares { encoding: share(encoding), lane: share(lane), held_back: held_back > before };
        self.interval = Interval::new(held_back);
        self.cpu = self.compression.cpu.as_ref().map_or_else(CpuLoad::default, |load| load()).shared(self.lanes);
        let rates = Rates {
            input_bytes_per_s: plain as f64 / seconds,
            wire_bytes_per_s: wire as f64 / seconds,
            limit: shares.limit(),
            yields: self.sampler.trials.yields(),
            cpu: self.cpu,
            law: self.law,
        };
        let before = self.state.choice();
        self.state = next(&self.state, &rates, self.started.elapsed());
        let choice = self.state.choice();
        if choice != before {
            self.skip = Skip::default();
            debug!(?before, ?choice, ?rates, link = ?self.state.link_bytes_per_s(), "Another codec from now on");
        }
    }
}

impl Interval {
    fn new(held_back: u64) -> Self {
        let began = Instant::now();
        Self { began, plain: 0, wire: 0, encoding: Duration::ZERO, lane: Duration::ZERO, held_back }
    }
}

impl Encoder for Adaptive {
    fn encode(&mut self, plain: &[u8], coded: &mut Vec<u8>) -> Codec {
        let adapts = self.compression.fixed.is_none();
        if adapts && self.law == Law::Bulk && self.cpu.room() != Room::Less {
            self.sampler.sample(self.codecs, plain);
        }
        let choice = self.choice();
        match choice {
            Choice::Raw => Codec::Raw,
            Choice::Lz4 | Choice::Zstd(_) => {
                if !self.skip.tries() {
                    return Codec::Raw;
                }
                let codec = self.encoders.encode(choice, plain, coded);
                self.skip.tried(codec != Codec::Raw);
                codec
            }
            // What does not shrink may be sent again, and then does.
            Choice::ZstdLong(_) => self.encoders.encode(choice, plain, coded),
        }
    }

    fn sent(&mut self, sent: &Sent) {
        if self.compression.fixed.is_some() {
            return;
        }
        self.law = sent.progress.law;
        self.interval.plain += sent.plain as u64;
        self.interval.encoding += sent.encoding;
        self.interval.lane += sent.lane;
        if self.unacked.len() < FRAMES_MAX {
            self.unacked.push_back((sent.end, sent.wire));
        }
        while let Some((end, wire)) = self.unacked.front()
            && *end <= sent.progress.acked
        {
            self.interval.wire += *wire as u64;
            self.unacked.pop_front();
        }
        if self.interval.began.elapsed() >= INTERVAL {
            self.decide(sent.progress.held_back);
        }
    }
}

impl Sampler {
    /// Tries the candidates, if it is time to.
    fn sample(&mut self, codecs: Codecs, plain: &[u8]) {
        let pause = if self.samples < FIRST_SAMPLES { INTERVAL / 5 } else { INTERVAL };
        if plain.len() < SAMPLE_BYTES || self.last.is_some_and(|last| last.elapsed() < pause) {
            return;
        }
        // Another part of each frame.
        let parts = plain.len() / SAMPLE_BYTES;
        let from = (self.samples as usize % parts) * SAMPLE_BYTES;
        let piece = &plain[from..from + SAMPLE_BYTES];
        for (place, candidate) in CANDIDATES.into_iter().enumerate().filter(|(_, it)| codecs.contain(codec_of(*it))) {
            let begun = Instant::now();
            let codec = self.encoders.encode(candidate, piece, &mut self.coded);
            let took = begun.elapsed();
            let coded = if codec == Codec::Raw { piece.len() } else { self.coded.len() };
            self.trials.add(place, piece.len(), coded, took);
        }
        self.samples = self.samples.saturating_add(1);
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests;
