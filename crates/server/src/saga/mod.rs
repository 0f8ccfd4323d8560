//! Jobs that change several hosts: the executor, and one file per saga.

pub(crate) mod agent;
mod common;
pub(crate) mod executor;
#[cfg(test)]
mod executor_sweep;
mod follow;
pub(crate) mod migrate;
#[cfg(test)]
mod models;
pub(crate) mod move_offline;
pub(crate) mod move_storage;
pub(crate) mod orphans;
pub(crate) mod participant;
mod participants;
mod perform;
mod presence;
#[cfg(test)]
mod simulation;
mod site;
#[cfg(test)]
mod sweep;
mod undo;

use std::sync::Arc;

use crate::{jobs::running::RunningJobs, preflight::Preflight};

/// What the steps of all jobs share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) preflight: Arc<Preflight>,
    pub(crate) running: Arc<RunningJobs>,
}
