//! NFS exports: mounted by the kernel, with the newest version that the server supports.

use std::{
    fs, io,
    net::{TcpStream, ToSocketAddrs as _},
    path::Path,
    process::Command,
    time::Duration,
};

use ferry_core::{place::Space, share_source::NfsExport};
use nix::mount::MntFlags;

use super::{
    ShareError, ShareFacts,
    calls::{MOUNT_WAIT, all_mounts, ask_space, host, mount_at, must, unmount},
    error::NFS_PORT,
    mounts,
};
use crate::run::within;

/// Time limit for the server to accept a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Time limit for resolving the server's name and connecting to one of its addresses.
const PROBE_WAIT: Duration = Duration::from_secs(10);
/// Mount options. `mount.nfs` begins with version 4.2 and falls back to an older one if the server requires that.
/// `hard`: guests wait while the server is down. `lookupcache=positive`: new files of other hosts are visible at once.
/// `retry=0`: a server that does not answer is reported at once; the caller tries again.
const OPTIONS: &str = "hard,nosuid,nodev,proto=tcp,lookupcache=positive,retry=0";

/// Checks that the server accepts a connection. Only the mount itself shows what the server exports to this host.
pub fn probe(nfs: &NfsExport) -> Result<ShareFacts, ShareError> {
    let name = nfs.server().to_owned();
    let reached = within(PROBE_WAIT, move || connect(&name));
    match reached.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())) {
        Ok(()) => Ok(ShareFacts { dialect: None, space: None }),
        Err(error) => Err(ShareError::Unreachable { share: nfs.into(), reason: error.to_string() }),
    }
}

fn connect(server: &str) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (server, NFS_PORT).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_WAIT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub fn attach(nfs: &NfsExport, mountpoint: &Path) -> Result<(), ShareError> {
    if let Some(mount) = mount_at(mountpoint)? {
        if let Err(reason) = mounts::shows_export(&mount, mountpoint, nfs) {
            return Err(ShareError::Mount { share: nfs.into(), at: mountpoint.to_owned(), reason });
        }
        return answers(nfs, mountpoint);
    }
    probe(nfs)?;
    if !["/sbin/mount.nfs", "/usr/sbin/mount.nfs"].iter().any(|path| Path::new(path).exists()) {
        let what = "mount NFS: mount.nfs is missing (package nfs-common or nfs-utils)".to_owned();
        return Err(host(what)(io::ErrorKind::NotFound.into()));
    }
    fs::create_dir_all(mountpoint).map_err(host(format!("make the directory {}", mountpoint.display())))?;
    let mut mount = Command::new("mount");
    mount.args(["-t", "nfs", "-o", OPTIONS]).arg(format!("{}:{}", nfs.server(), nfs.export())).arg(mountpoint);
    let mounted = must(&mut mount, MOUNT_WAIT, nfs, mountpoint).and_then(|()| answers(nfs, mountpoint));
    if mounted.is_err() {
        // A mount that succeeded after its time limit, or that does not answer.
        unmount(mountpoint, MntFlags::MNT_DETACH, nfs)?;
    }
    mounted
}

pub fn detach(nfs: &NfsExport, mountpoint: &Path) -> Result<(), ShareError> {
    if let Some(mount) = mount_at(mountpoint)? {
        if let Err(reason) = mounts::shows_export(&mount, mountpoint, nfs) {
            return Err(ShareError::Mount { share: nfs.into(), at: mountpoint.to_owned(), reason });
        }
        unmount(mountpoint, MntFlags::empty(), nfs)?;
    }
    // Kept if it is no longer empty.
    let _ = fs::remove_dir(mountpoint);
    Ok(())
}

pub fn check(nfs: &NfsExport, path: &Path) -> Result<(), ShareError> {
    shown(nfs, path)?;
    answers(nfs, path)
}

pub fn space(nfs: &NfsExport, path: &Path) -> Option<Space> {
    // Something else is mounted there.
    shown(nfs, path).ok()?;
    ask_space(path, nfs).ok()?
}

fn shown(nfs: &NfsExport, path: &Path) -> Result<(), ShareError> {
    let not_a_mount = |found: String| ShareError::NotAMount { share: nfs.into(), at: path.to_owned(), found };
    let all = all_mounts()?;
    let mount = mounts::holding(&all, path).ok_or_else(|| not_a_mount("it is no absolute path".to_owned()))?;
    mounts::shows_export(mount, path, nfs).map_err(not_a_mount)
}

/// Checks that the server answers a query for its file system, which works even where root may not read.
fn answers(nfs: &NfsExport, path: &Path) -> Result<(), ShareError> {
    ask_space(path, nfs).map(|_| ())
}
