//! What the commands do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, ensure};

use crate::install::{Need, as_root, ensure_nextest, ensure_packages, is_root, succeed};

const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// The fuzzers in `fuzz/`.
const FUZZERS: [&str; 3] = ["frame", "hello", "rpc"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root());
    command
}

/// Builds the programs, with failpoints, and the guest.
fn build_programs() -> anyhow::Result<()> {
    let programs = [
        "build",
        "--quiet",
        "-p",
        "ferry-cli",
        "-p",
        "ferry-server",
        "-p",
        "ferry-agent",
        "-p",
        "ferry-lab",
        "--features",
        "ferry-agent/failpoints,ferry-server/failpoints",
    ];
    eprintln!("building the programs");
    succeed(&mut cargo(&programs))?;
    eprintln!("building the guest");
    let mut guest =
        cargo(&["build", "--quiet", "--release", "-p", "ferry-ticker", "--target", GUEST_TARGET, "--target-dir"]);
    // Static: it is alone in its initramfs.
    guest.arg(target().join("guest")).env("RUSTFLAGS", "-C target-feature=+crt-static");
    succeed(&mut guest)
}

/// Runs a command of `ferry-lab`, as root.
///
/// # Errors
/// When something cannot be installed or built.
pub fn lab_program(command: &str, options: &[String]) -> anyhow::Result<ExitCode> {
    ensure_packages(&[Need::Build, Need::Lab])?;
    build_programs()?;
    if !is_root() {
        eprintln!("sudo is needed: the lab makes network namespaces and mounts, all its own");
    }
    let mut program = as_root("env");
    program
        .arg(format!("FERRY_LAB_TARGET={}", target().display()))
        .arg(target().join("debug/ferry-lab"))
        .arg(command)
        .args(options);
    let status = program.status().context("Could not run ferry-lab")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all tests.
///
/// # Errors
/// When something cannot be installed or built, or a test failed.
pub fn test(no_lab: bool, filters: &[String]) -> anyhow::Result<ExitCode> {
    ensure_packages(&[Need::Build, Need::Test])?;
    ensure_nextest()?;
    let mut plain = cargo(&["nextest", "run", "--workspace", "--no-tests=pass"]);
    plain.args(filters);
    let plain = plain.status().context("Could not run cargo nextest")?;
    if no_lab {
        return Ok(if plain.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    ensure_packages(&[Need::Lab])?;
    build_programs()?;
    if !is_root() {
        eprintln!("sudo is needed: the lab makes network namespaces and mounts, all its own");
    }
    succeed(&mut cargo(&["nextest", "run", "--profile", "lab", "-p", "ferry-lab", "--features", "lab", "--no-run"]))?;
    let mut real = as_root("env");
    real.arg(format!("FERRY_LAB_TARGET={}", target().display()))
        .arg(format!("PATH={}", std::env::var("PATH").unwrap_or_default()))
        .args(["cargo", "nextest", "run", "--profile", "lab", "-p", "ferry-lab", "--features", "lab", "--test", "*"])
        .args(filters)
        .current_dir(root());
    let real = real.status().context("Could not run cargo nextest")?;
    Ok(if plain.success() && real.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks all that is checked without running.
///
/// # Errors
/// The first check that failed.
pub fn check() -> anyhow::Result<ExitCode> {
    ensure_packages(&[Need::Build])?;
    eprintln!("format");
    succeed(&mut cargo(&["fmt", "--all", "--check"]))?;
    eprintln!("lints");
    let clippy =
        ["clippy", "--quiet", "--workspace", "--all-targets", "--features", "ferry-lab/lab", "--", "-D", "warnings"];
    succeed(&mut cargo(&clippy))?;
    eprintln!("docs");
    let mut docs = cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    succeed(docs.env("RUSTDOCFLAGS", "-D warnings"))?;
    eprintln!("architecture");
    succeed(&mut cargo(&["test", "--quiet", "-p", "xtask", "--test", "architecture"]))?;
    eprintln!("API document");
    let said = cargo(&["run", "--quiet", "-p", "ferry-server", "--", "openapi"]).output()?;
    ensure!(said.status.success(), "ferry-server openapi failed");
    let stored = fs::read(root().join("api/server.json")).context("api/server.json")?;
    ensure!(
        stored == said.stdout,
        "api/server.json is not what the server says; `cargo run -p ferry-server -- openapi > api/server.json` renews it"
    );
    eprintln!("all checks passed");
    Ok(ExitCode::SUCCESS)
}

/// Runs the fuzzers.
///
/// # Errors
/// When one cannot be built, or found something.
pub fn fuzz(seconds: u32) -> anyhow::Result<ExitCode> {
    ensure_packages(&[Need::Build])?;
    for name in FUZZERS {
        let mut command = Command::new("cargo");
        command
            .args(["fuzz", "run", "--sanitizer", "none", name, "--"])
            .arg(format!("-max_total_time={seconds}"))
            // cargo-fuzz asks for flags that only a nightly compiler takes otherwise.
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(root());
        succeed(&mut command)?;
    }
    Ok(ExitCode::SUCCESS)
}
