//! A job whose work is done by jobs of its own.

use ferry_core::{
    api::server::{ChildView, JobView},
    finding::{Severity, any_blocks},
    migration::Phase,
};

use super::bare::bare;
use crate::store::{JobRecord, LogRow};

/// A job whose work is done by others, as people see it: its phase is folded from theirs.
pub(crate) fn view_of_parent(record: &JobRecord, log: &[LogRow], children: &[JobView]) -> JobView {
    let phase = phase_of_parent(children, any_blocks(&record.job.findings));
    let summary = summary_of_parent(record, phase, children);
    let children_ended = children.iter().filter_map(|child| child.ended_at_ms).max();
    let child = |child: &JobView| ChildView {
        id: child.id,
        vm_name: child.vm_name.clone(),
        source: child.source.clone(),
        destination: child.destination.clone(),
        phase: child.phase,
        summary: child.summary.clone(),
    };
    JobView {
        children: children.iter().map(child).collect(),
        attempt: 1,
        ended_at_ms: phase.ended().then(|| children_ended.unwrap_or(record.job.accepted_at_ms)),
        ..bare(record, log, phase, summary)
    }
}

/// Where a job stands whose parts stand so. `left` is whether some VM could not even be tried.
fn phase_of_parent(children: &[JobView], left: bool) -> Phase {
    let any = |phase: Phase| children.iter().any(|child| child.phase == phase);
    if any(Phase::Stuck) {
        return Phase::Stuck;
    }
    if children.iter().any(|child| !child.phase.ended()) {
        let untouched = children.iter().all(|child| child.phase == Phase::Queued);
        return if untouched { Phase::Queued } else { Phase::Migrating };
    }
    if left || any(Phase::Failed) {
        Phase::Failed
    } else if any(Phase::Cancelled) {
        Phase::Cancelled
    } else {
        Phase::Succeeded
    }
}

fn summary_of_parent(record: &JobRecord, phase: Phase, children: &[JobView]) -> String {
    let count = |phase: Phase| children.iter().filter(|child| child.phase == phase).count();
    let waiting = count(Phase::Queued);
    let (done, failed, cancelled) = (count(Phase::Succeeded), count(Phase::Failed), count(Phase::Cancelled));
    let going = children.len() - waiting - done - failed - cancelled;
    let mut text = format!("{done} of {} VMs moved", children.len());
    for (number, what) in [(going, "on their way"), (waiting, "waiting"), (failed, "failed"), (cancelled, "cancelled")]
    {
        if number > 0 {
            text += &format!(", {number} {what}");
        }
    }
    text += ".";
    for finding in &record.job.findings {
        text += &match finding.severity {
            Severity::Blocks => format!(" {} stays: {}.", finding.object, finding.message),
            Severity::Warns => format!(" {}, which was taken by `--overcommit`.", finding.message),
        };
    }
    // Each of its parts tells its own: together they are restarted by this job's number.
    let may_be_restarted = phase == Phase::Failed || phase == Phase::Cancelled;
    if may_be_restarted && failed + cancelled > 0 {
        text += &format!(" Try those again that did not move: `ferry job restart {}`.", record.id);
    }
    text
}
