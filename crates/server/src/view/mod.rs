//! The view of a job: folded from its log, and from its state while it runs.
//!
//! One file per kind has its texts: [`live`], [`offline`], [`storage`], and [`parent`] for parent jobs.

mod bare;
mod line;
mod live;
mod offline;
mod parent;
mod storage;
pub(crate) mod words;

use ferry_core::{
    api::server::{JobView, StepState, StepView},
    job::JobKind,
    job_text::{JobText, Part},
    migration::{HostAnswer, LogEvent, Phase, Step, attempt, newest_attempt, next, phase},
};

use crate::{
    jobs::running::Now,
    store::{JobRecord, LogEntry, LogRow, NewJob},
};
use bare::bare;
pub(crate) use line::lines;
pub(crate) use parent::view_of_parent;
use words::{by_name, whereabouts, why};

/// The job as people see it, without the lines of its log: they are put into words only for who reads them. `steps` are those of its
/// plan.
pub(crate) fn view(record: &JobRecord, steps: &[Step], log: &[LogRow], now: &Now) -> JobView {
    let events = LogRow::events(log);
    let phase = phase(&events);
    let start = log.iter().rposition(|row| row.entry == LogEntry::Event(LogEvent::Accepted)).unwrap_or(0);
    let steps = steps.iter().map(|step| step_view(*step, &record.job, &log[start..])).collect();
    let mut sentences = vec![summary(record, phase, newest_attempt(&events), now)];
    sentences.extend(waits(record, phase, now));
    JobView {
        vm: Some(record.job.vm),
        attempt: attempt(&events),
        waits: now.queued.clone().filter(|_| phase == Phase::Queued),
        steps,
        progress: now.progress.filter(|_| !phase.ended()),
        disks: now.disks.clone(),
        next: next(&events, now.waits()),
        figures: record.figures.filter(|_| phase == Phase::Succeeded || phase == Phase::Completing),
        ended_at_ms: log.last().filter(|_| phase.ended()).map(|row| row.at_ms),
        ..bare(record, phase, sentences)
    }
}

fn events(log: &[LogRow]) -> impl Iterator<Item = (u64, &LogEvent)> {
    log.iter().filter_map(|row| match &row.entry {
        LogEntry::Event(event) => Some((row.at_ms, event)),
        LogEntry::Note(_) => None,
    })
}

fn step_view(step: Step, job: &NewJob, log: &[LogRow]) -> StepView {
    let mut view = StepView {
        step,
        title: step.title_in(job.kind).to_owned(),
        state: StepState::Waiting,
        started_at_ms: None,
        ended_at_ms: None,
        message: None,
        sentence: None,
    };
    for (at_ms, event) in events(log) {
        let mut end = |state, why: Option<&JobText>| {
            view.state = state;
            view.ended_at_ms = Some(at_ms);
            if let Some(why) = why {
                view.sentence = Some(by_name(job, why));
            }
        };
        match event {
            LogEvent::Intent { step: of } if *of == step => {
                view.state = StepState::Running;
                view.started_at_ms = view.started_at_ms.or(Some(at_ms));
                view.ended_at_ms = None;
            }
            LogEvent::Succeeded { step: of } if *of == step => end(StepState::Done, None),
            LogEvent::Failed { step: of, why } if *of == step => end(StepState::Failed, Some(why)),
            LogEvent::Undone { step: of } if *of == step => end(StepState::Undone, None),
            LogEvent::UndoFailed { step: of, why } if *of == step => end(StepState::UndoFailed, Some(why)),
            LogEvent::Accepted
            | LogEvent::Admitted
            | LogEvent::AttemptStarted { .. }
            | LogEvent::CancelRequested { .. }
            | LogEvent::Intent { .. }
            | LogEvent::Succeeded { .. }
            | LogEvent::Failed { .. }
            | LogEvent::Undone { .. }
            | LogEvent::UndoFailed { .. }
            | LogEvent::Arrived
            | LogEvent::Dismissed { .. } => {}
        }
    }
    view.message = view.sentence.as_ref().map(JobText::to_string);
    view
}

