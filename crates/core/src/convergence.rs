//! Decides what to do about a live move that does not finish: at its time limit, when the VM is paused for too long,
//! and when a migrated disk no longer answers.
//!
//! ```text
//! disks ─┬─ one has not answered for 10 min, or for 25 s while the VM is paused ─▶ end the move, the VM stays
//!        └─ none has progressed for the time limit ─▶ end the move, the VM stays
//! precopy ─┬─ the rest of disks takes a part of the downtime limit ─▶ the rest of memory gets the other part
//!          ├─ memory shrank in its first pass, and what is left may not ─▶ as much less until a later pass shows it
//!          └─ time limit ─┬─ abort, autoconverge ─▶ end the move, the VM stays
//!                         └─ pause ─▶ the VM may be paused for up to 30 s ── after a minute ─▶ end the move
//! switchover ── the VM is paused for far longer than allowed ─▶ end the move, the VM continues at the source
//! ```
//! QEMU estimates how long the rest will take and stops the VM when that is short enough. The estimate uses the rate so
//! far: if the link becomes slow at that moment, the VM would stay paused for as long as the rest then takes.

use std::time::Duration;

use crate::{
    compression::NO_GAIN_PERCENT,
    disk_rest::{SHARE_MIN, is_news, share},
    job::OnStall,
    units::ByteCount,
};

/// How long QEMU gets to find its moment once a longer downtime is allowed.
const PAUSE_GRACE: Duration = Duration::from_secs(60);
/// A VM may be paused for this long beyond its downtime limit times [`PAUSED_FACTOR`]: for device state, a busy
/// destination, and disks that are opened over the network.
const PAUSED_MARGIN: Duration = Duration::from_secs(10);
const PAUSED_FACTOR: u32 = 3;
/// How long the other end of a disk may leave every request unanswered. Copies run in the background, and no guest
/// write waits for them; a host with much memory takes minutes to flush it to slow storage.
const SILENT_MAX: Duration = Duration::from_secs(600);
/// The same while the VM is paused, because the VM then waits for the disk.
const SILENT_PAUSED_MAX: Duration = Duration::from_secs(25);
/// A disk makes progress when the remaining bytes shrink by at least this fraction of its size. Smaller steps would not
/// finish in reasonable time.
const STEPS: u64 = 1 << 16;

/// The current state of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The behaviour that was requested.
    pub on_stall: OnStall,
    /// Time since libvirt's migrate call or, while disks are copied, since a disk last made progress.
    pub elapsed: Duration,
    /// The time limit.
    pub timeout: Duration,
    /// How long the VM may be paused.
    pub downtime_limit: Duration,
    /// The part of that for memory, as last set in QEMU.
    pub memory_limit: Duration,
    /// How much longer the VM would be paused for the rest of its migrated disks; `None`: unknown, or memory is not
    /// being sent yet.
    pub disk_rest: Option<Duration>,
    /// How much faster the link seems to QEMU than it may be for the rest of memory, in percent
    /// ([`Gain`](crate::compression::Gain)).
    pub gain_percent: u32,
    /// How long the VM has been paused; `None`: it runs.
    pub paused: Option<Duration>,
    /// How long a migrated disk has left all its requests unanswered; zero: it answers, or it has no pending request.
    pub silent: Duration,
}

/// Tracks how long the other end of a disk has answered nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    answered: u64,
    /// When the current wait began, on the caller's clock.
    since: Option<Duration>,
}

impl Answers {
    /// Takes the counters at `now`: requests that wait for an answer, and answers so far. Returns how long requests
    /// have waited without any answer.
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

/// Tracks whether copied disks make progress. Traffic alone proves nothing, because a guest may rewrite everything that
/// was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// The fewest bytes that ever remained of each disk.
    least: Vec<Option<u64>>,
}

