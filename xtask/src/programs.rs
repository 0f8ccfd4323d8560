//! Builds what the lab runs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Features under which everything is built, checked and tested: tests stop and fail programs at named points.
pub(crate) const FEATURES: &str = "ferry-agent/failpoints,ferry-server/failpoints,ferry-lab/lab";

/// The crates of the programs that users install.
const SHIPPED: [&str; 3] = ["ferry-cli", "ferry-server", "ferry-agent"];

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Where builds go.
pub(crate) fn target() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(chosen)
}

/// A cargo command in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root());
    // What the outer cargo says is of xtask, not of what it builds. Build scripts that look at it would run again, and with
    // them most of the workspace be built again, whenever cargo is called by xtask and by hand in turns.
    let is_of_xtask = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_xtask)) {
        command.env_remove(name);
    }
    command
}

/// How programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// As tests want them: quickly, with failpoints.
    Tested,
    /// As users have them: what is measured is measured of these.
    Released,
}

impl Build {
    /// Where its programs lie.
    pub(crate) fn folder(self) -> PathBuf {
        target().join(match self {
            Self::Tested => "debug",
            Self::Released => "release",
        })
    }

    fn arguments(self) -> [&'static str; 2] {
        match self {
            // The whole workspace with the features of its tests: nothing is built twice.
            Self::Tested => ["--features", FEATURES],
            Self::Released => ["--release", "--quiet"],
        }
    }
}

/// Builds the programs that users install, and nothing else if it can be left out.
///
/// # Errors
/// When the compiler does.
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
/// When the compiler does.
pub(crate) fn build(build: Build) -> anyhow::Result<()> {
    eprintln!("building Ferry's programs, the lab and its guest");
    let mut programs = cargo(&["build", "--locked", "--workspace", "--bins"]);
    programs.args(build.arguments());
    ensure!(programs.status()?.success(), "Ferry does not build");
    let mut guest =
        cargo(&["build", "--quiet", "--locked", "--release", "-p", "ferry-ticker", "--target", GUEST_TARGET]);
    // Linked statically: it is the only program in its guest. The same bytes from each tree, without what tells where that is:
    // guests that have booted are kept for these bytes.
    guest
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
        .arg("--target-dir")
        .arg(target().join("guest"));
    ensure!(guest.status()?.success(), "The ticker does not build");
    Ok(())
}

/// The program of an integration test, built as nextest builds it.
///
/// # Errors
/// When it does not build, or there is no such test.
pub(crate) fn test_program(test: &str) -> anyhow::Result<PathBuf> {
    let mut command = cargo(&["test", "--locked", "--quiet", "--workspace", "--features", FEATURES, "--no-run"]);
    let said =
        command.arg("--message-format=json-render-diagnostics").stderr(std::process::Stdio::inherit()).output()?;
    ensure!(said.status.success(), "The tests do not build");
    let messages =
        said.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let is_it = |message: &Value| message["target"]["name"] == test && message["target"]["kind"][0] == "test";
    let found = messages.filter(is_it).find_map(|message| message["executable"].as_str().map(PathBuf::from));
    found.with_context(|| format!("There is no test {test}"))
}
