//! How long the remaining disk data keeps a VM paused at the switchover, and how much of the downtime limit that leaves
//! for memory.
//!
//! ```text
//! downtime limit ═ part for memory, set in QEMU ═╪═ what disks will take ═
//! ```
//! QEMU stops the VM when the rest of its memory fits into the limit, and ignores disks. Only then does libvirt end the
//! disk copies, which first transfer what the guest wrote last (`docs/adr/0011`): the VM waits for that as well.

use std::time::Duration;

use crate::units::ByteCount;

/// The minimum for memory: QEMU accepts no shorter limit.
pub(crate) const SHARE_MIN: Duration = Duration::from_millis(1);
/// The time for disks is ignored below this fraction of the limit, because some data is always in flight.
const NEGLECTED: u32 = 10;
/// The value in QEMU is updated when it changes by at least this fraction.
const NEWS: u32 = 10;
/// The speed of the disks' storage is known only after disks were copied alone for this long.
const ALONE_MIN: Duration = Duration::from_secs(1);

/// The remaining data of a VM's disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// Sum over all disks.
    pub bytes: ByteCount,
    /// How long it takes while the VM is paused; `None`: unknown.
    pub time: Option<Duration>,
}

/// Estimates the remaining disk data from successive samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rests {
    /// The previous sample, on the caller's clock.
    before: Option<Sample>,
    /// Bytes that were copied before memory was sent, and the time that took.
    alone: (u64, Duration),
    reported: Rest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    at: Duration,
    copied: u64,
    left: u64,
}

impl Rests {
    /// Takes the copied and the total bytes of each disk at `now`, and the memory rate once memory is sent. If a disk
    /// cannot be sampled, the previous result is returned.
    ///
    /// Memory and disks share the link, and while the VM is paused, disks have it for themselves: the rest travels at
    /// the sum of both present rates, but no faster than disks did when nothing else was sent, because then the storage
    /// of their files may have been the bottleneck. Holes count in that rate, so the result is the shortest likely
    /// time, not the longest.
    pub fn update(
        &mut self,
        now: Duration,
        disks: &[Option<(ByteCount, ByteCount)>],
        memory_bytes_per_s: Option<u64>,
    ) -> Rest {
        let known: Option<Vec<_>> = disks.iter().copied().collect();
        let Some(known) = known.filter(|known| !known.is_empty()) else { return self.reported };
        let sum = |of: fn(&(ByteCount, ByteCount)) -> u64| known.iter().map(of).fold(0, u64::saturating_add);
        let sample =
            Sample { at: now, copied: sum(|(copied, _)| copied.0), left: sum(|(done, all)| all.0 - done.0.min(all.0)) };
        let before = self.before.replace(sample);
        let (copied, took) = before.map_or((0, Duration::ZERO), |before| {
            (sample.copied.saturating_sub(before.copied), now.saturating_sub(before.at))
        });
        if memory_bytes_per_s.is_none() && before.is_some_and(|before| before.left > 0) {
            self.alone = (self.alone.0.saturating_add(copied), self.alone.1 + took);
        }
        let link = per_s(copied, took).saturating_add(memory_bytes_per_s.unwrap_or(0));
        let rate = match self.alone {
            (copied, took) if took >= ALONE_MIN => link.min(per_s(copied, took)),
            _ => link,
        };
        let time = match (sample.left, rate) {
            (0, _) => Some(Duration::ZERO),
            (_, 0) => None,
            (left, rate) => Some(Duration::from_millis((u128::from(left) * 1000 / u128::from(rate)) as u64)),
        };
        self.reported = Rest { bytes: ByteCount(sample.left), time };
        self.reported
    }
}

fn per_s(bytes: u64, took: Duration) -> u64 {
    match took.as_millis() {
        0 => 0,
        ms => (u128::from(bytes) * 1000 / ms) as u64,
    }
}

/// The part of a downtime limit that memory may use, given the time for the rest of disks. An unknown time counts as
/// zero.
pub fn share(limit: Duration, rest: Option<Duration>) -> Duration {
    match rest {
        Some(rest) if rest > limit / NEGLECTED => limit.saturating_sub(rest).max(SHARE_MIN),
        Some(_) | None => limit,
    }
}

