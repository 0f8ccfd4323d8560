//! Benchmarks of Ferry against plain libvirt tools, in the same lab, alternating, so that the machine's noise affects
//! all equally.

mod base;
mod link;
mod measure;
mod pair;
mod peers;
mod plot;
mod storage;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use serde_json::Value;

pub(crate) use self::measure::virsh_migrate;
use self::peers::{SCENARIOS, Scenario};

/// The benchmark to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// One move of a ticker guest of 512 MiB over the share.
    Base,
    /// One move of a ticker guest of 2 GiB over long links.
    Link,
    /// Moves of disks: on one host, together with their VM to another host, and again after an interruption.
    Storage,
    /// Against every peer: a Debian guest of 1 GiB on shared storage, 200 Mb/s.
    #[value(name = "live-200m")]
    Live200M,
    /// The same at 1 Gb/s.
    #[value(name = "live-1g")]
    Live1G,
    /// The same on a link that is not shaped.
    LiveUnshaped,
    /// Against every peer: the guest with its disk, nothing shared, 200 Mb/s.
    #[value(name = "vsm-200m")]
    Vsm200M,
    /// The same at 1 Gb/s.
    #[value(name = "vsm-1g")]
    Vsm1G,
}

impl Bench {
    /// Its name, as on the command line.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn scenario(self) -> Option<&'static Scenario> {
        SCENARIOS.iter().find(|scenario| scenario.name == self.name())
    }
}

/// How benchmarks are run, and where their results go.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of runs of each side, at least 1.
    pub runs: usize,
    /// Also write the tables to this file.
    pub report: Option<PathBuf>,
    /// Also write the plot of each comparison with peers to this folder, as NAME.svg.
    pub plots: Option<PathBuf>,
    /// Print the comparisons with peers as one JSON document instead of tables.
    pub json: bool,
}

/// Measures, and prints the tables.
///
/// # Errors
/// What failed. A missed bound is reported in the tables, and is not an error of the benchmark.
pub fn run(benches: &[Bench], options: &Options) -> anyhow::Result<()> {
    ensure!(options.runs > 0, "Nothing is measured in no runs");
    let (mut tables, mut data) = (String::new(), Vec::new());
    for bench in benches {
        match (bench, bench.scenario()) {
            (Bench::Base, _) => tables += &base::run(options.runs)?,
            (Bench::Link, _) => tables += &link::run(options.runs)?,
            (Bench::Storage, _) => tables += &storage::run(options.runs)?,
            (Bench::Live200M | Bench::Live1G | Bench::LiveUnshaped | Bench::Vsm200M | Bench::Vsm1G, None) => {
                anyhow::bail!("There is no scenario {}", bench.name())
            }
            (_, Some(scenario)) => {
                let compared = peers::run(scenario, options.runs)?;
                if let Some(folder) = &options.plots {
                    let path = peers::plot_path(folder, scenario);
                    fs::write(&path, &compared.svg).with_context(|| path.display().to_string())?;
                }
                tables += &compared.text;
                data.push(compared.json);
            }
        }
    }
    let text = format!("{} runs each, alternating; median (least – most).\n{tables}", options.runs);
    if options.json {
        println!("{}", Value::Array(data));
    } else {
        println!("{text}");
    }
    if let Some(path) = &options.report {
        let names: Vec<String> = benches.iter().map(|bench| bench.name()).collect();
        fs::write(path, format!("# `cargo xtask bench {}`\n\n{text}", names.join(" ")))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comparison_with_peers_can_be_named() {
        for scenario in &SCENARIOS {
            let bench = Bench::from_str(scenario.name, false).expect("it has a name");
            assert_eq!(bench.scenario(), Some(scenario));
        }
        assert_eq!(Bench::Storage.scenario(), None);
    }
}
