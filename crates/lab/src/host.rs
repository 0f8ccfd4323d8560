//! One host: its own network, mount, UTS, IPC and PID namespaces, with libvirtd and QEMU in them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::wait::{WaitStatus, wait};
use uuid::Uuid;

use crate::{
    fabric::{FABRIC_IP, Fabric, NETWORK, SECOND_BRIDGE, SECOND_NETWORK},
    local,
    run::{DEADLINE, ProgramOutput, checked, run, run_within, wait_for},
};

/// Variable with a folder that contains the daemons of a modular libvirt, which hosts then run instead of libvirtd.
/// Debian has no such packages; the daemons must have the version of the machine's libvirt, whose library and drivers
/// they load.
pub(crate) const MODULAR: &str = "FERRY_LAB_MODULAR_LIBVIRT";
/// Settings of libvirt's clients for a modular libvirt: by default, Debian's library looks only for libvirtd.
pub(crate) const MODULAR_CLIENT_CONF: &str = "remote_mode = \"direct\"\nuri_default = \"qemu:///system\"\n";
/// The daemons besides the one that serves QEMU.
const QEMU_COMPANIONS: [&str; 5] = ["virtnetworkd", "virtstoraged", "virtsecretd", "virtnwfilterd", "virtnodedevd"];

/// The name of the daemon process that serves QEMU on a host.
pub fn libvirt_daemon() -> &'static str {
    if std::env::var_os(MODULAR).is_some() { "virtqemud" } else { "libvirtd" }
}

/// The file that [`Host::fill`] creates.
const FILLER: &str = "/var/lib/libvirt/images/filler";
/// How long libvirtd may take to answer.
const LIBVIRT_DEADLINE: Duration = Duration::from_secs(30);
/// When libvirt is told to end, it gives calls in progress 30 s (its `virnetdaemon.c`).
const LIBVIRT_ENDS_WITHIN: Duration = Duration::from_secs(45);

/// A host that exists as long as its lab.
pub struct Host {
    /// kvm1, kvm2, …
    pub name: String,
    /// Its address.
    pub ip: String,
    /// The machine's process id of its first process.
    pub init: i32,
    /// Its private files.
    pub folder: PathBuf,
    /// The folder in which its agent mounts shares; a different one on each host.
    pub share_root: PathBuf,
    /// Its port in the fabric.
    pub port: String,
    pub(crate) namespace: String,
}

/// A command inside the host whose first process is `init`.
pub(crate) fn enter(init: i32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &init.to_string(), "-m", "-u", "-i", "-n", "-p", "--"]);
    command
}

impl Host {
    pub(crate) fn up(fabric: &Fabric, index: usize, local_mib: u32) -> anyhow::Result<Self> {
        let name = format!("kvm{index}");
        let (namespace, port) = (format!("fl{}h{index}", fabric.id), format!("h{index}"));
        let folder = fabric.folder.join(&name);
        let ip = format!("{NETWORK}.{index}");
        fabric.note_namespace(&namespace)?;
        run("ip", &["netns", "add", &namespace])?;
        let bridge = fabric.namespace();
        run("ip", &["-n", &bridge, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        run("ip", &["-n", &bridge, "link", "set", &port, "master", "br0", "up"])?;
        for line in [
            "link set lo up".to_owned(),
            // Without an address of its own, a bridge takes the lowest of its ports' addresses, possibly a guest's: it
            // would then be the same on both hosts while the guest moves.
            format!("link add br0 address 02:77:00:00:00:{index:02x} type bridge forward_delay 0"),
            "link set eth0 master br0 up".to_owned(),
            format!("addr add {ip}/24 dev br0"),
            "link set br0 up".to_owned(),
        ] {
            let mut command = Command::new("ip");
            command.args(["-n", &namespace]).args(line.split(' '));
            checked(command, DEADLINE)?;
        }
        make_files(&folder, &name)?;
        local::make(&folder, local_mib)?;
        let init = start_init(fabric, &namespace, &folder, &name)?;
        let share_root = PathBuf::from(format!("/run/shares-of-{name}"));
        Ok(Self { name, ip, init, folder, share_root, port, namespace })
    }

    /// Restarts the host's first process after it was killed, as a machine boots: files on its disks are kept, and
    /// `/run` is empty. In a lab, Ferry's own state and settings are below `/run` as well; they are kept. Returns the
    /// process.
    pub(crate) fn boot_again(&self, fabric: &Fabric) -> anyhow::Result<i32> {
        let kept = ["ferry-agent", "ferry-etc"];
        for entry in fs::read_dir(self.folder.join("run"))? {
            let entry = entry?;
            if kept.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            let removed = if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())
            } else {
                fs::remove_file(entry.path())
            };
            removed.with_context(|| format!("Could not remove {}", entry.path().display()))?;
        }
        fs::create_dir_all(self.folder.join("run/libvirt"))?;
        // Its disk stays mounted until the last process of its namespace has ended.
        local::wait_detached(&self.folder)?;
        start_init(fabric, &self.namespace, &self.folder, &self.name)
    }

