//! The end of channels, at both sides.

use ferry_core::{api::agent::Stage, error::chain};
use ferry_wire::WireError;
use tracing::{error, info};

use super::board::Board;

/// Logs why a channel ended; returns the reason if it failed. Once the move has ended, the other side may disconnect in
/// any way.
pub(super) fn channel_ended(name: &str, outcome: Result<(), WireError>, board: &Board) -> Option<String> {
    match outcome {
        Ok(()) => {
            info!(channel = name, "Channel is complete");
            None
        }
        Err(error) => {
            let reason = chain(&error);
            match board.known().stage {
                Stage::Prepared | Stage::Performing => error!(channel = name, error = %reason, "Channel failed"),
                Stage::Delivered | Stage::Resumed | Stage::Confirmed | Stage::Failed | Stage::Aborted => {
                    info!(channel = name, error = %reason, "Channel ended with the move");
                }
            }
            Some(reason)
        }
    }
}
