//! How the bytes of a move travel and how fast they may: what hosts are set to, what is requested for one move, and what
//! the move gets.
//!
//! ```text
//! source's settings ─┐
//! destination's ─────┼─ Transfer::of ─▶ Transfer: kept in the plan, shown before the move, recorded after it
//! the request ───────┘
//! ```

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::units::ByteCount;

/// How the bytes of a move travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Bytes as they are.
    Standard,
    /// Fewer bytes: memory and disks are compressed, as far as the hosts' processors have time and the link is slow
    /// enough to gain from it.
    #[default]
    Compression,
}

impl Preset {
    /// All presets.
    pub const ALL: [Self; 2] = [Self::Standard, Self::Compression];

    /// Its name for users, in the API and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Compression => "compression",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = Self::ALL.map(Self::name).join(" or ");
        Self::ALL.into_iter().find(|preset| preset.name() == text).ok_or_else(|| format!("must be {names}"))
    }
}

/// The fastest that one move may send, in bytes per second; `None`: as fast as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct RateLimits {
    /// Of memory, as the guest sees it: before compression.
    #[serde(default)]
    pub memory: Option<ByteCount>,
    /// Of disks, all disks of a move together, as the guest sees them.
    #[serde(default)]
    pub storage: Option<ByteCount>,
}

impl RateLimits {
    /// The lowest limit that can be set: with less, even the move of an idle guest would not end.
    pub const LEAST: ByteCount = ByteCount(1 << 20);

    /// The stricter of both, for each.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        let stricter = |one: Option<ByteCount>, other: Option<ByteCount>| one.into_iter().chain(other).min();
        Self { memory: stricter(self.memory, other.memory), storage: stricter(self.storage, other.storage) }
    }
}

/// What a host is set to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostTransfer {
    /// For moves that request no other.
    pub preset: Preset,
    /// For each move that it takes part in.
    pub limits: RateLimits,
}

/// How one move's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Transfer {
    /// How they are encoded.
    pub preset: Preset,
    /// How fast they may travel.
    pub limits: RateLimits,
}

impl Transfer {
    /// What a move gets. A requested preset is used whatever the hosts are set to; without one the move compresses only
    /// if both hosts do, because each has to work for it. No request exceeds a host's limit.
    pub fn of(preset: Option<Preset>, limits: RateLimits, source: HostTransfer, destination: HostTransfer) -> Self {
        Self {
            preset: preset.unwrap_or_else(|| source.preset.min(destination.preset)),
            limits: limits.within(source.limits).within(destination.limits),
        }
    }

    /// Moves that servers of an earlier version accepted.
    pub fn as_before(memory: Option<u64>) -> Self {
        let limit = memory.map(ByteCount);
        Self { preset: Preset::Standard, limits: RateLimits { memory: limit, storage: limit } }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(memory: Option<u64>, storage: Option<u64>) -> RateLimits {
        RateLimits { memory: memory.map(ByteCount), storage: storage.map(ByteCount) }
    }

    #[test]
    fn a_requested_preset_counts_and_else_both_hosts_must_compress() {
        let set = |preset| HostTransfer { preset, limits: RateLimits::default() };
        let (standard, compression) = (Preset::Standard, Preset::Compression);
        for (requested, source, destination, expected) in [
            (None, compression, compression, compression),
            (None, standard, compression, standard),
            (None, compression, standard, standard),
            (Some(compression), standard, standard, compression),
            (Some(standard), compression, compression, standard),
        ] {
            let transfer = Transfer::of(requested, RateLimits::default(), set(source), set(destination));
            assert_eq!(transfer.preset, expected, "{requested:?} {source} {destination}");
        }
        assert_eq!(HostTransfer::default().preset, compression);
    }

    #[test]
    fn presets_are_read_as_they_are_written() {
        for preset in Preset::ALL {
            assert_eq!(preset.to_string().parse(), Ok(preset));
            assert_eq!(serde_json::to_value(preset).expect("text"), preset.name());
        }
        assert_eq!("fast".parse::<Preset>(), Err("must be standard or compression".to_owned()));
    }

    proptest! {
        #[test]
        fn the_strictest_limit_counts_for_each(
            rates in prop::array::uniform6(prop::option::of(MIB..100 * MIB)),
        ) {
            let [a, b, c, d, e, f] = rates;
            let host = |memory, storage| HostTransfer { preset: Preset::Standard, limits: limits(memory, storage) };
            let got = Transfer::of(None, limits(a, b), host(c, d), host(e, f)).limits;
            let least = |all: [Option<u64>; 3]| all.into_iter().flatten().min();
            prop_assert_eq!(got, limits(least([a, c, e]), least([b, d, f])));
        }
    }
}
