//! The agent's configuration file.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::AgentError;

/// The configuration's path unless specified otherwise.
pub const DEFAULT_PATH: &str = "/etc/ferry/agent.toml";

/// Limit of storage roots: each is checked whenever a user browses.
const STORAGE_ROOTS_MAX: usize = 16;

/// The longest time for which files are kept that a VM left: as long as unfinished copies. Minutes.
pub const LEFT_MINUTES_MAX: u16 = 24 * 60;

/// What an administrator may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the control API. Only the server should be able to reach it.
    pub listen: SocketAddr,
    /// Address on which carriers listen, and under which other hosts' carriers reach them: this host's address in the
    /// migration network, never a wildcard.
    pub data_address: IpAddr,
    /// Ports of the carriers, `FIRST-LAST`: one per incoming migration.
    #[serde(default = "default_ports")]
    pub data_ports: String,
    /// Keys, enrolment, journals, holds. Only root reads it.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Sockets of running migrations. Keep it short: a socket path must stay below 108 bytes.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// All shares are mounted below it; libvirt treats it as shared.
    #[serde(default = "default_share_root")]
    pub share_root: PathBuf,
    /// Directories of this host below which files of VMs may be; at most 16, none above or below the share root.
    #[serde(default = "default_storage_roots")]
    pub storage_roots: Vec<PathBuf>,
    /// libvirt's connection URI.
    #[serde(default = "default_uri")]
    pub libvirt_uri: String,
    /// libvirt's QEMU configuration.
    #[serde(default = "default_qemu_conf")]
    pub qemu_conf: PathBuf,
    /// libvirt's directory of hook scripts.
    #[serde(default = "default_hooks")]
    pub hooks_dir: PathBuf,
    /// AppArmor's directory of profiles.
    #[serde(default = "default_apparmor")]
    pub apparmor_dir: PathBuf,
    /// Where metrics are served to Prometheus, without TLS and to anyone; `None`: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// How long the files of a VM's disks are kept when it has moved away with them, in minutes, at most
    /// [`LEFT_MINUTES_MAX`]; 0: they are removed at once. When it returns meanwhile, only what differs is sent.
    #[serde(default = "default_left_minutes")]
    pub left_minutes: u16,
    /// What distinguishes this machine from a clone of it.
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

fn default_storage_roots() -> Vec<PathBuf> {
    vec!["/var/lib/libvirt/images".into()]
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

fn default_apparmor() -> PathBuf {
    "/etc/apparmor.d".into()
}

fn default_left_minutes() -> u16 {
    60
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
            storage_roots: default_storage_roots(),
            libvirt_uri: default_uri(),
            qemu_conf: default_qemu_conf(),
            hooks_dir: default_hooks(),
            apparmor_dir: default_apparmor(),
            metrics_listen: None,
            left_minutes: default_left_minutes(),
            machine_id: default_machine_id(),
        }
    }

    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// [`AgentError::Config`] naming the file and the problem.
    pub fn load(path: &Path) -> Result<Self, AgentError> {
        let bad = |reason: String| AgentError::Config { path: path.to_owned(), reason };
        let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let mut config: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        config.ports().ok_or_else(|| {
            bad(format!("data_ports = {:?}; write the first and last port, as in \"7430-7493\"", config.data_ports))
        })?;
        if config.left_minutes > LEFT_MINUTES_MAX {
            return Err(bad(format!(
                "left_minutes = {}; write at most {LEFT_MINUTES_MAX}, which is a day, or 0 for not at all",
                config.left_minutes
            )));
        }
        if config.data_address.is_unspecified() {
            return Err(bad(format!(
                "data_address = \"{}\" is no address that other hosts reach; write that of this host in the network of moves",
                config.data_address
            )));
        }
        if config.storage_roots == default_storage_roots() {
            // In a configuration of an earlier version the share root may be listed there.
            config.storage_roots.retain(|root| !overlap(root, &config.share_root));
        }
        check_storage_roots(&config.storage_roots, &config.share_root).map_err(bad)?;
        Ok(config)
    }

    /// The carriers' ports.
    pub fn ports(&self) -> Option<RangeInclusive<u16>> {
        let (first, last) = self.data_ports.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(first..=last)
    }

    /// How long files are kept that a VM left.
    pub fn left_for(&self) -> Duration {
        Duration::from_secs(60 * u64::from(self.left_minutes))
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

    /// Journals of offline moves.
    pub fn offline_dir(&self) -> PathBuf {
        self.state_dir.join("offline")
    }

    /// Journals of storage moves.
    pub fn storage_dir(&self) -> PathBuf {
        self.state_dir.join("storage")
    }

    /// Records of partial copies.
    pub fn partials_dir(&self) -> PathBuf {
        self.state_dir.join("seeds")
    }

    /// Released attempts.
    pub fn ended_path(&self) -> PathBuf {
        self.state_dir.join("ended.json")
    }

    /// The attached shares.
    pub fn shares_path(&self) -> PathBuf {
        self.state_dir.join("shares.json")
    }

    /// Control sockets of carriers. Accessible to root only.
    pub fn controls_dir(&self) -> PathBuf {
        self.run_dir.join("c")
    }

    /// Folders of the sockets of running migrations.
    pub fn sessions_dir(&self) -> PathBuf {
        self.run_dir.join("m")
    }
}

