//! A limit of the rate at which channels send together what they read from their local sockets.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// After a pause as much as fits into this time may be sent at once, so that a late timer costs no bandwidth.
const BURST: Duration = Duration::from_millis(50);
/// Less than this is not read: a frame of a few bytes costs as much as a full one. At the lowest limit, 1 MiB/s, it takes
/// 16 ms to have so much.
const ROOM_BYTES_MIN: u64 = 16 << 10;

/// Shared by the channels that are limited together.
#[derive(Debug)]
pub struct RateLimit {
    started: Instant,
    bucket: Mutex<Bucket>,
    is_lifted: AtomicBool,
}

/// What may be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// This many bytes, at least one.
    Bytes(u64),
    /// Nothing before this time has passed.
    After(Duration),
}

impl RateLimit {
    /// A limit of `bytes_per_s`; less than 1 MiB/s counts as that.
    pub fn new(bytes_per_s: u64) -> Self {
        let bucket = Bucket::new(bytes_per_s.max(1 << 20));
        Self { started: Instant::now(), bucket: Mutex::new(bucket), is_lifted: AtomicBool::new(false) }
    }

    /// From now on nothing is limited: the VM is paused, and each moment counts.
    pub fn lift(&self) {
        self.is_lifted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn room(&self) -> Room {
        if self.is_lifted.load(Ordering::Relaxed) {
            return Room::Bytes(u64::MAX);
        }
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).room(self.started.elapsed())
    }

    pub(crate) fn spend(&self, bytes: u64) {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).spend(self.started.elapsed(), bytes);
    }
}

#[derive(Debug)]
struct Bucket {
    bytes_per_s: u64,
    /// The time by which everything that was sent so far is paid.
    paid: Duration,
}

impl Bucket {
    fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, paid: Duration::ZERO }
    }

    fn room(&self, now: Duration) -> Room {
        let saved = now.saturating_sub(self.paid).min(BURST);
        let bytes = (saved.as_secs_f64() * self.bytes_per_s as f64) as u64;
        if bytes >= ROOM_BYTES_MIN {
            return Room::Bytes(bytes);
        }
        let enough = self.paid + self.time_of(ROOM_BYTES_MIN) + Duration::from_micros(1);
        Room::After(enough.saturating_sub(now))
    }

    fn spend(&mut self, now: Duration, bytes: u64) {
        self.paid = self.paid.max(now.saturating_sub(BURST)) + self.time_of(bytes);
    }

    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    proptest! {
        #[test]
        fn no_more_than_the_rate_and_one_burst_is_sent_and_a_sender_that_wants_more_gets_the_rate(
            rate in MIB..4096 * MIB,
            pieces in prop::collection::vec((1..256 * 1024_u64, 0..3_000_u64), 1..300),
        ) {
            let mut bucket = Bucket::new(rate);
            let (mut now, mut sent, mut paused) = (Duration::ZERO, 0, Duration::ZERO);
            for (piece, pause_us) in pieces {
                now += Duration::from_micros(pause_us);
                paused += Duration::from_micros(pause_us);
                let room = loop {
                    match bucket.room(now) {
                        Room::Bytes(room) => break room,
                        Room::After(wait) => {
                            prop_assert!(wait > Duration::ZERO && wait < Duration::from_secs(1), "{wait:?}");
                            now += wait;
                        }
                    }
                };
                let bytes = piece.min(room);
                bucket.spend(now, bytes);
                sent += bytes;
                let most = (now + BURST).as_secs_f64() * rate as f64 + 1.0;
                prop_assert!((sent as f64) <= most, "{sent} bytes after {now:?} at {rate}");
            }
            // It never waits for longer than what it has sent takes, and one more piece of the least size.
            let least = now.saturating_sub(paused).saturating_sub(bucket.time_of(ROOM_BYTES_MIN));
            prop_assert!(least <= bucket.time_of(sent) + Duration::from_millis(2), "{sent} bytes took {now:?} at {rate}");
        }
    }

    #[test]
    fn a_lifted_limit_limits_nothing() {
        let limit = RateLimit::new(MIB);
        limit.spend(100 * MIB);
        assert!(matches!(limit.room(), Room::After(wait) if wait > Duration::from_secs(90)));
        limit.lift();
        assert_eq!(limit.room(), Room::Bytes(u64::MAX));
    }
}
