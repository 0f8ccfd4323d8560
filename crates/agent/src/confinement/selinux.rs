//! SELinux: a policy module defines the label of the session folders, and each socket that Ferry creates for QEMU is
//! labelled on creation, as libvirt requires of management software (its page on migration over UNIX sockets).
//!
//! The module is in CIL, which `semodule` accepts directly. It uses types of the policy of Fedora and RHEL:
//! `qemu_var_run_t`, in which QEMU may create sockets, and `svirt_socket_t`, to which it may connect. Not tested on a
//! machine with SELinux.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use ferry_core::error::chain;
use tracing::warn;

use crate::{check::Check, config::Config};

/// Exists if the kernel has SELinux and it is not disabled.
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// The label for sockets that this thread creates next.
const SOCKET_CREATE: &str = "/proc/thread-self/attr/sockcreate";
/// The label that QEMU may connect to. It has no category, so the categories of every VM dominate it.
const SOCKET_LABEL: &str = "system_u:object_r:svirt_socket_t:s0";
/// Resets the label: the kernel treats a line that starts with a newline as no label.
const NO_LABEL: &str = "\n";
/// Names the policy in force.
const CONFIG: &str = "/etc/selinux/config";
/// The name of our module, and of its file in the agent's folder.
const MODULE: &str = "ferry";
/// Where `semodule` stores modules added by an administrator.
const STORE: &str = "active/modules/400";

/// The policy's booleans, one file each.
pub(crate) const BOOLEANS: &str = "/sys/fs/selinux/booleans";

/// Whether SELinux is enabled here.
pub(crate) fn is_on() -> bool {
    Path::new(ENFORCE).exists()
}

/// The module for sessions at `sessions`, given as the policy names that path. A rule about a type that the policy
/// lacks is skipped with its `optional` block.
pub(crate) fn module(sessions: &str) -> String {
    format!(
        r#"; Written by `ferry-agent setup`: what VMs that move may do at Ferry's sockets. Nothing else is allowed by it.
(filecon "{sessions}(/.*)?" any (system_u object_r qemu_var_run_t ((s0) (s0))))
(optional ferry_emulated
    ; VMs that are emulated are of a type of their own.
    (allow virt_domain svirt_socket_t (unix_stream_socket (connectto))))
(optional ferry_modular
    ; The modular daemon connects to the agent, and to its sockets for QEMU.
    (allow virtqemud_t svirt_socket_t (unix_stream_socket (connectto)))
    (allow virtqemud_t unconfined_service_t (unix_stream_socket (connectto))))
"#
    )
}

/// A path as the policy names it: each line of `file_contexts.subs_dist` maps one directory to another.
fn substituted(path: &str, substitutions: &str) -> String {
    let substituted = substitutions.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (from, to) = (words.next()?, words.next()?);
        let rest = path.strip_prefix(from)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
    });
    substituted.unwrap_or_else(|| path.to_owned())
}

/// The name of the policy in force: `SELINUXTYPE=targeted`.
fn policy(config: &str) -> Option<&str> {
    config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE="))
}

/// Escapes the dots of a path; `None` if it contains other regular-expression characters.
fn escaped(path: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    path.bytes().all(plain).then(|| path.replace('.', r"\."))
}

/// The wanted module, and the path of the policy's modules.
struct PolicyModule {
    text: String,
    store: PathBuf,
}

fn expected(config: &Config) -> Result<PolicyModule, String> {
    let text = fs::read_to_string(CONFIG).map_err(|error| format!("{CONFIG} cannot be read ({error})"))?;
    let policy = policy(&text).ok_or_else(|| format!("{CONFIG} names no policy"))?;
    let substitutions = format!("/etc/selinux/{policy}/contexts/files/file_contexts.subs_dist");
    let substitutions = fs::read_to_string(substitutions).unwrap_or_default();
    let sessions = config.sessions_dir().display().to_string();
    let sessions = escaped(&substituted(&sessions, &substitutions))
        .ok_or_else(|| format!("{sessions} is no plain path: set run_dir in the agent's configuration"))?;
    let store = Path::new("/var/lib/selinux").join(policy).join(STORE).join(MODULE);
    Ok(PolicyModule { text: module(&sessions), store })
}

fn module_path(config: &Config) -> PathBuf {
    config.state_dir.join(format!("{MODULE}.cil"))
}

/// `None` if the module is installed; otherwise what is missing.
pub(crate) fn missing(config: &Config) -> Option<String> {
    let module = match expected(config) {
        Ok(module) => module,
        Err(reason) => return Some(reason),
    };
    let installed = fs::read_to_string(module_path(config)).is_ok_and(|text| text == module.text);
    (!installed || !module.store.exists()).then(|| format!("its policy has no module {MODULE} for this agent"))
}

