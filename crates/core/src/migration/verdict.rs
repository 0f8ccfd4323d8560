//! Who has the VM, decided from what both hosts report.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What one host reports about the VM now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Its vCPUs run here.
    Running,
    /// It has a process here that was paused before the migration or independently of it, or by an I/O error.
    Paused,
    /// Source: its process here was stopped for a hand-over that failed, and libvirt could not resume it, because the
    /// other copy has its disks. Only Ferry will resume it. (libvirt: paused, API error;
    /// `qemuMigrationSrcRestoreDomainState`)
    Stopped,
    /// It ran here until its guest crashed or suspended itself: its process is here, and must not be resumed.
    Halted,
    /// Source: its process here has sent everything and waits for the outcome (libvirt: paused, migration).
    HandedOver,
    /// Source: as handed over, but libvirt was restarted meanwhile and has lost the migration: it neither resumes nor
    /// ends this copy, whatever happened to the other.
    Left,
    /// Destination: its process here is still receiving.
    Receiving,
    /// Destination: all state is here, the copy is paused until it is resumed.
    Arrived,
    /// Defined here, without a process. At the destination of a live move this proves that its copy was complete,
    /// because libvirt keeps the definition only then.
    Off,
    /// Source: defined, without a process, and known to have continued here after a failed hand-over: its carrier
    /// recorded that, or libvirt reports that its guest shut itself down here.
    Ended,
    /// Not known here.
    Absent,
    /// The host does not answer.
    Unknown,
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped for a move that failed",
            Self::Halted => "crashed or suspended by its guest",
            Self::HandedOver => "sent, and waits for the outcome",
            Self::Left => "sent, and was left by libvirt",
            Self::Receiving => "still arriving",
            Self::Arrived => "complete and paused",
            Self::Off => "shut off",
            Self::Ended => "shut off after it ran on",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
        })
    }
}

/// Who has the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The source: the copy at the destination may be destroyed.
    Source,
    /// The source, unless another host has it: it runs at neither end, and may have been moved on by hand.
    SourceUnlessElsewhere,
    /// The destination: its copy is the VM and may be resumed, once no process is left at the source.
    Destination,
    /// No host that can be asked: neither end has it, and the destination once had all of it. Only the person who took
    /// it away knows where it is. Nothing is removed, and no source is released.
    Lost,
    /// Unknown so far: wait and ask again, never guess.
    Undecided,
    /// Both run it: stop and call an administrator.
    SplitBrain,
}

/// Decides who has the VM from what both hosts report, never from which call failed.
///
/// `finish_delivered` is whether the Finish reply is known to have reached the source's libvirtd, which then ends its
/// copy and cannot be made to run it again. `arrived` is whether a complete copy was ever seen at the destination that
/// Ferry has not ended itself ([`LogEvent::Arrived`](super::LogEvent::Arrived)).
pub fn verdict(source: Presence, destination: Presence, finish_delivered: bool, arrived: bool) -> Verdict {
    use Presence::{
        Absent, Arrived, Ended, Halted, HandedOver, Left, Off, Paused, Receiving, Running, Stopped, Unknown,
    };
    match (source, destination) {
        (Running, Running) | (Running | Halted, Halted) => Verdict::SplitBrain,
        // Resume happens only after delivery, so if the destination runs a copy, or has run it, that copy is the VM.
        (
            Off | Ended | Absent | HandedOver | Left | Unknown | Paused | Stopped | Halted | Receiving | Arrived,
            Running,
        )
        | (Off | Ended | Absent | HandedOver | Left | Stopped | Unknown | Receiving | Arrived, Halted) => {
            Verdict::Destination
        }
        // A running source was never told to end: the destination has at most a paused copy.
        (
            Running | Paused | Halted,
            Off | Ended | Absent | Receiving | Arrived | HandedOver | Left | Paused | Stopped | Unknown,
        ) => Verdict::Source,
        (Paused, Halted) => Verdict::Undecided,
        // Only the destination's copy can have run since; it did, because it was shut off there.
        (Stopped, Off | Ended) => Verdict::Destination,
        // libvirt has given up the move, and has tried to resume this copy itself.
        (Stopped, Receiving | Arrived | Paused | HandedOver | Left | Stopped) => Verdict::Source,
        // The other copy is gone; it may have been run by hand, and moved on.
        (Stopped, Absent) if !arrived => Verdict::SourceUnlessElsewhere,
        // Its guest continued here until it ended, and has written to its disks: the other copy's memory is older.
        (Ended, Receiving | Arrived | Paused | HandedOver | Left | Stopped) if !finish_delivered => Verdict::Source,
        // Someone ended the other copy by hand, and may have run it before.
        (Ended, Off | Ended) if !finish_delivered => Verdict::Undecided,
        // The source's process is gone, or stays paused until someone else decides: a complete copy at the destination
        // is the VM. It may have run and ended there since; the source's copy cannot have.
        (Off | Ended | Absent | Left, Arrived | Paused | Stopped | Off | Ended) => Verdict::Destination,
        // It was handed over and has ended since (the guest shut down, or its process died): the destination's
        // definition and disks are newer. Files on a share are the same for both.
        (Off | Ended | Absent | Left, Absent) if finish_delivered => Verdict::Destination,
        // All of it was there, and was taken away by hand.
        (Off | Absent | Left | Stopped, Absent) if arrived => Verdict::Lost,
        // It runs at neither (the guest shut down, or the source died first): the source has the definition, or a
        // paused copy. The VM may also have been run at the destination by hand, and moved on.
        (Off | Ended | Absent | Left, Absent) => Verdict::SourceUnlessElsewhere,
        (Off | Ended | Absent, Receiving | HandedOver | Left) => Verdict::Source,
        // The source waits for a reply that can no longer come: it has the only copy.
        (HandedOver, Absent) if !arrived => Verdict::Source,
        (HandedOver | Unknown, Arrived | Paused | Stopped | Off | Ended) if finish_delivered => Verdict::Destination,
        (HandedOver | Left, _) => Verdict::Undecided,
        (Unknown | Receiving | Arrived, _) | (Off | Ended | Absent | Stopped, Unknown | Absent) => Verdict::Undecided,
    }
}

