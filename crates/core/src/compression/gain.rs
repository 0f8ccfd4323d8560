//! What QEMU's measure of the link is worth while memory is compressed.

use std::time::Duration;

/// No gain: what travels is what QEMU wrote.
pub const NO_GAIN_PERCENT: u32 = 100;
/// QEMU measures its rate in intervals of 100 ms. A pass has shown its rate when a whole one lies in it.
const SHOWN_AFTER: Duration = Duration::from_millis(200);

/// How much faster the link seems to QEMU than it is, because memory shrinks on its way.
///
/// QEMU stops the VM when the rest of its memory fits into the downtime limit at the rate of the last moments. In the first
/// pass that is how fast memory travels that was written long ago; the rest is what the guest wrote since, and may not
/// shrink at all. Seen at 200 Mb/s: the first pass at 50 MB/s, the rest at 25, and so a pause of 870 ms where 300 were
/// allowed. So the rest counts as if it did not shrink, until a later pass has shown how fast it travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gain {
    /// When the second pass began, on the caller's clock.
    second_pass: Option<Duration>,
}

impl Gain {
    /// The gain that is not proven, in percent of the link's rate, at least [`NO_GAIN_PERCENT`], which is none. Takes the
    /// passes over memory so far, from 1, and the bytes of memory so far: plain, and on the wire.
    pub fn percent(&mut self, now: Duration, passes: u32, plain: u64, wire: u64) -> u32 {
        if passes > 1 {
            let began = *self.second_pass.get_or_insert(now);
            if now.saturating_sub(began) >= SHOWN_AFTER {
                return NO_GAIN_PERCENT;
            }
        }
        let percent = u128::from(plain) * 100 / u128::from(wire.max(1));
        u32::try_from(percent).unwrap_or(u32::MAX).max(NO_GAIN_PERCENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shrank_in_the_first_pass_counts_until_a_later_one_has_shown_its_rate() {
        let ms = Duration::from_millis;
        let mut gain = Gain::default();
        for (now, passes, plain, wire, expected) in [
            (0, 1, 0, 0, 100),
            (200, 1, 1000, 1010, 100),
            (400, 1, 5000, 2000, 250),
            (600, 2, 6000, 2500, 240),
            (799, 2, 6000, 2500, 240),
            (800, 2, 6000, 2500, 100),
            (1000, 3, 9000, 2500, 100),
        ] {
            assert_eq!(gain.percent(ms(now), passes, plain, wire), expected, "at {now} ms");
        }
        assert_eq!(Gain::default().percent(ms(0), 1, u64::MAX, 0), u32::MAX);
    }
}
