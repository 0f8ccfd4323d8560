//! Benchmarks: Ferry against what is there without it, in one lab, alternating, so that the machine's noise meets both.

mod base;
mod link;
mod measure;
mod storage;

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;

pub(crate) use self::measure::virsh_migrate;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// One move of a ticker guest of 512 MiB over the share.
    Base,
    /// One move of a ticker guest of 2 GiB over long links.
    Link,
    /// Moves of disks: on one host, with their VM to another, and again after they were cut off.
    Storage,
}

/// Measures, prints the tables, and writes them to `report`, too.
///
/// # Errors
/// What failed; a figure that is not met is told, and is no error of the bench.
pub fn run(bench: Bench, runs: usize, report: Option<&Path>) -> anyhow::Result<()> {
    ensure!(runs > 0, "Nothing is measured in no runs");
    let (name, tables) = match bench {
        Bench::Base => ("base", base::run(runs)?),
        Bench::Link => ("link", link::run(runs)?),
        Bench::Storage => ("storage", storage::run(runs)?),
    };
    let text = format!("{runs} runs each, alternating; median (least – most).\n{tables}");
    println!("{text}");
    if let Some(path) = report {
        fs::write(path, format!("# `cargo xtask bench {name}`\n\n{text}"))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}
