//! The programs under test, and running programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// The paths of the programs under test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Programs {
    /// The folder with ferry, ferry-server, ferry-agent and ferry-lab.
    pub folder: PathBuf,
    /// The ticker.
    pub ticker: PathBuf,
}

impl Programs {
    /// The programs that were built beside the running program.
    ///
    /// # Errors
    /// A program is missing: the message states how to build it.
    pub fn find() -> anyhow::Result<Self> {
        let folder = match std::env::var_os("FERRY_LAB_PROGRAMS") {
            Some(path) => PathBuf::from(path),
            None => {
                let here = std::env::current_exe()?;
                let folder = here.ancestors().skip(1).find(|path| path.join("ferry-agent").is_file());
                folder.context("The programs are not built; `cargo xtask` builds them")?.to_owned()
            }
        };
        let target = folder.parent().context("A target folder has a parent")?;
        let ticker = target.join("guest/x86_64-unknown-linux-gnu/release/ferry-ticker");
        let found = Self { folder, ticker };
        for name in ["ferry", "ferry-server", "ferry-agent", "ferry-lab"] {
            ensure!(found.folder.join(name).is_file(), "{name} is not built; `cargo xtask` builds it");
        }
        ensure!(found.ticker.is_file(), "The ticker is not built; `cargo xtask` builds it");
        Ok(found)
    }
}

/// A program of the lab that runs until it is dropped or killed.
pub struct Program {
    child: Child,
    /// Its log file.
    pub log: PathBuf,
    name: String,
}

impl Program {
    /// Starts it, with its output in `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("Could not start {name}"))?;
        Ok(Self { child, log: log.to_owned(), name: name.to_owned() })
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it, as `kill -9` does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let tail: Vec<&str> = output.lines().rev().take(40).collect();
            eprintln!("--- last lines of {} ---", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
