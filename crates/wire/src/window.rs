//! How many bytes may be accepted and not yet delivered.
//!
//! QEMU decides to stop the guest by the rate at which its bytes are accepted, and cannot see what waits behind. What
//! waits is sent while the guest stands still: bytes waiting in the carriers are downtime. So the total of bytes that
//! an end accepted and the other end has not yet delivered (all stages, both carriers, socket buffers) is bounded by
//! a window, and the window follows the rate.

use std::time::Duration;

/// Never below: one frame must fit, and a slow start must not starve the link. 20 ms at 100 Mb/s.
pub const WINDOW_BYTES_MIN: u64 = 256 << 10;
/// Never above: bounds a carrier's memory (both directions of a few channels stay below 64 MiB).
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// The share of the downtime limit that waiting bytes may take.
pub const DOWNTIME_SHARE: f64 = 0.1;
/// How many round trips' worth of bytes must be in flight for the link to be busy: one is on the way while the
/// acknowledgement of the last one returns.
const ROUND_TRIPS: f64 = 2.0;

/// The window for a measured rate: at most [`DOWNTIME_SHARE`] of what the link moves in `downtime_limit`, but enough to
/// keep a link of round-trip time `round_trip` busy, within the two bounds.
pub fn window_bytes(rate_bytes_per_s: f64, round_trip: Duration, downtime_limit: Duration) -> u64 {
    let waiting = rate_bytes_per_s * downtime_limit.as_secs_f64() * DOWNTIME_SHARE;
    let flying = rate_bytes_per_s * round_trip.as_secs_f64() * ROUND_TRIPS;
    // The cast saturates; NaN becomes 0.
    (waiting.max(flying) as u64).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
}

/// Measures the rate and round trip from acknowledgements, and finds out by trial how much must be in flight.
///
/// The rate is only what the window lets through: where a hop is slow to answer (a busy CPU, a long link), a window
/// sized by the rate keeps the rate low, and the rate the window. So the window is doubled on trial, and stays so
/// while that pays; and halved on trial, and stays so while that costs nothing.
#[derive(Debug)]
pub struct Pace {
    downtime_limit: Duration,
    rate_bytes_per_s: f64,
    round_trip: Option<Duration>,
    since: Duration,
    delivered: u64,
    /// Whether the window held the sender back since the interval began.
    held_back: bool,
    /// What trials have shown to be worth having in flight.
    proven: u64,
    trial: Trial,
    window: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trial {
    /// None for so many intervals.
    Rest(u32),
    /// Twice as much is in flight than what gave this rate.
    Doubled(f64),
    /// Half as much is in flight than what gave this rate.
    Halved(f64),
}

/// Over how long the rate is averaged: a tenth of a usual downtime limit.
const INTERVAL: Duration = Duration::from_millis(30);
/// A doubled window stays if the rate rises by as much: less is noise, or a queue in front of a full link.
const WORTH_DOUBLING: f64 = 1.25;
/// A halved window stays unless the rate falls by as much.
const COST_OF_HALVING: f64 = 0.9;
/// Intervals of rest after a trial that failed: about a second.
const REST: u32 = 32;

impl Pace {
    /// Nothing is known yet: the smallest window.
    pub fn new(downtime_limit: Duration) -> Self {
        Self {
            downtime_limit,
            rate_bytes_per_s: 0.0,
            round_trip: None,
            since: Duration::ZERO,
            delivered: 0,
            held_back: false,
            proven: WINDOW_BYTES_MIN,
            trial: Trial::Rest(0),
            window: WINDOW_BYTES_MIN,
        }
    }

    /// The window now.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// The rate at which bytes are delivered, averaged.
    pub fn rate_bytes_per_s(&self) -> f64 {
        self.rate_bytes_per_s
    }

    /// A frame's acknowledgement came `after` it was sent.
    pub fn round_trip(&mut self, after: Duration) {
        self.round_trip = Some(self.round_trip.map_or(after, |least| least.min(after)));
    }

    /// The sender has bytes to send, and the window is full.
    pub fn held_back(&mut self) {
        self.held_back = true;
    }

    /// At `now` (since the channel's start), `delivered` bytes in all were delivered.
    pub fn delivered(&mut self, now: Duration, delivered: u64) {
        let elapsed = now.saturating_sub(self.since);
        if elapsed < INTERVAL {
            return;
        }
        let rate = delivered.saturating_sub(self.delivered) as f64 / elapsed.as_secs_f64();
        // A quiet guest says nothing about the link: the rate falls slowly and rises at once.
        self.rate_bytes_per_s =
            if rate > self.rate_bytes_per_s { rate } else { self.rate_bytes_per_s * 0.7 + rate * 0.3 };
        self.since = now;
        self.delivered = delivered;
        let held_back = std::mem::take(&mut self.held_back);
        self.next_trial(rate, held_back);
        let law = window_bytes(self.rate_bytes_per_s, self.round_trip.unwrap_or_default(), self.downtime_limit);
        self.window = law.max(self.proven).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
    }

