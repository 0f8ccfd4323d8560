//! Ferry's programs in a lab: an agent on each host, the server and the command line in the fabric.

use std::{fs, path::PathBuf, process::Command, thread, time::Duration};

use anyhow::{Context as _, ensure};
use ferry_core::{
    api::server::{JobView, VmView},
    id::JobId,
};
use nix::sched::{CloneFlags, setns};
use serde::de::DeserializeOwned;

use crate::{
    fabric::FABRIC_IP,
    host::Host,
    lab::Lab,
    program::Program,
    run::{ProgramOutput, at_once, run_within, wait_for},
    samba::{FileServer, PASSWORD, USER},
    warnings::{AGENT_DIES, Warnings},
};

/// The path of an agent's configuration inside its host.
pub const AGENT_CONFIG: &str = "/run/ferry-etc/agent.toml";
/// Distinguishes the command line of an agent from that of a carrier.
const AGENT: &str = "ferry-agent run";
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Runs `work` in a thread whose sockets are in the fabric's network.
///
/// # Errors
/// Those of `work`; the namespace cannot be entered.
///
/// # Panics
/// If `work` does.
pub fn in_fabric<T: Send>(lab: &Lab, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let namespace = fs::File::open(format!("/run/netns/{}", lab.namespace()))?;
    thread::scope(|scope| {
        let entered = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        match scope.spawn(entered).join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// An agent on a host.
pub struct Agent {
    /// `ADDRESS:PORT` of its control API.
    pub address: String,
    /// The enrolment token that its setup printed.
    pub token: String,
    /// The running program.
    pub program: Program,
}

impl Agent {
    /// Sets up a host as an administrator does, starts libvirt, and runs the agent.
    ///
    /// # Errors
    /// What failed, with its output.
    pub fn start(lab: &Lab, host: &Host, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let address = format!("{}:7421", host.ip);
        fs::create_dir_all(host.path("/run/ferry-etc"))?;
        fs::write(
            host.path(AGENT_CONFIG),
            format!(
                "listen = \"{address}\"\ndata_address = \"{}\"\nstate_dir = \"/run/ferry-agent\"\nshare_root = \"{}\"\n",
                host.ip,
                host.share_root.display()
            ),
        )?;
        let program = lab.program("ferry-agent");
        let mut setup = host.command(&program);
        setup.args(["setup", "--config", AGENT_CONFIG]);
        let output = run_within(setup, READY_DEADLINE)?;
        ensure!(output.ok(), "ferry-agent setup failed: {}", output.err);
        let token = output.out.lines().last().context("ferry-agent setup printed no token")?.to_owned();
        host.start_libvirt()?;
        let program = Self::run(lab, host, environment)?;
        Ok(Self { address, token, program })
    }

    /// Runs the agent of a host that is set up.
    ///
    /// # Errors
    /// It does not listen in time.
    pub fn run(lab: &Lab, host: &Host, environment: &[(&str, &str)]) -> anyhow::Result<Program> {
        let mut command = host.command("env");
        command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(lab.program("ferry-agent")).args(["run", "--config", AGENT_CONFIG]);
        let log = lab.folder.join(format!("agent-{}.log", host.name));
        let before = fs::read_to_string(&log).unwrap_or_default().len();
        let program = Program::start(&format!("ferry-agent on {}", host.name), command, &log)?;
        wait_for(&format!("the agent of {} listens", host.name), READY_DEADLINE, || {
            fs::read_to_string(&log).ok()?.get(before..)?.contains("The control API listens").then_some(())
        })
        .with_context(|| program.output())?;
        Ok(program)
    }
}

/// A lab with Ferry in it.
pub struct Ferry {
    /// The agents, in the order of the hosts.
    pub agents: Vec<Agent>,
    /// The server.
    pub server: Program,
    /// The file server with share `vms`.
    pub files: FileServer,
    /// Expected warnings of these programs; dropped after they have ended.
    pub warnings: Warnings,
    /// The hosts; dropped last.
    pub lab: Lab,
}

impl Ferry {
    /// Waits until the inventory has a VM on this host, and on no other.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_listed(&self, vm: &str, host: &str) -> anyhow::Result<()> {
        wait_for(&format!("the inventory has {vm} on {host} alone"), READY_DEADLINE, || {
            let vms: Vec<VmView> = self.json(&["vm", "list"]).ok()?;
            let on: Vec<&str> =
                vms.iter().filter(|view| view.facts.name == vm).map(|view| view.host.as_str()).collect();
            (on == [host]).then_some(())
        })
    }

    /// Kills a host's agent with `kill -9`; carriers continue.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill_agent(&mut self, host: usize) -> anyhow::Result<()> {
        self.warnings.expect_all(AGENT_DIES);
        let on = &self.lab.hosts[host];
        for pid in on.pids(AGENT) {
            // It may have ended in the meantime.
            on.try_run(&["kill", "-9", &pid.to_string()])?;
        }
        wait_for(&format!("the agent of {} has ended", on.name), READY_DEADLINE, || {
            on.pids(AGENT).is_empty().then_some(())
        })?;
        self.agents[host].program.kill();
        Ok(())
    }

    /// Restarts a host's agent that was killed.
    ///
    /// # Errors
    /// It does not listen in time.
    pub fn start_agent(&mut self, host: usize, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        self.agents[host].program = Agent::run(&self.lab, &self.lab.hosts[host], environment)?;
        Ok(())
    }

    /// A lab of `hosts` with server and enrolled agents, the share `vms` attached on all hosts, and the firewall set.
    ///
    /// # Errors
    /// What failed, with its output.
    pub fn up(hosts: usize) -> anyhow::Result<Self> {
        let mut ferry = Self::up_bare(hosts, &[])?;
        ferry.enrol()?;
        ferry.add_share("vms")?;
        Ok(ferry)
    }

    /// A lab of `hosts` with server and agents that are not enrolled yet. The agents get the variables `environment`.
    ///
    /// # Errors
    /// What failed, with its output.
    pub fn up_bare(hosts: usize, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let lab = Lab::up(hosts)?;
        let files = lab.file_server("fs1", FABRIC_IP, "")?;
        // Hosts are independent of each other, and start at the same time.
        let started = at_once(&lab.hosts, |host| {
            host.set_firewall(false)?;
            let agent = Agent::start(&lab, host, environment)?;
            // libvirt probes QEMU's capabilities once, which takes a while: do that before the first move.
            host.run(&["virsh", "-q", "domcapabilities", "--virttype", "qemu", "--machine", "q35"])?;
            anyhow::Ok(agent)
        });
        let agents = started.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let server = start_server(&lab)?;
        Ok(Self { agents, server, files, warnings: Warnings::of(lab.folder.clone()), lab })
    }

    /// A lab without hosts, with the file server and Ferry's server, for hosts of another kind.
    ///
    /// # Errors
    /// What failed, with its output.
    pub fn up_empty() -> anyhow::Result<Self> {
        let lab = Lab::up_empty()?;
        let files = lab.file_server("fs1", FABRIC_IP, "")?;
        let server = start_server(&lab)?;
        Ok(Self { agents: Vec::new(), server, files, warnings: Warnings::of(lab.folder.clone()), lab })
    }

    /// Adds all hosts to the server.
    ///
    /// # Errors
    /// The command line's message.
    pub fn enrol(&mut self) -> anyhow::Result<()> {
        for (agent, host) in self.agents.iter().zip(&self.lab.hosts) {
            let output = self.ferry(&["host", "add", &agent.address, "--name", &host.name, "--token", &agent.token])?;
            ensure!(output.ok(), "ferry host add {}: {}", host.name, output.err);
        }
        Ok(())
    }

    /// Adds the file server's share, and attaches it on all hosts.
    ///
    /// # Errors
    /// The command line's message.
    pub fn add_share(&self, name: &str) -> anyhow::Result<()> {
        self.must(&["share", "add", name, &self.files.unc()])?;
        for host in &self.lab.hosts {
            self.attach(name, &host.name)?;
        }
        Ok(())
    }

    /// Attaches a share on a host.
    ///
    /// # Errors
    /// The command line's message.
    pub fn attach(&self, share: &str, host: &str) -> anyhow::Result<String> {
        let password = self.password_file(PASSWORD)?;
        self.must(&["share", "attach", share, "--host", host, "--user", USER, "--password-file", &password])
    }

    /// A file with a password, for the command line.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn password_file(&self, password: &str) -> anyhow::Result<String> {
        let path = self.lab.folder.join("password");
        fs::write(&path, password)?;
        Ok(path.display().to_string())
    }

    /// A command of Ferry's command line, in the fabric, with the server's address and pin.
    ///
    /// # Errors
    /// The server's pin cannot be read.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let state = server_state(&self.lab);
        let mut command = self.lab.in_fabric(self.lab.program("ferry"));
        command
            .args(arguments)
            .env("FERRY_SERVER", format!("https://{FABRIC_IP}:7420"))
            .env("FERRY_PIN", fs::read_to_string(state.join("server.pin"))?.trim())
            .env("FERRY_TOKEN_FILE", state.join("admin.token"));
        Ok(command)
    }

    /// Runs Ferry's command line; it may fail.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn ferry(&self, arguments: &[&str]) -> anyhow::Result<ProgramOutput> {
        run_within(self.command(arguments)?, Duration::from_secs(180))
    }

    /// Runs Ferry's command line, which must succeed.
    ///
    /// # Errors
    /// Its output.
    pub fn must(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.ferry(arguments)?;
        ensure!(
            output.ok(),
            "ferry {} ended with {:?}: {}{}",
            arguments.join(" "),
            output.code,
            output.out,
            output.err
        );
        Ok(output.out)
    }

    /// Runs Ferry's command line with `--json`, and parses the last line of its output.
    ///
    /// # Errors
    /// Its output.
    pub fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> anyhow::Result<T> {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let out = self.must(&all)?;
        parse_last(&out).with_context(|| format!("ferry {} said {out}", arguments.join(" ")))
    }

    /// The present state of a job.
    ///
    /// # Errors
    /// The command line's message.
    pub fn job(&self, id: JobId) -> anyhow::Result<JobView> {
        self.json(&["job", "show", &id.to_string()])
    }

    /// Waits until a job satisfies `is`.
    ///
    /// # Errors
    /// It does not in time, or it ended before: its state.
    pub fn wait_job(
        &self,
        id: JobId,
        what: &str,
        deadline: Duration,
        is: impl Fn(&JobView) -> bool,
    ) -> anyhow::Result<JobView> {
        let seen = wait_for(what, deadline, || self.job(id).ok().filter(|job| is(job) || job.phase.ended()));
        let seen = seen.with_context(|| format!("{:#?}", self.job(id)))?;
        ensure!(is(&seen), "{what}: it ended before: {seen:#?}");
        Ok(seen)
    }

    /// The path at which a host has mounted a share; definitions must use it.
    ///
    /// # Errors
    /// It is not mounted.
    pub fn mount_of(&self, host: &Host) -> anyhow::Result<PathBuf> {
        let table = fs::read_to_string(host.path("/run/ferry-agent/shares.json"))?;
        let shares: Vec<serde_json::Value> = serde_json::from_str(&table)?;
        let path = shares.first().and_then(|share| share["path"].as_str()).context("No share is attached")?;
        Ok(path.into())
    }

    /// Makes another program on a host open a guest's disk on the share, with locks like QEMU's, until it is told to
    /// release the disk. Each host's mount has its own locks, which are invisible to QEMUs of other hosts.
    ///
    /// # Errors
    /// The program does not get the disk.
    pub fn take_disk<'a>(&'a self, host: &'a Host, guest: &str) -> anyhow::Result<TakenDisk<'a>> {
        let path = self.mount_of(host)?.join(guest).join("disk.raw").display().to_string();
        let mut command = host.command("qemu-io");
        command.args(["-f", "raw", "-c", "sleep 600000", &path]);
        let _program = Program::start("qemu-io", command, &self.lab.folder.join("qemu-io.said"))?;
        wait_for("another program has the disk", READY_DEADLINE, || {
            let locked = "grep -q OFDLCK /proc/$(pgrep -x qemu-io)/fdinfo/*";
            host.try_run(&["sh", "-c", locked]).ok().filter(ProgramOutput::ok)
        })?;
        Ok(TakenDisk { path, host, _program })
    }
}