impl Remains {
    /// Takes the copied and the total bytes of each disk, where known, always in the same order. Returns whether less
    /// remains of a disk than ever before, by at least one step. This is true a bounded number of times.
    pub fn get_on(&mut self, disks: &[Option<(ByteCount, ByteCount)>]) -> bool {
        self.least.resize(disks.len().max(self.least.len()), None);
        let mut get_on = false;
        for (least, disk) in self.least.iter_mut().zip(disks) {
            let Some((copied, total)) = disk else { continue };
            let now = total.0.saturating_sub(copied.0);
            let is_less = |least: u64| now < least && (now == 0 || least - now >= total.0 / STEPS);
            if least.is_none_or(is_less) {
                (*least, get_on) = (Some(now), true);
            }
        }
        get_on
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvergenceAction {
    /// Nothing.
    GoOn,
    /// Allow the VM to be paused for this long, and set in QEMU the part for memory.
    AllowDowntime {
        /// The whole limit.
        limit: Duration,
        /// The part for memory, without the rest of disks.
        memory: Duration,
    },
    /// End the move: it exceeds its time limit, or its disks made no progress for that long.
    EndSlow,
    /// End the move: the VM is paused for too long.
    EndPaused,
    /// End the move: a migrated disk does not answer.
    EndSilent,
}

/// Decides what to do about a move now.
pub fn next_action(now: &Sample) -> ConvergenceAction {
    let pause_max = Duration::from_millis(u64::from(OnStall::PAUSE_MAX_MS));
    if now.paused.is_some_and(|paused| paused > paused_max(now.downtime_limit)) {
        return ConvergenceAction::EndPaused;
    }
    if now.silent > if now.paused.is_some() { SILENT_PAUSED_MAX } else { SILENT_MAX } {
        return ConvergenceAction::EndSilent;
    }
    // The VM is already paused: the move is almost done, and ending it would only prolong the pause.
    if now.paused.is_some() {
        return ConvergenceAction::GoOn;
    }
    let part = |limit| in_qemus_measure(share(limit, now.disk_rest), now.gain_percent);
    let allow = |limit| ConvergenceAction::AllowDowntime { limit, memory: part(limit) };
    let go_on = match is_news(now.memory_limit, part(now.downtime_limit), now.downtime_limit) {
        true => allow(now.downtime_limit),
        false => ConvergenceAction::GoOn,
    };
    if now.elapsed <= now.timeout {
        return go_on;
    }
    match now.on_stall {
        OnStall::Abort | OnStall::Autoconverge => ConvergenceAction::EndSlow,
        OnStall::Pause if now.downtime_limit < pause_max => allow(pause_max),
        OnStall::Pause if now.elapsed <= now.timeout + PAUSE_GRACE => go_on,
        OnStall::Pause => ConvergenceAction::EndSlow,
    }
}

/// What QEMU takes for so long if the link seems faster to it than it is, by this gain. QEMU accepts no shorter limit than
/// [`SHARE_MIN`].
fn in_qemus_measure(limit: Duration, gain_percent: u32) -> Duration {
    (limit * NO_GAIN_PERCENT / gain_percent.max(NO_GAIN_PERCENT)).max(SHARE_MIN)
}

/// The longest pause of a VM with this downtime limit before the move is ended.
pub fn paused_max(downtime_limit: Duration) -> Duration {
    downtime_limit.saturating_mul(PAUSED_FACTOR).saturating_add(PAUSED_MARGIN)
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
            (OnStall::Abort, 10, None, ConvergenceAction::GoOn),
            (OnStall::Abort, 101, None, ConvergenceAction::EndSlow),
            (OnStall::Autoconverge, 100, None, ConvergenceAction::GoOn),
            (OnStall::Autoconverge, 101, None, ConvergenceAction::EndSlow),
            (OnStall::Pause, 101, None, ConvergenceAction::AllowDowntime { limit: s(30), memory: s(30) }),
            (OnStall::Abort, 101, Some(1), ConvergenceAction::GoOn),
            (OnStall::Abort, 50, Some(12), ConvergenceAction::EndPaused),
            (OnStall::Pause, 50, Some(12), ConvergenceAction::EndPaused),
        ];
        for (on_stall, elapsed, paused, expected) in table {
            let now = Sample {
                on_stall,
                elapsed: s(elapsed),
                timeout: s(100),
                downtime_limit: Duration::from_millis(300),
                memory_limit: Duration::from_millis(300),
                disk_rest: None,
                gain_percent: 100,
                paused: paused.map(s),
                silent: Duration::ZERO,
            };
            assert_eq!(next_action(&now), expected, "{now:?}");
        }
    }

    #[test]
    fn a_pause_that_does_not_help_ends_the_move() {
        let allowed = Sample {
            on_stall: OnStall::Pause,
            elapsed: s(130),
            timeout: s(100),
            downtime_limit: s(30),
            memory_limit: s(30),
            disk_rest: Some(s(1)),
            gain_percent: 100,
            paused: None,
            silent: Duration::ZERO,
        };
        assert_eq!(next_action(&allowed), ConvergenceAction::GoOn);
        assert_eq!(next_action(&Sample { elapsed: s(161), ..allowed }), ConvergenceAction::EndSlow);
        assert_eq!(next_action(&Sample { paused: Some(s(90)), ..allowed }), ConvergenceAction::GoOn);
        assert_eq!(next_action(&Sample { paused: Some(s(101)), ..allowed }), ConvergenceAction::EndPaused);
    }

