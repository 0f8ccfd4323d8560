//! Shares that are paths, tested with the kernel: a tmpfs that is mounted at two places, in a mount namespace of its
//! own.
//!
//! Needs root and `unshare`; if they are missing, reports that and stops.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use ferry_core::share_source::ShareSource;
use ferry_drivers::share::{ShareDriver as _, ShareError, conformance, host::HostShares};

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "FERRY_PATH_TEST_INSIDE";

/// Runs the test named `name` again inside a namespace of its own. Returns whether this process is the inner one.
fn is_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: needs root");
        return false;
    }
    let status = Command::new("unshare")
        .args(["--mount", "--"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare runs");
    assert!(status.success(), "the inner run failed");
    false
}

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).status().expect("the program starts");
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

#[test]
fn paths_are_kept_as_every_share_driver_keeps_them() {
    if !is_inside("paths_are_kept_as_every_share_driver_keeps_them") {
        return;
    }
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let at = |name: &str| directory.path().join(name);
    for name in ["shared", "a", "b"] {
        std::fs::create_dir(at(name)).expect("made");
    }

    run("mount", &[Path::new("-t"), Path::new("tmpfs"), Path::new("vms"), &at("shared")]);
    let driver = HostShares::new(at("work"));
    conformance::run_paths(&conformance::PathSite {
        driver: &driver,
        share: "/mnt/vms".parse().expect("a path"),
        paths: [at("a"), at("b")],
        mount: &|path| run("mount", &[Path::new("--bind"), &at("shared"), path]),
        mount_other: &|path| {
            std::fs::create_dir_all(at("shared/inner")).expect("made");
            run("mount", &[Path::new("--bind"), &at("shared/inner"), path]);
        },
        unmount: &|path| run("umount", &[path]),
    });
    run("umount", &[&at("shared")]);
}

#[test]
fn a_directory_of_the_root_file_system_a_file_and_a_link_are_not_adopted() {
    if !is_inside("a_directory_of_the_root_file_system_a_file_and_a_link_are_not_adopted") {
        return;
    }
    let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("mount")).expect("made");
    run("mount", &[Path::new("-t"), Path::new("tmpfs"), Path::new("vms"), &at("mount")]);
    std::fs::create_dir(at("mount/dir")).expect("made");
    std::fs::write(at("mount/file"), "x").expect("written");
    std::os::unix::fs::symlink("mount", at("link")).expect("a link");
    let driver = HostShares::new(at("work"));
    let share: ShareSource = "/mnt/vms".parse().expect("a path");
    driver.adopt(&share, &at("mount/dir")).expect("a directory inside of what is mounted");
    for (path, word) in [
        ("/".into(), "root file system"),
        ("/usr".into(), "root file system"),
        (at("mount/file"), "not a directory"),
        (at("link/dir"), "its own name is"),
    ] {
        match driver.adopt(&share, &path) {
            Err(ShareError::NotAMount { found, .. }) => assert!(found.contains(word), "{}: {found}", path.display()),
            other => panic!("{}: {other:?}", path.display()),
        }
    }
    run("umount", &[&at("mount")]);
}
