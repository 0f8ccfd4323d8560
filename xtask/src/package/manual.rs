//! Man pages and completions, written by the programs themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

/// Makes a program write its pages and completions into `folder`, and checks them.
///
/// # Errors
/// The program fails, or a shell or the formatter cannot parse its output.
pub(super) fn write(program: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    let written = command.arg("manual").arg(folder).stdin(Stdio::null()).status();
    let name = program.display();
    ensure!(written.with_context(|| format!("Could not run {name}"))?.success(), "{name} wrote no manual");
    check(folder)
}

/// # Errors
/// Names the first file that cannot be parsed.
pub(super) fn check(folder: &Path) -> anyhow::Result<()> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("A file's name is not UTF-8")?;
        if name.ends_with(".bash") {
            understood(Command::new("bash").arg("-n").arg(&path), &path)?;
        } else if name.ends_with(".fish") {
            understood_if_there(Command::new("fish").arg("--no-execute").arg(&path), &path)?;
        } else if name.starts_with('_') {
            understood_if_there(Command::new("zsh").arg("-n").arg(&path), &path)?;
        } else {
            pages.push(path);
        }
    }
    render(pages)
}

/// All pages at once, because the formatter starts slowly.
fn render(mut pages: Vec<PathBuf>) -> anyhow::Result<()> {
    pages.sort();
    let mut groff = Command::new("groff");
    groff.args(["-man", "-Kutf8", "-Tutf8", "-ww", "-z"]).args(&pages);
    understood(&mut groff, pages.first().context("There is no page")?)
}

fn understood(command: &mut Command, what: &Path) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("Could not run {name}"))?;
    let printed = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && printed.is_empty(), "{name} does not understand {}: {printed}", what.display());
    Ok(())
}

/// Not every machine has every shell.
fn understood_if_there(command: &mut Command, what: &Path) -> anyhow::Result<()> {
    let there = Command::new(command.get_program()).arg("--version").stdout(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) { understood(command, what) } else { Ok(()) }
}
