//! Lays out the files of one package below a folder, as they will lie below `/`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use super::{contents::Package, inputs::Inputs};

/// The package formats, for differences in file locations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Deb,
    Rpm,
}

impl Format {
    /// The folder of completions for zsh.
    fn zsh(self) -> &'static str {
        match self {
            Self::Deb => "/usr/share/zsh/vendor-completions",
            Self::Rpm => "/usr/share/zsh/site-functions",
        }
    }

    /// The licence file: Debian provides the text itself.
    fn licence(self, name: &str) -> (&'static str, String) {
        match self {
            Self::Deb => ("packaging/copyright", format!("/usr/share/doc/{name}/copyright")),
            Self::Rpm => ("LICENSE", format!("/usr/share/licenses/{name}/LICENSE")),
        }
    }
}

/// A file of the package, below the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Staged {
    /// Its installed path.
    pub(super) path: String,
    pub(super) mode: u32,
    pub(super) config: bool,
}

/// Lays out all files, and lists them, sorted by path.
///
/// # Errors
/// A file is missing, or a tool fails.
pub(super) fn stage(inputs: &Inputs, package: &Package, format: Format, root: &Path) -> anyhow::Result<Vec<Staged>> {
    let mut stage = Stage { root, files: Vec::new() };
    let name = package.name;
    stage.program(&inputs.programs.join(name), &format!("/usr/bin/{name}"))?;
    stage.manual(inputs, package, format)?;
    let (licence, place) = format.licence(name);
    stage.copy(&inputs.sources.join(licence), &place)?;
    let docs = format!("/usr/share/doc/{name}");
    stage.compressed(&fs::read(inputs.sources.join("CHANGELOG.md"))?, &format!("{docs}/CHANGELOG.md.gz"))?;
    let crates = (inputs.crates)(package.krate)?;
    stage.compressed(crates.as_bytes(), &format!("{docs}/crates.gz"))?;
    for file in package.files {
        stage.copy(&inputs.sources.join("packaging").join(name).join(file.from), file.to)?;
        if file.config
            && let Some(staged) = stage.files.last_mut()
        {
            staged.config = true;
        }
    }
    stage.files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(stage.files)
}

struct Stage<'a> {
    root: &'a Path,
    files: Vec<Staged>,
}

impl Stage<'_> {
    /// Adds a file to the list, and creates its folders.
    fn add(&mut self, path: &str, mode: u32) -> anyhow::Result<PathBuf> {
        let whole = self.root.join(path.trim_start_matches('/'));
        let folder = whole.parent().context("a file lies in a folder")?;
        for above in folder.ancestors().take_while(|above| *above != self.root) {
            fs::create_dir_all(above)?;
            fs::set_permissions(above, fs::Permissions::from_mode(0o755))?;
        }
        self.files.push(Staged { path: path.to_owned(), mode, config: false });
        Ok(whole)
    }

    fn write(&mut self, content: &[u8], path: &str) -> anyhow::Result<()> {
        let whole = self.add(path, 0o644)?;
        fs::write(&whole, content).with_context(|| format!("Could not write {}", whole.display()))?;
        Ok(fs::set_permissions(&whole, fs::Permissions::from_mode(0o644))?)
    }

    fn copy(&mut self, from: &Path, path: &str) -> anyhow::Result<()> {
        let content = fs::read(from).with_context(|| format!("Could not read {}", from.display()))?;
        self.write(&content, path)
    }

    /// Installs a program without debug information.
    fn program(&mut self, from: &Path, path: &str) -> anyhow::Result<()> {
        let whole = self.add(path, 0o755)?;
        let stripped = Command::new("strip").arg("-o").arg(&whole).arg(from).status().context("Could not run strip")?;
        ensure!(stripped.success(), "{} could not be stripped", from.display());
        Ok(fs::set_permissions(&whole, fs::Permissions::from_mode(0o755))?)
    }

    /// Compressed as both families of distributions require for changelogs and pages. Without timestamps, to be
    /// reproducible.
    fn compressed(&mut self, content: &[u8], path: &str) -> anyhow::Result<()> {
        self.write(content, path)?;
        let whole = self.root.join(path.trim_start_matches('/'));
        let plain = whole.with_extension("");
        fs::rename(&whole, &plain)?;
        let packed =
            Command::new("gzip").args(["-9", "--no-name", "--force"]).arg(&plain).stdin(Stdio::null()).status();
        ensure!(packed.context("Could not run gzip")?.success(), "{} could not be compressed", plain.display());
        Ok(())
    }

    fn manual(&mut self, inputs: &Inputs, package: &Package, format: Format) -> anyhow::Result<()> {
        let (name, section) = (package.name, package.section);
        let folder = inputs.manuals.join(name);
        let ending = format!(".{section}");
        let mut pages = 0;
        for entry in fs::read_dir(&folder).with_context(|| format!("Could not read {}", folder.display()))? {
            let path = entry?.path();
            let page = path.file_name().and_then(|name| name.to_str()).context("A page's name is not UTF-8")?;
            if page.ends_with(&ending) {
                self.compressed(&fs::read(&path)?, &format!("/usr/share/man/man{section}/{page}.gz"))?;
                pages += 1;
            }
        }
        ensure!(pages > 0, "{} holds no page for section {section}", folder.display());
        let completions = [
            (format!("{name}.bash"), format!("/usr/share/bash-completion/completions/{name}")),
            (format!("_{name}"), format!("{}/_{name}", format.zsh())),
            (format!("{name}.fish"), format!("/usr/share/fish/vendor_completions.d/{name}.fish")),
        ];
        for (from, to) in completions {
            self.copy(&folder.join(from), &to)?;
        }
        Ok(())
    }
}
