//! The record of what a lab created on the machine, so that it can be taken down however its owner ends.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// What must be taken down. Each entry is written before the thing is created.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Network namespaces.
    pub namespaces: Vec<String>,
    /// First processes of hosts, with which all other processes of the host end: process id and start time.
    pub processes: Vec<(i32, u64)>,
}

/// Name of the record in the lab's folder.
pub const RECORD: &str = "record.json";

impl Record {
    /// Reads a lab's record.
    ///
    /// # Errors
    /// There is none.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(RECORD);
        let text = fs::read(&path).with_context(|| format!("No lab stands in {}", folder.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::write(folder.join(RECORD), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

/// The start time of a process, in clock ticks since boot; distinguishes it from a later process with the same id.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain spaces.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}
