//! The server's settings, `/etc/ferry/server.toml`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Deserialize;

/// The path of the settings unless the command line gives another.
pub const CONFIG_PATH: &str = "/etc/ferry/server.toml";

/// Settings. Every one has a default: a missing file is the same as an empty one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the REST API.
    pub listen: SocketAddr,
    /// Directory for keys, tokens and, by default, the database. Only its owner may read it.
    pub state_dir: PathBuf,
    /// The database file; `None`: `ferry.db` in `state_dir`.
    pub database: Option<PathBuf>,
    /// Address at which Prometheus reads metrics, without TLS and token; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// For how many days ended jobs are kept, with their logs.
    pub retention_days: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7420)),
            state_dir: PathBuf::from("/var/lib/ferry-server"),
            database: None,
            metrics_listen: None,
            retention_days: 365,
        }
    }
}

impl Config {
    /// Reads `path`, or the default path if that file exists.
    ///
    /// # Errors
    /// If a named file cannot be read, or if a file is invalid: the error names the line.
    pub fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = path.unwrap_or(Path::new(CONFIG_PATH));
        match std::fs::read_to_string(file) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("Could not understand {}", file.display())),
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("Could not read {}", file.display())),
        }
    }

    /// The path of the database file.
    pub fn database(&self) -> PathBuf {
        self.database.clone().unwrap_or_else(|| self.state_dir.join("ferry.db"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_defaults_and_unknown_ones_are_refused() {
        let config: Config = toml::from_str("listen = \"10.0.0.9:7420\"").expect("settings");
        assert_eq!(config.listen, SocketAddr::from(([10, 0, 0, 9], 7420)));
        assert_eq!(config.database(), Path::new("/var/lib/ferry-server/ferry.db"));
        assert!(toml::from_str::<Config>("listne = \"10.0.0.9:7420\"").is_err());
    }

    #[test]
    fn the_packaged_file_says_what_holds_without_it() {
        let packaged = include_str!("../../../packaging/ferry-server/server.toml");
        assert_eq!(toml::from_str::<Config>(packaged).expect("settings"), Config::default());
        let settings = packaged.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' '));
        let example: Config = toml::from_str(&settings.collect::<Vec<_>>().join("\n")).expect("settings");
        let database = Some(Config::default().database());
        let metrics_listen = Some(SocketAddr::from(([127, 0, 0, 1], 9420)));
        assert_eq!(example, Config { database, metrics_listen, ..Config::default() });
    }
}
