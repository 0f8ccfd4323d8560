//! Random events that every simulated move has in common, and how long they may last.

use super::super::models::world::{Fault, Server};

/// Faults stop after this many moments; a job that does not end soon after that counts as hung.
const FAULTS_UNTIL: u32 = 300;
const MOMENTS_MAX: u32 = 3_000;
/// A job that only a human can end waits for one; after this many moments it counts as waiting.
const WAITS_SINCE: u32 = 1_000;

/// The random events of one move: the same in each run with the same number.
#[derive(Debug)]
pub(super) struct Faults {
    state: u64,
    pub(super) moment: u32,
    /// What has happened so far, for readers of a failure.
    pub(super) past: Vec<String>,
}

impl Faults {
    pub(super) fn new(number: u64) -> Self {
        Self { state: number, moment: 0, past: Vec::new() }
    }

    /// A random number from zero up to, but excluding, `count`.
    pub(super) fn one_of(&mut self, count: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % count
    }

    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.one_of(count) == 0
    }

    /// Whether faults still happen.
    pub(super) fn is_hostile(&self) -> bool {
        self.moment < FAULTS_UNTIL
    }

    /// Whether a fault happens now, with a chance of one in `count`.
    pub(super) fn fails_one_in(&mut self, count: u64) -> bool {
        self.is_hostile() && self.one_in(count)
    }

    /// Whether everything that could happen by itself has happened.
    pub(super) fn is_late(&self) -> bool {
        self.moment > WAITS_SINCE
    }

    pub(super) fn note(&mut self, what: impl AsRef<str>) {
        self.past.push(format!("{}: {}", self.moment, what.as_ref()));
    }

    /// Lets a moment pass.
    pub(super) fn pass(&mut self, server: &Server) {
        self.moment += 1;
        assert!(self.moment < MOMENTS_MAX, "the job hangs: {:#?}\n{:#?}", server.log, self.past);
    }

    /// Whether the server dies at this moment: the request was executed or not, and nobody receives the answer.
    pub(super) fn ends_server(&mut self) -> bool {
        let dies = self.fails_one_in(40);
        if dies {
            self.note("the server dies");
        }
        dies
    }

    /// The fault of a request that reached the agent.
    pub(super) fn of_answer(&mut self) -> Option<Fault> {
        if self.fails_one_in(20) {
            return Some(Fault::AnswerLost);
        }
        self.ends_server().then_some(Fault::DiesAfter)
    }
}
