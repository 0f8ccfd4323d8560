//! Jobs that change several hosts: the executor, and one file per saga.

pub(crate) mod executor;
pub(crate) mod migrate;
mod perform;
mod presence;
