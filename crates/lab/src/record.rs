//! What a lab made on the machine, written down so that it can be taken down whatever happens to its owner.

use std::{fs, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// What must be taken down. Written before each thing is made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Network namespaces.
    pub namespaces: Vec<String>,
    /// First processes of hosts, which end all others there: process id and start time.
    pub processes: Vec<(i32, u64)>,
}

/// Name of the record in the lab's folder.
pub const RECORD: &str = "record.json";

impl Record {
    /// Reads a lab's record.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(RECORD);
        let text = fs::read(&path).with_context(|| format!("No lab stands in {}", folder.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Writes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::write(folder.join(RECORD), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

/// When a process was started, in clock ticks since boot; tells it from a later one of the same id.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}
