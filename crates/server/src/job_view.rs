//! A job as people see it: folded from its log, its plan and what is known while it runs.

use ferry_core::{
    api::server::{JobView, LogLine},
    job::{Progress, StepState, StepView},
    migration::{LogEvent, Phase, Step, phase},
};

use crate::store::{JobRecord, LogEntry, LogRow, NewJob};

/// Lines of the log that a view holds: the newest.
const LOG_LINES_MAX: usize = 1000;

/// What is known of a running job beyond its log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Now {
    /// How far the memory is.
    pub(crate) progress: Option<Progress>,
    /// What the job waits for, if that is not plain from its step.
    pub(crate) waits_for: Option<String>,
}

/// The job as people see it.
pub(crate) fn view(record: &JobRecord, log: &[LogRow], now: &Now) -> JobView {
    let events: Vec<LogEvent> = events(log).map(|(_, event)| event.clone()).collect();
    let phase = phase(&events);
    let job = &record.job;
    let skipped = log.len().saturating_sub(LOG_LINES_MAX);
    JobView {
        id: record.id,
        kind: job.kind,
        vm: job.vm,
        vm_name: job.vm_name.clone(),
        source: job.source.name.clone(),
        destination: job.destination.name.clone(),
        phase,
        summary: summary(job, phase, &events, now),
        by: job.by.clone(),
        accepted_at_ms: job.accepted_at_ms,
        ended_at_ms: log.last().filter(|_| phase.ended()).map(|row| row.at_ms),
        steps: Step::ALL.iter().map(|step| step_view(*step, log)).collect(),
        progress: now.progress.filter(|_| !phase.ended()),
        figures: record.figures.filter(|_| phase == Phase::Succeeded || phase == Phase::Completing),
        findings: job.findings.clone(),
        log: log.iter().skip(skipped).map(|row| LogLine { at_ms: row.at_ms, message: line(row, job) }).collect(),
    }
}

fn events(log: &[LogRow]) -> impl Iterator<Item = (u64, &LogEvent)> {
    log.iter().filter_map(|row| match &row.entry {
        LogEntry::Event(event) => Some((row.at_ms, event)),
        LogEntry::Note(_) => None,
    })
}

fn step_view(step: Step, log: &[LogRow]) -> StepView {
    let mut view = StepView {
        step,
        title: step.title().to_owned(),
        state: StepState::Waiting,
        started_at_ms: None,
        ended_at_ms: None,
        message: None,
    };
    for (at_ms, event) in events(log) {
        let mut end = |state, message: Option<&String>| {
            view.state = state;
            view.ended_at_ms = Some(at_ms);
            if let Some(message) = message {
                view.message = Some(message.clone());
            }
        };
        match event {
            LogEvent::Intent { step: of } if *of == step => {
                view.state = StepState::Running;
                view.started_at_ms = view.started_at_ms.or(Some(at_ms));
                view.ended_at_ms = None;
            }
            LogEvent::Succeeded { step: of } if *of == step => end(StepState::Done, None),
            LogEvent::Failed { step: of, message } if *of == step => end(StepState::Failed, Some(message)),
            LogEvent::Undone { step: of } if *of == step => end(StepState::Undone, None),
            LogEvent::UndoFailed { step: of, message } if *of == step => end(StepState::UndoFailed, Some(message)),
            LogEvent::Accepted
            | LogEvent::Admitted
            | LogEvent::AttemptStarted { .. }
            | LogEvent::CancelRequested { .. }
            | LogEvent::Intent { .. }
            | LogEvent::Succeeded { .. }
            | LogEvent::Failed { .. }
            | LogEvent::Undone { .. }
            | LogEvent::UndoFailed { .. } => {}
        }
    }
    view
}

