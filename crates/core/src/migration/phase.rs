//! How a job stands.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The phase of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It waits for slots.
    Queued,
    /// Steps before the move.
    Preparing,
    /// The memory moves; it may be cancelled.
    Migrating,
    /// The VM is at the destination; the remaining steps are repeated until they succeed.
    Completing,
    /// Steps are being undone.
    RollingBack,
    /// The VM runs at the destination and nothing is left at the source.
    Succeeded,
    /// The VM runs at the source, as requested.
    Cancelled,
    /// The VM runs at the source, because something went wrong.
    Failed,
    /// It waits for an administrator's decision, or for a host to come back.
    Stuck,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}

impl Phase {
    /// Whether the job has ended: nothing more happens by itself.
    pub fn ended(self) -> bool {
        match self {
            Self::Succeeded | Self::Cancelled | Self::Failed => true,
            Self::Queued | Self::Preparing | Self::Migrating | Self::Completing | Self::RollingBack | Self::Stuck => {
                false
            }
        }
    }

    /// The name to show to users.
    pub fn title(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Migrating => "migrating",
            Self::Completing => "completing",
            Self::RollingBack => "rolling back",
            Self::Succeeded => "succeeded",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Stuck => "stuck",
        }
    }
}
