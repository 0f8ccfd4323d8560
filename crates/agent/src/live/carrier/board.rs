//! The board of a carrier: its state, its journal record, readers that wait for news, and its tasks.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ferry_core::{
    api::agent::{Report, Role, Stage},
    error::chain,
    files::DiskProgress,
    id::{Generation, JobId, VmId},
    job::Progress,
    migration::Presence,
};
use ferry_drivers::hypervisor::Hypervisor;
use tokio::{sync::watch, task::JoinSet};
use tracing::{Instrument as _, error};

use crate::{
    AgentError,
    blocking::{call, on_thread},
    live::journal::{CarrierState, Journal},
    lock::lock,
    records,
};

/// The carrier's state, published to readers.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) sequence: u64,
    pub(super) stage: Stage,
    pub(super) progress: Option<Progress>,
    pub(super) disks: Vec<DiskProgress>,
    pub(super) error: Option<String>,
    pub(super) state: CarrierState,
}

/// The carrier's state, its journal record, its readers, and its tasks.
pub(super) struct Board {
    pub(super) job: JobId,
    pub(super) generation: Generation,
    pub(super) role: Role,
    pub(super) vm: VmId,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    state_path: PathBuf,
    known: watch::Sender<Known>,
    writing: tokio::sync::Mutex<()>,
    tasks: Mutex<JoinSet<()>>,
}

impl Board {
    pub(super) fn new(journal: &Journal, journal_dir: &Path, hypervisor: Arc<dyn Hypervisor>) -> Self {
        let state = CarrierState { pid: std::process::id(), ..CarrierState::default() };
        Self {
            job: journal.job,
            generation: journal.generation,
            role: journal.task.role(),
            vm: journal.task.vm(),
            hypervisor,
            state_path: Journal::state_path(journal_dir, journal.job),
            known: watch::Sender::new(Known {
                sequence: 1,
                stage: Stage::Prepared,
                progress: None,
                disks: Vec::new(),
                error: None,
                state,
            }),
            writing: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// Creates the journal record. Until then the agent that starts the carrier finds none.
    pub(super) fn begin(&self) -> Result<(), AgentError> {
        records::write_json(&self.state_path, &self.known().state)
    }

    /// The current state.
    pub(super) fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    /// Changes the state and notifies readers.
    pub(super) fn update(&self, change: impl FnOnce(&mut Known)) {
        self.change(|known| {
            change(known);
            true
        });
    }

    /// Checks and changes the state atomically, so that of two exclusive changes only one can happen. Returns the
    /// result of `change`: whether it changed anything.
    pub(super) fn change(&self, change: impl FnOnce(&mut Known) -> bool) -> bool {
        self.known.send_if_modified(|known| {
            let changed = change(known);
            known.sequence += u64::from(changed);
            changed
        })
    }

    /// Writes to disk what libvirt cannot be asked for afterwards: the state at this call, or a later one.
    pub(super) async fn write_down(&self) {
        let _one_at_a_time = self.writing.lock().await;
        let (path, state) = (self.state_path.clone(), self.known().state);
        let written = on_thread(move || records::write_json(&path, &state)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(error = %chain(&error), "The carrier's journal could not be written"),
            Err(error) => error!(error = %chain(&error), "The carrier's journal could not be written"),
        }
    }

    /// Runs a task until it ends by itself, or the carrier does.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task.in_current_span());
    }

    /// Ends every task: connections break, and nothing listens any more.
    pub(super) fn end_tasks(&self) {
        lock(&self.tasks).abort_all();
    }

    /// Waits until `is` holds for the state.
    pub(super) async fn wait_for(&self, is: impl FnMut(&Known) -> bool) {
        let mut known = self.known.subscribe();
        // The board holds the sender, so waiting cannot fail.
        let _ = known.wait_for(is).await;
    }

    /// Queries the hypervisor and composes the report.
    pub(super) async fn report(&self) -> Report {
        let (vm, role) = (self.vm, self.role);
        let presence = call(&self.hypervisor, move |hypervisor| hypervisor.presence(vm, role)).await;
        let known = self.known();
        Report {
            finish_delivered: known.state.finish_delivered,
            gave_up: known.state.given_up,
            presence: known.state.sees(presence.unwrap_or(Presence::Unknown)),
            progress: known.progress,
            disks: known.disks,
            figures: known.state.figures,
            error: known.error,
            ..Report::new(self.job, self.generation, role, known.sequence, known.stage)
        }
    }
}
