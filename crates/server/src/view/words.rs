//! Texts that views of several kinds use.

use ferry_core::{
    admission::Slot,
    api::server::{Place, WaitView},
    finding::{Clauses, Message},
    job_text::{JobText, Part, Slots},
    migration::{Has, HostAnswer, LogEvent},
    text::Jobs,
    vm::VmState,
};

use crate::store::NewJob;

/// A sentence about a job with its VM by its name: hosts know it by its UUID.
pub(super) fn by_name(job: &NewJob, text: &JobText) -> JobText {
    text.renamed(&job.vm.to_string(), &job.vm_name)
}

/// The last failure.
pub(super) fn why(job: &NewJob, events: &[LogEvent]) -> Part {
    let failure = events.iter().rev().find_map(|event| {
        let (LogEvent::Failed { why, .. } | LogEvent::UndoFailed { why, .. }) = event else { return None };
        Some(by_name(job, why))
    });
    failure.unwrap_or(JobText::LogSaysWhy).into()
}

/// Which hosts have a VM, according to their answers.
pub(crate) fn whereabouts(vm: &str, answers: &[HostAnswer]) -> Message {
    let vm = vm.to_owned();
    if answers.is_empty() {
        return Message::NobodyAsked { vm };
    }
    let one = |HostAnswer { host, has }: &HostAnswer| match (has, host.clone()) {
        (Has::It(VmState::Running), host) => Message::RunsOn { host },
        (Has::It(VmState::ShutOff), host) => Message::IsShutOffOn { host },
        (Has::It(VmState::Crashed | VmState::Suspended | VmState::Paused | VmState::Incoming), host) => {
            Message::StandsStillOn { host }
        }
        (Has::Nothing, host) => Message::NotKnownOn { host },
        (Has::NoAnswer, host) => Message::DoesNotAnswer { host },
    };
    Message::Whereabouts { vm, seen: Clauses(answers.iter().map(one).collect()) }
}

/// The slots that a job waits for; `unknown` if they are not known.
pub(super) fn waits_in_queue(wait: Option<&WaitView>, unknown: JobText) -> Part {
    let slot = |place: &Place| {
        let (host, jobs) = (place.host.clone(), Jobs(place.jobs.clone()));
        match place.slot {
            Slot::Live => JobText::ALiveSlot { host, jobs },
            Slot::Storage => JobText::AStorageSlot { host, jobs },
        }
    };
    let waits = wait.map(|wait| {
        let slots = Slots(wait.places.iter().map(slot).collect());
        JobText::WaitsInQueue { position: wait.position, slots }
    });
    waits.unwrap_or(unknown).into()
}