    #[test]
    fn what_is_left_of_disks_counts_as_what_is_left_of_memory() {
        let ms = Duration::from_millis;
        let before = Sample {
            on_stall: OnStall::Abort,
            elapsed: s(50),
            timeout: s(100),
            downtime_limit: ms(300),
            memory_limit: ms(300),
            disk_rest: None,
            gain_percent: 100,
            paused: None,
            silent: Duration::ZERO,
        };
        let of = |memory| ConvergenceAction::AllowDowntime { limit: ms(300), memory };
        let late = Sample { elapsed: s(101), disk_rest: Some(s(40)), memory_limit: ms(1), ..before };
        let paused = Sample { downtime_limit: s(30), on_stall: OnStall::Pause, ..late };
        for (row, sample, expected) in [
            ("disks are not known", before, ConvergenceAction::GoOn),
            ("little is left of them", Sample { disk_rest: Some(ms(20)), ..before }, ConvergenceAction::GoOn),
            ("they take a part", Sample { disk_rest: Some(ms(100)), ..before }, of(ms(200))),
            (
                "that is told",
                Sample { disk_rest: Some(ms(100)), memory_limit: ms(200), ..before },
                ConvergenceAction::GoOn,
            ),
            ("far too much is left", Sample { disk_rest: Some(s(40)), ..before }, of(ms(1))),
            ("memory shrank, and the rest may not", Sample { gain_percent: 250, ..before }, of(ms(120))),
            (
                "that is told, too",
                Sample { gain_percent: 250, memory_limit: ms(120), ..before },
                ConvergenceAction::GoOn,
            ),
            ("the rest shrinks as well", Sample { memory_limit: ms(120), ..before }, of(ms(300))),
            ("both", Sample { disk_rest: Some(ms(100)), gain_percent: 200, ..before }, of(ms(100))),
            ("no limit is too short", Sample { gain_percent: u32::MAX, ..before }, of(ms(1))),
            ("it is gone", Sample { disk_rest: Some(ms(0)), memory_limit: ms(1), ..before }, of(ms(300))),
            (
                "too late: it stands still",
                Sample { disk_rest: Some(s(40)), paused: Some(ms(1)), ..before },
                ConvergenceAction::GoOn,
            ),
            ("at the time limit it ends", late, ConvergenceAction::EndSlow),
            (
                "or may stand still for longer, with its disks",
                Sample { on_stall: OnStall::Pause, disk_rest: Some(s(10)), ..late },
                ConvergenceAction::AllowDowntime { limit: s(30), memory: s(20) },
            ),
            (
                "but not for longer than that",
                Sample { on_stall: OnStall::Pause, ..late },
                ConvergenceAction::AllowDowntime { limit: s(30), memory: ms(1) },
            ),
            (
                "disks that are not in time end it, too",
                Sample { elapsed: s(161), ..paused },
                ConvergenceAction::EndSlow,
            ),
            (
                "disks got on meanwhile",
                Sample { disk_rest: Some(s(5)), ..paused },
                ConvergenceAction::AllowDowntime { limit: s(30), memory: s(25) },
            ),
        ] {
            assert_eq!(next_action(&sample), expected, "{row}");
        }
    }

    #[test]
    fn a_disk_that_does_not_answer_ends_the_move_long_before_its_time_limit() {
        let answers = Sample {
            on_stall: OnStall::Abort,
            elapsed: s(60),
            timeout: s(3600),
            downtime_limit: Duration::from_millis(300),
            memory_limit: Duration::from_millis(300),
            disk_rest: None,
            gain_percent: 100,
            paused: None,
            silent: s(600),
        };
        let (silent, pause) = (s(601), OnStall::Pause);
        for (row, sample, expected) in [
            ("it writes out its memory for minutes", answers, ConvergenceAction::GoOn),
            ("it is silent", Sample { silent, ..answers }, ConvergenceAction::EndSilent),
            ("pausing helps nobody", Sample { silent, on_stall: pause, ..answers }, ConvergenceAction::EndSilent),
            ("the VM waits", Sample { silent: s(26), paused: Some(s(1)), ..answers }, ConvergenceAction::EndSilent),
            ("not for long yet", Sample { silent: s(25), paused: Some(s(1)), ..answers }, ConvergenceAction::GoOn),
        ] {
            assert_eq!(next_action(&sample), expected, "{row}");
        }
    }

    #[test]
    fn disks_get_on_only_when_less_of_one_remains_than_ever_and_not_without_end() {
        let at = |copied: u64, total: u64| Some((ByteCount::mib(copied), ByteCount::mib(total)));
        let a_little_more = Some((ByteCount((362 << 20) + (16 << 10)), ByteCount::mib(2400)));
        let mut remains = Remains::default();
        for (row, disks, expected) in [
            ("nothing is told yet", vec![None, None], false),
            ("they begin", vec![at(0, 2048), None], true),
            ("one gets on", vec![at(10, 2048), None], true),
            ("the other begins", vec![at(10, 2048), at(0, 64)], true),
            ("what is copied is written again", vec![at(110, 2148), at(0, 64)], false),
            ("and more than that", vec![at(210, 2400), at(0, 64)], false),
            ("less remains again, but not less than ever", vec![at(362, 2400), at(0, 64)], false),
            ("by too little to come to an end", vec![a_little_more, at(0, 64)], false),
            ("less than ever", vec![at(370, 2400), at(0, 64)], true),
            ("one that stands still does not hide the other", vec![at(370, 2400), at(1, 64)], true),
            ("the very end counts, however little it is", vec![at(370, 2400), at(64, 64)], true),
            ("it is nothing new after that", vec![at(370, 2400), at(65, 65)], false),
        ] {
            assert_eq!(remains.get_on(&disks), expected, "{row}");
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