    /// A command inside the host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = enter(self.init);
        command.arg(program);
        command
    }

    /// Runs a command inside the host; it must succeed.
    ///
    /// # Errors
    /// Its output.
    pub fn run(&self, line: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(line[0]);
        command.args(&line[1..]);
        checked(command, DEADLINE)
    }

    /// Runs a command inside the host; it may fail.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn try_run(&self, line: &[&str]) -> anyhow::Result<ProgramOutput> {
        let mut command = self.command(line[0]);
        command.args(&line[1..]);
        run_within(command, Duration::from_secs(120))
    }

    /// Runs virsh inside the host.
    ///
    /// # Errors
    /// Its output.
    pub fn virsh(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut line = vec!["virsh", "-q", "-c", "qemu:///system"];
        line.extend(arguments);
        self.run(&line)
    }

    /// The path, in the machine's view, of a host's file; only for paths below `/run`.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.folder.join(inside.trim_start_matches('/'))
    }

    /// Starts virtlogd and libvirtd and waits until they answer.
    ///
    /// # Errors
    /// They do not.
    pub fn start_libvirt(&self) -> anyhow::Result<()> {
        let daemon = libvirt_daemon();
        for folder in ["/run", "/run/libvirt"] {
            let _ = fs::remove_file(self.path(&format!("{folder}/{daemon}.pid")));
        }
        // They keep running when the daemon that serves QEMU is restarted.
        self.start_once("virtlogd", None)?;
        match std::env::var(MODULAR) {
            Ok(folder) => {
                QEMU_COMPANIONS.iter().try_for_each(|program| self.start_once(program, Some(&folder)))?;
                self.start_once(daemon, Some(&folder))?;
            }
            // It also listens for other hosts, as plain `virsh migrate` needs: only the firewall blocks them.
            Err(_) => drop(self.run(&[daemon, "-d", "-l"])?),
        }
        wait_for(&format!("libvirtd on {} answers", self.name), LIBVIRT_DEADLINE, || {
            self.try_run(&["virsh", "-c", "qemu:///system", "list"]).ok().filter(ProgramOutput::ok)
        })?;
        Ok(())
    }

    /// Starts a libvirt daemon, from this folder or the machine's own, if it does not run.
    fn start_once(&self, daemon: &str, folder: Option<&str>) -> anyhow::Result<()> {
        if self.try_run(&["pgrep", "-x", daemon])?.ok() {
            return Ok(());
        }
        let path = format!("PATH={}/usr/sbin:/usr/bin", folder.map(|folder| format!("{folder}:")).unwrap_or_default());
        self.run(&["env", &path, daemon, "-d"]).map(drop)
    }

    /// Ends libvirtd, as its unit would; QEMU keeps running.
    ///
    /// # Errors
    /// It does not end.
    pub fn end_libvirt(&self) -> anyhow::Result<()> {
        wait_for(&format!("libvirtd on {} has ended", self.name), LIBVIRT_ENDS_WITHIN, || {
            // Repeatedly, because a daemon that is still starting forgets the signal.
            let _ = self.try_run(&["pkill", "-x", libvirt_daemon()]);
            self.pids(&format!("{} -d", libvirt_daemon())).is_empty().then_some(())
        })
    }

    /// Allows only the agents' ports between hosts; `open` removes the firewall.
    ///
    /// # Errors
    /// The kernel does not accept the rules.
    pub fn set_firewall(&self, open: bool) -> anyhow::Result<()> {
        let rules = if open {
            "flush ruleset\n".to_owned()
        } else {
            format!(
                "flush ruleset\ntable inet lab {{\n chain input {{\n  type filter hook input priority 0; policy drop;\n  \
                 iif lo accept\n  ct state established,related accept\n  ip saddr {FABRIC_IP} accept\n  \
                 ip protocol icmp accept\n  tcp dport {{ 7421, 7430-7493 }} accept\n }}\n}}\n"
            )
        };
        let file = self.folder.join("run/firewall.nft");
        fs::write(&file, rules)?;
        self.run(&["nft", "-f", "/run/firewall.nft"]).map(drop)
    }

    /// Limits the rate at which the host sends; `None` removes the limit.
    ///
    /// # Errors
    /// The kernel does not accept it.
    pub fn set_link_rate(&self, rate: Option<&str>) -> anyhow::Result<()> {
        let _ = self.try_run(&["tc", "qdisc", "del", "dev", "eth0", "root"])?;
        if let Some(rate) = rate {
            self.run(&[
                "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "128k", "latency", "50ms",
            ])?;
        }
        Ok(())
    }

    /// Connects the host to the lab's second network by its interface `eth1`, and returns its address there.
    ///
    /// # Errors
    /// The kernel does not accept it.
    pub fn join_second(&self, fabric: &Fabric) -> anyhow::Result<String> {
        let (bridge, port) = (fabric.namespace(), format!("{}s", self.port));
        let peer = ["type", "veth", "peer", "name", "eth1", "netns", &self.namespace];
        run("ip", &[&["-n", &bridge, "link", "add", &port][..], &peer].concat())?;
        run("ip", &["-n", &bridge, "link", "set", &port, "master", SECOND_BRIDGE, "up"])?;
        let ip = self.ip.replacen(NETWORK, SECOND_NETWORK, 1);
        run("ip", &["-n", &self.namespace, "addr", "add", &format!("{ip}/24"), "dev", "eth1"])?;
        run("ip", &["-n", &self.namespace, "link", "set", "eth1", "up"])?;
        Ok(ip)
    }

    /// Bytes that an interface of the host has sent since it was created.
    ///
    /// # Errors
    /// It has no such interface.
    pub fn sent_bytes(&self, interface: &str) -> anyhow::Result<u64> {
        let statistics = self.run(&["ip", "-s", "-j", "link", "show", "dev", interface])?;
        let statistics: serde_json::Value = serde_json::from_str(&statistics)?;
        statistics[0]["stats64"]["tx"]["bytes"].as_u64().context("It is not counted")
    }

    /// Disconnects the host from the network, or reconnects it.
    ///
    /// # Errors
    /// The kernel does not accept it.
    pub fn set_link(&self, up: bool) -> anyhow::Result<()> {
        let state = if up { "up" } else { "down" };
        run("ip", &["-n", &self.namespace, "link", "set", "eth0", state]).map(drop)
    }

    /// Process ids of a program, inside the host.
    pub fn pids(&self, name: &str) -> Vec<i32> {
        let found = self.try_run(&["pgrep", "-f", name]).map(|output| output.out).unwrap_or_default();
        found.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    /// The path, in the machine's view, of any file of the host, including its own disk and its mounts.
    pub fn file(&self, inside: &str) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root").join(inside.trim_start_matches('/'))
    }

    /// Fills the host's own disk until `bytes_left` are free, or shrinks the filler.
    ///
    /// # Errors
    /// Less is free even without the filler, or the file system refuses.
    pub fn fill(&self, bytes_left: u64) -> anyhow::Result<()> {
        self.unfill()?;
        let output = self.run(&["stat", "-f", "-c", "%a %S", local::FOLDER])?;
        let numbers: Vec<u64> = output.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let free = numbers.iter().product::<u64>();
        ensure!(numbers.len() == 2 && free > bytes_left, "{} has {output} free, not {bytes_left} bytes", self.name);
        self.run(&["fallocate", "-l", &(free - bytes_left).to_string(), FILLER]).map(drop)
    }

    /// Removes the filler.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn unfill(&self) -> anyhow::Result<()> {
        self.run(&["rm", "-f", FILLER]).map(drop)
    }
}

