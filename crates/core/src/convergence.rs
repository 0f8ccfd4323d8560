//! What is done about a live move that does not come to its end: at its time limit, and when the VM stands still for too
//! long.
//!
//! ```text
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
}

/// What to do about a move now.
pub fn measure(now: &Situation) -> Measure {
    let pause_max = Duration::from_millis(u64::from(OnStall::PAUSE_MAX_MS));
    if now.still.is_some_and(|still| still > still_max(now.downtime_limit)) {
        return Measure::EndStill;
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
        };
        assert_eq!(measure(&allowed), Measure::GoOn);
        assert_eq!(measure(&Situation { elapsed: s(161), ..allowed }), Measure::EndSlow);
        assert_eq!(measure(&Situation { still: Some(s(90)), ..allowed }), Measure::GoOn);
        assert_eq!(measure(&Situation { still: Some(s(101)), ..allowed }), Measure::EndStill);
    }
}
