//! Sizes the window: how many bytes may be accepted and not yet delivered.
//!
//! QEMU decides when to stop the guest by the rate at which its bytes are accepted; it cannot see the queues behind.
//! Queued bytes are sent while the guest is paused, so bytes waiting in the carriers are downtime. The window therefore
//! bounds the bytes that one end accepted and the other has not yet delivered (all stages, both carriers, socket
//! buffers), and it follows the rate.
//!
//! A long link carries more bytes than may wait: rate times round trip are in transit. In [`Law::Bulk`] the window is
//! twice that, so that the link stays full while a lost packet is sent again or an acknowledgement is late; in
//! [`Law::Tail`] it is just what keeps the link busy. It glides from one to the other: while it shrinks, QEMU sees
//! three quarters of the link's rate; while it grows in the tail, at most five quarters.

use std::time::Duration;

pub use ferry_core::switchover::Law;

/// Smallest window: one frame must fit, and a slow start must not starve the link. 20 ms at 100 Mb/s.
pub const WINDOW_BYTES_MIN: u64 = 256 << 10;
/// Limit of bytes that are queued rather than in transit: a queue of this size keeps any link with a short round trip
/// busy, and a larger one only falls out of the CPU caches.
pub const WAITING_BYTES_MAX: u64 = 8 << 20;
/// Sum of all windows of a carrier, per direction: 10 Gb/s over 100 ms, twice. It bounds the carrier's memory when the
/// destination's QEMU reads more slowly than the link delivers, and the kernel's memory at the source.
pub const BUDGET_BYTES: u64 = 256 << 20;
/// The share of the downtime limit that waiting bytes may take.
pub const DOWNTIME_SHARE: f64 = 0.1;
/// Round trips' worth of bytes in flight in bulk: one in transit while the acknowledgement of the previous one returns
/// or a lost packet is sent again.
const BULK_TRIPS: f64 = 2.0;
/// The same in the tail: one round trip fills the link, and a quarter covers occasional delays.
const TAIL_TRIPS: f64 = 1.25;

/// The largest window that a peer of this protocol version accepts.
pub fn window_bytes_max(version: u16) -> u64 {
    if version < 2 { WAITING_BYTES_MAX } else { BUDGET_BYTES }
}

/// The window for a measured rate: at most [`DOWNTIME_SHARE`] of what the link moves in `downtime_limit`, but enough to
/// keep a link of round-trip time `round_trip` busy, within the bounds.
pub fn window_bytes(law: Law, rate_bytes_per_s: f64, round_trip: Duration, downtime_limit: Duration) -> u64 {
    let trips = match law {
        Law::Bulk => BULK_TRIPS,
        Law::Tail => TAIL_TRIPS,
    };
    let waiting = rate_bytes_per_s * downtime_limit.as_secs_f64() * DOWNTIME_SHARE;
    let flying = rate_bytes_per_s * round_trip.as_secs_f64() * trips;
    // The casts saturate; NaN becomes 0.
    (waiting as u64).min(WAITING_BYTES_MAX).max(flying as u64).clamp(WINDOW_BYTES_MIN, BUDGET_BYTES)
}