/// Whether `share` differs enough from the value last set in QEMU (`reported`) to set it again.
pub fn is_news(reported: Duration, share: Duration, limit: Duration) -> bool {
    share != reported && (share == limit || share.abs_diff(reported) >= reported / NEWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn at(copied: u64, total: u64) -> Option<(ByteCount, ByteCount)> {
        Some((ByteCount::mib(copied), ByteCount::mib(total)))
    }

    #[test]
    fn what_is_left_of_disks_takes_as_long_as_both_memory_and_disks_travel() {
        let memory = |mib: u64| Some(mib << 20);
        for (row, samples, bytes, time) in [
            ("nothing is told", vec![(0, vec![None, None], None)], 0, None),
            ("nothing is left", vec![(0, vec![at(9, 9), at(4, 4)], memory(0))], 0, Some(0)),
            ("no rate is known", vec![(0, vec![at(9, 10)], memory(0))], 1, None),
            (
                "all that is left of both, as fast as memory",
                vec![(0, vec![at(9, 10), at(0, 4)], memory(10))],
                5,
                Some(500),
            ),
            (
                "memory and disks share the link",
                vec![(0, vec![at(90, 100)], memory(0)), (1000, vec![at(100, 120)], memory(10))],
                20,
                Some(1000),
            ),
            (
                "the link is fast, the disk's place was slow",
                vec![
                    (0, vec![at(0, 100)], None),
                    (2000, vec![at(40, 100)], None),
                    (2200, vec![at(44, 100)], memory(1000)),
                ],
                56,
                Some(2800),
            ),
            (
                "it was looked too shortly for that",
                vec![
                    (0, vec![at(0, 100)], None),
                    (500, vec![at(10, 100)], None),
                    (1000, vec![at(10, 100)], memory(900)),
                ],
                90,
                Some(100),
            ),
            (
                "a disk that has nothing to copy is not slow",
                vec![(0, vec![at(5, 5)], None), (9000, vec![at(5, 5)], None), (9200, vec![at(5, 7)], memory(20))],
                2,
                Some(100),
            ),
            (
                "the link became slow",
                vec![
                    (0, vec![at(0, 200)], None),
                    (1000, vec![at(100, 200)], None),
                    (2000, vec![at(100, 200)], memory(1)),
                ],
                100,
                Some(100_000),
            ),
            (
                "what is not told any more is as it was",
                vec![(0, vec![at(0, 10)], memory(10)), (200, vec![None], memory(10)), (400, vec![], memory(10))],
                10,
                Some(1000),
            ),
            ("counts that make no sense", vec![(0, vec![at(12, 10)], memory(10))], 0, Some(0)),
        ] {
            let mut rests = Rests::default();
            let mut rest = Rest::default();
            for (now, disks, memory) in samples {
                rest = rests.update(ms(now), &disks, memory);
            }
            assert_eq!(rest, Rest { bytes: ByteCount::mib(bytes), time: time.map(ms) }, "{row}");
        }
        let most = Some((ByteCount(0), ByteCount(u64::MAX)));
        assert!(Rests::default().update(ms(0), &[most, most], Some(1)).time.is_some(), "whatever is counted");
    }

    #[test]
    fn memory_has_what_disks_leave_of_the_limit() {
        for (row, limit, rest, expected) in [
            ("it is not known", 300, None, 300),
            ("nothing is left", 300, Some(0), 300),
            ("there is always something on its way", 300, Some(30), 300),
            ("disks take a part", 300, Some(100), 200),
            ("disks take all", 300, Some(300), 1),
            ("far more than the limit", 300, Some(90_000), 1),
            ("it may stand still for longer", 30_000, Some(10_000), 20_000),
        ] {
            assert_eq!(share(ms(limit), rest.map(ms)), ms(expected), "{row}");
        }
    }

    #[test]
    fn qemu_is_told_what_matters() {
        for (row, reported, share, expected) in [
            ("the same", 300, 300, false),
            ("less", 300, 200, true),
            ("a little less again", 200, 190, false),
            ("a little more", 200, 219, false),
            ("much more", 200, 220, true),
            ("all of it, however little that changes", 290, 300, true),
            ("at the least there is", 1, 1, false),
        ] {
            assert_eq!(is_news(ms(reported), ms(share), ms(300)), expected, "{row}");
        }
    }
}
