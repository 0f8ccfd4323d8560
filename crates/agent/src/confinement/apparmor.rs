//! AppArmor: libvirt creates a profile for each VM. It includes libvirt's abstraction for QEMU, which in turn includes
//! administrators' additions. A profile is compiled when its QEMU starts, at the destination for the move, so the rule
//! needs no restart. The source's QEMU does not need the rule, even one started before it was written: libvirt itself
//! connects the memory channel, and adds its own rule to that VM's profile for the disk socket.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use ferry_drivers::hypervisor::{DISK_SOCKET, MEMORY_SOCKET};

use crate::config::Config;

/// libvirt's abstraction, below AppArmor's directory. Never changed.
const ABSTRACTION: &str = "abstractions/libvirt-qemu";
/// What the abstraction includes, newer first: releases that support both announce that the other will be removed.
const FOLDER: &str = "abstractions/libvirt-qemu.d";
const FILE: &str = "local/abstractions/libvirt-qemu";
/// The name of our file in [`FOLDER`].
const OURS: &str = "ferry";
const BEGIN: &str =
    "# ferry: begin. Written by `ferry-agent setup`: QEMU meets Ferry at these sockets while its VM moves.";
const END: &str = "# ferry: end";

/// Where the rule is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory of files, one of which is ours.
    Folder,
    /// A single file, part of which is ours.
    File,
}

impl Place {
    /// The place that an abstraction includes.
    fn of(abstraction: &str) -> Option<Self> {
        let includes = |what: &str| abstraction.lines().filter_map(included).any(|path| path == what);
        match (includes(FOLDER), includes(FILE)) {
            (true, _) => Some(Self::Folder),
            (false, true) => Some(Self::File),
            (false, false) => None,
        }
    }

    fn path(&self, dir: &Path) -> PathBuf {
        match self {
            Self::Folder => dir.join(FOLDER).join(OURS),
            Self::File => dir.join(FILE),
        }
    }
}

/// The path of an include line: `include <x>`, `#include <x>`, `include if exists <x>`.
fn included(line: &str) -> Option<&str> {
    let line = line.trim();
    let rest = line.strip_prefix('#').unwrap_or(line).strip_prefix("include")?.trim_start();
    let rest = rest.strip_prefix("if exists").unwrap_or(rest).trim_start();
    rest.strip_prefix('<')?.split('>').next()
}

/// The rule for sockets in `sessions`, given as the kernel's path: without symbolic links. `None` for a path with
/// special characters of AppArmor's language.
pub(crate) fn rule(sessions: &Path) -> Option<String> {
    let sessions = sessions.to_str()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let sockets = [MEMORY_SOCKET, DISK_SOCKET].map(|socket| socket.trim_end_matches(".sock")).join(",");
    sessions.bytes().all(plain).then(|| format!("{sessions}/*/{{{sockets}}}.sock rw,"))
}

/// `text` with our part appended.
fn with_part(text: &str, rule: &str) -> String {
    let rest = without_part(text);
    let gap = if rest.is_empty() || rest.ends_with('\n') { "" } else { "\n" };
    format!("{rest}{gap}{BEGIN}\n{rule}\n{END}\n")
}

/// `text` without our part. If the part's last line is missing, everything after its first line counts as ours.
fn without_part(text: &str) -> String {
    let mut ours = false;
    let mut rest = String::new();
    for line in text.split_inclusive('\n') {
        ours |= line.starts_with("# ferry: begin");
        if !ours {
            rest.push_str(line);
        }
        ours &= !line.starts_with(END);
    }
    rest
}

fn has_rule(text: &str, rule: &str) -> bool {
    text.lines().any(|line| line.trim() == rule)
}

/// The wanted content of AppArmor's directory.
struct LocalRule {
    path: PathBuf,
    rule: String,
}

fn expected(config: &Config) -> Result<LocalRule, String> {
    let dir = &config.apparmor_dir;
    let abstraction = dir.join(ABSTRACTION);
    let text = fs::read_to_string(&abstraction)
        .map_err(|error| format!("{} cannot be read ({error})", abstraction.display()))?;
    let place = Place::of(&text).ok_or_else(|| {
        format!("{} includes neither {FOLDER} nor {FILE}: add `include if exists <{FOLDER}>`", abstraction.display())
    })?;
    let sessions = config.sessions_dir();
    let sessions = fs::canonicalize(&sessions).unwrap_or(sessions);
    let rule = rule(&sessions)
        .ok_or_else(|| format!("{} is no plain path: set run_dir in the agent's configuration", sessions.display()))?;
    Ok(LocalRule { path: place.path(dir), rule })
}

/// `None` if the rule is present; otherwise what is missing.
pub(crate) fn missing(config: &Config) -> Option<String> {
    match expected(config) {
        Ok(LocalRule { path, rule }) => {
            let text = fs::read_to_string(&path).unwrap_or_default();
            (!has_rule(&text, &rule)).then(|| format!("{} does not hold `{rule}`", path.display()))
        }
        Err(reason) => Some(reason),
    }
}

