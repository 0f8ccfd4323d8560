//! A job as people see it: folded from its log, its plan and what is known while it runs.

use ferry_core::{
    api::server::{ChildView, JobView, LogLine, WaitView},
    files::{DiskProgress, DiskStage},
    finding::{Severity, any_blocks},
    id::JobId,
    job::{JobKind, Progress, StepState, StepView},
    migration::{Has, LogEvent, Phase, Step, Told, attempt, newest_attempt, phase},
    vm::VmState,
};

use crate::{
    jobs,
    saga::{migrate, move_offline, move_storage},
    store::{JobRecord, LogEntry, LogRow, NewJob},
};

/// Lines of the log that a view holds: the newest.
const LOG_LINES_MAX: usize = 1000;

/// What is known of a running job beyond its log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Now {
    /// How far the memory is.
    pub(crate) progress: Option<Progress>,
    /// How far each disk is.
    pub(crate) disks: Vec<DiskProgress>,
    /// What the job waits for, if that is not plain from its step.
    pub(crate) waits_for: Option<String>,
    /// Why what must be done was tried in vain so far.
    pub(crate) in_vain: Option<String>,
    /// Why the database does not keep what is to be kept.
    pub(crate) unkept: Option<String>,
    /// What it waits for in the queue.
    pub(crate) waits: Option<WaitView>,
}

/// The job as people see it.
pub(crate) fn view(record: &JobRecord, log: &[LogRow], now: &Now) -> JobView {
    let events = jobs::events(log);
    let phase = phase(&events);
    let start = log.iter().rposition(|row| row.entry == LogEntry::Event(LogEvent::Accepted)).unwrap_or(0);
    let kind = record.job.kind;
    let mut steps: Vec<StepView> = Step::of(kind).iter().map(|step| step_view(*step, kind, &log[start..])).collect();
    for message in steps.iter_mut().filter_map(|step| step.message.as_mut()) {
        *message = by_name(&record.job, message);
    }
    let summary =
        by_name(&record.job, &(summary(record, phase, newest_attempt(&events), now) + &waits(record.id, phase, now)));
    JobView {
        vm: Some(record.job.vm),
        attempt: attempt(&events),
        waits: now.waits.clone().filter(|_| phase == Phase::Queued),
        steps,
        progress: now.progress.filter(|_| !phase.ended()),
        disks: disks(record, now),
        figures: record.figures.filter(|_| phase == Phase::Succeeded || phase == Phase::Completing),
        ended_at_ms: log.last().filter(|_| phase.ended()).map(|row| row.at_ms),
        ..bare(record, log, phase, summary)
    }
}

/// A text of a job with its VM by its name: hosts know it by its UUID.
fn by_name(job: &NewJob, text: &str) -> String {
    text.replace(&job.vm.to_string(), &job.vm_name)
}

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