    fn next_trial(&mut self, rate: f64, held_back: bool) {
        self.trial = match self.trial {
            Trial::Doubled(before) if rate >= before * WORTH_DOUBLING => Trial::Rest(0),
            Trial::Doubled(_) => {
                self.proven = (self.proven / 2).max(WINDOW_BYTES_MIN);
                Trial::Rest(REST)
            }
            Trial::Halved(before) if rate >= before * COST_OF_HALVING => Trial::Rest(REST),
            Trial::Halved(_) => {
                self.proven = (self.proven * 2).min(WINDOW_BYTES_MAX);
                Trial::Rest(REST)
            }
            Trial::Rest(left) => Trial::Rest(left.saturating_sub(1)),
        };
        // Only a sender that is held back shows what a window is worth.
        if self.trial != Trial::Rest(0) || !held_back {
            return;
        }
        let may_double = self.proven < WINDOW_BYTES_MAX;
        if may_double {
            // What the law allows anyway is proven enough.
            self.proven = (self.proven.max(self.window) * 2).min(WINDOW_BYTES_MAX);
            self.trial = Trial::Doubled(rate);
        } else {
            self.proven /= 2;
            self.trial = Trial::Halved(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    #[test]
    fn waiting_bytes_take_a_tenth_of_the_downtime_limit() {
        for (rate, window) in [
            (0.0, WINDOW_BYTES_MIN),
            (12.5e6, 375_000),
            (125e6, 3_750_000),
            (1e9, WINDOW_BYTES_MAX),
            (f64::NAN, WINDOW_BYTES_MIN),
        ] {
            assert_eq!(window_bytes(rate, Duration::ZERO, LIMIT), window, "{rate}");
        }
    }

    #[test]
    fn a_long_link_is_kept_busy() {
        // 50 ms of round trip at 10 MB/s hold 500 kB; twice that flies.
        assert_eq!(window_bytes(10e6, Duration::from_millis(50), LIMIT), 1_000_000);
    }

    proptest! {
        #[test]
        fn the_window_keeps_its_bounds_and_rises_with_the_rate(rate in 0.0..1e12f64, more in 0.0..1e12f64, trip_us in 0..1_000_000u64, limit_ms in 0..10_000u64) {
            let (trip, limit) = (Duration::from_micros(trip_us), Duration::from_millis(limit_ms));
            let window = window_bytes(rate, trip, limit);
            prop_assert!((WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX).contains(&window));
            prop_assert!(window_bytes(rate + more, trip, limit) >= window);
        }

        #[test]
        fn any_history_keeps_the_bounds(acks in prop::collection::vec((0..100_000u64, 0..1u64 << 30), 0..100)) {
            let mut pace = Pace::new(LIMIT);
            let (mut now, mut total) = (Duration::ZERO, 0);
            for (after_us, bytes) in acks {
                now += Duration::from_micros(after_us);
                total += bytes;
                pace.round_trip(Duration::from_micros(after_us));
                if bytes % 2 == 0 {
                    pace.held_back();
                }
                pace.delivered(now, total);
                prop_assert!((WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX).contains(&pace.window()));
            }
        }
    }

    /// A link that delivers `rate_of(window)` bytes per second, for `seconds`.
    fn run(pace: &mut Pace, now: &mut Duration, total: &mut u64, seconds: f64, rate_of: impl Fn(u64) -> f64) {
        for _ in 0..(seconds * 100.0) as u32 {
            *now += Duration::from_millis(10);
            *total += (rate_of(pace.window()) * 0.01) as u64;
            pace.held_back();
            pace.delivered(*now, *total);
        }
    }

    #[test]
    fn a_hop_that_is_slow_to_answer_gets_a_window_that_fills_it() {
        // 50 ms until an answer comes, whatever is sent, up to 1 GB/s: only more in flight makes it faster.
        let (mut pace, mut now, mut total) = (Pace::new(LIMIT), Duration::ZERO, 0);
        run(&mut pace, &mut now, &mut total, 3.0, |window| (window as f64 / 0.05).min(1e9));
        assert!(pace.window() > WINDOW_BYTES_MAX / 3, "{}", pace.window());
    }

    #[test]
    fn a_full_link_is_not_queued_upon() {
        // 12.5 MB/s whatever the window: the law alone decides, but for the short trials.
        let (mut pace, mut now, mut total) = (Pace::new(LIMIT), Duration::ZERO, 0);
        let (mut above, mut looked) = (0, 0);
        run(&mut pace, &mut now, &mut total, 1.0, |_| 12.5e6);
        for _ in 0..400 {
            run(&mut pace, &mut now, &mut total, 0.01, |_| 12.5e6);
            looked += 1;
            above += u32::from(pace.window() > 400_000);
        }
        assert!(above * 8 < looked, "{above} of {looked} above the law");
    }
}
