//! `ferry-agent`: the program on each host.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use ferry_agent::{
    Agent,
    config::{Config, DEFAULT_PATH},
    http::{self, metrics},
    live::{self, Launcher, carrier},
    notify::{self, Standing},
    setup,
};
use ferry_drivers::{hypervisor::libvirt::Libvirt, share::host::HostShares};
use ferry_manual::Section;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// Report on this host and move its VMs.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// Read settings from this file.
    #[arg(long, global = true, default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prepare this host, report what is missing, and print an enrolment token.
    Setup {
        /// Listen at this address, as in 192.0.2.11:7421. Needed once, when no configuration exists yet.
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// Restart libvirt without asking, if it must read changed settings. Running VMs continue.
        #[arg(long)]
        yes: bool,
        /// Remove what setup wrote into AppArmor, SELinux and libvirt's hooks, and do nothing else.
        #[arg(long, conflicts_with_all = ["listen", "yes"])]
        remove: bool,
    },
    /// Print a new enrolment token, valid for one use.
    Token,
    /// List the VMs that libvirt may not start here, because a move of them has not ended well.
    Holds {
        #[command(subcommand)]
        command: Option<HoldsCommand>,
    },
    /// Serve the control API until stopped by a signal.
    Run,
    /// Carry one end of one live move. Started by the agent.
    #[command(hide = true)]
    Carry {
        /// The journal record of the move.
        #[arg(long)]
        journal: PathBuf,
        /// The file for the reason why it could not begin.
        #[arg(long = "said", value_name = "SAID")]
        reason_file: PathBuf,
    },
    /// Write man pages and shell completions into a folder, for packages.
    #[command(hide = true)]
    Manual {
        /// The folder to write into.
        folder: PathBuf,
    },
}

#[derive(Subcommand)]
enum HoldsCommand {
    /// Allow starting a VM here again. Only for when the server is gone and the VM runs on no other host.
    Release {
        /// The VM's name or UUID.
        vm: String,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("FERRY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
    let failpoints = fail::FailScenario::setup();
    ferry_trust::install_provider();
    let outcome = match arguments.command {
        Command::Setup { remove: true, .. } => setup::remove(&Config::load(&arguments.config)?),
        Command::Setup { listen, yes, remove: false } => setup::run(&arguments.config, listen, yes),
        Command::Token => setup::print_token(&Config::load(&arguments.config)?),
        Command::Holds { command } => {
            let config = Config::load(&arguments.config)?;
            let hypervisor = Libvirt::new(&config.libvirt_uri);
            match command {
                None => setup::print_holds(&config, &hypervisor),
                Some(HoldsCommand::Release { vm }) => setup::release_hold(&config, &hypervisor, &vm),
            }
        }
        Command::Run => run(&arguments.config),
        Command::Carry { journal, reason_file } => {
            let outcome = carry(&arguments.config, &journal);
            if let Err(error) = &outcome {
                let reason = error.downcast_ref().map_or_else(|| format!("{error:#}\n"), live::reason);
                std::fs::write(&reason_file, reason)?;
            }
            // The agent has the file open and reads it after this process has ended.
            let _ = std::fs::remove_file(&reason_file);
            outcome
        }
        Command::Manual { folder } => Ok(ferry_manual::write(Arguments::command(), Section::Administrator, &folder)?),
    };
    failpoints.teardown();
    outcome
}

#[tokio::main]
async fn run(path: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let listen = config.listen;
    let listener = http::listen(listen).await.with_context(|| format!("Could not listen at {listen}"))?;
    let hypervisor = Arc::new(Libvirt::new(&config.libvirt_uri));
    let shares = Arc::new(HostShares::new(config.state_dir.join("shares")));
    let launcher = Launcher::Process { program: std::env::current_exe()?, config: path.to_owned() };
    let metrics_listen = config.metrics_listen;
    let agent = Agent::start(config, hypervisor, shares, launcher).await?;
    if let Some(listen) = metrics_listen {
        let listener = tokio::net::TcpListener::bind(listen).await;
        let listener = listener.with_context(|| format!("Could not listen at {listen} for metrics"))?;
        tokio::spawn(metrics::serve(Arc::clone(&agent), listener));
    }
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        notify::report(Standing::Stopping);
        info!("The agent ends; carriers of running migrations go on");
    };
    // From now on connections are answered, even while libvirt is queried for the first time.
    notify::report(Standing::Ready);
    http::serve_on(agent, listener, stop).await?;
    Ok(())
}

/// One thread for all channels, and others only for blocking calls: a carrier must not take the guests' processors, and
/// handing channels from thread to thread costs a third more.
#[tokio::main(flavor = "current_thread")]
async fn carry(config: &std::path::Path, journal: &std::path::Path) -> anyhow::Result<()> {
    // A separate session: a terminal signal that ends the agent must not end its carriers.
    nix::unistd::setsid()?;
    let (mut int, mut hup) = (signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
    tokio::spawn(async move { while int.recv().await.is_some() {} });
    tokio::spawn(async move { while hup.recv().await.is_some() {} });
    ferry_wire::transport::tcp::keep_freed_memory();
    let config = Config::load(config)?;
    let hypervisor = Arc::new(Libvirt::new(&config.libvirt_uri));
    Ok(carrier::run(config, journal, hypervisor).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_a_page_for_each_command_that_people_type() {
        let folder = tempfile::tempdir().expect("a folder");
        ferry_manual::write(Arguments::command(), Section::Administrator, folder.path()).expect("written");
        let entries = std::fs::read_dir(folder.path()).expect("a folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
        let mut pages: Vec<String> = names.filter(|name| name.ends_with(".8")).collect();
        pages.sort();
        let expected = ["holds-release", "holds", "run", "setup", "token"].map(|page| format!("ferry-agent-{page}.8"));
        assert_eq!(pages[..5], expected);
        assert_eq!(pages[5..], ["ferry-agent.8"]);
    }
}
