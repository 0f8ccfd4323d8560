//! What a package is made from.

use std::path::PathBuf;

/// Where the files lie, and what packages say of themselves.
pub(super) struct Inputs {
    /// The workspace.
    pub(super) sources: PathBuf,
    /// Where the programs lie.
    pub(super) programs: PathBuf,
    /// Where each program has a folder with its pages and completions.
    pub(super) manuals: PathBuf,
    /// Lists what is linked into the program of a crate.
    pub(super) crates: fn(&str) -> anyhow::Result<String>,
    pub(super) version: String,
    /// The time of all files, seconds since 1970.
    pub(super) date: u64,
}