/// Checks that no storage root contains mounts of shares: files there are named by the share.
fn check_storage_roots(roots: &[PathBuf], share_root: &Path) -> Result<(), String> {
    if roots.len() > STORAGE_ROOTS_MAX {
        return Err(format!("storage_roots lists {} directories; list at most {STORAGE_ROOTS_MAX}", roots.len()));
    }
    for root in roots {
        let plain = root.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let why = if !root.is_absolute() || !plain {
            "is not an absolute path without \"..\""
        } else if overlap(root, share_root) {
            "lies above or below share_root, whose files are named by their shares"
        } else if root.to_str().is_none_or(|text| text.contains(char::is_control)) {
            "is not plain text"
        } else {
            continue;
        };
        return Err(format!("storage_roots: {:?} {why}", root.display().to_string()));
    }
    Ok(())
}

fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_example_shows_every_setting_as_set_up_writes_it() {
        let example = include_str!("../../../packaging/ferry-agent/agent.toml");
        let shown: toml::Table = toml::from_str(example).expect("settings");
        let config = Config::new("192.0.2.11:7421".parse().expect("an address"));
        assert_eq!(shown, toml::Table::try_from(config).expect("settings"));
    }

    #[test]
    fn a_configuration_is_checked_and_named_when_wrong() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("agent.toml");
        fs::write(&path, "listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\n").expect("written");
        let config = Config::load(&path).expect("good");
        assert_eq!(config, Config::new("10.0.0.1:7421".parse().expect("an address")));
        assert_eq!(config.ports(), Some(7430..=7493));
        fs::write(&path, "listen = '0.0.0.0:7421'\ndata_address = '10.0.0.1'\n").expect("written");
        Config::load(&path).expect("the server may reach the control API by any address");
        let shared =
            "listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\nshare_root = '/var/lib/libvirt/images/ferry'\n";
        fs::write(&path, shared).expect("written");
        assert_eq!(Config::load(&path).expect("of an earlier version").storage_roots, Vec::<PathBuf>::new());
        for (text, word) in [
            ("listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\ndata_ports = '9-1'", "data_ports"),
            ("listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\nleft_minutes = 1441", "left_minutes"),
            ("listen = 'x'\ndata_address = '10.0.0.1'", "listen"),
            ("listen = '0.0.0.0:7421'\ndata_address = '0.0.0.0'", "data_address"),
            ("listen = '[::]:7421'\ndata_address = '::'", "data_address"),
            ("listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\nshare_rot = '/x'", "share_rot"),
            ("listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\nstorage_roots = ['images']", "absolute"),
            ("listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\nstorage_roots = ['/a/../b']", "absolute"),
            ("listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\nstorage_roots = ['/srv/ferry/x']", "share_root"),
            ("listen = '10.0.0.1:7421'\ndata_address = '10.0.0.1'\nstorage_roots = ['/']", "share_root"),
        ] {
            fs::write(&path, text).expect("written");
            let error = Config::load(&path).expect_err(word).to_string();
            assert!(error.contains(word) && error.contains("agent.toml"), "{error}");
        }
    }
}
