//! SMB shares: probed by `smbclient`, mounted by the kernel's cifs client where available, otherwise by smbnetfs.
//!
//! ```text
//! cifs:      //server/share ── mount ─▶ MOUNTPOINT
//! smbnetfs:  one process per share ── FUSE ─▶ WORK/KEY/tree ── bind of tree/SERVER/SHARE ─▶ MOUNTPOINT
//! ```
//! Passwords are passed in files in a directory that only root can read, never on a command line or in the environment.

mod client;
pub mod files;
mod password;
mod publish;

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use ferry_core::{api::agent::ShareCredentials, place::Space, unc::UncPath};
use nix::{errno::Errno, mount::MntFlags};

use self::password::{SecretFile, SplitUser};
use super::{
    ShareError, ShareFacts,
    calls::{EXAMINE_WAIT, MOUNT_WAIT, all_mounts, ask_space, examine, host, mount_at, must, unmount},
    mounts,
};
use crate::{
    places::qemu_user,
    run::{run, within},
};

/// Time limit for a login. smbclient itself gives up on a silent server after about 10 s.
const PROBE_WAIT: Duration = Duration::from_secs(20);

/// SMB shares of this host.
#[derive(Debug)]
pub struct SmbShares {
    work_dir: PathBuf,
}

impl SmbShares {
    /// Keeps credentials and helper mounts in `work_dir`, which only root can enter. After a restart, pass the same
    /// directory to find the mounts again.
    pub fn new(work_dir: impl Into<PathBuf>) -> Self {
        Self { work_dir: work_dir.into() }
    }

    /// The driver's directory for one mount point.
    fn mount_dir(&self, mountpoint: &Path) -> PathBuf {
        let key = mountpoint.to_string_lossy().trim_matches('/').replace('%', "%25").replace('/', "%2F");
        self.work_dir.join(key)
    }

