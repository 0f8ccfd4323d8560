//! The end of channels, at both sides.

use ferry_core::{api::agent::Stage, error::chain};
use ferry_wire::WireError;
use tracing::{error, info};

use super::board::Board;

/// Logs why a channel ended; returns the reason if it failed. It is an error only where the failure began: a move that is
/// being ended (`is_ending`) or has ended takes its channels with it in any way, and an end that was told by the other one
/// that it gives up finds the reason logged there.
pub(super) fn channel_ended(
    name: &str,
    outcome: Result<(), WireError>,
    board: &Board,
    is_ending: bool,
) -> Option<String> {
    match outcome {
        Ok(()) => {
            info!(channel = name, "Channel is complete");
            None
        }
        Err(error) => {
            let reason = chain(&error);
            let began_elsewhere = is_ending || matches!(error, WireError::Aborted(_));
            match board.known().stage {
                Stage::Prepared | Stage::Performing if !began_elsewhere => {
                    error!(channel = name, error = %reason, "Channel failed");
                }
                Stage::Prepared
                | Stage::Performing
                | Stage::Delivered
                | Stage::Resumed
                | Stage::Confirmed
                | Stage::Failed
                | Stage::Aborted => {
                    info!(channel = name, error = %reason, "Channel ended with the move");
                }
            }
            Some(reason)
        }
    }
}
