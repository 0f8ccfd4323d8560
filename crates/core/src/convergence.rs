//! What is done about a live move that does not come to its end: at its time limit, when the VM stands still for too
//! long, and when a disk that moves along does not answer any more.
//!
//! ```text
//! disks ── one has not answered for 25 s ─▶ ends, the VM stays: each of its writes waits for both files meanwhile
//! precopy ── time limit ─┬─ abort, autoconverge ─▶ ends, the VM stays
//!                        └─ pause ─▶ the VM may stand still for up to 30 s ── a minute later ─▶ ends, the VM stays
//! switchover ── the VM stands still for far longer than it may ─▶ ends, the VM runs on at the source
//! ```
//! QEMU estimates how long the rest will take and stops the VM when that is short enough. The estimate is of the rate so
//! far: on a link that becomes slow just then, the VM would stand still for as long as the rest takes.

use std::time::Duration;

use crate::job::OnStall;

/// How long QEMU gets to find its moment, once the VM may stand still for longer.
const PAUSE_GRACE: Duration = Duration::from_secs(60);
/// Beyond its downtime limit a VM may stand still for this, and for [`STILL_FACTOR`] times the limit: device state, a
/// busy destination, disks that are opened over the network.
const STILL_MARGIN: Duration = Duration::from_secs(10);
const STILL_FACTOR: u32 = 3;
/// For so long the other end of a disk may leave every request unanswered. A guest gives up its own writes after 30 s or
/// more; a file server that is restarted is back sooner.
pub const SILENT_MAX: Duration = Duration::from_secs(25);

/// A move, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// What was asked for.
    pub on_stall: OnStall,
    /// Since libvirt's migrate call.
    pub elapsed: Duration,
    /// The time limit.
    pub timeout: Duration,
    /// How long the VM may stand still, as QEMU was told last.
    pub downtime_limit: Duration,
    /// For how long the VM stands still already; `None`: it runs.
    pub still: Option<Duration>,
    /// For how long a disk that moves along has answered none of the requests it was sent; zero: it answers, or nothing
    /// was asked.
    pub silent: Duration,
}

/// Tells for how long the other end of a disk has answered nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    answered: u64,
    /// Since when it is waited, on the caller's clock.
    since: Option<Duration>,
}

impl Answers {
    /// Takes what is counted at `now`: requests that wait for an answer, and answers so far. Gives for how long some have
    /// waited without any answer.
    pub fn silent(&mut self, waiting: u64, answered: u64, now: Duration) -> Duration {
        let heard = self.answered != answered;
        self.answered = answered;
        self.since = match self.since {
            _ if waiting == 0 => None,
            Some(since) if !heard => Some(since),
            Some(_) | None => Some(now),
        };
        self.since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Nothing.
    GoOn,
    /// Tell QEMU that the VM may stand still for so long.
    AllowDowntime(Duration),
    /// End the move: it takes longer than its time limit.
    EndSlow,
    /// End the move: the VM stands still for too long.
    EndStill,
    /// End the move: a disk that moves along does not answer, and the guest's writes wait for it.
    EndSilent,
}

/// What to do about a move now.
pub fn measure(now: &Situation) -> Measure {
    let pause_max = Duration::from_millis(u64::from(OnStall::PAUSE_MAX_MS));
    if now.still.is_some_and(|still| still > still_max(now.downtime_limit)) {
        return Measure::EndStill;
    }
    if now.silent > SILENT_MAX {
        return Measure::EndSilent;
    }
    // The VM stands still already: its end is near, and ending the move would only make it longer.
    if now.elapsed <= now.timeout || now.still.is_some() {
        return Measure::GoOn;
    }
    match now.on_stall {
        OnStall::Abort | OnStall::Autoconverge => Measure::EndSlow,
        OnStall::Pause if now.downtime_limit < pause_max => Measure::AllowDowntime(pause_max),
        OnStall::Pause if now.elapsed <= now.timeout + PAUSE_GRACE => Measure::GoOn,
        OnStall::Pause => Measure::EndSlow,
    }
}

/// The longest that a VM stands still whose move has this downtime limit, before the move is ended.
pub fn still_max(downtime_limit: Duration) -> Duration {
    downtime_limit.saturating_mul(STILL_FACTOR).saturating_add(STILL_MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn every_policy_ends_and_none_lets_the_vm_stand_still_for_ever() {
        let table = [
            (OnStall::Abort, 10, None, Measure::GoOn),
            (OnStall::Abort, 101, None, Measure::EndSlow),
            (OnStall::Autoconverge, 100, None, Measure::GoOn),
            (OnStall::Autoconverge, 101, None, Measure::EndSlow),
            (OnStall::Pause, 101, None, Measure::AllowDowntime(s(30))),
            (OnStall::Abort, 101, Some(1), Measure::GoOn),
            (OnStall::Abort, 50, Some(12), Measure::EndStill),
            (OnStall::Pause, 50, Some(12), Measure::EndStill),
        ];
        for (on_stall, elapsed, still, expected) in table {
            let now = Situation {
                on_stall,
                elapsed: s(elapsed),
                timeout: s(100),
                downtime_limit: Duration::from_millis(300),
                still: still.map(s),
                silent: Duration::ZERO,
            };
            assert_eq!(measure(&now), expected, "{now:?}");
        }
    }

    #[test]
    fn a_pause_that_does_not_help_ends_the_move() {
        let allowed = Situation {
            on_stall: OnStall::Pause,
            elapsed: s(130),
            timeout: s(100),
            downtime_limit: s(30),
            still: None,
            silent: Duration::ZERO,
        };
        assert_eq!(measure(&allowed), Measure::GoOn);
        assert_eq!(measure(&Situation { elapsed: s(161), ..allowed }), Measure::EndSlow);
        assert_eq!(measure(&Situation { still: Some(s(90)), ..allowed }), Measure::GoOn);
        assert_eq!(measure(&Situation { still: Some(s(101)), ..allowed }), Measure::EndStill);
    }

    #[test]
    fn a_disk_that_does_not_answer_ends_the_move_long_before_its_time_limit() {
        let answers = Situation {
            on_stall: OnStall::Abort,
            elapsed: s(60),
            timeout: s(3600),
            downtime_limit: Duration::from_millis(300),
            still: None,
            silent: s(25),
        };
        for (row, situation, expected) in [
            ("it may be slow", answers, Measure::GoOn),
            ("it is silent", Situation { silent: s(26), ..answers }, Measure::EndSilent),
            (
                "pausing helps nobody",
                Situation { silent: s(26), on_stall: OnStall::Pause, ..answers },
                Measure::EndSilent,
            ),
            ("nor does waiting", Situation { silent: s(26), still: Some(s(1)), ..answers }, Measure::EndSilent),
        ] {
            assert_eq!(measure(&situation), expected, "{row}");
        }
    }

    #[test]
    fn a_disk_is_silent_only_while_it_is_asked_and_says_nothing() {
        let mut disk = Answers::default();
        for (row, waiting, answered, now, expected) in [
            ("nothing was asked yet", 0, 0, 10, 0),
            ("it is asked", 3, 0, 20, 0),
            ("it has not answered since", 3, 0, 30, 10),
            ("it answered one of them", 2, 1, 40, 0),
            ("and then no more, though more was asked", 9, 1, 50, 10),
            ("all is answered", 0, 10, 60, 0),
            ("nobody asks", 0, 10, 160, 0),
            ("it is asked again after a long time", 1, 10, 170, 0),
            ("in vain", 1, 10, 200, 30),
        ] {
            assert_eq!(disk.silent(waiting, answered, s(now)), s(expected), "{row}");
        }
    }
}
