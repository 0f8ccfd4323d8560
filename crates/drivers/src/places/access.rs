//! Whether QEMU can use a directory: tested through the kernel, as QEMU's user.

use std::{io, os::unix::fs::fchown, process::Command, time::Duration};

use nix::unistd::{Uid, User, geteuid};
use uuid::Uuid;

use super::directory::{Directory, RootsError};
use crate::{busy::retry_busy, run::run};

/// How long the kernel may take to answer.
const ASK_WAIT: Duration = Duration::from_secs(5);

/// The user that libvirt runs QEMU as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuUser(User);

impl QemuUser {
    /// The user that libvirt's `qemu.conf` names, otherwise the distribution's default; `None` if neither exists on
    /// this host.
    pub fn of_conf(conf: &str) -> Option<Self> {
        match conf.lines().find_map(user_setting) {
            Some(setting) => by_setting(setting),
            None => qemu_user(),
        }
        .map(Self)
    }
}

/// The user that libvirt runs QEMU as, by the distributions' default names.
pub(crate) fn qemu_user() -> Option<User> {
    ["libvirt-qemu", "qemu"].iter().find_map(|name| User::from_name(name).ok().flatten())
}

/// Parses `user = "NAME"`; comments are not settings.
fn user_setting(line: &str) -> Option<&str> {
    let value = line.trim_start().strip_prefix("user")?.trim_start().strip_prefix('=')?.trim_start();
    value.strip_prefix('"')?.split_once('"').map(|(user, _)| user)
}

/// libvirt accepts a name, otherwise a number; `+` marks a number.
fn by_setting(setting: &str) -> Option<User> {
    let by_number = |text: &str| User::from_uid(Uid::from_raw(text.parse().ok()?)).ok().flatten();
    match setting.strip_prefix('+') {
        Some(number) => by_number(number),
        None => User::from_name(setting).ok().flatten().or_else(|| by_number(setting)),
    }
}

/// Creates a file, gives it to the user, tests whether that user can write it by its path, and removes it. Nothing is
/// left.
///
/// # Errors
/// [`RootsError::NotWritable`].
pub(super) fn check(directory: &Directory, user: Option<&QemuUser>) -> Result<(), RootsError> {
    let name = format!(".ferry-probe-{}", Uuid::new_v4());
    let file = directory.create_file(&name)?;
    let asked = user.filter(|user| geteuid().is_root() && !user.0.uid.is_root()).map_or(Ok(()), |QemuUser(user)| {
        // Shares may handle owners in their own way; only whether the file can be written counts.
        let _ = fchown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw()));
        ask(directory, &name, user)
    });
    drop(file);
    remove(directory, &name)?;
    asked
}

/// In a process of that user, so that groups, access lists and every directory on the path count.
fn ask(directory: &Directory, name: &str, user: &User) -> Result<(), RootsError> {
    let refused = |reason: String| RootsError::NotWritable { path: directory.written().to_owned(), reason };
    let mut test = Command::new("setpriv");
    test.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid)).arg("--init-groups");
    test.args(["--", "test", "-w"]).arg(directory.path().join(name)).current_dir("/");
    let outcome = run(&mut test, ASK_WAIT).map_err(|error| refused(format!("setpriv could not be run ({error})")))?;
    if outcome.is_ok() {
        return Ok(());
    }
    let output = outcome.output.trim();
    let output = if output.is_empty() { String::new() } else { format!(" ({output})") };
    Err(refused(format!("user {}, as which QEMU runs, cannot write files there{output}", user.name)))
}

fn remove(directory: &Directory, name: &str) -> Result<(), RootsError> {
    match retry_busy(|| Ok(directory.remove_file(name)?)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RootsError::NotWritable {
            path: directory.written().to_owned(),
            reason: format!("file {name} was made and could not be removed ({error})"),
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_qemu_is_read_from_libvirts_settings() {
        for (line, user) in [
            ("user = \"qemu\"", Some("qemu")),
            ("  user=\"+107\" # why", Some("+107")),
            ("#user = \"root\"", None),
            ("user_x = \"root\"", None),
            ("users = \"root\"", None),
            ("user = root", None),
        ] {
            assert_eq!(user_setting(line), user, "{line}");
        }
        let name = |conf: &str| QemuUser::of_conf(conf).map(|user| user.0.name);
        assert_eq!(name("group = \"x\"\nuser = \"root\"\n").as_deref(), Some("root"));
        assert_eq!(name("user = \"+0\"").as_deref(), Some("root"));
        assert_eq!(name("user = \"0\"").as_deref(), Some("root"));
        assert_eq!(name("user = \"no such user\""), None);
    }
}