/// Where the VM is, and what to do if somebody has to.
fn summary(job: &NewJob, phase: Phase, events: &[LogEvent], now: &Now) -> String {
    let NewJob { vm_name: vm, source, destination, .. } = job;
    let (source, destination) = (&source.name, &destination.name);
    let failure = events.iter().rev().find_map(|event| match event {
        LogEvent::Failed { message, .. } | LogEvent::UndoFailed { message, .. } => Some(message.as_str()),
        _ => None,
    });
    let resumed = events.contains(&LogEvent::Succeeded { step: Step::Resume });
    let waits = now.waits_for.as_ref().map(|what| format!(" Waits for: {what}")).unwrap_or_default();
    let why = failure.unwrap_or("the log says why");
    match phase {
        Phase::Queued => format!("VM {vm} runs on {source}; the move waits for its turn."),
        Phase::Preparing => {
            format!("VM {vm} runs on {source}; its move to {destination} is being prepared.")
        }
        Phase::Migrating if now.waits_for.is_some() => {
            format!("VM {vm} is on its way from {source} to {destination}; who has it is not known yet.{waits}")
        }
        Phase::Migrating => {
            format!("VM {vm} runs on {source} while its memory moves to {destination}.")
        }
        Phase::Completing if resumed => {
            format!("VM {vm} runs on {destination}; {source} is being cleaned.{waits}")
        }
        Phase::Completing => {
            format!("VM {vm} is at {destination} and is being resumed there.{waits}")
        }
        Phase::RollingBack => {
            format!("VM {vm} stays on {source}; what was prepared is being taken back.{waits}")
        }
        Phase::Succeeded => format!("VM {vm} runs on {destination}."),
        Phase::Cancelled => {
            format!("VM {vm} stays on {source}: the move was cancelled. Nothing is left on {destination}.")
        }
        Phase::Failed => format!(
            "VM {vm} stays on {source}: {why}. Nothing is left on {destination}; mend the cause and start the move again."
        ),
        Phase::Stuck if events.iter().any(|event| matches!(event, LogEvent::UndoFailed { .. })) => {
            format!(
                "VM {vm} stays on {source}, but what was prepared could not be taken back yet: {why}. \
             Ferry keeps trying; see that both hosts and their agents are up."
            )
        }
        Phase::Stuck if resumed => format!(
            "VM {vm} runs on {destination}, but {source} could not be cleaned yet: {why}. \
             Ferry keeps trying; do not start the VM on {source}."
        ),
        Phase::Stuck => format!(
            "VM {vm} is at {destination} but could not be resumed there yet: {why}. \
             Ferry keeps trying; do not start the VM on {source}."
        ),
    }
}

fn line(row: &LogRow, job: &NewJob) -> String {
    let event = match &row.entry {
        LogEntry::Note(note) => return note.clone(),
        LogEntry::Event(event) => event,
    };
    match event {
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
        LogEvent::Intent { step } => format!("{}: begins", step.title()),
        LogEvent::Succeeded { step } => format!("{}: done", step.title()),
        LogEvent::Failed { step, message } => format!("{}: failed: {message}", step.title()),
        LogEvent::CancelRequested { by } => format!("{by} asked to cancel"),
        LogEvent::Undone { step } => format!("{}: taken back", step.title()),
        LogEvent::UndoFailed { step, message } => {
            format!("{}: could not be taken back: {message}", step.title())
        }
    }
}

#[cfg(test)]
mod tests {
    use ferry_core::{
        id::{HostId, JobId, VmId},
        job::MoveKind,
    };
    use uuid::Uuid;

    use super::*;
    use crate::store::HostName;

    fn record() -> JobRecord {
        let host = |name: &str| HostName { id: HostId(Uuid::nil()), name: name.into() };
        JobRecord {
            id: JobId(1),
            job: NewJob {
                kind: MoveKind::Live,
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

    #[test]
    fn a_failed_job_says_where_the_vm_is_and_why() {
        let log = [
            at(5, LogEvent::Accepted),
            at(5, LogEvent::AttemptStarted { attempt: 1 }),
            at(6, LogEvent::Intent { step: Step::Preflight }),
            at(9, LogEvent::Failed { step: Step::Preflight, message: "Host kvm2 is away".into() }),
            at(9, LogEvent::Undone { step: Step::Preflight }),
        ];
        let view = view(&record(), &log, &Now::default());
        assert_eq!((view.phase, view.ended_at_ms), (Phase::Failed, Some(9)));
        assert!(view.summary.contains("web01 stays on kvm1: Host kvm2 is away"), "{}", view.summary);
        assert_eq!(view.steps[0].state, StepState::Undone);
        assert_eq!(view.steps[0].message.as_deref(), Some("Host kvm2 is away"));
        assert_eq!(view.steps[1].state, StepState::Waiting);
    }

    #[test]
    fn a_step_keeps_its_first_start_and_its_last_end() {
        let log = [
            at(5, LogEvent::Accepted),
            at(6, LogEvent::Intent { step: Step::Confirm }),
            at(7, LogEvent::Failed { step: Step::Confirm, message: "away".into() }),
            at(9, LogEvent::Succeeded { step: Step::Confirm }),
        ];
        let step = &view(&record(), &log, &Now::default()).steps[Step::Confirm as usize];
        assert_eq!((step.started_at_ms, step.ended_at_ms, step.state), (Some(6), Some(9), StepState::Done));
    }
}
