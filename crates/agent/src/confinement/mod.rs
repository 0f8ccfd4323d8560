//! Confinement of this host's VMs, and the few permissions that Ferry needs from it.
//!
//! A migrating QEMU meets Ferry at two sockets in its session's folder, `RUN_DIR/m/ID/{memory,disks}.sock`: at the
//! destination it creates them, at the source it connects to them. AppArmor and SELinux do not know that folder, so
//! `ferry-agent setup` writes one rule for it to the place that each provides for additions; nothing of libvirt's own
//! is changed, and no VM is less confined than without Ferry.
//!
//! | | what | where |
//! |---|---|---|
//! | AppArmor | [`apparmor::rule`] | a file included by libvirt's abstraction for QEMU: [`apparmor::Place`] |
//! | SELinux | [`selinux::module`], and a label on the sockets that Ferry makes | a policy module `ferry` |

pub(crate) mod apparmor;
pub(crate) mod selinux;

use std::{fs, path::Path};

use ferry_core::finding::{Command, Finding, FindingId, Message};
use ferry_drivers::hypervisor::HypervisorHost;

use crate::{check::Check, config::Config};

/// The security model that libvirt confines VMs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    AppArmor,
    SeLinux,
}

impl Model {
    fn all_of(host: &HypervisorHost) -> Vec<Self> {
        let named = |model: &String| match model.as_str() {
            "apparmor" => Some(Self::AppArmor),
            "selinux" => Some(Self::SeLinux),
            _ => None,
        };
        host.confined_by.iter().filter_map(named).collect()
    }

    fn name(self) -> &'static str {
        match self {
            Self::AppArmor => "AppArmor",
            Self::SeLinux => "SELinux",
        }
    }

    /// `None` if VMs may use the sockets; otherwise what is missing.
    fn missing(self, config: &Config) -> Option<String> {
        match self {
            Self::AppArmor => apparmor::missing(config),
            Self::SeLinux => selinux::missing(config),
        }
    }
}

/// Findings that prevent moves. The model is what libvirt itself reports, so a host without AppArmor and SELinux, or
/// with `security_driver = "none"`, has none.
pub fn findings(config: &Config, host: &HypervisorHost) -> Vec<Finding> {
    let conf = fs::read_to_string(&config.qemu_conf).unwrap_or_default();
    let find = |model: Model| {
        let message = Message::Confined { model: model.name().to_owned(), reason: model.missing(config)? };
        let fix = Command::SetUpConfinement;
        Some(match confines_by_default(&conf) {
            true => Finding::blocks(FindingId::HostConfinement, "host", message, fix),
            // Only VMs whose own definition requests it are confined.
            false => Finding::warns(FindingId::HostConfinement, "host", message, fix),
        })
    };
    Model::all_of(host).into_iter().filter_map(find).collect()
}

/// The same as checks for `ferry-agent setup`.
pub(crate) fn checks(config: &Config, host: &HypervisorHost) -> Vec<Check> {
    let models = Model::all_of(host);
    if models.is_empty() {
        return vec![Check::Good("libvirt confines VMs with neither AppArmor nor SELinux here".to_owned())];
    }
    let one = |model: &Model| match model.missing(config) {
        None => Check::Good(format!("{} lets VMs use the sockets of moves, and confines them as before", model.name())),
        Some(missing) => {
            Check::Missing(format!("{} does not let VMs use the sockets of moves: {missing}", model.name()))
        }
    };
    let mut checks: Vec<Check> = models.iter().map(one).collect();
    if models.contains(&Model::SeLinux) {
        checks.extend(selinux::shares(|boolean| fs::read_to_string(Path::new(selinux::BOOLEANS).join(boolean)).ok()));
    }
    checks
}

/// Writes the rules. Returns what was done, one sentence each.
///
/// # Errors
/// What could not be done; may be repeated.
pub(crate) fn ensure(config: &Config) -> anyhow::Result<Vec<String>> {
    Ok([apparmor::ensure(config)?, selinux::ensure(config)?].into_iter().flatten().collect())
}

/// Removes the rules. Returns what was done, one sentence each.
///
/// # Errors
/// What could not be done; may be repeated.
pub(crate) fn remove(config: &Config) -> anyhow::Result<Vec<String>> {
    let mut done = apparmor::remove(config)?;
    done.extend(selinux::remove(config)?);
    Ok(done)
}

/// Whether qemu.conf confines VMs whose definition does not say: libvirt's own default is to confine.
fn confines_by_default(conf: &str) -> bool {
    let mut values = conf.lines().filter_map(|line| {
        let value = line.trim_start().strip_prefix("security_default_confined")?.trim_start().strip_prefix('=')?;
        value.split('#').next().map(str::trim)
    });
    values.next_back() != Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(confined_by: &[&str]) -> HypervisorHost {
        HypervisorHost {
            uuid: String::new(),
            cpus: 1,
            memory_total: ferry_core::units::ByteCount(0),
            libvirt_version: "11.3.0".to_owned(),
            qemu_version: "10.0.2".to_owned(),
            confined_by: confined_by.iter().map(|model| (*model).to_owned()).collect(),
        }
    }

    #[test]
    fn a_host_whose_libvirt_confines_vms_needs_the_rule_and_another_does_not() {
        use ferry_core::finding::Severity;
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config {
            run_dir: folder.path().join("run"),
            state_dir: folder.path().join("state"),
            apparmor_dir: folder.path().join("apparmor.d"),
            qemu_conf: folder.path().join("qemu.conf"),
            ..Config::new("127.0.0.1:1".parse().expect("an address"))
        };
        fs::create_dir_all(config.apparmor_dir.join("abstractions")).expect("made");
        let abstraction = "  include if exists <abstractions/libvirt-qemu.d>\n";
        fs::write(config.apparmor_dir.join("abstractions/libvirt-qemu"), abstraction).expect("written");
        assert_eq!(findings(&config, &host(&[])), [], "security_driver = none, or a kernel with neither");
        assert_eq!(findings(&config, &host(&["smack"])), [], "nothing that Ferry knows");
        let found = findings(&config, &host(&["apparmor"]));
        let [one] = &found[..] else { panic!("{found:?}") };
        assert_eq!((one.id, one.severity), (FindingId::HostConfinement, Severity::Blocks));
        assert!(
            one.message.to_string().contains("AppArmor") && one.fix.to_string().contains("ferry-agent setup"),
            "{one:?}"
        );
        fs::write(&config.qemu_conf, "security_default_confined = 0\n").expect("written");
        assert_eq!(findings(&config, &host(&["apparmor"]))[0].severity, Severity::Warns);
        apparmor::write(&config).expect("written");
        assert_eq!(findings(&config, &host(&["apparmor"])), []);
        assert!(findings(&config, &host(&["selinux"]))[0].message.to_string().contains("SELinux"));
    }

    #[test]
    fn what_qemu_conf_says_of_vms_that_say_nothing_is_read() {
        for (conf, confined) in [
            ("", true),
            ("#security_default_confined = 0\n", true),
            ("security_default_confined = 1\n", true),
            ("security_default_confined=0 # test host\n", false),
            ("security_default_confined = 0\nsecurity_default_confined = 1\n", true),
        ] {
            assert_eq!(confines_by_default(conf), confined, "{conf:?}");
        }
    }
}
