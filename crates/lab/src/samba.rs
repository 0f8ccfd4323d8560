//! A real Samba server in the fabric.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    fabric::{FABRIC_IP, Fabric},
    run::{DEADLINE, checked, wait, wait_for},
};

/// The user that logs in.
pub const USER: &str = "root";
/// The user's password.
pub const PASSWORD: &str = "a password with blanks";

/// A file server that offers the share `vms`.
pub struct FileServer {
    /// Its fully qualified name.
    pub name: String,
    /// The share's backing folder.
    pub share: PathBuf,
    folder: PathBuf,
}

impl FileServer {
    pub(crate) fn start(fabric: &Fabric, name: &str, address: &str, options: &str) -> anyhow::Result<Self> {
        let folder = fabric.folder.join(format!("samba-{name}"));
        let (share, state) = (folder.join("vms"), folder.join("state"));
        fs::create_dir_all(&share)?;
        fs::create_dir_all(&state)?;
        if address != FABRIC_IP {
            let mut command = Command::new("ip");
            command.args(["-n", &fabric.namespace(), "addr", "add", &format!("{address}/24"), "dev", "br0"]);
            checked(command, DEADLINE)?;
        }
        let state_text = state.display();
        let protocol = if options.is_empty() { "server min protocol = SMB3_00\n" } else { options };
        let text = format!(
            "[global]\n{protocol}interfaces = {address}/24\nbind interfaces only = yes\nsmb ports = 445\n\
             private dir = {state_text}\nlock directory = {state_text}\nstate directory = {state_text}\n\
             cache directory = {state_text}\npid directory = {state_text}\nlog file = {state_text}/log\n\
             ncalrpc dir = {state_text}/ncalrpc\nserver role = standalone server\nmap to guest = never\n\
             load printers = no\ndisable spoolss = yes\n\
             [vms]\npath = {}\nread only = no\nforce user = root\nstrict allocate = no\n",
            share.display()
        );
        let conf = folder.join("smb.conf");
        fs::write(&conf, text)?;
        let server = Self { name: format!("{name}.ferry.lab"), share, folder };
        server.set_password(PASSWORD)?;
        server.start_daemon(fabric)?;
        Ok(server)
    }

    /// Sets the password of [`USER`], required for logins from now on.
    ///
    /// # Errors
    /// Samba does not accept it.
    pub fn set_password(&self, password: &str) -> anyhow::Result<()> {
        let mut child = Command::new("smbpasswd")
            .arg("-c")
            .arg(self.folder.join("smb.conf"))
            .args(["-a", "-s", USER])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("Could not run smbpasswd")?;
        if let Some(mut pipe) = child.stdin.take() {
            std::io::Write::write_all(&mut pipe, format!("{password}\n{password}\n").as_bytes())?;
        }
        anyhow::ensure!(wait(&mut child, DEADLINE)? == Some(0), "smbpasswd failed");
        Ok(())
    }

    /// Starts or restarts smbd, and waits until it answers.
    ///
    /// # Errors
    /// It does not.
    pub fn start_daemon(&self, fabric: &Fabric) -> anyhow::Result<()> {
        // Left behind by an smbd that was killed.
        let _ = fs::remove_file(self.folder.join("state/smbd.pid"));
        let mut command = fabric.in_fabric("smbd");
        command.arg("-D").arg("-s").arg(self.folder.join("smb.conf"));
        checked(command, DEADLINE)?;
        wait_for("smbd answers", Duration::from_secs(20), || self.pid().filter(|pid| *pid > 1)).map(drop)
    }

    /// Kills smbd with all its children, as a power failure does. Ok if it does not run. [`Self::start_daemon`] starts
    /// it again with the same port and folder.
    ///
    /// # Errors
    /// One of its processes does not end.
    pub fn stop(&self) -> anyhow::Result<()> {
        let Some(first) = self.pid().filter(|pid| *pid > 1) else { return Ok(()) };
        let all = with_children(first);
        for pid in &all {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        wait_for("smbd ends", DEADLINE, || (!all.iter().any(|pid| runs(*pid))).then_some(()))
    }

    /// smbd's process id.
    pub fn pid(&self) -> Option<i32> {
        fs::read_to_string(self.folder.join("state/smbd.pid")).ok()?.trim().parse().ok()
    }

    /// The UNC path of the share.
    pub fn unc(&self) -> String {
        format!("\\\\{}\\vms", self.name)
    }
}

/// A process, its children, and theirs. Kill the first one first, so that it starts no more.
fn with_children(first: i32) -> Vec<i32> {
    let mut all = vec![first];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        next += 1;
    }
    all
}

/// Whether a process exists and has not ended.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
