//! Options on the kernel's command line.

use std::path::PathBuf;

/// The options, with defaults for those that are not given.
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) ip: std::net::Ipv4Addr,
    pub(crate) memory_mib: usize,
    pub(crate) dirty_mib_per_s: usize,
    pub(crate) writes_per_s: u32,
    /// At least 1.
    pub(crate) slower: u32,
    pub(crate) stride_kib: usize,
    /// Empty: all.
    pub(crate) disks: Vec<PathBuf>,
}

impl Settings {
    pub(crate) fn from_command_line(line: &str) -> Self {
        let value = |key: &str| {
            line.split_whitespace().find_map(|word| word.strip_prefix("ticker.")?.strip_prefix(key)?.strip_prefix('='))
        };
        let number = |key: &str, default: usize| value(key).and_then(|text| text.parse().ok()).unwrap_or(default);
        Self {
            name: value("name").unwrap_or("ticker").to_owned(),
            ip: value("ip").and_then(|text| text.parse().ok()).unwrap_or(std::net::Ipv4Addr::new(10, 77, 0, 101)),
            memory_mib: number("memory_mib", 64),
            dirty_mib_per_s: number("dirty_mib_per_s", 4),
            writes_per_s: number("writes_per_s", 60) as u32,
            slower: number("slower", 1).max(1) as u32,
            stride_kib: number("stride_kib", 4),
            disks: value("disks").map(|list| list.split(',').map(PathBuf::from).collect()).unwrap_or_default(),
        }
    }
}
