//! A line of a job's log, in words.

use ferry_core::{job::JobKind, migration::LogEvent};

use super::words::whereabouts;
use crate::store::{LogEntry, LogRow, NewJob};

pub(super) fn line(row: &LogRow, job: &NewJob) -> String {
    let event = match &row.entry {
        LogEntry::Note(note) => return note.clone(),
        LogEntry::Event(event) => event,
    };
    match event {
        LogEvent::Accepted if job.kind.is_parent() => {
            format!("Accepted: {} of {}, asked for by {}", job.kind.title().to_lowercase(), job.vm_name, job.by)
        }
        LogEvent::Accepted if job.kind == JobKind::Storage => {
            format!("Accepted: storage move of {} on {}, asked for by {}", job.vm_name, job.source.name, job.by)
        }
        LogEvent::Accepted => format!(
            "Accepted: {} move of {} from {} to {}, asked for by {}",
            job.kind.title(),
            job.vm_name,
            job.source.name,
            job.destination.name,
            job.by
        ),
        LogEvent::Admitted => "Its turn came".to_owned(),
        LogEvent::AttemptStarted { attempt } => format!("Attempt {attempt} begins"),
        LogEvent::Intent { step } => format!("{}: begins", step.title_in(job.kind)),
        LogEvent::Succeeded { step } => format!("{}: done", step.title_in(job.kind)),
        LogEvent::Failed { step, message } => format!("{}: failed: {message}", step.title_in(job.kind)),
        LogEvent::CancelRequested { by } => format!("{by} asked to cancel"),
        LogEvent::Arrived => format!(
            "All of the VM is on {}, and {} does not say that it runs there: no source of it is let go while it is not known \
             where it is",
            job.destination.name, job.source.name
        ),
        LogEvent::Dismissed { by, told } if told.is_empty() => format!("{by} accepted what is; nothing more is done"),
        LogEvent::Dismissed { by, told } => {
            format!("{by} accepted what is; nothing more is done: {}", whereabouts(&job.vm_name, told))
        }
        LogEvent::Undone { step } => format!("{}: taken back", step.title_in(job.kind)),
        LogEvent::UndoFailed { step, message } => {
            format!("{}: could not be taken back: {message}", step.title_in(job.kind))
        }
    }
}
