//! How channels end, at both sides.

use ferry_wire::WireError;
use tracing::{error, info};

use crate::error::chain;

/// Logs why a channel ended; gives the reason if it ended badly.
pub(super) fn channel_ended(name: &str, outcome: Result<(), WireError>) -> Option<String> {
    match outcome {
        Ok(()) => {
            info!(channel = name, "channel is complete");
            None
        }
        Err(error) => {
            let reason = chain(&error);
            error!(channel = name, error = reason, "channel failed");
            Some(reason)
        }
    }
}