/// Writes the rule. Returns its path, and whether it was already there.
pub(crate) fn write(config: &Config) -> anyhow::Result<(PathBuf, bool)> {
    let LocalRule { path, rule } = expected(config).map_err(anyhow::Error::msg)?;
    let before = read(&path)?;
    if has_rule(&before, &rule) {
        return Ok((path, true));
    }
    let folder = path.parent().expect("it lies in AppArmor's folder");
    fs::create_dir_all(folder).with_context(|| format!("Could not make {}", folder.display()))?;
    fs::write(&path, with_part(&before, &rule)).with_context(|| format!("Could not write {}", path.display()))?;
    Ok((path, false))
}

/// Writes the rule if AppArmor and libvirt are installed, whether or not it is in force now. Returns what was done.
pub(crate) fn ensure(config: &Config) -> anyhow::Result<Option<String>> {
    if !config.apparmor_dir.join(ABSTRACTION).exists() {
        return Ok(None);
    }
    let (path, known) = write(config)?;
    let now = if known { "lets" } else { "now lets" };
    Ok(Some(format!("AppArmor {now} VMs use the sockets of moves: {}", path.display())))
}

/// Removes the rule. A VM that came here keeps it until its next start. Returns what was done.
pub(crate) fn remove(config: &Config) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    for place in [Place::Folder, Place::File] {
        let path = place.path(&config.apparmor_dir);
        let text = read(&path)?;
        let rest = without_part(&text);
        if rest == text {
            continue;
        }
        match rest.trim().is_empty() && place == Place::Folder {
            true => fs::remove_file(&path).with_context(|| format!("Could not remove {}", path.display()))?,
            false => fs::write(&path, rest).with_context(|| format!("Could not write {}", path.display()))?,
        }
        done.push(format!("AppArmor's rule was taken out of {}", path.display()));
    }
    Ok(done)
}

fn read(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("Could not read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "/run/ferry/m/*/{memory,disks}.sock rw,";

    #[test]
    fn the_rule_goes_where_the_shipped_abstraction_looks() {
        // libvirt 11.3 of Debian 13; 9.0 of Debian 12; and one that an administrator has truncated.
        let newest = "  owner /tmp/x r,\n\n  include if exists <abstractions/libvirt-qemu.d>\n\n  # Debian-specific\n  \
                      include if exists <local/abstractions/libvirt-qemu>\n";
        assert_eq!(Place::of(newest), Some(Place::Folder));
        assert_eq!(Place::of("  #include <local/abstractions/libvirt-qemu>\n"), Some(Place::File));
        assert_eq!(Place::of("  #include <abstractions/base>\n  # include <abstractions/libvirt-qemu.d>\n"), None);
        assert_eq!(Place::of("# see abstractions/libvirt-qemu.d\n"), None);
    }

    #[test]
    fn the_rule_names_two_sockets_of_each_session_and_nothing_else() {
        assert_eq!(rule(Path::new("/run/ferry/m")).as_deref(), Some(RULE));
        for odd in ["/run/fe*rry/m", "/run/{a,b}/m", "/run/fe rry/m", "/run/@{x}/m", "/run/\"/m", "/run/fähre/m"] {
            assert_eq!(rule(Path::new(odd)), None, "{odd}");
        }
    }

    #[test]
    fn our_part_is_put_in_and_taken_out_and_the_rest_stays() {
        for before in ["", "  /srv/** rw,\n", "# mine", "# ferry: begin\n/old rw,\n# ferry: end\n/mine r,\n"] {
            let with = with_part(before, RULE);
            assert!(has_rule(&with, RULE) && !with.contains("/old"), "{with}");
            assert_eq!(with_part(&with, RULE), with, "twice changes nothing");
            let rest = without_part(&with);
            assert_eq!(rest.trim_end(), without_part(before).trim_end());
            assert!(!rest.contains("ferry"), "{rest}");
        }
        assert!(!has_rule(&format!("# {RULE}\n"), RULE), "a comment is no rule");
    }

    #[test]
    fn the_rule_is_written_once_and_removed_in_both_kinds_of_places() {
        for (abstraction, path) in [
            ("include if exists <abstractions/libvirt-qemu.d>\n", "abstractions/libvirt-qemu.d/ferry"),
            ("#include <local/abstractions/libvirt-qemu>\n", "local/abstractions/libvirt-qemu"),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let config = Config {
                apparmor_dir: folder.path().join("apparmor.d"),
                run_dir: "/run/ferry-of-a-test".into(),
                ..Config::new("127.0.0.1:1".parse().expect("an address"))
            };
            fs::create_dir_all(config.apparmor_dir.join("abstractions")).expect("made");
            fs::write(config.apparmor_dir.join(ABSTRACTION), abstraction).expect("written");
            assert!(missing(&config).is_some_and(|missing| missing.contains(path)));
            let ours = config.apparmor_dir.join(path);
            assert_eq!(write(&config).expect("written"), (ours.clone(), false));
            assert_eq!(write(&config).expect("written"), (ours.clone(), true));
            assert_eq!(missing(&config), None);
            let moved = Config { run_dir: "/run/elsewhere".into(), ..config.clone() };
            assert!(missing(&moved).is_some(), "the rule is of another folder");
            write(&moved).expect("written");
            assert!(missing(&config).is_some(), "and takes its place");
            remove(&config).expect("removed");
            assert!(!fs::read_to_string(&ours).unwrap_or_default().contains("ferry"));
            assert_eq!(fs::read_to_string(config.apparmor_dir.join(ABSTRACTION)).expect("there"), abstraction);
        }
    }
}
