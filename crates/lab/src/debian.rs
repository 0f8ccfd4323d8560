//! The *debian* guest: a real userland on its own disk, built once from Debian's packages and kept in the cache.
//!
//! The ticker's initramfs mounts the disk and hands over to systemd, which starts the ticker again as a service. So a
//! whole system boots from the moving disk, and the guest still reports whether a move kept its promises.

use std::{fs, os::unix::fs::symlink, path::Path, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, ensure};

use crate::{cache, run::checked};

/// A file on the guest's root file system, which the ticker writes and verifies instead of the whole disk.
pub const DATA_FILE: &str = "/var/lib/ticker.data";
/// Packages besides Debian's base system: interpreters and a server, as in real guests.
const PACKAGES: &str = "systemd-sysv,python3,perl,nginx-light,procps,iproute2,less,ca-certificates";
/// Its virtual size.
const SIZE: &str = "4G";
/// Its name in the cache.
const DISK: &str = "disk.raw";
/// Increased when the build below changes, so that a cached disk is built again.
const RECIPE: u32 = 1;
/// Starts the ticker from the place where its initramfs put it.
const UNIT: &str = "[Unit]\nDescription=Tells whether a move kept its promises\n\n[Service]\nExecStart=/run/ticker\n\
                    StandardOutput=tty\nTTYPath=/dev/console\n\n[Install]\nWantedBy=multi-user.target\n";
const BUILD_WITHIN: Duration = Duration::from_secs(900);

/// The image, built if it does not exist.
///
/// # Errors
/// It cannot be built. Building needs Debian's mirror once.
pub fn image() -> anyhow::Result<PathBuf> {
    let release = cache::release()?;
    let recipe = format!("{RECIPE} {release} {SIZE} {PACKAGES}\n{UNIT}");
    let is_whole = |place: &Path| place.join(DISK).is_file();
    let place = cache::kept("debian", "the disk of the Debian guest", &recipe, is_whole, |work| build(work, &release))?;
    Ok(place.join(DISK))
}

/// Creates `disk.raw` in `work`.
fn build(work: &Path, release: &str) -> anyhow::Result<()> {
    let (root, disk) = (work.join("root"), work.join(DISK));
    // In a mount namespace of its own, so that mounts of the packages' scripts disappear with it in any case.
    let mut command = Command::new("unshare");
    command.args(["--mount", "debootstrap", "--variant=minbase", &format!("--include={PACKAGES}"), release]);
    command.arg(&root).arg(cache::mirror()?);
    checked(command, BUILD_WITHIN)?;
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        ensure!(!line.contains(&*root.to_string_lossy()), "Something is still mounted: {line}");
    }
    fs::write(root.join("etc/hostname"), "debian\n")?;
    fs::write(root.join("etc/fstab"), "/dev/vda / ext4 defaults,noatime 0 0\n")?;
    let units = root.join("etc/systemd/system");
    fs::write(units.join("ticker.service"), UNIT)?;
    symlink("../ticker.service", units.join("multi-user.target.wants/ticker.service"))?;
    // Services that would wait for devices or networks that the guest does not have.
    for unit in ["systemd-networkd-wait-online.service", "getty@tty1.service", "serial-getty@ttyS0.service"] {
        symlink("/dev/null", units.join(unit)).with_context(|| format!("Could not mask {unit}"))?;
    }
    for entry in fs::read_dir(root.join("var/cache/apt/archives"))?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            fs::remove_file(entry.path())?;
        }
    }
    let options = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0";
    let (root_text, disk_text) = (root.display().to_string(), disk.display().to_string());
    let line = ["-q", "-t", "ext4", "-m", "0", "-E", options, "-d", &root_text, &disk_text, SIZE];
    let mut command = Command::new("mke2fs");
    command.args(line);
    checked(command, BUILD_WITHIN)?;
    fs::remove_dir_all(&root)?;
    Ok(())
}
