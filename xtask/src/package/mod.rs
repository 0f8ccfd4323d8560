//! `cargo xtask package`: Ferry's programs as packages for Debian and for RPM-based systems, from one list of files.

mod contents;
mod deb;
mod inputs;
mod libraries;
mod manual;
mod rpm;
mod stage;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::UNIX_EPOCH,
};

use anyhow::{Context as _, ensure};

use crate::{
    packages,
    programs::{self, Build, cargo, root, target},
};
use contents::PACKAGES;
use inputs::Inputs;

/// The version of all parts of Ferry.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The date used if none is given and git knows none: a time before the first package.
const FIRST_DATE: u64 = 1_767_225_600;

/// Packages that were built.
pub(crate) struct Packages {
    /// The folder that contains them and their stamp.
    pub(crate) folder: PathBuf,
    /// Their files' names.
    pub(crate) names: Vec<String>,
}

/// Builds the programs and their packages; does nothing if the packages are up to date.
///
/// # Errors
/// A build fails, or a program requires more than the oldest supported systems have.
pub(crate) fn package(build: Build) -> anyhow::Result<Packages> {
    packages::ensure_for_packages()?;
    programs::build_shipped(build)?;
    let folder = target().join("packages").join(match build {
        Build::Tested => "debug",
        Build::Released => "release",
    });
    let inputs = Inputs {
        sources: root(),
        programs: build.folder(),
        manuals: folder.join("work/manual"),
        crates: linked,
        version: version(build),
        date: date(),
    };
    let stamp = stamp(&inputs)?;
    if let Some(names) = unchanged(&folder, &stamp) {
        eprintln!("the packages are as they would become");
        return Ok(Packages { folder, names });
    }
    eprintln!("building packages");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    for package in &PACKAGES {
        let program = inputs.programs.join(package.name);
        libraries::check(&program)?;
        manual::write(&program, &inputs.manuals.join(package.name))?;
    }
    let names = build_all(&inputs, &folder)?;
    fs::remove_dir_all(folder.join("work"))?;
    // Written last, so that an interrupted build starts again.
    fs::write(folder.join("stamp"), format!("{stamp}{}\n", names.join("\n")))?;
    Ok(Packages { folder, names })
}

/// Packages with failpoints must not be mistaken for a release, and a release must replace them.
fn version(build: Build) -> String {
    match build {
        Build::Tested => format!("{VERSION}~tested"),
        Build::Released => VERSION.to_owned(),
    }
}

/// Builds all packages in both formats, into `folder`.
fn build_all(inputs: &Inputs, folder: &Path) -> anyhow::Result<Vec<String>> {
    let work = folder.join("work");
    fs::create_dir_all(&work)?;
    let mut names = Vec::new();
    for package in &PACKAGES {
        names.push(deb::build(inputs, package, &work, folder)?);
        names.push(rpm::build(inputs, package, &work, folder)?);
    }
    for name in &names {
        ensure!(folder.join(name).is_file(), "{name} was not made");
    }
    Ok(names)
}

/// The crates that are linked into a program, with their licences: one per line.
fn linked(krate: &str) -> anyhow::Result<String> {
    let mut tree = cargo(&["tree", "--locked", "--quiet", "-p", krate, "-e", "normal", "--prefix", "none"]);
    let output = tree.args(["--format", "{p} {l}"]).output()?;
    ensure!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let others = text.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.starts_with("ferry-"));
    let mut lines: Vec<&str> = others.collect();
    lines.sort_unstable();
    lines.dedup();
    Ok(lines.join("\n") + "\n")
}

/// The commit's time, so that the same commit produces the same packages.
fn date() -> u64 {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok();
    let committed = || {
        let output = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()).output().ok()?;
        String::from_utf8(output.stdout).ok()
    };
    given.or_else(committed).and_then(|text| text.trim().parse().ok()).unwrap_or(FIRST_DATE)
}

/// Describes the packages' inputs: a changed text means changed packages. Cargo does not relink an unchanged program.
fn stamp(inputs: &Inputs) -> anyhow::Result<String> {
    let mut stamp = format!("version {}\n", inputs.version);
    for package in &PACKAGES {
        let path = inputs.programs.join(package.name);
        let about = fs::metadata(&path).with_context(|| format!("There is no {}", path.display()))?;
        let changed = about.modified()?.duration_since(UNIX_EPOCH)?;
        stamp.push_str(&format!("{} {} bytes {} ns\n", path.display(), about.len(), changed.as_nanos()));
    }
    let texts = ["packaging", "xtask/src/package", "LICENSE", "CHANGELOG.md", "Cargo.lock"];
    let mut paths = texts.map(|name| inputs.sources.join(name)).to_vec();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let mut inside = fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
            inside.sort();
            paths.append(&mut inside);
        } else {
            stamp.push_str(&format!("{} {}\n", path.display(), hash(&fs::read(&path)?)));
        }
    }
    Ok(stamp)
}

/// Sufficient to detect changes of Ferry's own files.
fn hash(content: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

/// The names of the existing packages, if they were made from exactly these inputs.
fn unchanged(folder: &Path, stamp: &str) -> Option<Vec<String>> {
    let kept = fs::read_to_string(folder.join("stamp")).ok()?;
    let names: Vec<String> = kept.strip_prefix(stamp)?.lines().map(str::to_owned).collect();
    let whole = names.len() == 2 * PACKAGES.len() && names.iter().all(|name| folder.join(name).is_file());
    whole.then_some(names)
}
