//! Every chore of the project: `cargo xtask demo`, `cargo xtask test`, and what they need.
//!
//! Builds without libvirt's headers: it installs them.

mod install;
mod steps;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Every chore of the project.
#[derive(Parser)]
#[command(name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Move a running VM between two real hosts on this machine, and prove what was promised
    Demo {
        /// Options of the demo: --json, --keep, --sabotage page|sector|split
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Run all tests: unit, component and conformance without root, then those with real hosts
    Test {
        /// Leave out the tests with real hosts
        #[arg(long)]
        no_lab: bool,
        /// Only tests whose name holds one of these
        filters: Vec<String>,
    },
    /// Check format, lints, docs, architecture and the API document
    Check,
    /// Build a lab and look into it: up, status, shell HOST, down
    Lab {
        /// What to do
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Measure Ferry against what is there without it: base
    Bench {
        /// Which, and its options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Run the fuzzers of what parses a peer's bytes, so many seconds each
    Fuzz {
        /// Seconds each
        #[arg(default_value_t = 60)]
        seconds: u32,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo { options } => steps::lab_program("demo", &options),
        Command::Test { no_lab, filters } => steps::test(no_lab, &filters),
        Command::Check => steps::check(),
        Command::Lab { options } => match options.split_first() {
            Some((first, rest)) => steps::lab_program(first, rest),
            None => steps::lab_program("status", &[]),
        },
        Command::Bench { options } => steps::lab_program("bench", &options),
        Command::Fuzz { seconds } => steps::fuzz(seconds),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
