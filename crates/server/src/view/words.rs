//! Words that views of several kinds use.

use ferry_core::{
    api::server::WaitView,
    migration::{Has, LogEvent, Told},
    vm::VmState,
};

/// What went wrong last.
pub(super) fn why(events: &[LogEvent]) -> &str {
    let failure = events.iter().rev().find_map(|event| {
        let (LogEvent::Failed { message, .. } | LogEvent::UndoFailed { message, .. }) = event else { return None };
        Some(message.as_str())
    });
    failure.unwrap_or("the log says why")
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

/// Which slots a job waits for.
pub(super) fn waits_in_queue(wait: &WaitView) -> String {
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
