//! A move that one host does by itself, of disks or of a VM that is shut off, from the moment that it is asked for.

use std::time::Duration;

use ferry_client::agent::Attempt;
use ferry_core::{
    api::agent::{Report, Stage},
    finding::FindingId,
};

use super::{
    executor::StepFailed,
    participant::{Participant, failed},
};
use crate::{
    failure::{describe, has_finding},
    jobs::running::Running,
};

/// How long the agent may hold the question how the move stands.
const REPORT_WAIT: Duration = Duration::from_secs(2);
/// How long to wait before an agent that does not answer is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a wish to cancel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnCancel {
    /// The host ends the move, if it is not too late.
    Abort,
    /// Nobody asks any more; the step's undo ends it.
    Leave,
}

/// Starts it, or finds it started, and follows it to its end, good or bad; `take` gets each report.
///
/// # Errors
/// What the host said against it; with [`OnCancel::Leave`], that it was cancelled.
pub(super) async fn follow(
    host: &impl Participant,
    attempt: Attempt,
    running: &Running,
    on_cancel: OnCancel,
    mut take: impl FnMut(&Report) + Send,
) -> Result<Report, StepFailed> {
    let (mut begun, mut past_pivot, mut after) = (false, false, 0);
    loop {
        let cancelled = running.cancelled.is_cancelled() && !past_pivot;
        let asked = match (cancelled, begun) {
            (true, _) if on_cancel == OnCancel::Leave => return Err(StepFailed("The move was cancelled".to_owned())),
            (true, _) => host.abort(attempt).await,
            (false, false) => host.perform(attempt).await,
            (false, true) => {
                let report = host.report(attempt, after, REPORT_WAIT);
                tokio::select! {
                    report = report => report,
                    () = running.cancelled.cancelled(), if !past_pivot => continue,
                }
            }
        };
        let report = match asked {
            Ok(report) => report,
            Err(error) if cancelled && has_finding(&error, FindingId::JobPastPivot) => {
                past_pivot = true;
                continue;
            }
            Err(error) if error.problem().is_some() => return Err(failed(host, &error)),
            Err(error) => {
                // It goes on without anybody: what becomes of it is asked when the agent answers again.
                running.wait_for(Some(describe(host.name(), &error)));
                running.pause(ASK_AGAIN).await;
                begun = false;
                continue;
            }
        };
        running.wait_for(None);
        (begun, after) = (true, report.sequence);
        take(&report);
        match report.stage {
            Stage::Prepared | Stage::Performing => {}
            Stage::Delivered | Stage::Resumed | Stage::Confirmed | Stage::Failed | Stage::Aborted => return Ok(report),
        }
    }
}
