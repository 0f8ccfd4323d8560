//! What is said about a job: its state, the lines of its log, and why a step failed.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{
    finding::{Fix, Messages, Phrase},
    id::JobId,
    job::JobKind,
    migration::{Presence, Step},
    text::{AllOf, Jobs, List, lists, texts},
};

/// A part of a sentence.
pub type Part = Box<JobText>;

lists! {
    /// Slots that a job waits for, all of them.
    Slots(JobText) = "{}", " and ";
    /// The numbers of VMs that have not moved, by their state.
    Counts(JobText) = ", {}", "";
    /// What a host says, one thing after the other.
    Remarks(JobText) = "{}", "; ";
}

/// Sentences as one text, in English.
pub fn english(sentences: &[JobText]) -> String {
    sentences.iter().map(JobText::to_string).collect::<Vec<_>>().join(" ")
}

texts! {
    /// A sentence about a job, or a part of one.
    pub enum JobText {
        // Parts
        // Words of a host's agent, of a library, or of an earlier version of the server. They are not translated.
        Text { text: String } = "{text}",
        LogSaysWhy = "the log says why",
        MoveWaits = "the move waits for its turn",
        ItsMoveWaits = "its move waits for its turn",
        WaitsInQueue { position: u32, slots: Slots } = "the move is number {position} in the queue and waits for {slots}",
        ALiveSlot { host: String, jobs: Jobs } = "a live slot on {host} ({jobs})",
        AStorageSlot { host: String, jobs: Jobs } = "a storage slot on {host} ({jobs})",
        CopiesRemoved { host: String } = "What was copied to {host} is removed, or kept for a day for the next attempt",
        NothingLeft { host: String } = "Nothing is left on {host}",
        KeepsTrying { job: JobId } = "Ferry keeps trying: `ferry job retry {job}` tries now, `ferry job dismiss {job}` gives it up",
        CopiesKept { host: String, job: JobId } = "what was copied to {host} is removed, or kept for a day so that `ferry job restart {job}` sends the rest",

        // A live move
        LiveQueued { vm: String, source: String, wait: Part } = "VM {vm} stays on {source} until then: {wait}.",
        LivePreparing { vm: String, source: String, destination: String } = "VM {vm} is on {source}; its move to {destination} is being prepared.",
        LiveUnknown { vm: String, source: String, destination: String } = "VM {vm} is on its way from {source} to {destination}; it is not known yet which host has it.",
        LiveDisks { vm: String, source: String, destination: String } = "VM {vm} runs on {source} while its disks are copied to {destination}; its memory moves when they are ready.",
        LiveMemory { vm: String, source: String, destination: String } = "VM {vm} runs on {source} while its memory moves to {destination}.",
        LiveFinishing { vm: String, destination: String } = "VM {vm} has moved to {destination}; the move is being finished.",
        LiveResuming { vm: String, destination: String } = "VM {vm} is at {destination} and is being resumed there.",
        LiveTakenBack { vm: String, source: String } = "VM {vm} stays on {source}; the preparations are being undone.",
        LiveDone { vm: String, destination: String } = "VM {vm} has moved to {destination}.",
        LiveCancelled { vm: String, source: String, left: Part, job: JobId } = "VM {vm} stays on {source}: the move was cancelled. {left}. Move it after all with `ferry job restart {job}`.",
        LiveFailed { vm: String, source: String, why: Part, left: Part, job: JobId } = "VM {vm} stays on {source}: {why}. {left}; remove the cause, then try again with `ferry job restart {job}`.",
        LiveNotTakenBack { vm: String, source: String, why: Part, tries: Part } = "VM {vm} stays on {source}, but the preparations could not be undone yet: {why}. Check that both hosts and their agents are up. {tries}.",
        LiveNotFinished { vm: String, source: String, destination: String, why: Part, tries: Part } = "VM {vm} has moved to {destination}, but the move could not be finished yet: {why}. Do not start the VM on {source}. {tries}.",
        LiveNotResumed { vm: String, source: String, destination: String, why: Part, tries: Part } = "VM {vm} is at {destination} but could not be resumed there yet: {why}. Do not start the VM on {source}. {tries}.",

        // A move of a VM that is shut off
        OfflineQueued { vm: String, source: String, wait: Part } = "VM {vm} is shut off on {source}; {wait}.",
        OfflinePreparing { vm: String, source: String, destination: String } = "VM {vm} is shut off on {source}; its move to {destination} is being prepared.",
        OfflineCopying { vm: String, source: String, destination: String } = "VM {vm} is shut off on {source}, where it cannot be started while its files are copied to {destination}.",
        OfflineFinishing { vm: String, source: String, destination: String } = "VM {vm} is shut off on {destination}; what was left on {source} is being removed.",
        OfflineTakenBack { vm: String, source: String } = "VM {vm} stays on {source}, shut off; the preparations are being undone.",
        OfflineDone { vm: String, destination: String } = "VM {vm} is shut off on {destination}, with its files. Start it with `ferry vm start {vm}`.",
        OfflineCancelled { vm: String, source: String, kept: Part } = "VM {vm} stays on {source}, shut off: the move was cancelled; {kept}.",
        OfflineFailed { vm: String, source: String, why: Part, kept: Part } = "VM {vm} stays on {source}, shut off: {why}. Remove the cause; {kept}.",
        OfflineNotTakenBack { vm: String, source: String, why: Part, tries: Part } = "VM {vm} is shut off on {source}, but the preparations could not be undone yet: {why}. Check that both hosts and their agents are up. {tries}.",
        OfflineNotFinished { vm: String, source: String, destination: String, why: Part, tries: Part } = "VM {vm} is shut off on {destination}, but the move could not be finished yet: {why}. Do not start the VM on {source}. {tries}.",

        // A move of disks on one host
        StorageQueued { vm: String, host: String, wait: Part } = "The disks of VM {vm} on {host} move later; {wait}.",
        StoragePreparing { vm: String, host: String } = "The move of the disks of VM {vm} on {host} is being prepared.",
        StorageCopying { vm: String, host: String, moved: u64, count: u64 } = "The disks of VM {vm} on {host} are copied; {moved} of {count} use their new files.",
        StorageFinishing { vm: String, host: String } = "VM {vm} on {host} has its new files; the old ones are being removed.",
        StorageTakenBack { vm: String, host: String } = "VM {vm} on {host} keeps its old files; the preparations for its disks are being undone.",
        StorageDone { vm: String, host: String } = "VM {vm} on {host} has its disks where they were asked for.",
        StorageHalf { vm: String, host: String, why: Part, job: JobId } = "VM {vm} on {host} has some disks moved and others not: {why}. Every disk is intact; remove the cause, then try again with `ferry job restart {job}`, which moves the others.",
        StorageCancelled { vm: String, host: String, job: JobId } = "VM {vm} on {host} has its old files: the move was cancelled, and its new files are removed. Move them after all with `ferry job restart {job}`.",
        StorageFailed { vm: String, host: String, why: Part, job: JobId } = "VM {vm} on {host} has its old files: {why}. New files are removed; remove the cause, then try again with `ferry job restart {job}`.",
        StorageStuck { vm: String, host: String, why: Part, tries: Part } = "The move of the disks of VM {vm} on {host} cannot be ended yet: {why}. {tries}.",

        // Why a step failed, or what a job waits for
        Found { found: Messages } = "{found}",
        FoundWithFix { found: Phrase, fix: Box<Fix> } = "{found} ({fix})",
        HostSays { host: String, what: Remarks } = "Host {host}: {what}",
        WasCancelled = "The move was cancelled",
        ReservedBy { job: JobId, vm: String } = "Job {job} has reserved VM {vm}",
        EndedBy { host: String } = "Host {host} ended the move without a reason",
        LostBy { host: String } = "The agent on host {host} no longer knows the move",
        NotPossibleAt { host: String } = "Host {host} reports that it resumed the VM, which the source of a move never does",
        ButShutOff { why: Part, source: String, vm: String } = "{why}. The VM no longer runs on {source}: start it with `ferry vm start {vm}`",
        ButPaused { why: Part, source: String } = "{why}. The VM is paused on {source}, and runs again as soon as its disks are free; see `ferry vm list`",
        ButHalted { why: Part, source: String, vm: String } = "{why}. The guest of the VM crashed or suspended itself on {source}: see `ferry vm show {vm}`",
        PartlyMoved { why: Part, moved: List, stayed: List } = "{why} ({moved} moved, {stayed} not: another attempt moves the others)",
        HasVm { host: String } = "Host {host} has the VM",
        NotResumed { host: String } = "Host {host} has not resumed the VM yet",
        NotResumedBecause { host: String, why: String } = "Host {host} has not resumed the VM yet: {why}",
        MaybeDefined { vm: String, host: String, why: Part } = "It is not known whether VM {vm} is defined on host {host}, which is asked again: {why}",
        DefinedAndGone { vm: String, source: String, destination: String } = "VM {vm} was defined on host {destination}, and no host has it now but {source}, which keeps its definition and its old files, and prevents its start: define it on {destination} again with the output of `virsh dumpxml` on {source}, with the paths of the new files",
        HostsSilent { hosts: AllOf } = "Hosts {hosts} do not report the state of the VM",
        HostSilent { host: String } = "Host {host} does not report the state of the VM",
        RunsOnBoth { source: String, destination: String } = "The VM runs on {source} and on {destination} at once: destroy the wrong copy with `virsh destroy` now",
        Undecided { source: String, here: Presence, destination: String, there: Presence } = "It is not decided yet which host has the VM: on {source} it is {here}, on {destination} {there}",
        NeitherRuns { source: String, destination: String } = "Neither {source} nor {destination} runs the VM",
        MaybeElsewhere { neither: Part } = "{neither}, and another host does not say whether it has the VM",
        MaybeOn { neither: Part, host: String } = "{neither}, and host {host} does not say whether it has the VM",
        MovedByHand { neither: Part, host: String } = "{neither}, and host {host} has it: it was moved on by hand. Dismiss the job if it belongs there",
        Gone { source: String, destination: String, vm: String } = "Neither {source} nor {destination} runs the VM, nor any other host, and {destination} had all of it: it was moved on or removed there by hand. If it runs elsewhere, it is not affected; {source} does not start it. If no host has it, dismiss the job, allow its start with `ferry-agent holds release {vm}` on {source}, and start it",
        CannotGoOn { job: JobId, why: Part } = "Job {job} cannot go on: {why}",
        PlanUnreadable { error: String } = "its plan is unreadable: {error}",
        PlanHasOtherSteps = "its plan has a step that no move of its kind has",

        // What any job waits for
        WaitsFor { what: Part, job: JobId } = "Waits for: {what}. Ask again now with `ferry job retry {job}`. If that does not help, see where the VM is (`ferry vm list`) and give the job up with `ferry job dismiss {job}`.",
        WaitsForDatabase { why: String } = "Waits for the server's database, which cannot be read or written: {why}. Give it space and a working disk; then the job continues by itself.",

        // One that was given up
        Dismissed { by: String, why: Part, seen: Phrase, left: Part } = "{by} gave up what was left: {why}. When it was given up: {seen}. {left}.",
        LeftOldFiles = "Its disks have moved; old files may be left",
        LeftNewFiles { vm: String } = "See which files it uses with `ferry vm show {vm}`; new files that it does not use may be left",
        LeftAtSource { vm: String, source: String, destination: String } = "It was handed over to {destination}: do not start it on {source}, and remove what is left there with `virsh undefine {vm}`",
        LeftFiles { source: String, destination: String } = "Files of it may be left on {destination}; {source} may prevent its start until its agent has answered",
        LeftCopy { source: String, destination: String } = "If {source} has the VM, what is left of the move is removed when both hosts answer; until then {destination} may have a paused copy of it, which must not be run",

        // One with parts
        Moved { done: u64, count: u64, others: Counts } = "{done} of {count} VMs moved{others}.",
        OnTheirWay { count: u64 } = "{count} on their way",
        Queued { count: u64 } = "{count} waiting",
        Failed { count: u64 } = "{count} failed",
        Cancelled { count: u64 } = "{count} cancelled",
        Stays { object: String, why: Phrase } = "{object} stays: {why}.",
        Overcommitted { what: Phrase } = "{what}, which was taken by `--overcommit`.",
        TryThoseAgain { job: JobId } = "Try those again that did not move: `ferry job restart {job}`.",

        // What a job changed
        VmMovedRunning { vm: String, source: String, destination: String } = "VM {vm} moved from {source} to {destination}, running",
        VmMovedShutOff { vm: String, source: String, destination: String } = "VM {vm} moved from {source} to {destination}, shut off",
        FileMoved { file: String, vm: String } = "file {file} of VM {vm} moved with it",
        DiskMoved { disk: String, vm: String, host: String, from: Part, to: Part } = "disk {disk} of VM {vm} on {host} moved from {from} to {to}",
        DefinitionAdded { vm: String, host: String } = "definition of VM {vm} added on {host}",
        DefinitionRemoved { vm: String, host: String } = "definition of VM {vm} removed from {host}",
        AtPath { path: String } = "{path}",
        OnShare { path: String, share: String } = "{path} on share {share}",
        OnRemovedShare { path: String } = "{path} on a share that was removed",

        // Lines of the log
        AttemptAsked { by: String } = "{by} asked for another attempt",
        RetryAsked { by: String } = "{by} asked to try again now",
        OldFilesStay { why: Phrase } = "The old files stay: {why}",
        LeftAlready { vm: String, destination: String, host: String } = "VM {vm} is no longer on host {destination}: host {host} has it, and its autostart is left as it is there",
        AcceptedSeveral { vms: String, by: String } = "Accepted: several of {vms}, asked for by {by}",
        AcceptedDrain { vms: String, by: String } = "Accepted: drain of {vms}, asked for by {by}",
        AcceptedStorage { vm: String, host: String, by: String } = "Accepted: storage move of {vm} on {host}, asked for by {by}",
        AcceptedLive { vm: String, source: String, destination: String, by: String } = "Accepted: Live move of {vm} from {source} to {destination}, asked for by {by}",
        AcceptedLiveVsm { vm: String, source: String, destination: String, by: String } = "Accepted: Live (VSM) move of {vm} from {source} to {destination}, asked for by {by}",
        AcceptedOffline { vm: String, source: String, destination: String, by: String } = "Accepted: Offline move of {vm} from {source} to {destination}, asked for by {by}",
        Admitted = "Its turn has come",
        AttemptBegins { attempt: u32 } = "Attempt {attempt} begins",
        StepBegins { step: StepTitle } = "{step}: begins",
        StepDone { step: StepTitle } = "{step}: done",
        StepFailed { step: StepTitle, why: Part } = "{step}: failed: {why}",
        StepUndone { step: StepTitle } = "{step}: undone",
        StepNotUndone { step: StepTitle, why: Part } = "{step}: could not be undone: {why}",
        CancelAsked { by: String } = "{by} asked to cancel",
        Arrived { source: String, destination: String } = "All of the VM is on {destination}, and {source} does not report that it runs there: the source is not released while it is not known where the VM is",
        Accepted { by: String } = "{by} accepted the current state; nothing more is done",
        AcceptedAs { by: String, seen: Phrase } = "{by} accepted the current state; nothing more is done: {seen}",
    }
}

