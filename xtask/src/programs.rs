//! Builds the programs that the lab runs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::features::FEATURES;

const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The crates of the programs that users install.
const SHIPPED: [&str; 3] = ["ferry-cli", "ferry-server", "ferry-agent"];

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The build folder.
pub(crate) fn target() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(chosen)
}

/// A cargo command in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root());
    // These variables of the outer cargo describe xtask. If build scripts saw them, they would run again, and most of
    // the workspace would be rebuilt, whenever cargo is called alternately by xtask and by hand.
    let is_of_xtask = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_xtask)) {
        command.env_remove(name);
    }
    command
}

/// How programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// For tests: built quickly, with failpoints.
    Tested,
    /// As for users; benchmarks use these.
    Released,
}

impl Build {
    /// The folder of its programs.
    pub(crate) fn folder(self) -> PathBuf {
        target().join(match self {
            Self::Tested => "debug",
            Self::Released => "release",
        })
    }

    fn arguments(self) -> [&'static str; 2] {
        match self {
            // The whole workspace with the features of its tests, so that nothing is built twice.
            Self::Tested => ["--features", FEATURES],
            Self::Released => ["--release", "--quiet"],
        }
    }
}

/// Builds the programs that users install, and as little else as possible.
///
/// # Errors
/// The compiler fails.
pub(crate) fn build_shipped(build: Build) -> anyhow::Result<()> {
    eprintln!("building Ferry's programs");
    let mut programs = cargo(&["build", "--locked", "--bins"]);
    match build {
        // With the rest of the workspace: built alone, its crates would be built twice.
        Build::Tested => programs.arg("--workspace"),
        Build::Released => programs.args(SHIPPED.iter().flat_map(|name| ["-p", name])),
    };
    ensure!(programs.args(build.arguments()).status()?.success(), "Ferry does not build");
    Ok(())
}

/// Builds Ferry's programs, the lab and the guest.
///
/// # Errors
/// The compiler fails.
pub(crate) fn build(build: Build) -> anyhow::Result<()> {
    eprintln!("building Ferry's programs, the lab and its guest");
    let mut programs = cargo(&["build", "--locked", "--workspace", "--bins"]);
    programs.args(build.arguments());
    ensure!(programs.status()?.success(), "Ferry does not build");
    let mut guest =
        cargo(&["build", "--quiet", "--locked", "--release", "-p", "ferry-ticker", "--target", GUEST_TARGET]);
    // Linked statically, because it is the only program in its guest. The bytes must not depend on the source folder,
    // because the states of booted guests are kept for exactly these bytes.
    guest
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
        .arg("--target-dir")
        .arg(target().join("guest"));
    ensure!(guest.status()?.success(), "The ticker does not build");
    Ok(())
}

/// The program of an integration test, built in the same way as by nextest.
///
/// # Errors
/// It does not build, or there is no such test.
pub(crate) fn test_program(test: &str) -> anyhow::Result<PathBuf> {
    let mut command = cargo(&["test", "--locked", "--quiet", "--workspace", "--features", FEATURES, "--no-run"]);
    let output =
        command.arg("--message-format=json-render-diagnostics").stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "The tests do not build");
    let messages =
        output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let is_it = |message: &Value| message["target"]["name"] == test && message["target"]["kind"][0] == "test";
    let found = messages.filter(is_it).find_map(|message| message["executable"].as_str().map(PathBuf::from));
    found.with_context(|| format!("There is no test {test}"))
}