    fn private_dir(&self, directory: &Path) -> Result<(), ShareError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(host(format!("make the directory {}", directory.display())))
    }

    fn mount_by_kernel(
        &self,
        unc: &UncPath,
        credentials: &ShareCredentials,
        mountpoint: &Path,
        facts: &ShareFacts,
    ) -> Result<(), ShareError> {
        let file = self.password_file(credentials, SecretFile::for_mount_cifs)?;
        let version = match facts.dialect.as_deref() {
            Some("3.0.2") => "3.02",
            other => other.unwrap_or("3"),
        };
        // `nobrl` keeps QEMU's locks local to the host. As locks of the server they would be mandatory, and a VM could
        // not take them after a hand-over.
        let mut options = format!("vers={version},hard,nobrl,nosuid,nodev,credentials={}", file.path().display());
        if let Some(user) = qemu_user() {
            // cifs shows all files as owned by one user, and QEMU must be able to write them.
            options.push_str(&format!(",uid={},gid={},file_mode=0660,dir_mode=0770", user.uid, user.gid));
        }
        let mut mount = Command::new("mount");
        mount.args(["-t", "cifs", "-o", &options]).arg(format!("//{}/{}", unc.server(), unc.share())).arg(mountpoint);
        must(&mut mount, MOUNT_WAIT, unc, mountpoint)
    }

    fn mount_by_smbnetfs(
        &self,
        unc: &UncPath,
        credentials: &ShareCredentials,
        mountpoint: &Path,
    ) -> Result<(), ShareError> {
        let directory = self.mount_dir(mountpoint);
        let tree = directory.join("tree");
        // A tree without its bind mount is left over from an interrupted attach.
        unmount(&tree, MntFlags::MNT_DETACH, unc)?;
        let home = directory.join("home");
        self.private_dir(&tree)?;
        self.private_dir(&home.join(".smb"))?;
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            SecretFile::write(&path, text).map_err(host(format!("write {}", path.display())))
        };
        write("home/.smb/smb.conf", "[global]\nclient min protocol = SMB3_00\nname resolve order = host\n")?;
        write(
            "smbnetfs.conf",
            "smb_query_browsers \"false\"\nuse_libsecret \"false\"\nshow_$_shares \"true\"\n\
             include \"smbnetfs.auth\"\ninclude \"smbnetfs.host\"\n",
        )?;
        write("smbnetfs.host", "")?;
        write("smbnetfs.auth", &password::smbnetfs_auth(unc, credentials))?;
        let mut smbnetfs = Command::new("smbnetfs");
        // A new file of another host must be visible, so missing names must not be cached (`neg_cache=false` would do
        // that, but it deadlocks smbnetfs 0.6).
        smbnetfs.arg(&tree).arg("-o").arg(format!(
            "neg_cache_timeout=1,allow_other,nosuid,nodev,config={},log_file={}",
            directory.join("smbnetfs.conf").display(),
            directory.join("smbnetfs.log").display(),
        ));
        smbnetfs.env("HOME", &home).current_dir("/");
        must(&mut smbnetfs, MOUNT_WAIT, unc, mountpoint)?;
        let content = tree.join(unc.server()).join(unc.share());
        let bound = examine(&content, unc, mountpoint).and_then(|()| {
            let mut bind = Command::new("mount");
            bind.arg("--bind").arg(&content).arg(mountpoint);
            must(&mut bind, MOUNT_WAIT, unc, mountpoint)
        });
        if bound.is_err() {
            unmount(&tree, MntFlags::MNT_DETACH, unc)?;
        }
        bound
    }

    fn password_file(
        &self,
        credentials: &ShareCredentials,
        text: fn(&SplitUser<'_>) -> String,
    ) -> Result<SecretFile, ShareError> {
        self.private_dir(&self.work_dir)?;
        SecretFile::create(&self.work_dir, &text(&SplitUser::of(credentials)))
            .map_err(host(format!("write a password file in {}", self.work_dir.display())))
    }

    /// Removes the rest of a mount: the helper mount of smbnetfs, its process and its password.
    fn forget(&self, unc: &UncPath, mountpoint: &Path) -> Result<(), ShareError> {
        let directory = self.mount_dir(mountpoint);
        unmount(&directory.join("tree"), MntFlags::MNT_DETACH, unc)?;
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(host(format!("remove {}", directory.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

/// The operations of [`super::ShareDriver`] for an SMB share.
impl SmbShares {
    pub(super) fn probe(&self, unc: &UncPath, credentials: &ShareCredentials) -> Result<ShareFacts, ShareError> {
        password::check(unc, credentials)?;
        let file = self.password_file(credentials, SecretFile::for_smbclient)?;
        let outcome = run(&mut client::command(unc, file.path()), PROBE_WAIT)
            .map_err(host("run smbclient (Debian package smbclient)".to_owned()))?;
        client::read(&outcome, unc, &credentials.user)
    }

    pub(super) fn attach(
        &self,
        unc: &UncPath,
        credentials: &ShareCredentials,
        mountpoint: &Path,
    ) -> Result<(), ShareError> {
        if let Some(mount) = mount_at(mountpoint)? {
            if let Err(found) = mounts::shows(&mount, mountpoint, unc) {
                return Err(ShareError::Mount { share: unc.into(), at: mountpoint.to_owned(), reason: found });
            }
            // Only a mount whose process is gone is replaced: on any other, a VM may have files open.
            if !is_orphaned(mountpoint) {
                return examine(mountpoint, unc, mountpoint);
            }
            unmount(mountpoint, MntFlags::MNT_DETACH, unc)?;
        }
        let facts = self.probe(unc, credentials)?;
        fs::create_dir_all(mountpoint).map_err(host(format!("make the directory {}", mountpoint.display())))?;
        if kernel_mounts_cifs() {
            self.mount_by_kernel(unc, credentials, mountpoint, &facts)?;
        } else {
            self.mount_by_smbnetfs(unc, credentials, mountpoint)?;
        }
        examine(mountpoint, unc, mountpoint)
    }

    pub(super) fn detach(&self, unc: &UncPath, mountpoint: &Path) -> Result<(), ShareError> {
        if let Some(mount) = mount_at(mountpoint)? {
            if let Err(found) = mounts::shows(&mount, mountpoint, unc) {
                return Err(ShareError::Mount { share: unc.into(), at: mountpoint.to_owned(), reason: found });
            }
            unmount(mountpoint, MntFlags::empty(), unc)?;
        }
        self.forget(unc, mountpoint)?;
        // Kept if it is no longer empty.
        let _ = fs::remove_dir(mountpoint);
        Ok(())
    }

    pub(super) fn check(&self, unc: &UncPath, path: &Path) -> Result<(), ShareError> {
        let not_a_mount = |found: String| ShareError::NotAMount { share: unc.into(), at: path.to_owned(), found };
        let all = all_mounts()?;
        let mount = mounts::holding(&all, path).ok_or_else(|| not_a_mount("it is no absolute path".to_owned()))?;
        mounts::shows(mount, path, unc).map_err(not_a_mount)?;
        examine(path, unc, path)
    }

    pub(super) fn space(&self, unc: &UncPath, credentials: Option<&ShareCredentials>, path: &Path) -> Option<Space> {
        let all = all_mounts().ok()?;
        let mount = mounts::holding(&all, path)?;
        // Something else is mounted there.
        mounts::shows(mount, path, unc).ok()?;
        if mount.kind != "fuse.smbnetfs" {
            return ask_space(path, unc).ok()?;
        }
        // smbnetfs reports zeroes; the file server knows.
        self.probe(unc, credentials?).ok()?.space
    }
}

/// Whether the process behind a FUSE mount is gone: the kernel reports that at once.
fn is_orphaned(path: &Path) -> bool {
    let path = path.to_owned();
    let seen = within(EXAMINE_WAIT, move || fs::metadata(path).err().and_then(|error| error.raw_os_error()));
    seen == Some(Some(Errno::ENOTCONN as i32))
}

/// Whether the kernel has the cifs client, and its mount helper is installed.
fn kernel_mounts_cifs() -> bool {
    kernel_has_cifs() && has_mount_cifs()
}

/// Whether the helper that `mount` needs for cifs is installed (Debian package cifs-utils).
pub fn has_mount_cifs() -> bool {
    ["/sbin/mount.cifs", "/usr/sbin/mount.cifs"].iter().any(|path| Path::new(path).exists())
}

/// Whether the kernel has the cifs client: loaded, or as a module that a mount would load.
pub fn kernel_has_cifs() -> bool {
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let release = text(Path::new("/proc/sys/kernel/osrelease"));
    let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    has_cifs(&text(Path::new("/proc/filesystems")), &text(&modules))
}

fn has_cifs(filesystems: &str, modules: &str) -> bool {
    let loaded = filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "cifs");
    // The module itself is before the colon, its dependencies after it; its file may be compressed.
    let of_itself = |line: &str| line.split(':').next().is_some_and(|module| module.contains("/cifs.ko"));
    loaded || modules.lines().any(of_itself)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_has_cifs_also_when_its_module_is_not_loaded() {
        let modules = "kernel/fs/smb/client/cifs.ko.xz: kernel/fs/smb/common/cifs_md4.ko.xz\n";
        assert!(has_cifs("nodev\tsysfs\n", modules));
        assert!(has_cifs("nodev\tcifs\n", ""));
        assert!(!has_cifs("nodev\tsysfs\n", "kernel/fs/smb/common/cifs_md4.ko.xz:\n"));
        assert!(!has_cifs("nodev\tsysfs\n", "kernel/x.ko: kernel/fs/smb/client/cifs.ko\n"));
    }
}