impl JobText {
    /// The same with `name` in place of `id`, wherever an argument contains it.
    pub fn renamed(&self, id: &str, name: &str) -> Self {
        let json = self.to_json().ok().map(|mut json| {
            rename(&mut json, id, name);
            json
        });
        json.and_then(|json| Self::from_json(json).ok()).unwrap_or_else(|| self.clone())
    }
}

fn rename(json: &mut Value, id: &str, name: &str) {
    match json {
        Value::String(text) => *text = text.replace(id, name),
        Value::Array(all) => all.iter_mut().for_each(|json| rename(json, id, name)),
        Value::Object(all) => all.values_mut().for_each(|json| rename(json, id, name)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Reads a stored sentence; earlier versions stored its English.
///
/// # Errors
/// It is neither a sentence nor a text.
pub fn stored<'de, D: Deserializer<'de>>(from: D) -> Result<JobText, D::Error> {
    let json = Value::deserialize(from)?;
    match json.as_str() {
        Some(text) => Ok(JobText::Text { text: text.to_owned() }),
        None => JobText::from_json(json).map_err(serde::de::Error::custom),
    }
}

/// A step of a job of some kind: its title depends on both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTitle {
    /// What the job does.
    pub kind: JobKind,
    /// The step.
    pub step: Step,
}

impl fmt::Display for StepTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.step.title_in(self.kind))
    }
}
