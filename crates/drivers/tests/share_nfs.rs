//! NFS shares against the kernel's own server and client, which this machine must have. The tests export directories
//! and stop the machine's NFS server, so they run only on request (`--ignored`): as root, with nfs-kernel-server and
//! nfs-common.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ferry_core::{finding::FindingId, id::ShareId, share_source::ShareSource};
use ferry_drivers::{
    places::{QemuUser, ShareRoot},
    share::{ShareDriver, conformance, host::HostShares},
};
use uuid::Uuid;

/// The name of this machine as a server.
const SERVER: &str = "nfs1.ferry.test";
/// Files belong to the user that creates them, also root.
const ROOT_IS_ROOT: &str = "rw,sync,no_subtree_check,no_root_squash";
/// The default of NFS servers.
const ROOT_IS_NOBODY: &str = "rw,sync,no_subtree_check,root_squash";

/// The machine has only one NFS server, so tests use it one after the other.
static SERVER_IS_TAKEN: Mutex<()> = Mutex::new(());

/// The right to use the machine's NFS server.
fn taken() -> MutexGuard<'static, ()> {
    assert!(nix::unistd::geteuid().is_root(), "only root mounts and exports");
    SERVER_IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).status().expect("the program starts");
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 60 s");
        thread::yield_now();
    }
}

/// The machine's NFS server with directories `vms` and `other`.
struct Server {
    top: PathBuf,
    /// Options of `rpc.nfsd`.
    versions: &'static [&'static str],
}

impl Server {
    fn new(top: &Path, versions: &'static [&'static str]) -> Self {
        let hosts = fs::read_to_string("/etc/hosts").expect("readable");
        if !hosts.contains(SERVER) {
            fs::write("/etc/hosts", format!("{hosts}127.0.0.1 {SERVER}\n")).expect("written");
        }
        run("systemctl", &["start", "nfs-server"]);
        let server = Self { top: top.to_owned(), versions };
        for name in ["vms", "other"] {
            fs::create_dir_all(top.join(name)).expect("made");
            server.export(name, ROOT_IS_ROOT);
        }
        server.set_up(false);
        server.set_up(true);
        server
    }

    fn export(&self, name: &str, options: &str) {
        run("exportfs", &["-i", "-o", options, &format!("127.0.0.1:{}", self.top.join(name).display())]);
    }

    fn share(&self, name: &str) -> ShareSource {
        format!("nfs://{SERVER}{}", self.top.join(name).display()).parse().expect("well formed")
    }

    fn set_up(&self, is_up: bool) {
        let answers = || TcpStream::connect((Ipv4Addr::LOCALHOST, 2049)).is_ok();
        if is_up {
            // Clients may reclaim their locks for ten seconds instead of ninety.
            run("rpc.nfsd", &[self.versions, &["-G", "10", "-L", "10", "4"]].concat());
            wait_until("the NFS server listens", answers);
        } else {
            run("rpc.nfsd", &["0"]);
            wait_until("the NFS server is gone", || !answers());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for name in ["vms", "other"] {
            let _ =
                Command::new("exportfs").args(["-u", &format!("127.0.0.1:{}", self.top.join(name).display())]).status();
        }
    }
}

/// The NFS versions of the mounts below a directory.
fn versions(below: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let lines = text.lines().filter(|line| line.contains(&below.display().to_string()));
    lines.filter_map(|line| Some(line.split_once(",vers=")?.1.split(',').next()?.to_owned())).collect()
}

fn keeps(versions: &'static [&'static str]) {
    let directory = tempfile::tempdir_in("/srv").expect("a directory");
    let server = Server::new(&directory.path().join("export"), versions);
    let mounts = directory.path().join("mounts");
    fs::create_dir(&mounts).expect("made");
    conformance::run(&conformance::Site {
        first: &HostShares::new(directory.path().join("work/first")),
        second: &HostShares::new(directory.path().join("work/second")),
        share: server.share("vms"),
        credentials: None,
        directory: mounts.clone(),
        set_up: &|is_up| server.set_up(is_up),
    });
    assert_eq!(self::versions(&mounts), Vec::<String>::new(), "nothing stays mounted");
}

#[test]
#[ignore = "stops the NFS server of the machine: stock hosts have one"]
fn nfs_is_kept_as_every_share_driver_keeps_it() {
    let _taken = taken();
    keeps(&[]);
}

#[test]
#[ignore = "stops the NFS server of the machine: stock hosts have one"]
fn nfs_of_a_server_that_speaks_version_3_alone_is_kept_too() {
    let _taken = taken();
    keeps(&["-N", "4"]);
}

#[test]
#[ignore = "stops the NFS server of the machine: stock hosts have one"]
fn the_newest_version_is_taken_and_a_server_that_takes_root_for_nobody_is_found_out() {
    let _taken = taken();
    let directory = tempfile::tempdir_in("/srv").expect("a directory");
    let at = directory.path().join("mount");
    let driver = HostShares::new(directory.path().join("work"));
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    for (options, version) in [(&[] as &[&str], "4.2"), (&["-N", "4"], "3")] {
        let server = Server::new(&directory.path().join("export"), options);
        let source = server.share("vms");
        let top = ShareRoot { id: ShareId(Uuid::from_u128(1)), source: source.clone(), mount: at.clone() };
        for (export, can_write) in [(ROOT_IS_NOBODY, false), (ROOT_IS_ROOT, true)] {
            server.export("vms", export);
            driver.attach(&source, None, &at).expect("attached");
            assert_eq!(versions(&at), [version]);
            let checked = top.check_writable(QemuUser::of_conf(""));
            assert_eq!(checked.is_ok(), can_write, "{version} {export}: {checked:?}");
            if let Err(error) = checked {
                assert_eq!(error.finding().id, FindingId::PlaceNotWritable, "{error}");
            }
            driver.detach(&source, &at).expect("detached");
        }
    }
}
