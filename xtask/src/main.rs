//! All chores of the project. Needs only a Rust toolchain and a C compiler's linker; what else a chore needs is
//! installed by the chore itself, with a message.

mod api;
mod chore;
mod features;
mod package;
mod packages;
mod programs;
mod sudo;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use chore::Tests;
use programs::Build;

/// All chores of the project.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Move a running VM between two real hosts on this machine, and prove what was promised.
    Demo {
        /// Which demo: by default a live move over the share; `storage`: the disks of a running VM move.
        #[arg(value_enum)]
        what: Option<DemoKind>,
        /// Between stock hosts, whole Debian systems with Ferry's packages: over SMB, over NFS, with nothing shared,
        /// and from the previous release.
        #[arg(long, conflicts_with_all = ["what", "keep", "sabotage"])]
        stock: bool,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
        /// Leave lab and server running, and print how to use them.
        #[arg(long)]
        keep: bool,
        /// Break something on purpose: the demo must fail and report what it found.
        #[arg(long, value_enum)]
        sabotage: Option<Sabotage>,
    },
    /// Run every test: unit and component tests, then those in the lab.
    Test {
        /// Leave out the lab: runs without root once the packages are installed.
        #[arg(long)]
        no_lab: bool,
        /// Run all tests with stock hosts (whole Debian systems), and no others; without this option some of them are
        /// run.
        #[arg(long, conflicts_with = "no_lab")]
        stock: bool,
        /// Run only tests whose names contain this.
        filter: Option<String>,
    },
    /// Check formatting, lints, documentation, architecture, and the shape of the crates.
    Check,
    /// Hosts for trying things out.
    #[command(subcommand)]
    Lab(LabChore),
    /// Build packages of Ferry for Debian and for RPM-based systems; print their file names.
    Package {
        /// As for users, or as for tests: built quickly, with failpoints.
        #[arg(long, value_enum, default_value_t)]
        profile: Profile,
    },
    /// Feed random bytes to everything that parses a peer's bytes.
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Move VMs while programs, hosts and links fail, and find what is lost, split, corrupt or stuck.
    Chaos {
        /// Number of runs, 1 to 1,000.
        #[arg(long, default_value_t = 20)]
        runs: u32,
        /// Replay the plans of this seed.
        #[arg(long)]
        seed: Option<u64>,
        /// Only this kind of fault, as listed by `cargo xtask chaos --kind help`; may be repeated.
        #[arg(long)]
        kind: Vec<String>,
        /// Break a promise on purpose in a single run, which must detect it: lost, split, corrupt or stuck.
        #[arg(long)]
        sabotage: Option<String>,
        /// Also move disks, alone and together with their guests.
        #[arg(long)]
        storage: bool,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
    /// Measure Ferry against virsh, alternating, in the lab, or the server alone.
    Bench {
        /// What to measure: `base` is one move of a ticker guest of 512 MiB; `link` is one of 2 GiB over long links;
        /// `storage` is moves of disks, on one host and between two that share nothing; `jobs` is the cost of the
        /// server's jobs. `live-200m`, `live-1g`, `live-unshaped`, `vsm-200m` and `vsm-1g` compare one move of a Debian
        /// guest of 1 GiB with all peers.
        #[arg(default_value = "base")]
        names: Vec<String>,
        /// Number of runs of each.
        #[arg(long, default_value_t = 5)]
        runs: u32,
        /// Also write the tables to this file.
        #[arg(long)]
        report: Option<String>,
        /// Also write the plots of the comparisons with peers to this folder.
        #[arg(long)]
        plots: Option<String>,
        /// Print the comparisons with peers as one JSON document.
        #[arg(long)]
        json: bool,
    },
}

/// What a demo shows.
#[derive(Clone, Copy, clap::ValueEnum)]
enum DemoKind {
    /// The disks of a running VM move.
    Storage,
}

/// How packaged programs are built.
#[derive(Clone, Copy, Default, ValueEnum)]
enum Profile {
    #[default]
    Release,
    Debug,
}