/// Starts the first process of a host, and waits until its mounts are complete.
fn start_init(fabric: &Fabric, namespace: &str, folder: &Path, name: &str) -> anyhow::Result<i32> {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace, "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork"])
        .args(["--kill-child", "--mount-proc"])
        .arg(fabric.program("ferry-lab"))
        .arg("init")
        .arg(folder)
        .arg(name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // A separate file: otherwise a host that is kept would hold the caller's pipe open.
        .stderr(fs::File::create(folder.with_extension("host"))?);
    let child = command.spawn().context("Could not start a host")?;
    // `ip netns exec` becomes unshare, whose only child is the host's first process.
    let outer = child.id();
    let init = wait_for("a host's first process", DEADLINE, || {
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
        children.split_whitespace().next()?.parse::<i32>().ok()
    })?;
    fabric.note_process(init)?;
    // Nothing waits for it: the guardian ends it, and the machine's init (or the end of this process) reaps it.
    std::thread::spawn(move || {
        let mut child = child;
        let _ = child.wait();
    });
    wait_for("a host is ready", DEADLINE, || folder.join("run/ready").exists().then_some(()))?;
    Ok(init)
}

/// The private files that a host's first process mounts over the machine's.
fn make_files(folder: &Path, name: &str) -> anyhow::Result<()> {
    for part in
        ["run/libvirt", "var-lib-libvirt/qemu", "var-log-libvirt/qemu", "var-cache-libvirt", "etc-libvirt/hooks"]
    {
        fs::create_dir_all(folder.join(part))?;
    }
    run("cp", &["-a", "/etc/libvirt/.", &folder.join("etc-libvirt").display().to_string()])?;
    let id = Uuid::new_v4();
    fs::write(folder.join("machine-id"), format!("{}\n", id.simple()))?;
    fs::write(folder.join("hostname"), format!("{name}\n"))?;
    let hosts: String = (1..=20).map(|index| format!("{NETWORK}.{index} kvm{index}.ferry.lab kvm{index}\n")).collect();
    let servers = "10.77.0.254 fs1.ferry.lab\n10.77.0.253 fs2.ferry.lab\n10.77.0.252 old.ferry.lab\n";
    fs::write(folder.join("hosts"), format!("127.0.0.1 localhost\n{hosts}{servers}"))?;
    let of_all = format!(
        "host_uuid = \"{id}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nlog_level = 3\nlog_outputs = \"3:file:/var/log/libvirt/libvirtd.log\"\n"
    );
    fs::write(
        folder.join("etc-libvirt/libvirtd.conf"),
        format!("{of_all}listen_tls = 0\nlisten_tcp = 1\nauth_tcp = \"none\"\n"),
    )?;
    if std::env::var_os(MODULAR).is_some() {
        for daemon in QEMU_COMPANIONS.iter().chain(&[libvirt_daemon()]) {
            fs::write(folder.join(format!("etc-libvirt/{daemon}.conf")), &of_all)?;
        }
        fs::write(folder.join("etc-libvirt/libvirt.conf"), MODULAR_CLIENT_CONF)?;
    }
    // As the user of the package: as root, real permission errors would not show.
    fs::write(
        folder.join("etc-libvirt/qemu.conf"),
        "security_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\nremember_owner = 0\n",
    )?;
    // Networks that libvirt would start automatically are not needed here.
    let _ = fs::remove_dir_all(folder.join("etc-libvirt/qemu/networks/autostart"));
    Ok(())
}

