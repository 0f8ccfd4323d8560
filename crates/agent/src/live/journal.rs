//! The journal of a migration, written before each action, so that a restarted agent finds it again.
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
    files::incoming::IncomingImage,
    records,
};

/// The requested task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Task {
    /// Send the VM.
    Source {
        /// The request.
        request: PrepareSource,
        /// Maps folders here to their paths at the destination.
        translate: Vec<(PathBuf, PathBuf)>,
        /// Whether the destination must keep a definition, as this host does.
        persistent: bool,
        /// Migrated disks, with their files here.
        #[serde(default, rename = "along")]
        migrated: Vec<(String, PathBuf)>,
        /// Whether it was proved that both hosts reach the files that stay, where libvirt cannot be told so.
        #[serde(default)]
        vouched: bool,
        /// The VM's name; empty in journals of an earlier version.
        #[serde(default)]
        name: String,
    },
    /// Receive the VM.
    Destination {
        /// The request.
        request: PrepareDestination,
        /// Folders that the VM's files may be in.
        roots: Vec<PathBuf>,
        /// Incoming disks.
        #[serde(default, rename = "arrivals")]
        incoming_disks: Vec<IncomingImage>,
    },
}

impl Task {
    /// Which end this is.
    pub fn role(&self) -> Role {
        match self {
            Self::Source { .. } => Role::Source,
            Self::Destination { .. } => Role::Destination,
        }
    }

    /// Incoming disks; none at the source.
    pub fn incoming_disks(&self) -> &[IncomingImage] {
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

/// The agent's record: written before the carrier starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The job.
    pub job: JobId,
    /// Its attempt.
    pub generation: Generation,
    /// The requested task.
    pub task: Task,
    /// Folder of the session's sockets, accessible to QEMU's user.
    pub socket_dir: PathBuf,
    /// The carrier's control socket, in a folder accessible to root only.
    pub control: PathBuf,
    /// Source: whether the host started the VM at boot before the move.
    pub autostart: bool,
    /// What was decided so far.
    #[serde(flatten)]
    pub state: State,
}

/// What was decided about one end of a move.
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
    /// Nothing yet: the move continues.
    Open,
    /// Destination: both hosts were asked, and the VM is here. From then on it is never destroyed.
    Here,
    /// Destination: the undo found a copy that had not been run, and is ending it: whatever is left of it belongs to
    /// this undo.
    Ending,
    /// The source's definition is gone, or autostart is set at the destination. There, `here` records whether the
    /// server had to decide that the VM is here.
    Confirmed {
        /// The server decided so.
        here: bool,
    },
    /// The move was undone, and, at the destination, a copy was ended or there was none.
    Aborted {
        /// A copy was ended.
        ended: bool,
    },
}

impl State {
    /// Whether both hosts were asked, and the VM is here.
    pub fn is_here(self) -> bool {
        matches!(self, Self::Here | Self::Confirmed { here: true })
    }

    /// Whether this end's undo is ending its copy, or has ended it.
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

/// [`State`] in the format that every version writes.
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

/// The carrier's record: written before each action that libvirt cannot be asked about afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarrierState {
    /// The carrier's process; 0 for one inside the agent.
    pub pid: u32,
    /// The Finish reply has reached the source's libvirtd.
    pub finish_delivered: bool,
    /// Destination: the VM was resumed.
    pub resumed: bool,
    /// Destination: its complete copy was given up before the source was informed, and is ended here.
    #[serde(default)]
    pub given_up: bool,
    /// Source: libvirt has no migration of the VM any more, and it continues here. From then on the copy at the
    /// destination is outdated.
    #[serde(default)]
    pub ran_on: bool,
    /// Measurements so far.
    pub figures: Figures,
}

impl CarrierState {
    /// What a host has of the VM, interpreted with this record: the remains of a copy that was given up are no VM, and
    /// a VM that continued here and has no process any more has ended here.
    pub fn sees(&self, presence: Presence) -> Presence {
        let is_off = presence == Presence::Off;
        if is_off && self.given_up {
            Presence::Absent
        } else if is_off && self.ran_on {
            Presence::Ended
        } else {
            presence
        }
    }
}

impl Entry for Journal {
    fn attempt(&self) -> Attempt {
        Attempt { job: self.job, generation: self.generation, vm: self.task.vm() }
    }
}

impl Journal {
    /// The path of a job's carrier record.
    pub fn state_path(folder: &Path, job: JobId) -> PathBuf {
        folder.join(format!("{job}.state.json"))
    }

    /// Reads the carrier's record, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn carrier_state(folder: &Path, job: JobId) -> Result<CarrierState, AgentError> {
        Ok(records::read_json(&Self::state_path(folder, job))?.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::new_file::{FileIdentity, Lifecycle};

    /// An agent that is upgraded during a move continues it.
    #[test]
    fn what_the_version_before_wrote_down_is_read_and_what_is_written_is_read_again() {
        for (text, state) in [
            (include_str!("../../tests/journals/live-source.json"), State::Aborted { ended: false }),
            (include_str!("../../tests/journals/live-destination.json"), State::Here),
        ] {
            let journal: Journal = serde_json::from_str(text).expect("a journal");
            assert_eq!(journal.state, state);
            for disk in journal.task.incoming_disks() {
                let is_of = FileIdentity::File { inode: 131, born_ns: Some(1_760_000_000_000_000_000) };
                assert!(
                    matches!(disk.lifecycle, Lifecycle::Made { identity, from_partial: Some(_) } if identity == is_of)
                );
            }
            let written = serde_json::to_string(&journal).expect("JSON");
            assert_eq!(serde_json::from_str::<Journal>(&written).expect("a journal"), journal);
        }
    }
}
