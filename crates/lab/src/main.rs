//! Program `ferry-lab`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use ferry_lab::{
    guard, host,
    lab::{Lab, in_host_of, standing},
    run::DEADLINE,
    stock::{self, image::Release, site::StockSite},
};

/// Real hosts on one machine.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build a lab that stands until it is taken down.
    Up {
        /// Number of hosts.
        #[arg(long, default_value_t = 2)]
        hosts: usize,
        /// Size of each host's own disk. MiB.
        #[arg(long, default_value_t = ferry_lab::local::DEFAULT_MIB, value_parser = clap::value_parser!(u32).range(64..))]
        local_mib: u32,
        /// Stock hosts: whole Debian systems (two of release 13, then one of 12), without Ferry. They take minutes to boot.
        #[arg(long, conflicts_with = "local_mib")]
        stock: bool,
    },
    /// List the standing labs, their hosts and their processes.
    Status,
    /// Run a command, or a shell, in a host.
    Shell {
        /// The host: kvm1, kvm2, …
        host: String,
        /// The lab, if there are several.
        #[arg(long)]
        lab: Option<PathBuf>,
        /// The command.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Take down all standing labs, or one.
    Down {
        /// The lab.
        lab: Option<PathBuf>,
    },
    /// Move a running VM between two hosts, and prove what was promised.
    Demo {
        /// Which demo: by default a live move over the share.
        #[arg(value_enum)]
        what: Option<DemoKind>,
        /// Between stock hosts, whole Debian systems with Ferry's packages.
        #[arg(long, conflicts_with = "what")]
        stock: bool,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
        /// Leave lab and server running.
        #[arg(long, conflicts_with_all = ["what", "stock"])]
        keep: bool,
        /// Break something on purpose: the demo must fail.
        #[arg(long, conflicts_with_all = ["what", "stock"])]
        sabotage: Option<ferry_lab::demo::Sabotage>,
    },
    /// Measure Ferry against plain libvirt tools.
    Bench {
        /// The benchmarks.
        #[arg(value_enum, required = true)]
        benches: Vec<ferry_lab::bench::Bench>,
        /// Number of runs of each side.
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// Also write the tables to this file.
        #[arg(long)]
        report: Option<PathBuf>,
        /// Also write the plots of the comparisons with peers to this folder.
        #[arg(long)]
        plots: Option<PathBuf>,
        /// Print the comparisons with peers as one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Move VMs while programs, hosts and links fail; find what is lost, split, corrupt or stuck.
    Chaos {
        /// Number of runs.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=ferry_lab::chaos::RUNS_MAX))]
        runs: u64,
        /// Replay the plans of this seed; by default a seed is taken from the clock.
        #[arg(long)]
        seed: Option<u64>,
        /// Only this kind of fault; may be repeated, then the kinds are used in turn.
        #[arg(long)]
        kind: Vec<ferry_lab::chaos::Kind>,
        /// Break a promise on purpose in a single run: it must be detected.
        #[arg(long)]
        sabotage: Option<ferry_lab::chaos::Sabotage>,
        /// Also move disks, alone and together with their guests.
        #[arg(long, conflicts_with = "sabotage")]
        storage: bool,
        /// Print one JSON object as the last line.
        #[arg(long)]
        json: bool,
    },
    /// The first process of a host.
    #[command(hide = true)]
    Init {
        /// Its private files.
        folder: PathBuf,
        /// Its name.
        name: String,
    },
    /// Takes a lab down when its owner ends.
    #[command(hide = true)]
    Guard {
        /// The lab.
        folder: PathBuf,
    },
}

/// What a demo shows.
#[derive(Clone, Copy, clap::ValueEnum)]
enum DemoKind {
    /// Disks move while their VM runs.
    Storage,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Up { hosts, stock: true, .. } => {
            let site = StockSite::boot(&stock_releases(hosts))?;
            for machine in &site.machines {
                eprintln!("{} {} is up ({})", machine.name, machine.ip, machine.release.name());
            }
            println!("{}", site.ferry.lab.folder.display());
            site.keep();
            Ok(())
        }
        Command::Up { hosts, local_mib, stock: false } => {
            let lab = Lab::up_with(hosts, local_mib)?;
            for host in &lab.hosts {
                host.start_libvirt()?;
                eprintln!("{} {} is up", host.name, host.ip);
            }
            println!("{}", lab.folder.display());
            lab.keep();
            Ok(())
        }
        Command::Status => {
            for folder in standing() {
                println!("{}", folder.display());
                for (name, agent) in stock::site::machines_of(&folder) {
                    let list = agent.run("virsh -c qemu:///system list --all", DEADLINE)?;
                    println!("{name}\n{}", list.out);
                }
                for index in 1..=20 {
                    let Ok(mut command) = in_host_of(&folder, &format!("kvm{index}")) else { break };
                    command.args(["virsh", "-c", "qemu:///system", "list", "--all"]);
                    println!("kvm{index}\n{}", ferry_lab::run::run_within(command, DEADLINE)?.out);
                }
            }
            Ok(())
        }
        Command::Shell { host, lab, command } => {
            let folder = match lab {
                Some(folder) => folder,
                None => standing().pop().context("No lab stands; `cargo xtask lab up` builds one")?,
            };
            if let Some((_, agent)) = stock::site::machines_of(&folder).into_iter().find(|(name, _)| *name == host) {
                anyhow::ensure!(
                    !command.is_empty(),
                    "{host} is a machine of its own: say which command shall run there"
                );
                let output = agent.run(&command.join(" "), stock::site::MOVE_WITHIN)?;
                print!("{}", output.out);
                eprint!("{}", output.err);
                std::process::exit(output.code.unwrap_or(1));
            }
            let mut inside = in_host_of(&folder, &host)?;
            if command.is_empty() {
                inside.arg("bash");
            } else {
                inside.args(command);
            }
            let status = inside.status()?;
            std::process::exit(status.code().unwrap_or(1));
        }
        Command::Down { lab } => {
            let folders = lab.map_or_else(standing, |folder| vec![folder]);
            for folder in folders {
                guard::take_down(&folder)?;
                eprintln!("{} is taken down", folder.display());
            }
            Ok(())
        }
        Command::Demo { stock: true, json, .. } => stock::demo::run(json),
        Command::Demo { what: Some(DemoKind::Storage), json, .. } => ferry_lab::demo_storage::run(json),
        Command::Demo { what: None, stock: false, json, keep, sabotage } => ferry_lab::demo::run(json, keep, sabotage),
        Command::Bench { benches, runs, report, plots, json } => {
            ferry_lab::bench::run(&benches, &ferry_lab::bench::Options { runs, report, plots, json })
        }
        Command::Chaos { runs, seed, kind, sabotage, storage, json } => {
            let runs = if sabotage.is_some() { 1 } else { runs };
            let options = ferry_lab::chaos::Options { runs, seed, kinds: kind, sabotage, storage };
            let report = ferry_lab::chaos::run(&options)?;
            eprint!("{}", report.findings());
            println!("{}", if json { report.json() } else { report.table() });
            std::process::exit(i32::from(!report.is_good()));
        }
        Command::Init { folder, name } => host::init(&folder, &name),
        Command::Guard { folder } => guard::guard(&folder),
    }
}

/// Debian 13 for all hosts, except that the last of more than two runs Debian 12.
fn stock_releases(hosts: usize) -> Vec<Release> {
    (1..=hosts).map(|index| if index == hosts && hosts > 2 { Release::Bookworm } else { Release::Trixie }).collect()
}