/// Devices that libvirt, QEMU and FUSE open.
const DEVICES: [&str; 10] =
    ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fuse", "net/tun", "loop-control"];

/// A `/dev` without `kvm`: if it exists but cannot run a guest, libvirt starts every QEMU again to probe it, at each
/// migration, which takes longer than the migration itself.
fn mount_devices(folder: &Path) -> anyhow::Result<()> {
    let devices = folder.join("dev");
    let path = |name: &str| devices.join(name).display().to_string();
    fs::create_dir_all(&devices)?;
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", &path("")])?;
    for name in ["net", "pts", "shm"] {
        fs::create_dir(devices.join(name))?;
    }
    for name in DEVICES.iter().filter(|name| Path::new("/dev").join(name).exists()) {
        run("cp", &["-a", &format!("/dev/{name}"), &path(name)])?;
    }
    for (link, place) in [("/proc/self/fd", "fd"), ("/proc/self/fd/1", "stdout"), ("/proc/self/fd/2", "stderr")] {
        std::os::unix::fs::symlink(link, devices.join(place))?;
    }
    run("mount", &["--bind", "/dev/pts", &path("pts")])?;
    run("mount", &["-t", "tmpfs", "-o", "mode=1777", "tmpfs", &path("shm")])?;
    run("mount", &["--rbind", &path(""), "/dev"]).map(drop)
}

/// Runs as the first process of a host: mounts, reports that it is ready, and reaps. If it is killed, all others end.
///
/// # Errors
/// What could not be mounted.
pub fn init(folder: &Path, name: &str) -> anyhow::Result<()> {
    nix::unistd::sethostname(name)?;
    ensure!(std::process::id() == 1, "This must be the first process of a namespace");
    let owner = |path: &str, user: &str| {
        // Owned like the machine's folders, so that QEMU may write in them.
        let _ = run("chown", &["-R", "--reference", user, path]);
    };
    owner(&folder.join("var-lib-libvirt/qemu").display().to_string(), "/var/lib/libvirt/qemu");
    for (source, place) in [
        ("var-lib-libvirt", "/var/lib/libvirt"),
        ("var-log-libvirt", "/var/log/libvirt"),
        ("var-cache-libvirt", "/var/cache/libvirt"),
        ("etc-libvirt", "/etc/libvirt"),
        ("hosts", "/etc/hosts"),
        ("hostname", "/etc/hostname"),
        ("machine-id", "/etc/machine-id"),
        ("run", "/run"),
    ] {
        run("mount", &["--bind", &folder.join(source).display().to_string(), place])?;
    }
    // Before the host's own devices, which do not include loop devices.
    local::mount(folder)?;
    mount_devices(folder)?;
    fs::write("/run/ready", "")?;
    loop {
        match wait() {
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECHILD) => {
                // Nothing to reap now; waiting for SIGCHLD would be cleaner, but polling is cheap.
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(_) | Err(_) => {}
        }
    }
}
