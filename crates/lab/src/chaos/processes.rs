//! The lab's processes, found by their namespaces.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::stage::Stage;
use crate::host::{Host, libvirt_daemon};

/// How long a process of a move, that is, a carrier or a receiving QEMU, may take to appear.
pub(super) const APPEAR_DEADLINE: Duration = Duration::from_secs(3);
/// Interval between two checks for it.
pub(super) const POLL_EVERY: Duration = Duration::from_millis(10);

/// A process of the lab, with the machine's process id.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// Its command line.
    pub(super) words: Vec<String>,
}

impl Process {
    fn is(&self, program: &str) -> bool {
        self.words.first().is_some_and(|word| Path::new(word).file_name().is_some_and(|name| name == program))
    }

    fn has(&self, word: impl Fn(&str) -> bool) -> bool {
        self.words.iter().any(|one| word(one))
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended already.
        let _ = kill(Pid::from_raw(self.pid), signal);
    }
}

/// Whether a guest has a QEMU on a host.
pub fn has_qemu(host: &Host, guest: &str) -> bool {
    processes(host.init).iter().any(|process| is_qemu(process, guest))
}

/// A guest's vCPU, as a thread of its QEMU.
pub struct Processor {
    task: PathBuf,
    ran_ns: u64,
    idle_since: Instant,
}

impl Processor {
    /// Finds it; `None` if the guest has no QEMU on the host.
    pub fn find(host: &Host, guest: &str) -> Option<Self> {
        let qemu = processes(host.init).into_iter().find(|process| is_qemu(process, guest))?;
        let tasks = fs::read_dir(format!("/proc/{}/task", qemu.pid)).ok()?.flatten().map(|entry| entry.path());
        let is_processor =
            |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("CPU 0/"));
        let task = tasks.into_iter().find(is_processor)?;
        Some(Self { task, ran_ns: 0, idle_since: Instant::now() })
    }

    /// How long it has not run although nothing prevented it; `None` if it is gone. A ticker's vCPU wakes up every few
    /// milliseconds unless QEMU has stopped it.
    pub fn idle_for(&mut self) -> Option<Duration> {
        let text = fs::read_to_string(self.task.join("schedstat")).ok()?;
        let ran_ns = text.split(' ').next()?.parse().ok()?;
        let stat = fs::read_to_string(self.task.join("stat")).ok()?;
        let waits_for_its_turn = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'));
        if ran_ns != self.ran_ns || waits_for_its_turn {
            (self.ran_ns, self.idle_since) = (ran_ns, Instant::now());
        }
        Some(self.idle_since.elapsed())
    }
}

/// Kills a guest's QEMU on a host; returns whether there was one.
pub fn kill_qemu(host: &Host, guest: &str) -> bool {
    kill_now(host, |process| is_qemu(process, guest)) > 0
}

/// Stops the server permanently: it keeps its connections and answers nothing.
pub fn stop_server(stage: &Stage) -> anyhow::Result<()> {
    server(stage).map(|server| server.signal(Signal::SIGSTOP))
}

/// Calls `work` while the server is stopped.
pub fn without_server<T>(stage: &Stage, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let server = server(stage)?;
    server.signal(Signal::SIGSTOP);
    let done = work();
    server.signal(Signal::SIGCONT);
    done
}

pub(super) fn server(stage: &Stage) -> anyhow::Result<Process> {
    let mut servers = in_network(&stage.ferry.lab.namespace(), |comm| comm == "ferry-server")?;
    anyhow::ensure!(servers.len() == 1, "{} servers run in the fabric", servers.len());
    Ok(servers.remove(0))
}

pub(super) fn is_agent(process: &Process) -> bool {
    process.is("ferry-agent") && process.words.get(1).is_some_and(|word| word == "run")
}

pub(super) fn is_libvirtd(process: &Process) -> bool {
    process.is(libvirt_daemon())
}

pub(super) fn is_qemu(process: &Process, guest: &str) -> bool {
    let name = format!("guest={guest},");
    process.is("qemu-system-x86_64") && process.has(|word| word.starts_with(&name))
}

pub(super) fn carries(process: &Process, job: Option<u64>) -> bool {
    let page = job.map(|job| format!("/{job}.json"));
    process.is("ferry-agent")
        && process.words.get(1).is_some_and(|word| word == "carry")
        && page.is_some_and(|page| process.has(|word| word.ends_with(&page)))
}

pub(super) fn kill_now(host: &Host, is: impl Fn(&Process) -> bool) -> usize {
    let found: Vec<Process> = processes(host.init).into_iter().filter(is).collect();
    found.iter().for_each(|process| process.signal(Signal::SIGKILL));
    found.len()
}

/// As [`kill_now`], for processes that may not have appeared yet.
pub(super) fn kill_soon(host: &Host, is: impl Fn(&Process) -> bool) -> usize {
    let until = Instant::now() + APPEAR_DEADLINE;
    loop {
        let count = kill_now(host, &is);
        if count > 0 || Instant::now() > until {
            return count;
        }
        std::thread::sleep(POLL_EVERY);
    }
}

/// The processes of a host, by its PID namespace. Empty if the host is dead.
pub(super) fn processes(init: i32) -> Vec<Process> {
    let Ok(namespace) = fs::read_link(format!("/proc/{init}/ns/pid")) else { return Vec::new() };
    let is_ours = |pid: &i32| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|other| other == namespace);
    all_pids().filter(is_ours).filter_map(process).collect()
}

/// Processes in those network namespaces of the lab whose short name satisfies `is`.
pub(super) fn in_network(name: &str, is: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Process>> {
    use std::os::unix::fs::MetadataExt as _;
    let path = format!("/run/netns/{name}");
    let number = fs::metadata(&path).with_context(|| format!("There is no {path}"))?.ino();
    let link = format!("net:[{number}]");
    let is_ours = |pid: &i32| {
        let same = fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|other| other.as_os_str() == link.as_str());
        same && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| is(comm.trim()))
    };
    Ok(all_pids().filter(is_ours).filter_map(process).collect())
}

fn all_pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// `None` for a process that has ended, even if it was not reaped yet.
fn process(pid: i32) -> Option<Process> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|line| !line.is_empty())?;
    let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    Some(Process { pid, words })
}
