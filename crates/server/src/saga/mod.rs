//! Jobs that change several hosts: the executor, and one file per saga.

mod ends;
pub(crate) mod executor;
#[cfg(test)]
mod executor_sweep;
pub(crate) mod leftovers;
pub(crate) mod migrate;
pub(crate) mod move_offline;
pub(crate) mod move_storage;
mod perform;
pub(crate) mod plan;
mod presence;
#[cfg(test)]
mod simulation;
