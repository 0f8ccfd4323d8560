//! Decisions and vocabulary of Ferry: no async, no I/O, no clock, no logging.
//!
//! Every decision is here, as a pure function of facts: [`preflight`] turns facts into findings, [`migration`] folds a
//! log into a phase and a verdict. Time is passed as an argument. The words are those of `docs/glossary.md`.

pub mod admission;
pub mod api;
pub mod backoff;
pub mod carried;
pub mod compression;
pub mod convergence;
pub mod disk_rest;
pub mod error;
pub mod files;
pub mod finding;
#[cfg(test)]
mod fixtures;
pub mod host;
pub mod id;
pub mod immovable;
pub mod job;
pub mod job_text;
pub mod location;
pub mod memory;
pub mod metrics;
pub mod migration;
pub mod network;
pub mod pin;
pub mod place;
pub mod placement;
pub mod power;
pub mod preflight;
pub mod release;
pub mod share;
pub mod share_source;
pub mod stall;
pub mod switchover;
pub mod text;
pub mod transfer;
pub mod unc;
pub mod units;
pub mod vm;