/// Installs the module, and labels existing folders. Returns what was done.
pub(crate) fn ensure(config: &Config) -> anyhow::Result<Option<String>> {
    if !is_on() {
        return Ok(None);
    }
    if missing(config).is_some() {
        let module = expected(config).map_err(anyhow::Error::msg)?;
        let path = module_path(config);
        fs::write(&path, module.text).with_context(|| format!("Could not write {}", path.display()))?;
        if let Err(error) = run(Command::new("semodule").arg("-i").arg(&path)) {
            // A module that is not installed must not look installed.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
    }
    for path in [&config.run_dir, &config.hooks_dir] {
        run(Command::new("restorecon").arg("-R").arg(path))?;
    }
    Ok(Some(format!("SELinux lets VMs use the sockets of moves: policy module {MODULE}")))
}

/// Removes the module. Returns what was done.
pub(crate) fn remove(config: &Config) -> anyhow::Result<Option<String>> {
    let path = module_path(config);
    if !is_on() || !path.exists() {
        return Ok(None);
    }
    run(Command::new("semodule").args(["-r", MODULE]))?;
    fs::remove_file(&path).with_context(|| format!("Could not remove {}", path.display()))?;
    run(Command::new("restorecon").arg("-R").arg(&config.run_dir))?;
    Ok(Some(format!("SELinux's policy module {MODULE} was removed")))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("Could not run {name}: install package policycoreutils"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{name} failed: {}", stderr.trim());
    Ok(())
}

/// Labels the folder of sessions, which is created anew at each boot.
pub(crate) fn label_sessions(config: &Config) {
    if is_on()
        && let Err(error) = run(Command::new("restorecon").arg("-R").arg(config.sessions_dir()))
    {
        warn!(error = %chain(&*error), "The folder of sessions could not be labelled; VMs cannot be moved if SELinux enforces");
    }
}

/// Creates a socket that QEMU may connect to. Nothing else on this thread creates one meanwhile: `make` does not await.
///
/// # Errors
/// Those of `make`.
pub(crate) fn for_qemu<T>(make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match is_on() {
        true => labelled(Path::new(SOCKET_CREATE), make),
        false => make(),
    }
}

fn labelled<T>(create: &Path, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // A policy without that label does not use it to confine VMs; one that denies setting it logs the denial.
    if let Err(error) = fs::write(create, SOCKET_LABEL) {
        warn!(error = %chain(&error), label = SOCKET_LABEL, "A socket for QEMU could not be labelled");
        return make();
    }
    let made = make();
    fs::write(create, NO_LABEL)?;
    made
}

/// Whether the policy's booleans let VMs use files on shares. `read` returns a boolean's content, `NOW PENDING`.
pub(crate) fn shares(read: impl Fn(&str) -> Option<String>) -> Vec<Check> {
    let one = |(boolean, what): (&str, &str)| {
        let on = read(boolean)?.starts_with('1');
        Some(match on {
            true => Check::Good(format!("SELinux lets VMs use files on {what} shares ({boolean})")),
            false => Check::Odd(format!(
                "SELinux keeps VMs from files on {what} shares: `setsebool -P {boolean} on`, if they shall lie there"
            )),
        })
    };
    [("virt_use_samba", "SMB"), ("virt_use_nfs", "NFS")].into_iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_looked_up_as_the_policy_says() {
        let older = "/run /var/run\n/run/lock /var/lock\n";
        assert_eq!(substituted("/run/ferry/m", older), "/var/run/ferry/m");
        assert_eq!(substituted("/run/ferry/m", "/var/run /run\n"), "/run/ferry/m");
        assert_eq!(substituted("/var/run/ferry/m", "# x\n\n/var/run /run\n"), "/run/ferry/m");
        assert_eq!(substituted("/runs/ferry/m", older), "/runs/ferry/m");
    }

    #[test]
    fn the_module_is_of_the_folder_of_sessions_alone() {
        let text = module(&escaped("/run/ferry.2/m").expect("plain"));
        let contexts: Vec<&str> = text.lines().filter(|line| line.starts_with("(filecon")).collect();
        assert_eq!(
            contexts,
            [r#"(filecon "/run/ferry\.2/m(/.*)?" any (system_u object_r qemu_var_run_t ((s0) (s0))))"#]
        );
        assert_eq!(text.matches('(').count(), text.matches(')').count());
        for odd in ["/run/fe*rry", "/run/\"", "/run/a b", "/run/(x)"] {
            assert_eq!(escaped(odd), None, "{odd}");
        }
    }

    #[test]
    fn the_policy_in_force_is_read() {
        let text = "# SELINUXTYPE= can take one of these\nSELINUX=enforcing\nSELINUXTYPE=targeted\n";
        assert_eq!(policy(text), Some("targeted"));
        assert_eq!(policy("SELINUX=disabled\n"), None);
    }

    #[test]
    fn a_socket_is_made_under_its_label_and_the_next_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let create = folder.path().join("sockcreate");
        fs::write(&create, "").expect("written");
        let seen = labelled(&create, || fs::read_to_string(&create)).expect("made");
        assert_eq!(seen, SOCKET_LABEL);
        assert_eq!(fs::read_to_string(&create).expect("there"), NO_LABEL);
        labelled(&create, || Err::<(), _>(io::Error::other("in use"))).expect_err("as it was");
        assert_eq!(fs::read_to_string(&create).expect("there"), NO_LABEL);
        let made = labelled(&folder.path().join("no/such"), || Ok(7)).expect("made without");
        assert_eq!(made, 7);
    }

    #[test]
    fn switches_of_the_policy_are_told() {
        let off = |boolean: &str| (boolean == "virt_use_samba").then(|| "0 0".to_owned());
        let found = shares(off);
        let [Check::Odd(text)] = &found[..] else { panic!("{found:?}") };
        assert!(text.contains("setsebool -P virt_use_samba on"));
        assert!(matches!(shares(|_| Some("1 1".to_owned()))[..], [Check::Good(_), Check::Good(_)]));
        assert_eq!(shares(|_| None), []);
    }
}
