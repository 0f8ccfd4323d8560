//! The inputs of a package.

use std::path::PathBuf;

/// Where the files are, and data that packages contain about themselves.
pub(super) struct Inputs {
    /// The workspace.
    pub(super) sources: PathBuf,
    /// The folder of the programs.
    pub(super) programs: PathBuf,
    /// The folder with a subfolder for each program, with its pages and completions.
    pub(super) manuals: PathBuf,
    /// Lists the crates that are linked into the program of a crate.
    pub(super) crates: fn(&str) -> anyhow::Result<String>,
    pub(super) version: String,
    /// Timestamp of all files, in seconds since 1970.
    pub(super) date: u64,
}
