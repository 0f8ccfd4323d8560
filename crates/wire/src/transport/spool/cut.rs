//! When the bytes that were gathered become a segment: a decision.
//!
//! A small segment arrives early, and large ones arrive fast. While nothing of the pipe waits in the share, whatever is
//! there is sent at once. Otherwise it is gathered until it is as much as what waits there, so that a pipe in bulk has a few
//! large segments on their way and a quiet one a small one, or until nothing is added any more.

use std::time::Duration;

use super::segment::PLAIN_BYTES_MAX;

/// Most segments of a direction that are written or not yet read. What waits there adds to a downtime; fewer leave the
/// share idle while the other end reads.
pub(super) const IN_FLIGHT_MAX: usize = 4;
/// Bytes to which nothing was added for so long are sent.
pub(super) const IDLE: Duration = Duration::from_millis(5);

/// What is known of a direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// Bytes that were gathered.
    pub(super) gathered: usize,
    /// How long ago the last ones were added.
    pub(super) idle: Duration,
    /// Nothing will be added.
    pub(super) is_closing: bool,
    /// Segments in flight.
    pub(super) in_flight: usize,
    /// Their plain bytes.
    pub(super) in_flight_bytes: usize,
}

/// Whether to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Now.
    Now,
    /// If nothing is added for so long.
    After(Duration),
    /// Not before something happens.
    NotYet,
}

/// Whether the gathered bytes become a segment.
pub(super) fn cut(outlook: Outlook) -> Cut {
    let Outlook { gathered, idle, is_closing, in_flight, in_flight_bytes } = outlook;
    if in_flight >= IN_FLIGHT_MAX || (gathered == 0 && !is_closing) {
        Cut::NotYet
    } else if is_closing || gathered >= in_flight_bytes.min(PLAIN_BYTES_MAX) || idle >= IDLE {
        Cut::Now
    } else {
        Cut::After(IDLE - idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn outlook(gathered: usize, in_flight: usize, in_flight_bytes: usize) -> Outlook {
        Outlook { gathered, idle: Duration::ZERO, is_closing: false, in_flight, in_flight_bytes }
    }

    #[test]
    fn a_quiet_pipe_sends_at_once_and_a_busy_one_in_bulk() {
        for (gathered, in_flight, in_flight_bytes, expected) in [
            (0, 0, 0, Cut::NotYet),
            (1, 0, 0, Cut::Now),
            (1, 1, MIB, Cut::After(IDLE)),
            (MIB, 1, MIB, Cut::Now),
            (MIB, 2, 2 * MIB, Cut::After(IDLE)),
            (PLAIN_BYTES_MAX, 3, 3 * PLAIN_BYTES_MAX, Cut::Now),
            (PLAIN_BYTES_MAX, IN_FLIGHT_MAX, 4, Cut::NotYet),
        ] {
            assert_eq!(cut(outlook(gathered, in_flight, in_flight_bytes)), expected, "{gathered} {in_flight}");
        }
    }

    #[test]
    fn what_is_no_longer_added_to_is_sent() {
        let waits = |idle, is_closing| cut(Outlook { idle, is_closing, ..outlook(1, 1, MIB) });
        assert_eq!(waits(Duration::from_millis(4), false), Cut::After(Duration::from_millis(1)));
        assert_eq!(waits(IDLE, false), Cut::Now);
        assert_eq!(waits(Duration::ZERO, true), Cut::Now);
        // The end of a stream is a segment even without bytes.
        assert_eq!(cut(Outlook { is_closing: true, ..outlook(0, 1, MIB) }), Cut::Now);
    }
}
