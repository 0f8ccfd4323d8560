//! Whether QEMU is close to the moment at which it stops the VM.
//!
//! ```text
//! Bulk ── the rest may be sent before the windows are small, or before the next sample ─▶ Tail
//! Tail ── twice as much remains ─▶ Bulk
//! ```
//! Far from that moment, bytes that wait in the carriers cost nothing, and much may be in flight. Bytes that wait there
//! when the VM stops add to the downtime. QEMU does not announce when it will stop the VM: it does so when the rest
//! takes less than the downtime limit at the rate that it measures.

use std::time::Duration;

use crate::units::ByteCount;

/// The law that bounds the bytes in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Law {
    /// Enough to fill the link despite fluctuations.
    #[default]
    Bulk,
    /// Enough to keep the link busy, or little compared with the downtime limit.
    Tail,
}

/// What the source knows about a move's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Total memory. Zero before memory is sent.
    pub total: ByteCount,
    /// What remains of this pass.
    pub remaining: ByteCount,
    /// The rate that QEMU measures.
    pub rate_bytes_per_s: u64,
    /// How fast `remaining` decreased since the previous sample: zero pages are skipped without being sent.
    pub falling_bytes_per_s: u64,
    /// The downtime limit that is set in QEMU.
    pub downtime_limit: Duration,
    /// Round-trip time to the destination.
    pub round_trip: Duration,
    /// Time since the previous sample; the next one follows after about as long.
    pub since_poll: Duration,
}

/// QEMU measures over a tenth of a second: a burst into the carriers makes its rate too high by up to this factor.
const BURST: f64 = 2.0;
/// How long a window shrinks, in round trips: it gives up a quarter of the bytes delivered meanwhile, and falls from
/// two round trips' worth to one and a quarter.
const SHRINK_TRIPS: f64 = 3.0;
/// Allowance for a late sample, in sampling intervals.
const POLLS: f64 = 2.0;
/// The tail ends when this many times as much remains: a guest that writes evenly must not change the law in every
/// pass.
const BACK: f64 = 2.0;

/// The law that holds now, after the law `before`. `None`: no sample was possible, and the end may be near.
pub fn law(before: Law, now: Option<&Outlook>) -> Law {
    let Some(now) = now else { return Law::Tail };
    if now.total.0 == 0 {
        return Law::Bulk;
    }
    let (rate, falling) = (now.rate_bytes_per_s as f64, now.falling_bytes_per_s as f64);
    let lead_s = now.since_poll.as_secs_f64() * POLLS + now.round_trip.as_secs_f64() * SHRINK_TRIPS;
    let near = rate.max(falling) * lead_s + rate * now.downtime_limit.as_secs_f64() * BURST;
    let far = match before {
        Law::Bulk => near,
        Law::Tail => near * BACK,
    };
    if (now.remaining.0 as f64) < far { Law::Tail } else { Law::Bulk }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1_000_000;

    fn outlook(remaining: u64, rate: u64) -> Outlook {
        Outlook {
            total: ByteCount(1 << 33),
            remaining: ByteCount(remaining),
            rate_bytes_per_s: rate,
            falling_bytes_per_s: rate,
            downtime_limit: Duration::from_millis(300),
            round_trip: Duration::from_millis(50),
            since_poll: Duration::from_millis(200),
        }
    }

    #[test]
    fn the_tail_begins_before_qemu_can_stop_the_vm() {
        // At 125 MB/s: 0.6 s for twice the limit, 0.4 s for samples, 0.15 s for shrinking: 143.75 MB.
        for (row, before, now, expected) in [
            ("nothing is known yet", Law::Bulk, outlook(0, 0), Law::Bulk),
            ("far", Law::Bulk, outlook(1000 * MB, 125 * MB), Law::Bulk),
            ("just far enough", Law::Bulk, outlook(144 * MB, 125 * MB), Law::Bulk),
            ("near", Law::Bulk, outlook(143 * MB, 125 * MB), Law::Tail),
            ("a little more remains", Law::Tail, outlook(250 * MB, 125 * MB), Law::Tail),
            ("the next pass is long", Law::Tail, outlook(288 * MB, 125 * MB), Law::Bulk),
            (
                "zeroes go by",
                Law::Bulk,
                Outlook { falling_bytes_per_s: 4000 * MB, ..outlook(2000 * MB, 10 * MB) },
                Law::Tail,
            ),
            (
                "the VM may stand still for 30 s",
                Law::Bulk,
                Outlook { downtime_limit: Duration::from_secs(30), ..outlook(7000 * MB, 125 * MB) },
                Law::Tail,
            ),
            ("disks come first", Law::Tail, Outlook { total: ByteCount(0), ..outlook(0, 125 * MB) }, Law::Bulk),
        ] {
            assert_eq!(law(before, Some(&now)), expected, "{row}");
        }
        assert_eq!(law(Law::Bulk, None), Law::Tail);
    }

    proptest! {
        #[test]
        fn in_bulk_a_doubled_rate_does_not_stop_the_vm(remaining in 0..1u64 << 40, rate in 0..1u64 << 36, limit_ms in 1..30_000u64, trip_ms in 0..500u64) {
            let (limit, round_trip) = (Duration::from_millis(limit_ms), Duration::from_millis(trip_ms));
            let now = Outlook { downtime_limit: limit, round_trip, ..outlook(remaining, rate) };
            for before in [Law::Bulk, Law::Tail] {
                if law(before, Some(&now)) == Law::Bulk {
                    prop_assert!(remaining as f64 >= rate as f64 * 2.0 * limit.as_secs_f64());
                }
            }
        }
    }
}
