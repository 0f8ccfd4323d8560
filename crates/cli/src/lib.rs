//! The command line of Ferry: a client of the REST API and nothing more.
//!
//! Data go to stdout, messages and progress to stderr; `--json` prints the data as one JSON document.

pub mod arguments;
pub mod cmd;
mod connection;
mod failure;
mod output;
mod progress;
mod render;

pub use failure::Failure;
pub use output::Output;
