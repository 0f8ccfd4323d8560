//! Jobs that change several hosts: the executor, and one file per saga.

pub(crate) mod executor;
#[cfg(test)]
mod executor_sweep;
pub(crate) mod migrate;
mod perform;
mod presence;
