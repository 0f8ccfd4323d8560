//! The agent's configuration file.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::AgentError;

/// Where the configuration is unless said otherwise.
pub const DEFAULT_PATH: &str = "/etc/ferry/agent.toml";

/// What an administrator may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the control API listens. The server and nobody else must reach it.
    pub listen: SocketAddr,
    /// Where carriers listen for other hosts' carriers; the address of the migration network.
    pub data_address: IpAddr,
    /// Ports of the carriers, `FIRST-LAST`: one per incoming migration.
    #[serde(default = "default_ports")]
    pub data_ports: String,
    /// Keys, enrolment, journal, holds. Only root reads it.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Sockets of running migrations. Short: a socket's path stays below 108 bytes.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// Below it all shares are mounted; libvirt knows it as shared.
    #[serde(default = "default_share_root")]
    pub share_root: PathBuf,
    /// libvirt's connection.
    #[serde(default = "default_uri")]
    pub libvirt_uri: String,
    /// libvirt's QEMU configuration.
    #[serde(default = "default_qemu_conf")]
    pub qemu_conf: PathBuf,
    /// libvirt's folder of hook scripts.
    #[serde(default = "default_hooks")]
    pub hooks_dir: PathBuf,
    /// What tells this machine from a clone of it.
    #[serde(default = "default_machine_id")]
    pub machine_id: PathBuf,
}

fn default_ports() -> String {
    "7430-7493".to_owned()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/ferry-agent".into()
}

fn default_run_dir() -> PathBuf {
    "/run/ferry".into()
}

fn default_share_root() -> PathBuf {
    "/srv/ferry".into()
}

fn default_uri() -> String {
    "qemu:///system".to_owned()
}

fn default_qemu_conf() -> PathBuf {
    "/etc/libvirt/qemu.conf".into()
}

fn default_hooks() -> PathBuf {
    "/etc/libvirt/hooks".into()
}

fn default_machine_id() -> PathBuf {
    "/etc/machine-id".into()
}

impl Config {
    /// The defaults, listening at `listen`.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            data_address: listen.ip(),
            data_ports: default_ports(),
            state_dir: default_state_dir(),
            run_dir: default_run_dir(),
            share_root: default_share_root(),
            libvirt_uri: default_uri(),
            qemu_conf: default_qemu_conf(),
            hooks_dir: default_hooks(),
            machine_id: default_machine_id(),
        }
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// [`AgentError::Config`] naming the file and what is wrong in it.
    pub fn load(path: &Path) -> Result<Self, AgentError> {
        let bad = |reason: String| AgentError::Config { path: path.to_owned(), reason };
        let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let config: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        config.ports().ok_or_else(|| {
            bad(format!("data_ports = {:?}; write the first and last port, as in \"7430-7493\"", config.data_ports))
        })?;
        Ok(config)
    }

    /// The carriers' ports.
    pub fn ports(&self) -> Option<RangeInclusive<u16>> {
        let (first, last) = self.data_ports.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(first..=last)
    }

    /// This agent's key pair.
    pub fn key_path(&self) -> PathBuf {
        self.state_dir.join("agent.key")
    }

    /// Journals of migrations.
    pub fn journal_dir(&self) -> PathBuf {
        self.state_dir.join("journal")
    }

    /// Hold files: while `UUID` is there, the hook vetoes a start of that VM.
    pub fn holds_dir(&self) -> PathBuf {
        self.state_dir.join("holds")
    }

    /// Control sockets of carriers. Only root enters.
    pub fn controls_dir(&self) -> PathBuf {
        self.run_dir.join("c")
    }

    /// Folders of the sockets of running migrations.
    pub fn sessions_dir(&self) -> PathBuf {
        self.run_dir.join("m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_checked_and_named_when_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.toml");
        fs::write(&path, "listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\n").expect("written");
        let config = Config::load(&path).expect("good");
        assert_eq!(config, Config::new("10.0.0.1:7421".parse().expect("an address")));
        assert_eq!(config.ports(), Some(7430..=7493));
        for (text, word) in [
            ("listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\ndata_ports = '9-1'", "data_ports"),
            ("listen = 'x'\ndata_address = '10.0.0.1'", "listen"),
            ("listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\nshare_rot = '/x'", "share_rot"),
        ] {
            fs::write(&path, text).expect("written");
            let error = Config::load(&path).expect_err(word).to_string();
            assert!(error.contains(word) && error.contains("agent.toml"), "{error}");
        }
    }
}