/// What an open job waits for, and what a user may do about it.
fn waits(record: &JobRecord, phase: Phase, now: &Now) -> Vec<JobText> {
    // The summary of a stuck job already contains this.
    let what = now.waits_for.as_ref().or(now.in_vain.as_ref()).filter(|_| phase != Phase::Stuck);
    let waits = what.map(|what| JobText::WaitsFor { what: by_name(&record.job, what).into(), job: record.id });
    let database = now.unkept.clone().map(|why| JobText::WaitsForDatabase { why });
    waits.into_iter().chain(database).filter(|_| !phase.ended()).collect()
}

/// The summary of a dismissed job: what the hosts reported about the VM then, and what may be left.
fn summary_of_dismissed(record: &JobRecord, phase: Phase, by: &str, answers: &[HostAnswer], why: Part) -> JobText {
    let NewJob { vm_name, source, destination, kind, .. } = &record.job;
    let vm = vm_name.clone();
    let (source, destination) = (source.name.clone(), destination.name.clone());
    let left = match (kind, phase) {
        (JobKind::Storage, Phase::Succeeded) => JobText::LeftOldFiles,
        (JobKind::Storage, _) => JobText::LeftNewFiles { vm },
        (_, Phase::Succeeded) => JobText::LeftAtSource { vm, source, destination },
        (JobKind::Offline, _) => JobText::LeftFiles { source, destination },
        (_, _) => JobText::LeftCopy { source, destination },
    };
    let seen = whereabouts(vm_name, answers).into();
    JobText::Dismissed { by: by.to_owned(), why, seen, left: left.into() }
}

