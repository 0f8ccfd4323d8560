//! Asks both hosts for their part in the question which host has the VM. The answers are in the terms of
//! [`ferry_core::migration::verdict`].

use std::time::Duration;

use ferry_core::{
    api::agent::Report,
    job_text::{JobText, Part},
    migration::{Presence, Verdict, is_to_be_remembered, verdict},
    text::AllOf,
    vm::VmState,
};

use super::{
    participant::{LiveParticipant, Participant as _, is_unknown},
    participants::Participants,
    site::Site,
};

/// How long a host may take to answer before its state counts as unknown.
const ASK_DEADLINE: Duration = Duration::from_secs(8);

/// What both hosts answered, and the verdict.
pub(super) struct Decision {
    pub(super) source: Presence,
    pub(super) destination: Presence,
    /// Whether one of the hosts knows that the Finish reply was delivered, now or in an earlier answer.
    pub(super) delivered: bool,
    /// Never [`Verdict::SourceUnlessElsewhere`], because all other hosts were asked in that case.
    pub(super) verdict: Verdict,
    /// What has to happen, if it is not decided.
    pub(super) awaited: Option<JobText>,
}

/// Asks both hosts now, and all other hosts if neither runs the VM.
pub(super) async fn decide<S: Site<Host: LiveParticipant>>(
    participants: &Participants<'_, S>,
    delivered_before: bool,
) -> Decision {
    let (here, there) =
        tokio::join!(ask_one(participants, participants.source), ask_one(participants, participants.destination));
    let (source, before) = (here.presence, there.presence);
    // A host may take seconds to answer. The destination's state counts only if it is the same before and after the
    // source's answer: two answers from different times may not be true of any one moment.
    let after = ask_one(participants, participants.destination).await;
    let destination = if after.presence == before { before } else { Presence::Unknown };
    let delivered = delivered_before || here.delivered || there.delivered;
    // Either answer is enough: somebody may have resumed the copy between the two.
    let complete = [before, after.presence].into_iter().any(|presence| is_to_be_remembered(source, presence));
    if complete && !after.gave_up {
        participants.keep_arrived().await;
    }
    let arrived = !after.gave_up && (complete || participants.arrived().await);
    let (verdict, awaited) = match verdict(source, destination, delivered, arrived) {
        Verdict::SourceUnlessElsewhere => match elsewhere(participants).await {
            None => (Verdict::Source, None),
            awaited @ Some(_) => (Verdict::Undecided, awaited),
        },
        Verdict::Lost => (Verdict::Lost, elsewhere(participants).await.or_else(|| Some(gone(participants)))),
        decided @ (Verdict::Source | Verdict::Destination) => (decided, None),
        open @ (Verdict::Undecided | Verdict::SplitBrain) => (open, Some(awaited(participants, source, destination))),
    };
    Decision { source, destination, delivered, verdict, awaited }
}

/// Asks only the destination, while the source does not answer: its copy may disappear before both answer.
pub(super) async fn remember<S: Site<Host: LiveParticipant>>(participants: &Participants<'_, S>) {
    let there = ask_one(participants, participants.destination).await;
    if is_to_be_remembered(Presence::Unknown, there.presence) && !there.gave_up {
        participants.keep_arrived().await;
    }
}

/// What to do about a VM that was at the destination and is now on no host that can be asked.
fn gone<S: Site>(participants: &Participants<'_, S>) -> JobText {
    let (source, destination) = names(participants);
    JobText::Gone { source, destination, vm: participants.vm.to_string() }
}

fn names<S: Site>(participants: &Participants<'_, S>) -> (String, String) {
    (participants.source.name().to_owned(), participants.destination.name().to_owned())
}

/// Why it is unknown whether another host has the VM; `None`: no other host has it.
async fn elsewhere<S: Site<Host: LiveParticipant>>(participants: &Participants<'_, S>) -> Option<JobText> {
    let (source, destination) = names(participants);
    let neither: Part = JobText::NeitherRuns { source, destination }.into();
    let Ok(answers) = tokio::time::timeout(
        ASK_DEADLINE,
        participants.site.ask_others(participants.vm, [participants.source, participants.destination]),
    )
    .await
    else {
        return Some(JobText::MaybeElsewhere { neither });
    };
    answers.into_iter().find_map(|(host, state)| match state {
        Ok(None) => None,
        Ok(Some(_)) => Some(JobText::MovedByHand { neither: neither.clone(), host }),
        Err(_) => Some(JobText::MaybeOn { neither: neither.clone(), host }),
    })
}

/// The answer of one host.
struct Answer {
    presence: Presence,
    delivered: bool,
    gave_up: bool,
}

async fn ask_one<S: Site<Host: LiveParticipant>>(participants: &Participants<'_, S>, end: &S::Host) -> Answer {
    let only = |presence| Answer { presence, delivered: false, gave_up: false };
    let asked = async {
        match end.report(participants.attempt, 0, Duration::ZERO).await {
            Ok(Report { presence, finish_delivered: delivered, gave_up, .. }) => {
                Answer { presence, delivered, gave_up }
            }
            Err(error) if is_unknown(&error) => only(from_facts(participants, end).await),
            Err(_) => only(Presence::Unknown),
        }
    };
    tokio::time::timeout(ASK_DEADLINE, asked).await.unwrap_or(only(Presence::Unknown))
}

/// The state of the VM on a host whose agent has lost the attempt: its list of VMs still shows part of the truth. A
/// paused or receiving process may be the only complete copy, so its state counts as unknown.
async fn from_facts<S: Site<Host: LiveParticipant>>(participants: &Participants<'_, S>, end: &S::Host) -> Presence {
    match end.state_of(participants.vm).await {
        Ok(Some(VmState::Running)) => Presence::Running,
        Ok(Some(VmState::Crashed | VmState::Suspended)) => Presence::Halted,
        Ok(Some(VmState::Paused | VmState::Incoming)) | Err(_) => Presence::Unknown,
        Ok(Some(VmState::ShutOff)) => Presence::Off,
        Ok(None) => Presence::Absent,
    }
}

/// What has to happen until it is known which host has the VM.
fn awaited<S: Site>(participants: &Participants<'_, S>, here: Presence, there: Presence) -> JobText {
    let (source, destination) = names(participants);
    match (here, there) {
        (Presence::Running, Presence::Running) => JobText::RunsOnBoth { source, destination },
        (Presence::Unknown, Presence::Unknown) => JobText::HostsSilent { hosts: AllOf(vec![source, destination]) },
        (Presence::Unknown, _) => JobText::HostSilent { host: source },
        (_, Presence::Unknown) => JobText::HostSilent { host: destination },
        (
            Presence::Running
            | Presence::Paused
            | Presence::Stopped
            | Presence::Halted
            | Presence::HandedOver
            | Presence::Left
            | Presence::Off
            | Presence::Ended
            | Presence::Receiving
            | Presence::Arrived
            | Presence::Absent,
            Presence::Running
            | Presence::Paused
            | Presence::Stopped
            | Presence::Halted
            | Presence::HandedOver
            | Presence::Left
            | Presence::Off
            | Presence::Ended
            | Presence::Receiving
            | Presence::Arrived
            | Presence::Absent,
        ) => JobText::Undecided { source, here, destination, there },
    }
}
