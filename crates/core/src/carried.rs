//! What the channels of a live move have carried, by stage; what they waited for meanwhile; and what limited the move.
//!
//! ```text
//! QEMU ─▶ plain ─ zeroes ─ held ─▶ encoder ─▶ wire ═══▶ decoder ─▶ plain ─▶ QEMU
//!   └ source    waits for a lane, the window, a limit ┘                 └ delivery
//! ```

use serde::{Deserialize, Serialize};

/// What the channels of one end have carried so far, in both directions. Everything only rises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Carried {
    /// Of memory.
    pub memory: Stages,
    /// Of disks.
    pub disks: Stages,
    /// Blocks that an unfinished copy should have held and did not.
    pub changed_blocks: u64,
}

/// Bytes by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Stages {
    /// In the streams between the carriers, before they are coded.
    pub plain: u64,
    /// As frames, coded, with their headers, without the overhead of TLS and TCP.
    pub wire: u64,
    /// Source: zeroes that were not sent. Destination: zeroes that were not written.
    pub zeroes: u64,
    /// Blocks that the destination had already: at the source those named, at the destination those found.
    pub held: u64,
    /// The part of `plain` that was compressed.
    pub compressed_from: u64,
    /// What that became.
    pub compressed_to: u64,
    /// Time of the encoders, of all lanes together. Milliseconds.
    pub encoding_ms: u64,
    /// What the streams waited for.
    pub waits: Waits,
}

/// Time that the streams of all channels together waited, in milliseconds: while two channels wait, each counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Waits {
    /// For the next bytes of the local program: QEMU, which reads memory or a disk. Silence counts only in part: nothing
    /// may be left to send.
    pub source_ms: u64,
    /// For a lane: its encoder, or the link.
    pub lane_ms: u64,
    /// For acknowledgements: the link, or the other end.
    pub window_ms: u64,
    /// For the administrator's limit of the rate.
    pub limit_ms: u64,
    /// At the receiving end: until the local program took the bytes. QEMU writes them into memory, or to a disk.
    pub delivery_ms: u64,
}

/// What a move was waiting for most of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// The source's QEMU: it reads memory, or a disk.
    Source,
    /// The source's CPUs: they compress.
    Compression,
    /// The network between the hosts.
    Link,
    /// The destination's QEMU: it fills memory, or writes to a disk.
    Destination,
    /// The limit that an administrator set.
    Limit,
}

/// Shorter waits are no reason: nothing can be told of a transfer that took no longer.
const TOLD_FROM_MS: u64 = 200;

impl Carried {
    /// What both ends know together: each value is the larger of both.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        Self {
            memory: self.memory.merged(other.memory),
            disks: self.disks.merged(other.disks),
            changed_blocks: self.changed_blocks.max(other.changed_blocks),
        }
    }
}

impl Stages {
    fn merged(self, other: Self) -> Self {
        Self {
            plain: self.plain.max(other.plain),
            wire: self.wire.max(other.wire),
            zeroes: self.zeroes.max(other.zeroes),
            held: self.held.max(other.held),
            compressed_from: self.compressed_from.max(other.compressed_from),
            compressed_to: self.compressed_to.max(other.compressed_to),
            encoding_ms: self.encoding_ms.max(other.encoding_ms),
            waits: self.waits.merged(other.waits),
        }
    }

    /// What the transfer waited for most, and for which share of all its waiting, in percent. `None`: it hardly waited, or
    /// nothing is known of it.
    ///
    /// A wait for a lane or for acknowledgements has its cause behind the sender: the encoder, if it was busy for most of
    /// that time; otherwise the other end, if it was held up for most of it; otherwise the link.
    pub fn bottleneck(&self) -> Option<(Bottleneck, u8)> {
        let Waits { source_ms, lane_ms, window_ms, limit_ms, delivery_ms } = self.waits;
        let behind_ms = lane_ms + window_ms;
        let all = source_ms + behind_ms + limit_ms;
        if all < TOLD_FROM_MS {
            return None;
        }
        let is_most_of_it = |ms: u64| ms * 10 >= behind_ms * 7;
        let behind = if is_most_of_it(self.encoding_ms) && lane_ms >= window_ms {
            Bottleneck::Compression
        } else if is_most_of_it(delivery_ms) {
            Bottleneck::Destination
        } else {
            Bottleneck::Link
        };
        let candidates = [(behind, behind_ms), (Bottleneck::Source, source_ms), (Bottleneck::Limit, limit_ms)];
        let (found, ms) = candidates.into_iter().max_by_key(|(_, ms)| *ms)?;
        Some((found, (ms * 100 / all) as u8))
    }
}

impl Waits {
    fn merged(self, other: Self) -> Self {
        Self {
            source_ms: self.source_ms.max(other.source_ms),
            lane_ms: self.lane_ms.max(other.lane_ms),
            window_ms: self.window_ms.max(other.window_ms),
            limit_ms: self.limit_ms.max(other.limit_ms),
            delivery_ms: self.delivery_ms.max(other.delivery_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(encoding_ms: u64, [source_ms, lane_ms, window_ms, limit_ms, delivery_ms]: [u64; 5]) -> Stages {
        let waits = Waits { source_ms, lane_ms, window_ms, limit_ms, delivery_ms };
        Stages { encoding_ms, waits, ..Stages::default() }
    }

    #[test]
    fn the_bottleneck_is_what_was_waited_for_most() {
        for (encoding, waits, expected) in [
            (0, [0, 0, 0, 0, 0], None),
            (0, [100, 50, 40, 0, 0], None),
            (0, [100, 0, 900, 0, 0], Some((Bottleneck::Link, 90))),
            (0, [100, 900, 0, 0, 0], Some((Bottleneck::Link, 90))),
            (0, [900, 50, 50, 0, 0], Some((Bottleneck::Source, 90))),
            (0, [100, 0, 100, 800, 0], Some((Bottleneck::Limit, 80))),
            // The link takes most of the time that the encoder leaves.
            (300, [100, 900, 0, 0, 0], Some((Bottleneck::Link, 90))),
            (800, [100, 900, 0, 0, 0], Some((Bottleneck::Compression, 90))),
            // It encodes all the time, and yet the window is what is full: acknowledgements are late.
            (800, [100, 100, 800, 0, 0], Some((Bottleneck::Link, 90))),
            (0, [100, 0, 900, 0, 700], Some((Bottleneck::Destination, 90))),
            (0, [100, 0, 900, 0, 300], Some((Bottleneck::Link, 90))),
        ] {
            assert_eq!(stages(encoding, waits).bottleneck(), expected, "{encoding} {waits:?}");
        }
    }

    #[test]
    fn each_end_adds_what_only_it_knows() {
        let source = Carried { memory: stages(7, [1, 2, 3, 4, 0]), ..Carried::default() };
        let destination = Carried { disks: stages(0, [0, 0, 0, 0, 9]), changed_blocks: 2, ..Carried::default() };
        let merged = source.merged(destination);
        assert_eq!((merged.memory, merged.disks, merged.changed_blocks), (source.memory, destination.disks, 2));
        assert_eq!(destination.merged(source), merged);
    }
}