/// Where the VM is, and what a user has to do, if anything.
fn summary(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> JobText {
    let dismissed = events.iter().find_map(|event| {
        let LogEvent::Dismissed { by, answers } = event else { return None };
        Some((by, answers))
    });
    if let Some((by, answers)) = dismissed {
        return summary_of_dismissed(record, phase, by, answers, why(&record.job, events));
    }
    match record.job.kind {
        JobKind::Storage => storage::summary(record, phase, events, now),
        JobKind::Offline => offline::summary(record, phase, events, now),
        JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {
            live::summary(record, phase, events, now)
        }
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::{
        id::{HostId, JobId, VmId},
        migration::Has,
        vm::VmState,
    };
    use uuid::Uuid;

    use super::*;
    use crate::store::HostName;

    fn record() -> JobRecord {
        let host = |name: &str| HostName { id: HostId(Uuid::nil()), name: name.into() };
        JobRecord {
            id: JobId(1),
            job: NewJob {
                kind: JobKind::Live,
                parent: None,
                vm: VmId(Uuid::nil()),
                vm_name: "web01".into(),
                source: host("kvm1"),
                destination: host("kvm2"),
                by: "admin".into(),
                accepted_at_ms: 5,
                plan: String::new(),
                findings: Vec::new(),
            },
            figures: None,
        }
    }

    fn at(at_ms: u64, event: LogEvent) -> LogRow {
        LogRow { at_ms, entry: LogEntry::Event(event) }
    }

    fn away(text: &str) -> JobText {
        JobText::Text { text: text.into() }
    }

    #[test]
    fn a_failed_job_says_where_the_vm_is_and_why() {
        let log = [
            at(5, LogEvent::Accepted),
            at(5, LogEvent::AttemptStarted { attempt: 1 }),
            at(6, LogEvent::Intent { step: Step::Preflight }),
            at(9, LogEvent::Failed { step: Step::Preflight, why: away("Host kvm2 is away") }),
            at(9, LogEvent::Undone { step: Step::Preflight }),
        ];
        let view = view(&record(), &Step::ALL, &log, &Now::default());
        assert_eq!((view.phase, view.ended_at_ms), (Phase::Failed, Some(9)));
        assert!(view.summary.contains("web01 stays on kvm1: Host kvm2 is away"), "{}", view.summary);
        assert_eq!(view.steps[0].state, StepState::Undone);
        assert_eq!(view.steps[0].message.as_deref(), Some("Host kvm2 is away"));
        assert_eq!(view.steps[1].state, StepState::Waiting);
    }

    #[test]
    fn where_a_vm_is_whose_job_was_given_up_is_what_hosts_said_then() {
        let mut log = vec![at(5, LogEvent::Accepted), at(5, LogEvent::AttemptStarted { attempt: 1 })];
        let of = |kind, log: &[LogRow]| {
            let mut record = record();
            record.job.kind = kind;
            view(&record, &Step::ALL, log, &Now::default()).summary
        };
        let answers = |has: [Has; 2]| {
            let answers = |(host, has): (&str, Has)| HostAnswer { host: host.into(), has };
            at(
                9,
                LogEvent::Dismissed {
                    by: "admin".into(),
                    answers: ["kvm1", "kvm2"].into_iter().zip(has).map(answers).collect(),
                },
            )
        };
        let gone = "VM web01: is not known on kvm1, is not known on kvm2";
        for arrived in [false, true] {
            if arrived {
                log.push(at(7, LogEvent::Intent { step: Step::Perform }));
                log.push(at(8, LogEvent::Succeeded { step: Step::Perform }));
            }
            for kind in [JobKind::Live, JobKind::LiveVsm, JobKind::Storage, JobKind::Offline] {
                log.push(answers([Has::Nothing, Has::Nothing]));
                let summary = of(kind, &log);
                assert!(summary.contains(gone), "{summary}");
                for claim in ["runs on", "stays on", "shut off on", "has moved to"] {
                    assert!(!summary.contains(claim), "{kind:?} {claim}: {summary}");
                }
                log.pop();
                log.push(answers([Has::It(VmState::Running), Has::NoAnswer]));
                let summary = of(kind, &log);
                assert!(summary.contains("VM web01: runs on kvm1, kvm2 does not answer"), "{summary}");
                log.pop();
            }
        }
    }

    #[test]
    fn a_job_that_waits_for_the_database_says_so_in_every_phase_and_nothing_else() {
        let mut log = vec![at(5, LogEvent::Accepted)];
        let now = Now { unkept: Some("the disk is full".into()), ..Now::default() };
        let check = |log: &[LogRow], kind| {
            let mut record = record();
            record.job.kind = kind;
            let summary = view(&record, &Step::ALL, log, &now).summary;
            assert!(summary.contains("database") && summary.contains("the disk is full"), "{summary}");
            assert!(!summary.contains("not known yet"), "{summary}");
        };
        for kind in [JobKind::Live, JobKind::Storage, JobKind::Offline] {
            check(&log, kind);
        }
        for step in Step::ALL {
            log.push(at(6, LogEvent::Intent { step }));
            check(&log, JobKind::Live);
            log.push(at(6, LogEvent::Failed { step, why: away("away") }));
            check(&log[..log.len() - usize::from(step.class().is_taken_back())], JobKind::Live);
            log.pop();
        }
    }

    #[test]
    fn a_step_keeps_its_first_start_and_its_last_end() {
        let log = [
            at(5, LogEvent::Accepted),
            at(6, LogEvent::Intent { step: Step::Confirm }),
            at(7, LogEvent::Failed { step: Step::Confirm, why: away("away") }),
            at(9, LogEvent::Succeeded { step: Step::Confirm }),
        ];
        let step = &view(&record(), &Step::ALL, &log, &Now::default()).steps[6];
        assert_eq!((step.started_at_ms, step.ended_at_ms, step.state), (Some(6), Some(9), StepState::Done));
    }
}
