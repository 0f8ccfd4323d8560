//! The chores themselves.

use std::{
    fs,
    path::Path,
    process::{Command, ExitStatus},
};

use anyhow::Context as _;

use crate::{
    api,
    features::FEATURES,
    package, packages,
    programs::{self, Build, cargo, root},
    sudo::{as_root, is_root},
};

const WHY: &str = "the lab makes network namespaces, mounts and virtual machines of its own";
/// Number of labs at the same time: each starts two hosts with emulated processors.
const LABS_AT_ONCE: &str = "2";
/// The tests that build labs, in nextest's filter language.
const LAB_TESTS: &str = "(package(ferry-lab) and kind(test) and not binary(stock))";
/// The tests that boot whole machines.
const STOCK_TESTS: &str = "(package(ferry-lab) and binary(stock))";
/// Those of them that belong to every run.
const STOCK_SMOKE_TESTS: &str = "package(ferry-lab) and binary(stock) and test(/^smoke/)";

/// The drivers' tests that need an NFS server; a stock host runs them.
const NFS_TESTS: &str = "share_nfs";

/// Runs the lab's program as root, with Ferry's packages for stock hosts.
pub(crate) fn stock(build: Build, arguments: &[&str]) -> anyhow::Result<u8> {
    packages::ensure_for_lab()?;
    let built = package::package(build)?;
    run_lab(build, arguments, &[("FERRY_LAB_PACKAGES", &built.folder)])
}

/// Runs the lab's program as root.
pub(crate) fn lab(build: Build, arguments: &[&str]) -> anyhow::Result<u8> {
    packages::ensure_for_lab()?;
    run_lab(build, arguments, &[])
}

fn run_lab(build: Build, arguments: &[&str], environment: &[(&str, &Path)]) -> anyhow::Result<u8> {
    programs::build(build)?;
    let program = build.folder().join("ferry-lab");
    let mut command = as_root(program.to_str().context("The target folder's name is not UTF-8")?, WHY)?;
    command.args(arguments).env("FERRY_LAB_PROGRAMS", build.folder()).envs(environment.iter().copied());
    Ok(code(command.status()?))
}

/// The tests to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tests {
    /// Tests without hosts.
    NoLab,
    /// Tests without hosts, those with real hosts, and the smoke tests with stock hosts.
    All,
    /// All tests with stock hosts, and no others.
    Stock,
}

/// Runs tests, those of nextest last, so that its report ends the output.
pub(crate) fn test(tests: Tests, filter: Option<&str>) -> anyhow::Result<u8> {
    match tests {
        Tests::NoLab => packages::ensure_for_tests()?,
        Tests::All | Tests::Stock => packages::ensure_for_lab()?,
    }
    packages::ensure_nextest()?;
    let mut outcomes = Vec::new();
    if tests != Tests::Stock && filter.is_none() {
        let is_true = api::is_as_documented().unwrap_or_else(|error| {
            eprintln!("error: the API document could not be tried: {error:#}");
            false
        });
        outcomes.push(u8::from(!is_true));
    }
    if tests != Tests::Stock {
        outcomes.push(code(nextest(&format!("not ({LAB_TESTS} or {STOCK_TESTS})"), filter).status()?));
    }
    if tests == Tests::All {
        programs::build(Build::Tested)?;
        outcomes.push(lab_tests(LAB_TESTS, LABS_AT_ONCE, filter, &[])?);
        outcomes.push(stock_tests(STOCK_SMOKE_TESTS, filter, &[])?);
    }
    if tests == Tests::Stock {
        programs::build(Build::Tested)?;
        let nfs = programs::test_program(NFS_TESTS)?;
        outcomes.push(stock_tests(STOCK_TESTS, filter, &[("FERRY_LAB_NFS_TESTS", &nfs)])?);
    }
    Ok(outcomes.into_iter().find(|code| *code != 0).unwrap_or(0))
}

/// Tests with whole machines, on which the packages of the tested build are installed.
fn stock_tests(tests: &str, filter: Option<&str>, environment: &[(&str, &Path)]) -> anyhow::Result<u8> {
    let built = package::package(Build::Tested)?;
    let environment = [environment, &[("FERRY_LAB_PACKAGES", &built.folder)]].concat();
    lab_tests(tests, "1", filter, &environment)
}

