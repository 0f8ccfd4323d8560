//! What codecs make of a stream, measured on samples of it.

use std::time::Duration;

use super::choice::CANDIDATES;

/// What a codec makes of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yield {
    /// Plain bytes for each coded one; at least 1, because frames that do not shrink are not coded.
    pub ratio: f64,
    /// Plain bytes that one encoder takes in a second.
    pub bytes_per_s: f64,
}

/// Each sample makes earlier ones count by so much less: about twenty count.
const MEMORY: f64 = 0.95;

/// The samples of a stream, each of them in all codecs, so that these are compared by the same bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trials([Sums; CANDIDATES.len()]);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    plain: f64,
    coded: f64,
    seconds: f64,
}

impl Trials {
    /// Records that one of the [`CANDIDATES`], by its place, made `coded` of `plain` bytes and took this long.
    pub fn add(&mut self, candidate: usize, plain: usize, coded: usize, took: Duration) {
        let Some(sums) = self.0.get_mut(candidate) else { return };
        for (sum, one) in [
            (&mut sums.plain, plain as f64),
            (&mut sums.coded, coded.min(plain) as f64),
            (&mut sums.seconds, took.as_secs_f64()),
        ] {
            *sum = *sum * MEMORY + one;
        }
    }

    /// What each candidate makes of the stream; `None` for one that was not tried.
    pub fn yields(&self) -> [Option<Yield>; CANDIDATES.len()] {
        self.0.map(|Sums { plain, coded, seconds }| {
            let is_known = plain > 0.0 && coded > 0.0 && seconds > 0.0;
            is_known.then(|| Yield { ratio: plain / coded, bytes_per_s: plain / seconds })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_samples_count_and_bytes_weigh() {
        let mut trials = Trials::default();
        assert_eq!(trials.yields(), [None; CANDIDATES.len()]);
        trials.add(1, 1000, 100, Duration::from_secs(1));
        assert_eq!(trials.yields()[1], Some(Yield { ratio: 10.0, bytes_per_s: 1000.0 }));
        assert_eq!(trials.yields()[0], None);
        for _ in 0..200 {
            trials.add(1, 3000, 2000, Duration::from_secs(1));
        }
        let found = trials.yields()[1].expect("tried");
        assert!((found.ratio - 1.5).abs() < 0.01 && (found.bytes_per_s - 3000.0).abs() < 1.0, "{found:?}");
        // What does not shrink is sent as it is.
        trials.add(2, 1000, 1010, Duration::from_secs(1));
        assert_eq!(trials.yields()[2].map(|found| found.ratio), Some(1.0));
        trials.add(CANDIDATES.len(), 1, 1, Duration::from_secs(1));
    }
}
