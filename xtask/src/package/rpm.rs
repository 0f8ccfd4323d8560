//! Builds a package in RPM's format, with `rpmbuild`, which finds the program's libraries itself.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};

use super::{
    contents::{Package, Relations},
    inputs::Inputs,
    stage::{Format, Staged, stage},
};

const SCRIPTS: [&str; 5] = ["pre", "post", "preun", "postun", "posttrans"];

/// Builds the package in `work`, and puts it into `into`. Returns the file's name.
///
/// # Errors
/// A file is missing, or a tool fails.
pub(super) fn build(inputs: &Inputs, package: &Package, work: &Path, into: &Path) -> anyhow::Result<String> {
    let top = work.join("rpm").join(package.name);
    let root = top.join("files");
    fs::create_dir_all(&root)?;
    let files = stage(inputs, package, Format::Rpm, &root)?;
    let spec = top.join(format!("{}.spec", package.name));
    fs::write(&spec, text(inputs, package, &root, &files)?)?;
    let mut build = Command::new("rpmbuild");
    build.args(["-bb", "--quiet", "--define"]).arg(format!("_topdir {}", top.display()));
    build.arg("--define").arg(format!("_rpmdir {}", into.display()));
    for setting in [
        "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
        // Reproducible: the same inputs produce the same package.
        "_buildhost localhost",
        "use_source_date_epoch_as_buildtime 1",
        "clamp_mtime_to_source_date_epoch 1",
        // The files are final: stripped and compressed.
        "__os_install_post %{nil}",
        "debug_package %{nil}",
        "_build_id_links none",
        // Unpacks quickly even on a slow machine.
        "_binary_payload w3.zstdio",
    ] {
        build.arg("--define").arg(setting);
    }
    let output = build.arg(&spec).env("SOURCE_DATE_EPOCH", inputs.date.to_string()).output();
    let output = output.context("Could not run rpmbuild")?;
    ensure!(output.status.success(), "rpmbuild failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(format!("{}-{}-1.{}.rpm", package.name, inputs.version, std::env::consts::ARCH))
}

/// Folders that no other package owns: they are removed with the last package that has files in them.
fn own_folders(package: &Package, files: &[Staged]) -> BTreeSet<String> {
    let folders = files.iter().flat_map(|file| Path::new(&file.path).ancestors().skip(1));
    let own = folders.filter(|folder| folder.iter().any(|part| part == package.name || part == "ferry"));
    own.map(|folder| folder.display().to_string()).collect()
}

fn text(inputs: &Inputs, package: &Package, root: &Path, files: &[Staged]) -> anyhow::Result<String> {
    let mut spec = format!(
        "Name: {}\nVersion: {}\nRelease: 1\nSummary: {}\nLicense: Apache-2.0\n",
        package.name, inputs.version, package.summary
    );
    let Relations { needs, wants, suggests } = package.rpm;
    for (relation, names) in [("Requires", needs), ("Recommends", wants), ("Suggests", suggests)] {
        for name in names {
            spec.push_str(&format!("{relation}: {name}\n"));
        }
    }
    spec.push_str(&format!("\n%description\n{}\n", package.description.join("\n")));
    spec.push_str(&format!("\n%install\nmkdir -p %{{buildroot}}\ncp -a {}/. %{{buildroot}}/\n", root.display()));
    for script in SCRIPTS {
        let from = inputs.sources.join("packaging").join(package.name).join("rpm").join(script);
        if from.exists() {
            // A per cent sign would start a macro.
            spec.push_str(&format!("\n%{script}\n{}", fs::read_to_string(from)?.replace('%', "%%")));
        }
    }
    spec.push_str("\n%files\n");
    for folder in own_folders(package, files) {
        spec.push_str(&format!("%dir %attr(0755, root, root) {folder}\n"));
    }
    for file in files {
        let kind = if file.config {
            "%config(noreplace) "
        } else if file.path.starts_with("/usr/share/licenses/") {
            "%license "
        } else if file.path.starts_with("/usr/share/doc/") || file.path.starts_with("/usr/share/man/") {
            "%doc "
        } else {
            ""
        };
        spec.push_str(&format!("{kind}%attr({:04o}, root, root) {}\n", file.mode, file.path));
    }
    Ok(spec)
}