/// Tests with real hosts, as root.
fn lab_tests(tests: &str, at_once: &str, filter: Option<&str>, environment: &[(&str, &Path)]) -> anyhow::Result<u8> {
    let mut lab = nextest(tests, filter);
    lab.args(["--test-threads", at_once]).env("FERRY_LAB_PROGRAMS", Build::Tested.folder());
    lab.envs(environment.iter().copied());
    if !is_root() {
        as_root("true", WHY)?.status()?;
        lab.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo --preserve-env");
    }
    Ok(code(lab.status()?))
}

fn nextest(tests: &str, filter: Option<&str>) -> Command {
    let mut command = cargo(&["nextest", "run", "--locked", "--workspace", "--features", FEATURES]);
    command.args(["--no-fail-fast", "--no-tests", "pass", "-E", tests]).args(filter);
    // A test's message states what failed; with a backtrace, the cut end of a long log would contain nothing else.
    command.env("RUST_BACKTRACE", "0");
    command
}

/// Builds packages. Only their names are printed on stdout.
pub(crate) fn package(build: Build) -> anyhow::Result<u8> {
    let packages = package::package(build)?;
    for name in &packages.names {
        println!("{}", packages.folder.join(name).display());
    }
    Ok(0)
}

/// Runs every fuzz target for some seconds. An input that causes a failure is stored in `fuzz/artifacts`.
pub(crate) fn fuzz(seconds: u32) -> anyhow::Result<u8> {
    packages::ensure_for_build()?;
    packages::ensure_cargo_fuzz()?;
    let limit = format!("-max_total_time={seconds}");
    let mut failed = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        let target = path.file_stem().and_then(|name| name.to_str()).context("A target's name is not UTF-8")?;
        eprintln!("fuzzing {target} for {seconds} s");
        let mut command = cargo(&["fuzz", "run", "--sanitizer", "none", target, "--", &limit]);
        // Coverage needs compiler flags that the stable toolchain accepts only with this variable.
        if !command.env("RUSTC_BOOTSTRAP", "1").status()?.success() {
            failed.push(target.to_owned());
        }
    }
    if failed.is_empty() {
        eprintln!("all is well");
        return Ok(0);
    }
    eprintln!("not well: {}", failed.join(", "));
    Ok(1)
}

/// Measures what the server's jobs cost.
pub(crate) fn bench_jobs(report: Option<&str>) -> anyhow::Result<u8> {
    packages::ensure_for_build()?;
    let mut command = cargo(&["bench", "--locked", "--quiet", "-p", "ferry-server", "--bench", "jobs", "--"]);
    if let Some(report) = report {
        // cargo runs it in the package's folder.
        command.arg("--report").arg(std::path::absolute(report)?);
    }
    Ok(u8::from(!command.status()?.success()))
}

/// Runs all checks that do not run Ferry; continues after a failure, so that all failures are shown at once.
pub(crate) fn check() -> anyhow::Result<u8> {
    packages::ensure_for_build()?;
    let deny = "-D warnings";
    let mut docs = cargo(&["doc", "--locked", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    docs.args(["--features", FEATURES]).env("RUSTDOCFLAGS", deny);
    let lints = [
        "clippy",
        "--locked",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--features",
        FEATURES,
        "--",
        "-D",
        "warnings",
    ];
    let checks: [(&str, Command); 5] = [
        ("formatting", cargo(&["fmt", "--check"])),
        ("lints", cargo(&lints)),
        ("documentation", docs),
        ("architecture", cargo(&["test", "--locked", "--quiet", "-p", "xtask", "--test", "architecture"])),
        ("structure", cargo(&["test", "--locked", "--quiet", "-p", "xtask", "--test", "structure"])),
    ];
    let mut failed = Vec::new();
    for (name, mut command) in checks {
        eprintln!("checking {name}");
        if !command.status()?.success() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        eprintln!("all is well");
        return Ok(0);
    }
    eprintln!("not well: {}", failed.join(", "));
    Ok(1)
}

fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
