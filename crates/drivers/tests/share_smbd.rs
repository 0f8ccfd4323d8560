//! The SMB driver against a real Samba server, in network and mount namespaces of its own.
//!
//! Needs root, `smbd`, `smbclient` and `smbnetfs` (or the kernel's cifs); if they are missing, reports that and stops.

use std::{
    cell::RefCell,
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::ShareCredentials,
    finding::FindingId,
    id::{HostId, ShareId},
    location::Location,
    place::EntryKind,
    share_source::ShareSource,
    units::ByteCount,
};
use ferry_drivers::{
    places::{QemuUser, Roots, ShareRoot},
    share::{ShareDriver, ShareError, conformance, host::HostShares},
};
use uuid::Uuid;

/// Set in the process that runs inside the namespaces.
const INSIDE: &str = "FERRY_SHARE_TEST_INSIDE";
/// Contains quotes and spaces, to test the syntax of all programs.
const PASSWORD: &str = "a\"b\\c'd #x=y";

/// Runs the test named `name` again inside namespaces of its own. Returns whether this process is the inner one.
fn is_inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let programs = ["smbd", "smbclient", "smbpasswd", "unshare", "ip"];
    let missing: Vec<_> = programs.into_iter().filter(|program| !is_installed(program)).collect();
    if !missing.is_empty() || !nix::unistd::geteuid().is_root() {
        eprintln!("not run: needs root and the programs {missing:?}");
        return false;
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare runs");
    assert!(status.success(), "the inner run failed");
    false
}

fn is_installed(program: &str) -> bool {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|directory| Path::new(directory).join(program).exists())
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).status().expect("the program starts");
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// A Samba server on this namespace's loopback.
struct Samba {
    directory: PathBuf,
    process: Option<Child>,
}

