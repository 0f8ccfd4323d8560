//! The lines of a job's log.

use ferry_core::{
    api::server::LogLine,
    job::JobKind,
    job_text::{JobText, StepTitle},
    migration::LogEvent,
};

use super::words::{by_name, whereabouts};
use crate::store::{JobRecord, LogEntry, LogRow, NewJob};

/// Lines of the log that a view holds: the newest.
const LOG_LINES_MAX: usize = 1000;

/// The newest lines of a job's log, in words.
pub(crate) fn lines(record: &JobRecord, log: &[LogRow]) -> Vec<LogLine> {
    let newest = &log[log.len().saturating_sub(LOG_LINES_MAX)..];
    let line = |row: &LogRow| {
        let sentence = line(row, &record.job);
        LogLine { at_ms: row.at_ms, message: sentence.to_string(), sentence: Some(sentence) }
    };
    newest.iter().map(line).collect()
}

fn line(row: &LogRow, job: &NewJob) -> JobText {
    let event = match &row.entry {
        LogEntry::Note(note) => return by_name(job, note),
        LogEntry::Event(event) => event,
    };
    let title = |step| StepTitle { kind: job.kind, step };
    let (source, destination) = (job.source.name.clone(), job.destination.name.clone());
    match event {
        LogEvent::Accepted => accepted(job),
        LogEvent::Admitted => JobText::Admitted,
        LogEvent::AttemptStarted { attempt } => JobText::AttemptBegins { attempt: *attempt },
        LogEvent::Intent { step } => JobText::StepBegins { step: title(*step) },
        LogEvent::Succeeded { step } => JobText::StepDone { step: title(*step) },
        LogEvent::Failed { step, why } => JobText::StepFailed { step: title(*step), why: by_name(job, why).into() },
        LogEvent::CancelRequested { by } => JobText::CancelAsked { by: by.clone() },
        LogEvent::Arrived => JobText::Arrived { source, destination },
        LogEvent::Dismissed { by, answers } if answers.is_empty() => JobText::Accepted { by: by.clone() },
        LogEvent::Dismissed { by, answers } => {
            JobText::AcceptedAs { by: by.clone(), seen: whereabouts(&job.vm_name, answers).into() }
        }
        LogEvent::Undone { step } => JobText::StepUndone { step: title(*step) },
        LogEvent::UndoFailed { step, why } => {
            JobText::StepNotUndone { step: title(*step), why: by_name(job, why).into() }
        }
    }
}

fn accepted(job: &NewJob) -> JobText {
    let (vm, by) = (job.vm_name.clone(), job.by.clone());
    let (source, destination) = (job.source.name.clone(), job.destination.name.clone());
    match job.kind {
        JobKind::Several => JobText::AcceptedSeveral { vms: vm, by },
        JobKind::Drain => JobText::AcceptedDrain { vms: vm, by },
        JobKind::Storage => JobText::AcceptedStorage { vm, host: source, by },
        JobKind::Live => JobText::AcceptedLive { vm, source, destination, by },
        JobKind::LiveVsm => JobText::AcceptedLiveVsm { vm, source, destination, by },
        JobKind::Offline => JobText::AcceptedOffline { vm, source, destination, by },
    }
}
