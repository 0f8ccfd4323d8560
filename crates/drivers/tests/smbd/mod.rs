//! A Samba server in network and mount namespaces of its own, for tests of several crates.
#![allow(dead_code)]

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ferry_core::api::agent::ShareCredentials;

/// Set in the process that runs inside the namespaces.
const INSIDE: &str = "FERRY_SHARE_TEST_INSIDE";
/// Contains quotes and spaces, to test the syntax of all programs.
const PASSWORD: &str = "a\"b\\c'd #x=y";

/// Runs the test named `name` again inside namespaces of its own. Returns whether this process is the inner one.
pub fn is_inside(name: &str) -> bool {
    enter(["--exact", name, "--nocapture"].map(str::to_owned))
}

/// Runs this program again, with these arguments, inside namespaces of its own. Returns whether this process is the inner
/// one.
pub fn enter(arguments: impl IntoIterator<Item = String>) -> bool {
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
        .args(arguments)
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
pub struct Samba {
    directory: PathBuf,
    process: Option<Child>,
}

impl Samba {
    /// Starts it, with this line about its protocols.
    pub fn new(directory: &Path, protocol: &str) -> Self {
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

    /// Starts it again.
    pub fn start(&mut self) {
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
    pub fn stop(&mut self) {
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

/// Waits for a condition, with a deadline.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        thread::yield_now();
    }
}

/// Of the user who may use its shares.
pub fn credentials() -> ShareCredentials {
    ShareCredentials { user: "root".into(), password: PASSWORD.into() }
}