impl Samba {
    fn new(directory: &Path, protocol: &str) -> Self {
        run("ip", &["link", "set", "lo", "up"]);
        let hosts = directory.join("hosts");
        fs::write(&hosts, "127.0.0.1 localhost fs1.ferry.test\n").expect("written");
        run("mount", &["--bind", &hosts.to_string_lossy(), "/etc/hosts"]);
        for name in ["private", "lock", "state", "cache", "pid", "data", "other"] {
            fs::create_dir_all(directory.join(name)).expect("made");
        }
        let root = directory.display();
        let text = format!(
            "[global]\nworkgroup = FERRY\nserver role = standalone server\n{protocol}\nsmb ports = 445\n\
             interfaces = 127.0.0.1/8\nbind interfaces only = yes\nprivate dir = {root}/private\n\
             lock directory = {root}/lock\nstate directory = {root}/state\ncache directory = {root}/cache\n\
             pid directory = {root}/pid\nncalrpc dir = {root}/ncalrpc\nlog file = {root}/log.smbd\n\
             load printers = no\ndisable spoolss = yes\n\
             [vms]\npath = {root}/data\nread only = no\n[other]\npath = {root}/other\nread only = no\n"
        );
        let config = directory.join("smb.conf");
        fs::write(&config, text).expect("written");
        let mut smbpasswd = Command::new("smbpasswd")
            .arg("-c")
            .arg(&config)
            .args(["-a", "-s", "root"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("smbpasswd starts");
        let lines = format!("{PASSWORD}\n{PASSWORD}\n");
        std::io::Write::write_all(&mut smbpasswd.stdin.take().expect("piped"), lines.as_bytes()).expect("taken");
        assert!(smbpasswd.wait().expect("ends").success());
        let mut samba = Self { directory: directory.to_owned(), process: None };
        samba.start();
        samba
    }

    fn start(&mut self) {
        let child = Command::new("setsid")
            .args(["smbd", "--foreground", "--no-process-group", "-s"])
            .arg(self.directory.join("smb.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("smbd starts");
        self.process = Some(child);
        wait_until("smbd listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, 445)).is_ok());
    }

    /// Ends the server, and with it the connections that it serves.
    fn stop(&mut self) {
        let mut child = self.process.take().expect("it runs");
        child.kill().expect("it was not reaped");
        child.wait().expect("reaped");
        // Its children serve the connections; every smbd in this PID namespace is ours.
        for entry in fs::read_dir("/proc").expect("mounted").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            if fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.starts_with("smbd")) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        wait_until("smbd is gone", || TcpStream::connect((Ipv4Addr::LOCALHOST, 445)).is_err());
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        thread::yield_now();
    }
}

fn unc(share: &str) -> ShareSource {
    format!("\\\\fs1.ferry.test\\{share}").parse().expect("well formed")
}

fn credentials() -> ShareCredentials {
    ShareCredentials { user: "root".into(), password: PASSWORD.into() }
}

#[test]
fn the_smb_driver_keeps_what_every_share_driver_keeps() {
    if !is_inside("the_smb_driver_keeps_what_every_share_driver_keeps") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let samba = RefCell::new(Samba::new(directory.path(), "server min protocol = SMB3_00"));
    let mounts = directory.path().join("mounts");
    fs::create_dir(&mounts).expect("made");
    conformance::run(&conformance::Site {
        first: &HostShares::new(directory.path().join("work/first")),
        second: &HostShares::new(directory.path().join("work/second")),
        share: unc("vms"),
        credentials: Some(credentials()),
        directory: mounts,
        set_up: &|is_up| if is_up { samba.borrow_mut().start() } else { samba.borrow_mut().stop() },
    });
    samba.borrow_mut().stop();
    let left: Vec<String> = fs::read_to_string("/proc/self/mountinfo")
        .expect("readable")
        .lines()
        .filter(|line| line.contains("smbnetfs") || line.contains(" cifs "))
        .map(str::to_owned)
        .collect();
    assert_eq!(left, Vec::<String>::new(), "nothing stays mounted");
}

#[test]
fn directories_on_a_share_are_listed_checked_and_kept_inside() {
    if !is_inside("directories_on_a_share_are_listed_checked_and_kept_inside") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut samba = Samba::new(directory.path(), "server min protocol = SMB3_00");
    let driver = HostShares::new(directory.path().join("work"));
    let at = directory.path().join("mount");
    driver.attach(&unc("vms"), Some(&credentials()), &at).expect("attached");
    fs::create_dir(at.join("dir")).expect("made");
    fs::write(at.join("dir/disk.raw"), [7; 5000]).expect("written");
    let (host, share) = (HostId(Uuid::from_u128(1)), ShareId(Uuid::from_u128(2)));
    let roots = Roots::new(host, Vec::new(), vec![ShareRoot { id: share, source: unc("vms"), mount: at.clone() }]);
    let on_share = |path: &str| Location::Share { share, path: path.into() };
    let listing = roots.list(&on_share("dir")).expect("listed");
    let seen: Vec<_> = listing.entries.iter().map(|entry| (entry.name.as_str(), entry.kind, entry.size)).collect();
    assert_eq!(seen, [("disk.raw", EntryKind::File, Some(ByteCount(5000)))]);
    roots.check_writable(&on_share("dir"), QemuUser::of_conf("user = \"nobody\"")).expect("QEMU's user may write");
    assert_eq!(fs::read_dir(directory.path().join("data/dir")).expect("read").count(), 1, "nothing stays of the check");
    for (path, id) in [
        ("../other", FindingId::PlaceOutside),
        ("nothing", FindingId::PlaceMissing),
        ("dir/disk.raw", FindingId::PlaceNotADirectory),
    ] {
        assert_eq!(roots.list(&on_share(path)).expect_err(path).finding().id, id, "{path}");
    }
    driver.detach(&unc("vms"), &at).expect("detached");
    samba.stop();
}

#[test]
fn a_server_that_speaks_only_smb_2_is_refused() {
    if !is_inside("a_server_that_speaks_only_smb_2_is_refused") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut samba = Samba::new(directory.path(), "server max protocol = SMB2_10");
    let driver = HostShares::new(directory.path().join("work"));
    let at = directory.path().join("mount");
    for result in [
        driver.probe(&unc("vms"), Some(&credentials())).map(|_| ()),
        driver.attach(&unc("vms"), Some(&credentials()), &at),
    ] {
        assert!(matches!(result, Err(ShareError::Dialect { .. })), "{result:?}");
    }
    samba.stop();
}

#[test]
fn a_mount_whose_process_died_is_told_and_replaced() {
    if !is_inside("a_mount_whose_process_died_is_told_and_replaced") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut samba = Samba::new(directory.path(), "server min protocol = SMB3_00");
    let driver = HostShares::new(directory.path().join("work"));
    let at = directory.path().join("mount");
    driver.attach(&unc("vms"), Some(&credentials()), &at).expect("attached");
    fs::write(at.join("file"), "x").expect("written");
    let mut killed = 0;
    for entry in fs::read_dir("/proc").expect("mounted").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        if fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "smbnetfs") {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            killed += 1;
        }
    }
    if killed == 0 {
        eprintln!("not run: the kernel mounts the share itself");
    } else {
        wait_until("the dead mount is told", || driver.check(&unc("vms"), &at).is_err());
        driver.attach(&unc("vms"), Some(&credentials()), &at).expect("attached again");
        assert_eq!(fs::read_to_string(at.join("file")).expect("read"), "x");
    }
    driver.detach(&unc("vms"), &at).expect("detached");
    samba.stop();
}