/// Measures the rate and round trip from acknowledgements, and finds by trial how much must be in flight.
///
/// The measured rate is only what the window lets through: if a hop is slow to respond (a busy CPU), a window sized by
/// the rate keeps the rate low, which in turn keeps the window small. So in bulk the window is doubled as a trial, and
/// stays doubled if that pays; and halved as a trial, and stays halved if that costs nothing. On a long link the law
/// itself allows more in flight than any trial.
#[derive(Debug)]
pub struct Pace {
    downtime_limit: Duration,
    /// Limit of what the peer accepts.
    window_max: u64,
    rate_bytes_per_s: f64,
    round_trip: Option<Duration>,
    since: Duration,
    /// Delivered bytes at the start of the interval.
    delivered: u64,
    /// Delivered bytes at the last call.
    seen: u64,
    /// Whether the window limited the sender during the interval.
    held_back: bool,
    /// Bytes in flight that trials have shown to be worthwhile.
    proven: u64,
    trial: Trial,
    window: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trial {
    /// No trial for this many intervals.
    Rest(u32),
    /// Twice the bytes in flight that gave this rate.
    Doubled(f64),
    /// Half the bytes in flight that gave this rate.
    Halved(f64),
}

/// Averaging interval of the rate, unless a round trip is longer: a tenth of a usual downtime limit.
const INTERVAL: Duration = Duration::from_millis(30);
/// A doubled window stays if the rate rises by this factor: less is noise, or a queue before a full link.
const WORTH_DOUBLING: f64 = 1.25;
/// A halved window stays unless the rate falls below this factor.
const COST_OF_HALVING: f64 = 0.9;
/// Intervals of rest after a trial that failed: about a second.
const REST: u32 = 32;
/// While the window shrinks, one of this many delivered bytes is not replaced by a new one; while it grows in the tail,
/// one more is accepted. QEMU takes the rate at which it is read for the link's.
const GLIDE: u64 = 4;

impl Pace {
    /// Starts with the smallest window. It never grows beyond `window_max`, which is at least [`WINDOW_BYTES_MIN`].
    pub fn new(downtime_limit: Duration, window_max: u64) -> Self {
        Self {
            downtime_limit,
            window_max: window_max.clamp(WINDOW_BYTES_MIN, BUDGET_BYTES),
            rate_bytes_per_s: 0.0,
            round_trip: None,
            since: Duration::ZERO,
            delivered: 0,
            seen: 0,
            held_back: false,
            proven: WINDOW_BYTES_MIN,
            trial: Trial::Rest(0),
            window: WINDOW_BYTES_MIN,
        }
    }

    /// The current window in bytes.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// The averaged rate of delivery.
    pub fn rate_bytes_per_s(&self) -> f64 {
        self.rate_bytes_per_s
    }

    /// Records that a frame was acknowledged `after` it was sent.
    pub fn round_trip(&mut self, after: Duration) {
        self.round_trip = Some(self.round_trip.map_or(after, |least| least.min(after)));
    }

    /// Records that the window is full while the sender has bytes to send.
    pub fn held_back(&mut self) {
        self.held_back = true;
    }

    /// Records that by `now` (since the channel's start) a total of `delivered` bytes were delivered.
    pub fn delivered(&mut self, now: Duration, delivered: u64, law: Law) {
        let elapsed = now.saturating_sub(self.since);
        let round_trip = self.round_trip.unwrap_or_default();
        if elapsed >= INTERVAL.max(round_trip) {
            let rate = delivered.saturating_sub(self.delivered) as f64 / elapsed.as_secs_f64();
            self.since = now;
            self.delivered = delivered;
            let held_back = std::mem::take(&mut self.held_back);
            self.average(rate, held_back);
            self.next_trial(rate, held_back, law);
        }
        let target = window_bytes(law, self.rate_bytes_per_s, round_trip, self.downtime_limit).max(self.proven);
        self.glide(target.min(self.window_max), delivered.saturating_sub(self.seen), law);
        self.seen = delivered;
    }

    /// The rate rises at once. It falls slowly, and only while the window limits the sender: a quiet guest shows
    /// nothing about the link.
    fn average(&mut self, rate: f64, held_back: bool) {
        if rate > self.rate_bytes_per_s {
            self.rate_bytes_per_s = rate;
        } else if held_back {
            self.rate_bytes_per_s = self.rate_bytes_per_s * 0.7 + rate * 0.3;
        }
    }

    /// Moves the window towards `target` as `fresh` bytes are delivered. In bulk it may double within a round trip.
    fn glide(&mut self, target: u64, fresh: u64, law: Law) {
        let growth = match law {
            Law::Bulk => fresh,
            Law::Tail => fresh / GLIDE,
        };
        self.window = if target > self.window {
            target.min(self.window + growth)
        } else {
            target.max(self.window.saturating_sub(fresh / GLIDE))
        };
    }

