//! Jobs that change several hosts: the executor, and one file per saga.

mod ends;
pub(crate) mod executor;
#[cfg(test)]
mod executor_sweep;
pub(crate) mod migrate;
mod perform;
mod presence;
#[cfg(test)]
mod simulation;