/// Whether the reports must be recorded for the rest of the attempt, as
/// [`LogEvent::Arrived`](super::LogEvent::Arrived).
pub fn is_to_be_remembered(source: Presence, destination: Presence) -> bool {
    let complete = matches!(
        destination,
        Presence::Arrived | Presence::Running | Presence::Paused | Presence::Halted | Presence::Off
    );
    complete && source != Presence::Running
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESENCES: [Presence; 12] = [
        Presence::Running,
        Presence::Paused,
        Presence::Stopped,
        Presence::Halted,
        Presence::HandedOver,
        Presence::Left,
        Presence::Off,
        Presence::Ended,
        Presence::Receiving,
        Presence::Arrived,
        Presence::Absent,
        Presence::Unknown,
    ];

    #[test]
    fn no_verdict_lets_a_second_copy_run() {
        for source in PRESENCES {
            for destination in PRESENCES {
                for (delivered, arrived) in [(false, false), (false, true), (true, false), (true, true)] {
                    let row = format!("{source:?} {destination:?} {delivered} {arrived}");
                    match verdict(source, destination, delivered, arrived) {
                        // Resuming the destination must be safe: the source cannot run, now or later.
                        Verdict::Destination => {
                            let gone =
                                matches!(source, Presence::Absent | Presence::Off | Presence::Ended | Presence::Left);
                            // The source's copy ran on after the failed hand-over; the other did not.
                            let old = source == Presence::Ended && !delivered;
                            let may_be_old = old && !matches!(destination, Presence::Running | Presence::Halted);
                            assert!(!may_be_old, "{row}");
                            let source_cannot_run = gone || delivered;
                            // A VM that was shut off there has run there.
                            let has_run = matches!(
                                destination,
                                Presence::Running | Presence::Halted | Presence::Off | Presence::Ended
                            );
                            assert!(source != Presence::Running && (has_run || source_cannot_run), "{row}");
                        }
                        // Destroying the destination's copy must be safe: it never ran, and the source can run.
                        Verdict::Source | Verdict::SourceUnlessElsewhere => {
                            let ran = matches!(destination, Presence::Running | Presence::Halted);
                            assert!(!ran && source != Presence::Unknown, "{row}");
                            // A copy that was there and is gone must be somewhere, unless the source has continued.
                            let ran_on = matches!(
                                source,
                                Presence::Running | Presence::Paused | Presence::Halted | Presence::Ended
                            );
                            assert!(ran_on || !arrived || destination != Presence::Absent, "{row}");
                        }
                        Verdict::SplitBrain => {
                            let ran = |presence| matches!(presence, Presence::Running | Presence::Halted);
                            assert!(ran(source) && ran(destination), "{row}");
                        }
                        Verdict::Lost => assert!(arrived && destination == Presence::Absent, "{row}"),
                        Verdict::Undecided => {}
                    }
                }
            }
        }
    }

    #[test]
    fn an_unreachable_source_decides_nothing_unless_delivery_is_known() {
        for arrived in [false, true] {
            assert_eq!(verdict(Presence::Unknown, Presence::Arrived, false, arrived), Verdict::Undecided);
            assert_eq!(verdict(Presence::Unknown, Presence::Arrived, true, arrived), Verdict::Destination);
            assert_eq!(verdict(Presence::HandedOver, Presence::Unknown, false, arrived), Verdict::Undecided);
        }
    }

    #[test]
    fn who_has_a_vm_without_a_process_depends_on_what_is_left_of_it() {
        use Presence::{
            Absent, Arrived, Ended, Halted, HandedOver, Left, Off, Paused, Receiving, Running, Stopped, Unknown,
        };
        use Verdict::{Destination, Source, SourceUnlessElsewhere, SplitBrain, Undecided};
        for (row, source, destination, delivered, expected) in [
            ("the guest shut down meanwhile", Off, Absent, false, SourceUnlessElsewhere),
            ("so did one without a definition", Absent, Absent, false, SourceUnlessElsewhere),
            ("it was handed over first, and ended there", Off, Absent, true, Destination),
            ("it ran and was shut off at the destination", Off, Off, false, Destination),
            ("the source comes back after that", Absent, Off, false, Destination),
            ("its guest crashed at the source", Halted, Arrived, false, Source),
            ("its guest crashed once it ran at the destination", HandedOver, Halted, false, Destination),
            ("so it did, and the source's process is gone", Off, Halted, false, Destination),
            ("it ran at both, and crashed at one", Running, Halted, true, SplitBrain),
            ("its guest crashed at the source, and it runs at the destination", Halted, Running, false, Destination),
            ("it came only halfway", Off, Receiving, true, Source),
            ("the source's libvirt goes on with it", HandedOver, Absent, true, Source),
            ("the source's libvirt has not said its last word", HandedOver, Off, false, Undecided),
            ("the source's libvirtd was restarted before Finish", Left, Absent, false, SourceUnlessElsewhere),
            ("it was restarted then, and libvirt still ends the other copy", Left, Receiving, false, Undecided),
            ("it was restarted after Finish", Left, Arrived, false, Destination),
            ("somebody ran and stopped the copy since", Left, Paused, false, Destination),
            ("somebody shut it off since", Left, Off, false, Destination),
            (
                "it was handed over and ended there, and libvirt did not end what is here",
                Left,
                Absent,
                true,
                Destination,
            ),
            (
                "libvirt could not run it again, and the other copy is gone",
                Stopped,
                Absent,
                false,
                SourceUnlessElsewhere,
            ),
            ("libvirt could not run it again, for the other copy has its disks", Stopped, Arrived, false, Source),
            ("the other copy was run by hand since", Stopped, Running, false, Destination),
            ("it was run by hand, and shut off", Stopped, Off, false, Destination),
            ("it ran on at the source, and ended there", Ended, Arrived, false, Source),
            ("so it did, and the other copy is gone", Ended, Absent, false, SourceUnlessElsewhere),
            ("so it did, and somebody ended the other copy, who may have run it", Ended, Off, false, Undecided),
            ("so it did, and somebody runs the other copy", Ended, Running, false, Destination),
            ("so it did, and the destination does not answer", Ended, Unknown, false, Undecided),
            ("it may be run by hand where nobody can be asked", Stopped, Unknown, false, Undecided),
        ] {
            assert_eq!(verdict(source, destination, delivered, false), expected, "{row}");
        }
    }

    #[test]
    fn what_was_complete_at_the_destination_and_is_not_there_any_more_is_not_the_sources() {
        use Presence::{
            Absent, Arrived, Ended, Halted, HandedOver, Left, Off, Paused, Receiving, Running, Stopped, Unknown,
        };
        use Verdict::{Destination, Lost, Source, SourceUnlessElsewhere, Undecided};
        for (row, source, destination, delivered, expected) in [
            ("it was run by hand and moved on to a host that Ferry does not know", Off, Absent, false, Lost),
            ("so it was, and its source has lost its definition", Absent, Absent, false, Lost),
            ("so it was, and libvirt left the source's copy", Left, Absent, false, Lost),
            ("so it was, and libvirt could not run the source's copy", Stopped, Absent, false, Lost),
            ("so it was, and the source's libvirt has not said its last word", HandedOver, Absent, false, Undecided),
            ("it was handed over first", Off, Absent, true, Destination),
            ("the source has run on", Running, Absent, false, Source),
            ("the source has run on, and is paused", Paused, Absent, false, Source),
            ("the source has run on, and shut itself down", Ended, Absent, false, SourceUnlessElsewhere),
            ("the source has run on, and its guest crashed", Halted, Absent, false, Source),
            ("it is there still", Off, Arrived, false, Destination),
            ("the source does not answer", Unknown, Absent, false, Undecided),
            ("the destination does not answer", Off, Unknown, false, Undecided),
        ] {
            assert_eq!(verdict(source, destination, delivered, true), expected, "{row}");
        }
        for source in PRESENCES {
            for destination in PRESENCES {
                let complete = matches!(destination, Arrived | Running | Paused | Halted | Off);
                let expected = complete && source != Running;
                assert_eq!(is_to_be_remembered(source, destination), expected, "{source:?} {destination:?}");
                assert!(!is_to_be_remembered(source, Receiving), "{source:?}");
            }
        }
    }
}
