//! What is written down of a migration before it happens, so that a restarted agent finds it again.
//!
//! One file per migration and writer: `JOB.json` is the agent's, `JOB.state.json` the carrier's.

use std::path::{Path, PathBuf};

use ferry_core::{
    api::agent::{PrepareDestination, PrepareSource, Role},
    id::{Generation, JobId, VmId},
    job::Figures,
    migration::Presence,
};
use serde::{Deserialize, Serialize};

use crate::{
    AgentError,
    attempt::{Attempt, table::Entry},
    files::new_file::IncomingDisk,
    records,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Task {
    /// Send the VM.
    Source {
        /// The request.
        request: PrepareSource,
        /// Folders here and what they are called at the destination.
        translate: Vec<(PathBuf, PathBuf)>,
        /// Whether the destination shall keep a definition, as this host does.
        persistent: bool,
        /// Disks that move along, with the files they use here.
        #[serde(default)]
        along: Vec<(String, PathBuf)>,
        /// Whether it was shown that both hosts reach the files that stay, and libvirt cannot be told so.
        #[serde(default)]
        vouched: bool,
        /// The VM's name; empty in what an earlier version wrote down.
        #[serde(default)]
        name: String,
    },
    /// Receive it.
    Destination {
        /// The request.
        request: PrepareDestination,
        /// Folders in which the VM's files may lie.
        roots: Vec<PathBuf>,
        /// Disks that come along.
        #[serde(default, rename = "arrivals")]
        incoming_disks: Vec<IncomingDisk>,
    },
}

impl Task {
    /// Which end it is.
    pub fn role(&self) -> Role {
        match self {
            Self::Source { .. } => Role::Source,
            Self::Destination { .. } => Role::Destination,
        }
    }

    /// Disks that come along; none at the source.
    pub fn incoming_disks(&self) -> &[IncomingDisk] {
        match self {
            Self::Source { .. } => &[],
            Self::Destination { incoming_disks, .. } => incoming_disks,
        }
    }

    /// The VM.
    pub fn vm(&self) -> VmId {
        match self {
            Self::Source { request, .. } => request.vm,
            Self::Destination { request, .. } => request.vm,
        }
    }
}

/// The agent's page: written before the carrier starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The job.
    pub job: JobId,
    /// Its attempt.
    pub generation: Generation,
    /// What was asked for.
    pub task: Task,
    /// Folder of the session's sockets, which QEMU's user enters.
    pub socket_dir: PathBuf,
    /// The carrier's control socket, in a folder that only root enters.
    pub control: PathBuf,
    /// Source: whether the host started the VM at boot before.
    pub autostart: bool,
    /// What was decided about it.
    #[serde(flatten)]
    pub state: State,
}

/// What was decided about an end of a move.
///
/// ```text
/// source:       Open ─┬─▶ Confirmed
///                     └─▶ Aborted
/// destination:  Open ─┬─▶ Here ─▶ Confirmed
///                     └─▶ Ending ─▶ Aborted
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Flags", into = "Flags")]
pub enum State {
    /// Nothing: it goes on.
    Open,
    /// Destination: both hosts were asked, and the VM is here. From then on it is never destroyed.
    Here,
    /// Destination: its undo saw a copy that had not been run, and ends it: what is left of it is this undo's.
    Ending,
    /// The source's definition is gone, or autostart is set at the destination, where the server had to say that it is here or not.
    Confirmed {
        /// It had.
        here: bool,
    },
    /// It was undone, and, at the destination, a copy was ended or there was none.
    Aborted {
        /// One was ended.
        ended: bool,
    },
}

impl State {
    /// Whether it was asked of both hosts that the VM is here.
    pub fn is_here(self) -> bool {
        matches!(self, Self::Here | Self::Confirmed { here: true })
    }

    /// Whether the undo of this end ends its copy, or has.
    pub fn gave_up(self) -> bool {
        matches!(self, Self::Ending | Self::Aborted { ended: true })
    }

    /// Whether it was confirmed.
    pub fn is_confirmed(self) -> bool {
        matches!(self, Self::Confirmed { .. })
    }

    /// Whether it was undone.
    pub fn is_aborted(self) -> bool {
        matches!(self, Self::Aborted { .. })
    }
}

/// [`State`] as it is written down, by every version.
#[derive(Serialize, Deserialize)]
struct Flags {
    here: bool,
    #[serde(default)]
    ending: bool,
    confirmed: bool,
    aborted: bool,
}

impl From<Flags> for State {
    fn from(flags: Flags) -> Self {
        match flags {
            Flags { aborted: true, ending: ended, .. } => Self::Aborted { ended },
            Flags { confirmed: true, here, .. } => Self::Confirmed { here },
            Flags { here: true, .. } => Self::Here,
            Flags { ending: true, .. } => Self::Ending,
            Flags { .. } => Self::Open,
        }
    }
}

impl From<State> for Flags {
    fn from(state: State) -> Self {
        Self {
            here: state.is_here(),
            ending: state.gave_up(),
            confirmed: state.is_confirmed(),
            aborted: state.is_aborted(),
        }
    }
}

/// The carrier's page: written before each thing that cannot be asked of libvirt afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarrierState {
    /// The carrier's process, 0 for one inside the agent.
    pub pid: u32,
    /// The Finish reply has reached the source's libvirtd.
    pub finish_delivered: bool,
    /// Destination: the VM was resumed.
    pub resumed: bool,
    /// Destination: its complete copy was given up before the source was told of it, and is ended here.
    #[serde(default)]
    pub given_up: bool,
    /// Source: libvirt has no migration of the VM any more, and it runs on here. The copy at the destination is old from then on.
    #[serde(default)]
    pub ran_on: bool,
    /// What it took so far.
    pub figures: Figures,
}

impl CarrierState {
    /// What a host has of the VM, seen with the knowledge of this page: what is left of a copy that was given up is no VM, and
    /// what ran on and has no process any more has ended here.
    pub fn sees(&self, presence: Presence) -> Presence {
        match presence {
            Presence::Off if self.given_up => Presence::Absent,
            Presence::Off if self.ran_on => Presence::Ended,
            seen => seen,
        }
    }
}

impl Entry for Journal {
    fn attempt(&self) -> Attempt {
        Attempt { job: self.job, generation: self.generation, vm: self.task.vm() }
    }
}

impl Journal {
    /// Where the carrier's page of a job is.
    pub fn state_path(folder: &Path, job: JobId) -> PathBuf {
        folder.join(format!("{job}.state.json"))
    }

    /// What the carrier wrote, if anything.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn carrier_state(folder: &Path, job: JobId) -> Result<CarrierState, AgentError> {
        Ok(records::read_json(&Self::state_path(folder, job))?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// An agent that is upgraded in the midst of a move goes on with it.
    #[test]
    fn what_the_version_before_wrote_down_is_read_and_written_as_it_was() {
        for text in [
            include_str!("../../tests/journals/live-source.json"),
            include_str!("../../tests/journals/live-destination.json"),
        ] {
            let journal: Journal = serde_json::from_str(text).expect("a journal");
            let written = serde_json::to_value(&journal).expect("JSON");
            assert_eq!(written, serde_json::from_str::<Value>(text).expect("JSON"));
        }
    }
}