/// A disk that another program has.
pub struct TakenDisk<'a> {
    /// Its path on that host.
    pub path: String,
    host: &'a Host,
    _program: Program,
}

impl TakenDisk<'_> {
    /// Ends the program.
    ///
    /// # Errors
    /// It has ended before.
    pub fn give_back(self) -> anyhow::Result<()> {
        self.host.run(&["pkill", "-x", "qemu-io"]).map(drop)
    }
}

fn parse_last<T: DeserializeOwned>(out: &str) -> anyhow::Result<T> {
    match serde_json::from_str(out) {
        Ok(value) => Ok(value),
        Err(_) => Ok(serde_json::from_str(out.lines().last().unwrap_or_default())?),
    }
}

/// The server's state folder.
pub fn server_state(lab: &Lab) -> PathBuf {
    lab.folder.join("server")
}

/// Starts the server in the fabric and waits until it listens.
///
/// # Errors
/// It does not in time.
pub fn start_server(lab: &Lab) -> anyhow::Result<Program> {
    start_server_with(lab, &[])
}

/// As [`start_server`]; the server gets the variables `environment`.
///
/// # Errors
/// It does not in time.
pub fn start_server_with(lab: &Lab, environment: &[(&str, &str)]) -> anyhow::Result<Program> {
    let state = server_state(lab);
    fs::create_dir_all(&state)?;
    let config = lab.folder.join("server.toml");
    fs::write(&config, format!("listen = \"{FABRIC_IP}:7420\"\nstate_dir = \"{}\"\n", state.display()))?;
    let mut command = lab.in_fabric(lab.program("ferry-server"));
    command.arg("run").arg("--config").arg(&config).envs(environment.iter().copied());
    let program = Program::start("ferry-server", command, &lab.folder.join("server.log"))?;
    wait_for("the server listens", READY_DEADLINE, || {
        let listening = lab.in_fabric("ss");
        let mut listening = listening;
        listening.args(["-Hltn", "sport = :7420"]);
        let output = run_within(listening, Duration::from_secs(5)).ok()?;
        (output.out.contains(":7420") && state.join("server.pin").is_file()).then_some(())
    })
    .with_context(|| program.output())?;
    Ok(program)
}