impl Profile {
    fn build(self) -> Build {
        match self {
            Self::Release => Build::Released,
            Self::Debug => Build::Tested,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Sabotage {
    Page,
    Sector,
    Split,
}

#[derive(Subcommand)]
enum LabChore {
    /// Build a lab that stands until it is taken down.
    Up {
        /// Number of hosts.
        #[arg(long, default_value_t = 2)]
        hosts: usize,
        /// Stock hosts: whole Debian systems (two of release 13, then one of 12), without Ferry. They take minutes to boot.
        #[arg(long)]
        stock: bool,
    },
    /// List the standing labs, their hosts and their processes.
    Status,
    /// Run a command, or a shell, in a host.
    Shell {
        /// The host: kvm1, kvm2, …
        host: String,
        /// The command.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Take down all standing labs.
    Down,
}

fn main() -> ExitCode {
    match run(Arguments::parse().chore) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> anyhow::Result<u8> {
    match chore {
        Chore::Demo { stock: true, json, .. } => {
            let mut arguments = vec!["demo", "--stock"];
            arguments.extend(json.then_some("--json"));
            chore::stock(Build::Tested, &arguments)
        }
        Chore::Demo { what, stock: false, json, keep, sabotage } => {
            let mut arguments = vec!["demo"];
            arguments.extend(what.map(|DemoKind::Storage| "storage"));
            arguments.extend(json.then_some("--json"));
            arguments.extend(keep.then_some("--keep"));
            if let Some(sabotage) = sabotage {
                arguments.extend([
                    "--sabotage",
                    match sabotage {
                        Sabotage::Page => "page",
                        Sabotage::Sector => "sector",
                        Sabotage::Split => "split",
                    },
                ]);
            }
            chore::lab(Build::Tested, &arguments)
        }
        Chore::Chaos { runs, seed, kind, sabotage, storage, json } => {
            let (runs, seed) = (runs.to_string(), seed.map(|seed| seed.to_string()));
            let mut arguments = vec!["chaos", "--runs", &runs];
            arguments.extend(seed.iter().flat_map(|seed| ["--seed", seed]));
            arguments.extend(kind.iter().flat_map(|kind| ["--kind", kind]));
            arguments.extend(sabotage.iter().flat_map(|sabotage| ["--sabotage", sabotage]));
            arguments.extend(storage.then_some("--storage"));
            arguments.extend(json.then_some("--json"));
            chore::lab(Build::Tested, &arguments)
        }
        Chore::Test { no_lab, stock, filter } => {
            let tests = match (no_lab, stock) {
                (true, _) => Tests::NoLab,
                (false, true) => Tests::Stock,
                (false, false) => Tests::All,
            };
            chore::test(tests, filter.as_deref())
        }
        Chore::Check => chore::check(),
        Chore::Package { profile } => chore::package(profile.build()),
        Chore::Fuzz { seconds } => chore::fuzz(seconds),
        Chore::Lab(LabChore::Up { hosts, stock }) => {
            let hosts = hosts.to_string();
            let mut arguments = vec!["up", "--hosts", &hosts];
            arguments.extend(stock.then_some("--stock"));
            chore::lab(Build::Tested, &arguments)
        }
        Chore::Lab(LabChore::Status) => chore::lab(Build::Tested, &["status"]),
        Chore::Lab(LabChore::Shell { host, command }) => {
            let mut arguments = vec!["shell", &host, "--"];
            arguments.extend(command.iter().map(String::as_str));
            chore::lab(Build::Tested, &arguments)
        }
        Chore::Lab(LabChore::Down) => chore::lab(Build::Tested, &["down"]),
        Chore::Bench { names, runs, report, plots, json } => {
            if names == ["jobs"] {
                return chore::bench_jobs(report.as_deref());
            }
            let runs = runs.to_string();
            let mut arguments = vec!["bench", "--runs", &runs];
            arguments.extend(names.iter().map(String::as_str));
            // The lab's program runs in the current directory of xtask, so a relative path keeps its meaning.
            arguments.extend(report.iter().flat_map(|path| ["--report", path]));
            arguments.extend(plots.iter().flat_map(|path| ["--plots", path]));
            arguments.extend(json.then_some("--json"));
            chore::lab(Build::Released, &arguments)
        }
    }
}
