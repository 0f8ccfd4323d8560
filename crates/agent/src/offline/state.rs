//! One attempt at one end: its journal, the progress of its files, and the task that copies.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ferry_core::{
    api::agent::{OfflineFile, Report, Stage},
    files::{DiskProgress, DiskStage},
    job::Figures,
    units::ByteCount,
};
use ferry_drivers::file;
use tokio::{sync::watch, task::JoinHandle};

use super::journal::{DestinationState, Journal, SourceState, Task};
use crate::{
    AgentError,
    attempt::{self, Attempt, table::Entry},
    lock::lock,
};

/// Progress of the files; not recorded.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) sequence: u64,
    pub(super) files: Vec<DiskProgress>,
    /// Bytes sent over the wire, by file.
    pub(super) wires: Vec<u64>,
}

/// One attempt at this end.
pub(super) struct Move {
    pub(super) folder: PathBuf,
    pub(super) journal: Mutex<Journal>,
    pub(super) known: watch::Sender<Known>,
    /// The copying task, at either end.
    pub(super) task: Mutex<Option<JoinHandle<()>>>,
    pub(super) address: Mutex<Option<String>>,
    /// Destination: no more files are created for it.
    pub(super) ended: Mutex<bool>,
}

impl Entry for Arc<Move> {
    fn attempt(&self) -> Attempt {
        let journal = lock(&self.journal);
        Attempt { job: journal.job, generation: journal.generation, vm: journal.task.vm() }
    }
}

impl Move {
    pub(super) fn new(folder: &Path, journal: Journal) -> Arc<Self> {
        let files = journal.task.files();
        let one = |file: &OfflineFile| DiskProgress {
            device: file.file.device.clone(),
            total: file.length,
            allocated_before: file.allocated,
            ..DiskProgress::default()
        };
        let known = Known { sequence: 1, files: files.iter().map(one).collect(), wires: vec![0; files.len()] };
        Arc::new(Self {
            folder: folder.to_owned(),
            journal: Mutex::new(journal),
            known: watch::Sender::new(known),
            task: Mutex::default(),
            address: Mutex::default(),
            ended: Mutex::default(),
        })
    }

    pub(super) fn journal(&self) -> Journal {
        lock(&self.journal).clone()
    }

    /// Changes the journal, and publishes the change once it is stored.
    pub(super) fn write(&self, change: impl FnOnce(&mut Journal)) -> Result<(), AgentError> {
        let mut journal = lock(&self.journal);
        let mut changed = journal.clone();
        change(&mut changed);
        if changed != *journal {
            attempt::journal::write(&self.folder, changed.job, &changed)?;
            *journal = changed;
            drop(journal);
            self.update_report(|_| {});
        }
        Ok(())
    }

    pub(super) fn to_source(&self, to: SourceState) -> Result<(), AgentError> {
        self.write(|journal| {
            if let Some(state) = journal.source() {
                *state = to;
            }
        })
    }

    pub(super) fn to_destination(&self, to: DestinationState) -> Result<(), AgentError> {
        self.write(|journal| {
            if let Some(state) = journal.destination() {
                *state = to;
            }
        })
    }

    pub(super) fn update_report(&self, change: impl FnOnce(&mut Known)) {
        self.known.send_modify(|known| {
            change(known);
            known.sequence += 1;
        });
    }

    pub(super) fn report(&self) -> Report {
        let (journal, known) = (self.journal(), self.known.borrow().clone());
        let mut files = known.files;
        let Journal { job, generation, task } = journal;
        let (role, stage, wire) = (task.role(), task.stage(), ByteCount(known.wires.iter().sum()));
        if matches!(stage, Stage::Delivered | Stage::Confirmed) {
            for (file, incoming_file) in files.iter_mut().zip(task.incoming_files()) {
                file.stage = DiskStage::Moved;
                file.copied = file.total;
                file.allocated_after = file::allocated(incoming_file.path()).unwrap_or_default();
            }
        }
        let (error, findings) = match task {
            Task::Source { state: SourceState::Failed { error }, .. } => (Some(error), Vec::new()),
            Task::Source { state: SourceState::Confirmed { findings }, .. } => (None, findings),
            Task::Source { .. } | Task::Destination { .. } => (None, Vec::new()),
        };
        Report {
            disks: files,
            figures: Figures { sent: wire, wire, disk_wire: wire, ..Figures::default() },
            error,
            findings,
            ..Report::new(job, generation, role, known.sequence, stage)
        }
    }

    /// Ends the copying task. It writes nothing afterwards except the block in progress.
    pub(super) async fn end(&self) {
        let task = lock(&self.task).take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        lock(&self.task).as_ref().is_some_and(|task| !task.is_finished())
    }
}
