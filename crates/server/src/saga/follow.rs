//! A move that one host does by itself, namely a storage or an offline move: from its start to its end.

use std::time::Duration;

use ferry_client::agent::Attempt;
use ferry_core::{
    api::agent::{Report, Stage},
    finding::FindingId,
    job_text::JobText,
};

use super::{
    executor::StepFailed,
    participant::{Participant, failed},
};
use crate::{
    failure::{describe, has_finding},
    jobs::running::Running,
};

/// How long the agent may delay its answer while it has nothing newer to report.
const REPORT_WAIT: Duration = Duration::from_secs(2);
/// The pause before an agent that does not answer is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The effect of a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnCancel {
    /// The host ends the move, if it is not too late.
    Abort,
    /// The server stops asking; the step's undo ends the move.
    Leave,
}

/// Starts the move, or finds it started, and follows it to its end, good or bad; `take` receives each report.
///
/// # Errors
/// The host's refusal; with [`OnCancel::Leave`], that the move was cancelled.
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
            (true, _) if on_cancel == OnCancel::Leave => return Err(StepFailed(JobText::WasCancelled)),
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
                // The move continues without the server: once the agent answers again, it is asked for the outcome.
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
