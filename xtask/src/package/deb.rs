//! Builds a package in Debian's format, with `dpkg-deb`.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, ensure};

use super::{
    contents::Package,
    inputs::Inputs,
    stage::{Format, Staged, stage},
};

const SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];
/// An invalid address, because no distribution maintains these packages yet.
const MAINTAINER: &str = "the authors of Ferry <ferry@packages.invalid>";

/// Builds the package in `work`, and puts it into `into`. Returns the file's name.
///
/// # Errors
/// A file is missing, or a tool fails.
pub(super) fn build(inputs: &Inputs, package: &Package, work: &Path, into: &Path) -> anyhow::Result<String> {
    let root = work.join("deb").join(package.name);
    fs::create_dir_all(&root)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    let files = stage(inputs, package, Format::Deb, &root)?;
    let architecture = output_of(Command::new("dpkg").arg("--print-architecture"))?;
    let libraries = libraries(package, &root, &work.join("deb"))?;
    let information = root.join("DEBIAN");
    fs::create_dir(&information)?;
    fs::set_permissions(&information, fs::Permissions::from_mode(0o755))?;
    fs::write(information.join("md5sums"), sums(&root, &files)?)?;
    let control = control(inputs, package, architecture.trim(), &libraries, size_kib(&root, &files)?);
    fs::write(information.join("control"), control)?;
    let configs: String = files.iter().filter(|file| file.config).map(|file| format!("{}\n", file.path)).collect();
    if !configs.is_empty() {
        fs::write(information.join("conffiles"), configs)?;
    }
    for script in SCRIPTS {
        let from = inputs.sources.join("packaging").join(package.name).join("deb").join(script);
        if from.exists() {
            fs::copy(from, information.join(script))?;
            fs::set_permissions(information.join(script), fs::Permissions::from_mode(0o755))?;
        }
    }
    let name = format!("{}_{}_{}.deb", package.name, inputs.version, architecture.trim());
    // Unpacks quickly even on a slow machine.
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zzstd", "--build"]).arg(&root).arg(into.join(&name));
    output_of(build.env("SOURCE_DATE_EPOCH", inputs.date.to_string()))?;
    Ok(name)
}

fn control(inputs: &Inputs, package: &Package, architecture: &str, libraries: &str, size_kib: u64) -> String {
    let needs: Vec<&str> =
        package.deb.needs.iter().copied().chain([libraries]).filter(|need| !need.is_empty()).collect();
    let mut control = format!(
        "Package: {}\nVersion: {}\nSection: admin\nPriority: optional\nArchitecture: {architecture}\n\
         Maintainer: {MAINTAINER}\nInstalled-Size: {size_kib}\nDepends: {}\n",
        package.name,
        inputs.version,
        needs.join(", ")
    );
    for (relation, names) in [("Recommends", package.deb.wants), ("Suggests", package.deb.suggests)] {
        if !names.is_empty() {
            control.push_str(&format!("{relation}: {}\n", names.join(", ")));
        }
    }
    control.push_str(&format!("Description: {}\n", package.summary));
    for line in package.description {
        control.push_str(&format!(" {line}\n"));
    }
    control
}

/// The packages with the libraries of its program, in the lowest versions that provide the functions it calls.
fn libraries(package: &Package, root: &Path, work: &Path) -> anyhow::Result<String> {
    // dpkg-shlibdeps only requires that the source package's control file exists.
    fs::create_dir_all(work.join("debian"))?;
    fs::write(work.join("debian/control"), format!("Source: ferry\n\nPackage: {}\nArchitecture: any\n", package.name))?;
    let program = root.join("usr/bin").join(package.name);
    let found = output_of(Command::new("dpkg-shlibdeps").arg("-O").arg("-e").arg(program).current_dir(work))?;
    let list = found.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    Ok(list.context("dpkg-shlibdeps names no package")?.to_owned())
}

fn sums(root: &Path, files: &[Staged]) -> anyhow::Result<String> {
    // Names of installed files, without the leading slash.
    output_of(Command::new("md5sum").args(files.iter().map(|file| &file.path[1..])).current_dir(root))
}

fn size_kib(root: &Path, files: &[Staged]) -> anyhow::Result<u64> {
    let mut size = 0;
    for file in files {
        size += fs::metadata(root.join(&file.path[1..]))?.len().div_ceil(1024);
    }
    Ok(size)
}

/// The output of a tool that succeeds.
fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("Could not run {name}"))?;
    ensure!(output.status.success(), "{name} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
