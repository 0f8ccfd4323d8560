//! Credentials in the formats of the SMB programs, in files that only root can read.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use ferry_core::{api::agent::ShareCredentials, unc::UncPath};

use crate::share::ShareError;

/// A file with a secret, removed when it is dropped.
#[derive(Debug)]
pub struct SecretFile(PathBuf);

impl SecretFile {
    /// A new file in `directory`, mode 0600.
    pub fn create(directory: &Path, text: &str) -> io::Result<Self> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("secret-{}-{serial}", std::process::id()));
        Self::write(&path, text)?;
        Ok(Self(path))
    }

    /// Writes a file that stays, with mode 0600 from its creation.
    pub fn write(path: &Path, text: &str) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// For `smbclient -A`.
    pub fn for_smbclient(user: &SplitUser<'_>) -> String {
        let domain = user.domain.map(|domain| format!("domain = {domain}\n")).unwrap_or_default();
        format!("username = {}\npassword = {}\n{domain}", user.name, user.password)
    }

    /// For `mount -o credentials=`.
    pub fn for_mount_cifs(user: &SplitUser<'_>) -> String {
        let domain = user.domain.map(|domain| format!("domain={domain}\n")).unwrap_or_default();
        format!("username={}\npassword={}\n{domain}", user.name, user.password)
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Credentials with `DOMAIN\user` split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitUser<'a> {
    /// The domain, if one was given.
    pub domain: Option<&'a str>,
    /// The user's name in that domain.
    pub name: &'a str,
    /// The password.
    pub password: &'a str,
}

impl<'a> SplitUser<'a> {
    /// Splits credentials.
    pub fn of(credentials: &'a ShareCredentials) -> Self {
        let (domain, name) = match credentials.user.split_once('\\') {
            Some((domain, name)) => (Some(domain), name),
            None => (None, credentials.user.as_str()),
        };
        Self { domain, name, password: &credentials.password }
    }
}

/// Refuses credentials that these file formats cannot represent: a line break would become another option.
pub fn check(unc: &UncPath, credentials: &ShareCredentials) -> Result<(), ShareError> {
    let refuse = |reason: &str| {
        let (share, user) = (unc.into(), credentials.user.clone());
        Err(ShareError::Password { share, user, reason: reason.to_owned() })
    };
    let SplitUser { name, password, .. } = SplitUser::of(credentials);
    if name.is_empty() {
        return refuse("the user's name is empty");
    }
    if credentials.user.contains(char::is_control) || password.contains(char::is_control) {
        return refuse("user and password must not hold control characters");
    }
    if password.trim() != password || credentials.user.trim() != credentials.user {
        return refuse("user and password must not begin or end with a space");
    }
    Ok(())
}

/// The text of an `smbnetfs.auth`.
pub fn smbnetfs_auth(unc: &UncPath, credentials: &ShareCredentials) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let SplitUser { domain, name, password } = SplitUser::of(credentials);
    let user = domain.map(|domain| format!("{domain}/{name}")).unwrap_or_else(|| name.to_owned());
    let share = format!("{}/{}", unc.server(), unc.share());
    format!("auth {} {} {}\n", quoted(&share), quoted(&user), quoted(password))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn credentials(user: &str, password: &str) -> ShareCredentials {
        ShareCredentials { user: user.into(), password: password.into() }
    }

    #[test]
    fn a_secret_file_is_for_root_alone_and_goes_away() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = SecretFile::create(directory.path(), "x").expect("written");
        let path = file.path().to_owned();
        assert_eq!(path.metadata().expect("there").permissions().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_domain_user_is_taken_apart_for_each_program() {
        let given = credentials("CORP\\ann", "p\"q\\r");
        let unc: UncPath = "\\\\fs.x.org\\vms".parse().expect("well formed");
        let user = SplitUser::of(&given);
        assert_eq!(SecretFile::for_smbclient(&user), "username = ann\npassword = p\"q\\r\ndomain = CORP\n");
        assert_eq!(SecretFile::for_mount_cifs(&user), "username=ann\npassword=p\"q\\r\ndomain=CORP\n");
        assert_eq!(smbnetfs_auth(&unc, &given), "auth \"fs.x.org/vms\" \"CORP/ann\" \"p\\\"q\\\\r\"\n");
    }

    #[test]
    fn credentials_that_would_become_options_are_refused() {
        let unc: UncPath = "\\\\fs.x.org\\vms".parse().expect("well formed");
        for (user, password) in [("a\nb", "x"), ("a", "x\nusername=root"), ("", "x"), ("D\\", "x"), ("a", " x")] {
            let result = check(&unc, &credentials(user, password));
            assert!(matches!(result, Err(ShareError::Password { .. })), "{user:?} {password:?}");
        }
        assert!(check(&unc, &credentials("D\\a", "p w")).is_ok());
    }
}
