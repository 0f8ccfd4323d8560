//! Pauses between tries of an operation that is repeated until it succeeds.

use std::time::Duration;

/// Pauses that double up to a bound. Copy a constant to start again from the first pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// Pauses from `first` to `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, max }
    }

    /// How long to wait before the next try.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        assert_eq!([(); 4].map(|()| backoff.pause().as_millis()), [100, 200, 350, 350]);
        let mut none = Backoff::new(Duration::ZERO, Duration::from_secs(1));
        assert_eq!([none.pause(), none.pause()], [Duration::ZERO; 2]);
    }
}