    fn next_trial(&mut self, rate: f64, held_back: bool, law: Law) {
        self.trial = match self.trial {
            Trial::Doubled(before) if rate >= before * WORTH_DOUBLING => Trial::Rest(0),
            Trial::Doubled(_) => {
                self.proven = (self.proven / 2).max(WINDOW_BYTES_MIN);
                Trial::Rest(REST)
            }
            Trial::Halved(before) if rate >= before * COST_OF_HALVING => Trial::Rest(REST),
            Trial::Halved(_) => {
                self.proven = (self.proven * 2).min(WAITING_BYTES_MAX);
                Trial::Rest(REST)
            }
            Trial::Rest(left) => Trial::Rest(left.saturating_sub(1)),
        };
        // Only a limited sender shows what a window is worth. There are no trials in the tail.
        if self.trial != Trial::Rest(0) || !held_back || law == Law::Tail {
            return;
        }
        let may_double = self.proven < WAITING_BYTES_MAX;
        if may_double {
            // What the law allows anyway counts as proven.
            self.proven = (self.proven.max(self.window) * 2).min(WAITING_BYTES_MAX);
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

    fn any_law() -> impl Strategy<Value = Law> {
        prop_oneof![Just(Law::Bulk), Just(Law::Tail)]
    }

    #[test]
    fn waiting_bytes_take_a_tenth_of_the_downtime_limit() {
        for (rate, window) in [
            (0.0, WINDOW_BYTES_MIN),
            (12.5e6, 375_000),
            (125e6, 3_750_000),
            (1e9, WAITING_BYTES_MAX),
            (f64::NAN, WINDOW_BYTES_MIN),
        ] {
            for law in [Law::Bulk, Law::Tail] {
                assert_eq!(window_bytes(law, rate, Duration::ZERO, LIMIT), window, "{rate}");
            }
        }
    }

    #[test]
    fn a_long_link_is_full_in_bulk_and_busy_in_the_tail() {
        for (rate, trip_ms, bulk, tail) in [
            // 500 kB are in transit.
            (10e6, 50, 1_000_000, 625_000),
            // More may be queued than is in transit.
            (10e6, 1, 300_000, 300_000),
            (125e6, 50, 12_500_000, 7_812_500),
            (125e6, 200, 50_000_000, 31_250_000),
            (1.25e9, 50, 125_000_000, 78_125_000),
            (12.5e9, 50, BUDGET_BYTES, BUDGET_BYTES),
        ] {
            let trip = Duration::from_millis(trip_ms);
            let windows = [Law::Bulk, Law::Tail].map(|law| window_bytes(law, rate, trip, LIMIT));
            assert_eq!(windows, [bulk, tail], "{rate} over {trip_ms} ms");
        }
    }

    #[test]
    fn a_peer_of_the_first_version_is_sent_no_more_than_it_takes() {
        assert_eq!([0, 1, 2].map(window_bytes_max), [8 << 20, 8 << 20, BUDGET_BYTES]);
        let mut pace = Pace::new(LIMIT, window_bytes_max(1));
        pace.round_trip(Duration::from_millis(100));
        let (mut now, mut total) = (Duration::ZERO, 0);
        run(&mut pace, &mut now, &mut total, 10.0, Law::Bulk, |window| window as f64 / 0.1);
        assert_eq!(pace.window(), 8 << 20);
    }

    #[test]
    fn the_window_glides_from_one_law_to_the_other() {
        // 100 MB/s over 100 ms: 20 MB in bulk, 12.5 MB in the tail.
        let (mut pace, mut now, mut total) = (Pace::new(LIMIT, BUDGET_BYTES), Duration::ZERO, 0);
        pace.round_trip(Duration::from_millis(100));
        run(&mut pace, &mut now, &mut total, 5.0, Law::Bulk, |window| (window as f64 / 0.1).min(100e6));
        assert_eq!(pace.window(), 20_000_000);
        let mut windows = vec![pace.window()];
        for _ in 0..40 {
            run(&mut pace, &mut now, &mut total, 0.01, Law::Tail, |_| 100e6);
            windows.push(pace.window());
        }
        // A million bytes per step: three quarters of them are replaced by new ones.
        assert!(windows.windows(2).all(|pair| pair[0] - pair[1] <= 250_000), "{windows:?}");
        assert_eq!((windows[29], windows[31]), (12_750_000, 12_500_000));
        run(&mut pace, &mut now, &mut total, 0.05, Law::Bulk, |_| 100e6);
        assert_eq!(pace.window(), 17_500_000);
    }

    #[test]
    fn a_quiet_guest_does_not_make_the_link_slow() {
        let (mut pace, mut now, mut total) = (Pace::new(LIMIT, BUDGET_BYTES), Duration::ZERO, 0);
        run(&mut pace, &mut now, &mut total, 1.0, Law::Bulk, |_| 50e6);
        for _ in 0..1_000 {
            now += Duration::from_millis(10);
            total += 1_000;
            pace.delivered(now, total, Law::Tail);
        }
        // One interval was only half busy.
        assert!(pace.rate_bytes_per_s() > 35e6, "{}", pace.rate_bytes_per_s());
        // A slow link lowers the rate.
        run(&mut pace, &mut now, &mut total, 1.0, Law::Tail, |_| 5e6);
        assert!(pace.rate_bytes_per_s() < 6e6, "{}", pace.rate_bytes_per_s());
    }

    proptest! {
        #[test]
        fn the_window_keeps_its_bounds_and_rises_with_the_rate(rate in 0.0..1e12f64, more in 0.0..1e12f64, trip_us in 0..1_000_000u64, limit_ms in 0..10_000u64) {
            let (trip, limit) = (Duration::from_micros(trip_us), Duration::from_millis(limit_ms));
            let [bulk, tail] = [Law::Bulk, Law::Tail].map(|law| window_bytes(law, rate, trip, limit));
            prop_assert!((WINDOW_BYTES_MIN..=BUDGET_BYTES).contains(&tail));
            prop_assert!((tail..=BUDGET_BYTES).contains(&bulk));
            for (law, window) in [(Law::Bulk, bulk), (Law::Tail, tail)] {
                prop_assert!(window_bytes(law, rate + more, trip, limit) >= window);
            }
            // Little is queued beyond what is in transit.
            let waits = tail.saturating_sub((rate * trip.as_secs_f64() * TAIL_TRIPS) as u64) as f64;
            prop_assert!(waits <= (rate * limit.as_secs_f64() * DOWNTIME_SHARE).max(WINDOW_BYTES_MIN as f64));
        }

        #[test]
        fn any_history_keeps_the_bounds(acks in prop::collection::vec((0..100_000u64, 0..1u64 << 30, any_law()), 0..100), window_max in WINDOW_BYTES_MIN..=BUDGET_BYTES) {
            let mut pace = Pace::new(LIMIT, window_max);
            let (mut now, mut total) = (Duration::ZERO, 0);
            for (after_us, bytes, law) in acks {
                now += Duration::from_micros(after_us);
                total += bytes;
                pace.round_trip(Duration::from_micros(after_us));
                if bytes % 2 == 0 {
                    pace.held_back();
                }
                pace.delivered(now, total, law);
                prop_assert!((WINDOW_BYTES_MIN..=window_max).contains(&pace.window()));
            }
        }
    }

    /// Simulates a link that delivers `rate_of(window)` bytes per second, for `seconds`.
    fn run(pace: &mut Pace, now: &mut Duration, total: &mut u64, seconds: f64, law: Law, rate_of: impl Fn(u64) -> f64) {
        for _ in 0..(seconds * 100.0) as u32 {
            *now += Duration::from_millis(10);
            *total += (rate_of(pace.window()) * 0.01) as u64;
            pace.held_back();
            pace.delivered(*now, *total, law);
        }
    }

    #[test]
    fn a_hop_that_is_slow_to_answer_gets_a_window_that_fills_it() {
        // An answer takes 50 ms whatever is sent, up to 1 GB/s: only more in flight raises the rate.
        let (mut pace, mut now, mut total) = (Pace::new(LIMIT, BUDGET_BYTES), Duration::ZERO, 0);
        run(&mut pace, &mut now, &mut total, 3.0, Law::Bulk, |window| (window as f64 / 0.05).min(1e9));
        assert!(pace.window() > WAITING_BYTES_MAX / 3, "{}", pace.window());
    }

    #[test]
    fn a_full_link_is_not_queued_upon() {
        // 12.5 MB/s whatever the window: the law alone decides, except for the short trials in bulk.
        let (mut pace, mut now, mut total) = (Pace::new(LIMIT, BUDGET_BYTES), Duration::ZERO, 0);
        run(&mut pace, &mut now, &mut total, 1.0, Law::Bulk, |_| 12.5e6);
        let mut above = |law: Law| {
            let mut above = 0;
            for _ in 0..400 {
                run(&mut pace, &mut now, &mut total, 0.01, law, |_| 12.5e6);
                above += u32::from(pace.window() > 400_000);
            }
            above
        };
        let (bulk, tail) = (above(Law::Bulk), above(Law::Tail));
        assert!(bulk * 5 < 400, "{bulk} of 400 above the law");
        // A trial may be in progress when the tail begins.
        assert!(tail < 20, "{tail} of 400 above the law in the tail");
    }
}
