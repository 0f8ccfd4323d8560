//! Benchmarks of Ferry against plain libvirt tools, in the same lab, alternating, so that the machine's noise affects
//! both equally.

mod base;
mod link;
mod measure;
mod storage;

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;

pub(crate) use self::measure::virsh_migrate;

/// The benchmark to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// One move of a ticker guest of 512 MiB over the share.
    Base,
    /// One move of a ticker guest of 2 GiB over long links.
    Link,
    /// Moves of disks: on one host, together with their VM to another host, and again after an interruption.
    Storage,
}

/// Measures, prints the tables, and also writes them to `report`.
///
/// # Errors
/// What failed. A missed bound is reported in the tables, and is not an error of the benchmark.
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
