//! The view of a parent job.

use ferry_core::{
    api::server::{ChildView, JobView},
    finding::{Severity, any_blocks},
    job_text::{Counts, JobText},
    migration::{JobAction, Phase},
};

use super::bare::bare;
use crate::store::JobRecord;

/// The view of a parent job: its phase is folded from those of its parts.
pub(crate) fn view_of_parent(record: &JobRecord, children: &[JobView]) -> JobView {
    let phase = phase_of_parent(children, any_blocks(&record.job.findings));
    let sentences = summary_of_parent(record, phase, children);
    let children_ended = children.iter().filter_map(|child| child.ended_at_ms).max();
    let child = |child: &JobView| ChildView {
        id: child.id,
        vm_name: child.vm_name.clone(),
        source: child.source.clone(),
        destination: child.destination.clone(),
        phase: child.phase,
        summary: child.summary.clone(),
        sentences: child.sentences.clone(),
    };
    // Each part offers its own actions. Only cancel and restart apply to all parts together.
    let may = |action: JobAction| children.iter().any(|child| child.next.contains(&action));
    let together = [(JobAction::Cancel, !phase.ended()), (JobAction::Restart, phase.ended())];
    let next = together.into_iter().filter(|(action, now)| *now && may(*action)).map(|(action, _)| action).collect();
    JobView {
        next,
        children: children.iter().map(child).collect(),
        attempt: 1,
        ended_at_ms: phase.ended().then(|| children_ended.unwrap_or(record.job.accepted_at_ms)),
        ..bare(record, phase, sentences)
    }
}

/// The phase of a parent job. `left`: whether some VM could not be moved at all.
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

fn summary_of_parent(record: &JobRecord, phase: Phase, children: &[JobView]) -> Vec<JobText> {
    let count = |phase: Phase| children.iter().filter(|child| child.phase == phase).count();
    let waiting = count(Phase::Queued);
    let (done, failed, cancelled) = (count(Phase::Succeeded), count(Phase::Failed), count(Phase::Cancelled));
    let going = children.len() - waiting - done - failed - cancelled;
    let number = |count: usize| (count > 0).then_some(count as u64);
    let others = [
        number(going).map(|count| JobText::OnTheirWay { count }),
        number(waiting).map(|count| JobText::Queued { count }),
        number(failed).map(|count| JobText::Failed { count }),
        number(cancelled).map(|count| JobText::Cancelled { count }),
    ];
    let others = Counts(others.into_iter().flatten().collect());
    let mut sentences = vec![JobText::Moved { done: done as u64, count: children.len() as u64, others }];
    sentences.extend(record.job.findings.iter().map(|finding| {
        let message = finding.message.clone().into();
        match finding.severity {
            Severity::Blocks => JobText::Stays { object: finding.object.clone(), why: message },
            Severity::Warns => JobText::Overcommitted { what: message },
        }
    }));
    // Each part shows its own number. All of them are restarted together by this job's number.
    let may_be_restarted = phase == Phase::Failed || phase == Phase::Cancelled;
    if may_be_restarted && failed + cancelled > 0 {
        sentences.push(JobText::TryThoseAgain { job: record.id });
    }
    sentences
}