/// What every job has.
fn bare(record: &JobRecord, log: &[LogRow], phase: Phase, summary: String) -> JobView {
    let job = &record.job;
    let skipped = log.len().saturating_sub(LOG_LINES_MAX);
    JobView {
        id: record.id,
        kind: job.kind,
        parent: job.parent,
        children: Vec::new(),
        vm: None,
        vm_name: job.vm_name.clone(),
        source: job.source.name.clone(),
        destination: job.destination.name.clone(),
        attempt: 0,
        waits: None,
        phase,
        summary,
        by: job.by.clone(),
        accepted_at_ms: job.accepted_at_ms,
        ended_at_ms: None,
        steps: Vec::new(),
        progress: None,
        disks: Vec::new(),
        figures: None,
        findings: job.findings.clone(),
        log: log
            .iter()
            .skip(skipped)
            .map(|row| LogLine { at_ms: row.at_ms, message: by_name(job, &line(row, job)) })
            .collect(),
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

fn events(log: &[LogRow]) -> impl Iterator<Item = (u64, &LogEvent)> {
    log.iter().filter_map(|row| match &row.entry {
        LogEntry::Event(event) => Some((row.at_ms, event)),
        LogEntry::Note(_) => None,
    })
}

fn step_view(step: Step, kind: JobKind, log: &[LogRow]) -> StepView {
    let mut view = StepView {
        step,
        title: step.title_in(kind).to_owned(),
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
            | LogEvent::UndoFailed { .. }
            | LogEvent::Arrived
            | LogEvent::Dismissed { .. } => {}
        }
    }
    view
}

/// How the disks of a move stand: as the agent says while it goes on, as it said last after that.
fn disks(record: &JobRecord, now: &Now) -> Vec<DiskProgress> {
    if !now.disks.is_empty() {
        return now.disks.clone();
    }
    match record.job.kind {
        JobKind::Storage => move_storage::Plan::from_json(&record.job.plan).map(|plan| plan.disks).unwrap_or_default(),
        JobKind::Offline => {
            move_offline::Plan::from_json(&record.job.plan).map(|plan| plan.progress).unwrap_or_default()
        }
        JobKind::LiveVsm => migrate::Plan::from_json(&record.job.plan).map(|plan| plan.progress).unwrap_or_default(),
        JobKind::Live | JobKind::Several | JobKind::Drain => Vec::new(),
    }
}

/// Whether a disk is still to be copied.
fn is_copied(disk: &DiskProgress) -> bool {
    match disk.stage {
        DiskStage::Waiting | DiskStage::Copying => true,
        DiskStage::Ready | DiskStage::Moved => false,
    }
}

/// What went wrong last.
fn why(events: &[LogEvent]) -> &str {
    let failure = events.iter().rev().find_map(|event| match event {
        LogEvent::Failed { message, .. } | LogEvent::UndoFailed { message, .. } => Some(message.as_str()),
        _ => None,
    });
    failure.unwrap_or("the log says why")
}

/// How a storage move stands, and what to do if somebody has to.
fn summary_of_storage(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> String {
    let NewJob { vm_name: vm, source: host, .. } = &record.job;
    let (id, host) = (record.id, &host.name);
    let why = why(events);
    let disks = disks(record, now);
    let moved = disks.iter().filter(|disk| disk.stage == DiskStage::Moved).count();
    let again = format!("mend the cause, then try again with `ferry job restart {id}`");
    let tries = format!("Ferry keeps trying: `ferry job retry {id}` tries now, `ferry job dismiss {id}` gives it up");
    match phase {
        Phase::Queued => match &now.waits {
            Some(wait) => format!("The disks of VM {vm} on {host} move later; {}.", waits_in_queue(wait)),
            None => format!("The disks of VM {vm} on {host} move later; the move waits for its turn."),
        },
        Phase::Preparing => format!("The move of the disks of VM {vm} on {host} is being prepared."),
        Phase::Migrating => {
            format!("The disks of VM {vm} on {host} are copied; {moved} of {} use their new files.", disks.len())
        }
        Phase::Completing => {
            format!("VM {vm} on {host} has its new files; the old ones are being removed.")
        }
        Phase::RollingBack => {
            format!("VM {vm} on {host} keeps its old files; what was prepared for its disks is being taken back.")
        }
        Phase::Succeeded => format!("VM {vm} on {host} has its disks where they were asked for."),
        Phase::Failed | Phase::Cancelled if moved > 0 => format!(
            "VM {vm} on {host} has some disks moved and others not: {why}. \
             Every disk is whole; {again}, which moves what is left."
        ),
        Phase::Cancelled => format!(
            "VM {vm} on {host} has its old files: the move was cancelled, and its new files are removed. \
             Move them after all with `ferry job restart {id}`."
        ),
        Phase::Failed => {
            format!("VM {vm} on {host} has its old files: {why}. New files are removed; {again}.")
        }
        Phase::Stuck => {
            format!("The move of the disks of VM {vm} on {host} cannot be ended yet: {why}. {tries}.")
        }
    }
}

/// How a move of a VM that is shut off stands, and what to do if somebody has to.
fn summary_of_offline(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> String {
    let NewJob { vm_name: vm, source, destination, .. } = &record.job;
    let (id, source, destination) = (record.id, &source.name, &destination.name);
    let why = why(events);
    let kept = format!(
        "what was copied to {destination} is removed, or kept for a day so that `ferry job restart {id}` sends the rest"
    );
    let tries = format!("Ferry keeps trying: `ferry job retry {id}` tries now, `ferry job dismiss {id}` gives it up");
    match phase {
        Phase::Queued => match &now.waits {
            Some(wait) => format!("VM {vm} is shut off on {source}; {}.", waits_in_queue(wait)),
            None => format!("VM {vm} is shut off on {source}; its move waits for its turn."),
        },
        Phase::Preparing => format!("VM {vm} is shut off on {source}; its move to {destination} is being prepared."),
        Phase::Migrating => {
            format!("VM {vm} is shut off, and held so, on {source} while its files are copied to {destination}.")
        }
        Phase::Completing => {
            format!("VM {vm} is shut off on {destination}; what was left on {source} is being removed.")
        }
        Phase::RollingBack => {
            format!("VM {vm} stays on {source}, shut off; what was prepared is being taken back.")
        }
        Phase::Succeeded => {
            format!("VM {vm} is shut off on {destination}, with its files. Start it with `ferry vm start {vm}`.")
        }
        Phase::Cancelled => format!("VM {vm} stays on {source}, shut off: the move was cancelled; {kept}."),
        Phase::Failed => format!("VM {vm} stays on {source}, shut off: {why}. Mend the cause; {kept}."),
        Phase::Stuck if events.iter().any(|event| matches!(event, LogEvent::UndoFailed { .. })) => format!(
            "VM {vm} is shut off on {source}, but what was prepared could not be taken back yet: {why}. See that both \
             hosts and their agents are up. {tries}."
        ),
        Phase::Stuck => format!(
            "VM {vm} is shut off on {destination}, but the move could not be finished yet: {why}. Do not start the VM \
             on {source}. {tries}."
        ),
    }
}

/// What an open job waits for, and what may be done about it.
fn waits(id: JobId, phase: Phase, now: &Now) -> String {
    if phase.ended() {
        return String::new();
    }
    let mut text = String::new();
    // A stuck one says so already.
    if let Some(what) = now.waits_for.as_ref().or(now.in_vain.as_ref()).filter(|_| phase != Phase::Stuck) {
        text += &format!(
            " Waits for: {what}. Ask again now with `ferry job retry {id}`. If that never comes, see where the VM is \
             (`ferry vm list`) and give the job up with `ferry job dismiss {id}`."
        );
    }
    if let Some(why) = &now.unkept {
        text += &format!(
            " Waits for the server's database, which cannot be read or written: {why}. Give it room and a disk that works; \
             the job goes on by itself then."
        );
    }
    text
}

/// Who has a VM, as hosts said.
pub(crate) fn whereabouts(vm: &str, told: &[Told]) -> String {
    if told.is_empty() {
        return format!("VM {vm}: nobody asked where it is");
    }
    let one = |Told { host, has }: &Told| match has {
        Has::It(VmState::Running) => format!("runs on {host}"),
        Has::It(VmState::ShutOff) => format!("is shut off on {host}"),
        Has::It(_) => format!("has a process on {host} that stands still"),
        Has::Nothing => format!("is not known on {host}"),
        Has::NoAnswer => format!("{host} does not answer"),
    };
    format!("VM {vm}: {}", told.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// How a job stands that was given up: what was said of the VM then, and what may be left.
fn summary_of_dismissed(record: &JobRecord, phase: Phase, by: &str, told: &[Told], why: &str) -> String {
    let NewJob { vm_name: vm, source, destination, kind, .. } = &record.job;
    let (source, destination) = (&source.name, &destination.name);
    let left = match (kind, phase) {
        (JobKind::Storage, Phase::Succeeded) => "Its disks have moved; old files may be left".to_owned(),
        (JobKind::Storage, _) => {
            format!("See which files it uses with `ferry vm show {vm}`; new files that it does not use may be left")
        }
        (_, Phase::Succeeded) => format!(
            "It was handed over to {destination}: do not start it on {source}, and remove what is left there with \
             `virsh undefine {vm}`"
        ),
        (JobKind::Offline, _) => format!(
            "Files of it may be left on {destination}; it may be held on {source} against a start until that agent has \
             answered"
        ),
        (_, _) => format!(
            "If it is {source}'s, what is left of the move is taken away when both hosts answer; until then {destination} may \
             hold a paused copy of it, which is not to be run"
        ),
    };
    let seen = whereabouts(vm, told);
    format!("{by} gave up what was left: {why}. When it was given up: {seen}. {left}.")
}

/// Where the VM is, and what to do if somebody has to.
fn summary(record: &JobRecord, phase: Phase, events: &[LogEvent], now: &Now) -> String {
    let dismissed = events.iter().find_map(|event| match event {
        LogEvent::Dismissed { by, told } => Some((by, told)),
        _ => None,
    });
    if let Some((by, told)) = dismissed {
        return summary_of_dismissed(record, phase, by, told, why(events));
    }
    match record.job.kind {
        JobKind::Storage => return summary_of_storage(record, phase, events, now),
        JobKind::Offline => return summary_of_offline(record, phase, events, now),
        JobKind::Live | JobKind::LiveVsm | JobKind::Several | JobKind::Drain => {}
    }
    let NewJob { vm_name: vm, source, destination, .. } = &record.job;
    let (id, source, destination) = (record.id, &source.name, &destination.name);
    let resumed = events.contains(&LogEvent::Succeeded { step: Step::Resume });
    let why = why(events);
    let tries = format!("Ferry keeps trying: `ferry job retry {id}` tries now, `ferry job dismiss {id}` gives it up");
    let left = match record.job.kind {
        JobKind::LiveVsm => {
            format!("What was copied to {destination} is removed, or kept for a day for the next attempt")
        }
        _ => format!("Nothing is left on {destination}"),
    };
    match phase {
        Phase::Queued => match &now.waits {
            Some(wait) => format!("VM {vm} stays on {source} until then: {}.", waits_in_queue(wait)),
            None => format!("VM {vm} stays on {source} until then: the move waits for its turn."),
        },
        Phase::Preparing => {
            format!("VM {vm} is on {source}; its move to {destination} is being prepared.")
        }
        Phase::Migrating if now.waits_for.is_some() => {
            format!("VM {vm} is on its way from {source} to {destination}; who has it is not known yet.")
        }
        Phase::Migrating if disks(record, now).iter().any(is_copied) => format!(
            "VM {vm} runs on {source} while its disks are copied to {destination}; its memory moves when they are ready."
        ),
        Phase::Migrating => {
            format!("VM {vm} runs on {source} while its memory moves to {destination}.")
        }
        Phase::Completing if resumed => {
            format!("VM {vm} has moved to {destination}; the move is being finished.")
        }
        Phase::Completing => {
            format!("VM {vm} is at {destination} and is being resumed there.")
        }
        Phase::RollingBack => {
            format!("VM {vm} stays on {source}; what was prepared is being taken back.")
        }
        Phase::Succeeded => format!("VM {vm} has moved to {destination}."),
        Phase::Cancelled => format!(
            "VM {vm} stays on {source}: the move was cancelled. {left}. \
             Move it after all with `ferry job restart {id}`."
        ),
        Phase::Failed => format!(
            "VM {vm} stays on {source}: {why}. {left}; \
             mend the cause, then try again with `ferry job restart {id}`."
        ),
        Phase::Stuck if events.iter().any(|event| matches!(event, LogEvent::UndoFailed { .. })) => {
            format!(
                "VM {vm} stays on {source}, but what was prepared could not be taken back yet: {why}. \
                 See that both hosts and their agents are up. {tries}."
            )
        }
        Phase::Stuck if resumed => format!(
            "VM {vm} has moved to {destination}, but the move could not be finished yet: {why}. \
             Do not start the VM on {source}. {tries}."
        ),
        Phase::Stuck => format!(
            "VM {vm} is at {destination} but could not be resumed there yet: {why}. \
             Do not start the VM on {source}. {tries}."
        ),
    }
}

fn waits_in_queue(wait: &WaitView) -> String {
    let places: Vec<String> = wait
        .places
        .iter()
        .map(|place| {
            let jobs: Vec<String> = place.jobs.iter().map(|job| format!("job {job}")).collect();
            format!("a {} slot on {} ({})", place.slot.title(), place.host, jobs.join(", "))
        })
        .collect();
    format!("the move is number {} in the queue and waits for {}", wait.position, places.join(" and "))
}

fn line(row: &LogRow, job: &NewJob) -> String {
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

#[cfg(test)]
mod tests {
    use ferry_core::{
        id::{HostId, VmId},
        migration::StepClass,
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
    fn where_a_vm_is_whose_job_was_given_up_is_what_hosts_said_then() {
        let mut log = vec![at(5, LogEvent::Accepted), at(5, LogEvent::AttemptStarted { attempt: 1 })];
        let of = |kind, log: &[LogRow]| {
            let mut record = record();
            record.job.kind = kind;
            view(&record, log, &Now::default()).summary
        };
        let told = |has: [Has; 2]| {
            let told = |(host, has): (&str, Has)| Told { host: host.into(), has };
            at(
                9,
                LogEvent::Dismissed {
                    by: "admin".into(),
                    told: ["kvm1", "kvm2"].into_iter().zip(has).map(told).collect(),
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
                log.push(told([Has::Nothing, Has::Nothing]));
                let summary = of(kind, &log);
                assert!(summary.contains(gone), "{summary}");
                for claim in ["runs on", "stays on", "shut off on", "has moved to"] {
                    assert!(!summary.contains(claim), "{kind:?} {claim}: {summary}");
                }
                log.pop();
                log.push(told([Has::It(VmState::Running), Has::NoAnswer]));
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
        let says = |log: &[LogRow], kind| {
            let mut record = record();
            record.job.kind = kind;
            let summary = view(&record, log, &now).summary;
            assert!(summary.contains("database") && summary.contains("the disk is full"), "{summary}");
            assert!(!summary.contains("not known yet"), "{summary}");
        };
        for kind in [JobKind::Live, JobKind::Storage, JobKind::Offline] {
            says(&log, kind);
        }
        for step in Step::ALL {
            log.push(at(6, LogEvent::Intent { step }));
            says(&log, JobKind::Live);
            log.push(at(6, LogEvent::Failed { step, message: "away".into() }));
            says(&log[..log.len() - usize::from(step.class() != StepClass::Retriable)], JobKind::Live);
            log.pop();
        }
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
