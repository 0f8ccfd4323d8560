//! The lab's own network: a namespace with a bridge that connects its hosts, its file servers and Ferry's server.

use std::{path::PathBuf, process::Command, sync::Mutex};

use anyhow::Context as _;

use crate::{
    record::{Record, start_time},
    run::{DEADLINE, checked, run},
};

/// The lab's network; it exists only in the lab's namespaces.
pub const NETWORK: &str = "10.77.0";
/// The lab's second network, which only hosts are in that [`Host::join_second`](crate::host::Host::join_second) it.
pub const SECOND_NETWORK: &str = "10.78.0";
/// The second network's bridge.
pub(crate) const SECOND_BRIDGE: &str = "br1";
/// The fabric's address: of the file server and Ferry's server.
pub const FABRIC_IP: &str = "10.77.0.254";

/// The network of one lab, with its folder. Everything that is created in it is listed in the lab's record.
pub struct Fabric {
    /// A short id, unique among labs.
    pub id: String,
    /// Contains all files that the lab writes.
    pub folder: PathBuf,
    record: Mutex<Record>,
}

impl Fabric {
    /// For the lab with this existing folder. [`Fabric::make`] creates the network.
    pub(crate) fn new(id: String, folder: PathBuf) -> Self {
        Self { id, folder, record: Mutex::default() }
    }

    /// Creates the namespace with the bridge.
    pub(crate) fn make(&self) -> anyhow::Result<()> {
        let namespace = self.namespace();
        self.note_namespace(&namespace)?;
        run("ip", &["netns", "add", &namespace])?;
        let ip = |arguments: &[&str]| {
            let mut command = Command::new("ip");
            command.args(["-n", &namespace]).args(arguments);
            checked(command, DEADLINE).map(drop)
        };
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "br0", "address", "02:77:00:00:00:fe", "type", "bridge", "forward_delay", "0"])?;
        ip(&["addr", "add", &format!("{FABRIC_IP}/24"), "dev", "br0"])?;
        ip(&["link", "set", "br0", "up"])?;
        ip(&["link", "add", SECOND_BRIDGE, "address", "02:78:00:00:00:fe", "type", "bridge", "forward_delay", "0"])?;
        ip(&["link", "set", SECOND_BRIDGE, "up"])
    }

    /// The fabric's network namespace.
    pub fn namespace(&self) -> String {
        format!("fl{}", self.id)
    }

    /// The lab's copy of a program under test.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// A command that runs in the fabric.
    pub fn in_fabric(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace()]).arg(program);
        command
    }

    pub(crate) fn note_namespace(&self, name: &str) -> anyhow::Result<()> {
        let mut record = self.record.lock().expect("no thread panicked");
        record.namespaces.push(name.to_owned());
        record.write(&self.folder)
    }

    pub(crate) fn note_process(&self, pid: i32) -> anyhow::Result<()> {
        let started = start_time(pid).context("A process ended at once")?;
        let mut record = self.record.lock().expect("no thread panicked");
        record.processes.push((pid, started));
        record.write(&self.folder)
    }
}
