//! Injects faults, and repairs them.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{
    admin::{self, Act},
    aim::Aim,
    alias::{self, Aliased},
    kind::Kind,
    processes::{
        APPEAR_DEADLINE, POLL_EVERY, Process, carries, in_network, is_agent, is_libvirtd, is_qemu, kill_now, kill_soon,
        processes,
    },
    stage::Stage,
};
use crate::{ferry::start_server, host::Host, observe::Observer, run::wait_for};

/// A guest that is heard from its source within this time after the destination's QEMU was stopped was not handed over.
const PROOF_DEADLINE: Duration = Duration::from_secs(1);
/// How long the source's libvirtd may take, after the guest is stopped, to call Finish at the destination.
const ASKS_WITHIN: Duration = Duration::from_secs(1);
/// How long the destination's libvirtd may then take to finish.
const FINISHES_WITHIN: Duration = Duration::from_secs(5);
/// The nftables table that cuts a link; no other program of the lab uses it.
const CUT: &str = "chaos";

/// The effect of a fault.
pub struct Hit {
    /// A description.
    pub description: String,
    /// A further act on the VM, which may have ended it.
    pub act: Option<Act>,
    /// A clone that needs the old file of a migrated disk.
    pub aliased: Option<Aliased>,
}

impl Hit {
    /// A fault with no further consequences to check.
    pub fn plain(description: String) -> Self {
        Self { description, act: None, aliased: None }
    }
}

/// Injects the fault of a run. Returns its effect, or `None` if it had no target, or no longer.
///
/// # Errors
/// The lab fails to inject it.
pub fn inflict(stage: &mut Stage, observer: &Observer, kind: Kind, aim: &Aim, run: u64) -> anyhow::Result<Option<Hit>> {
    let (source, destination) = (aim.source, aim.destination);
    let at = |place: usize, stage: &Stage| stage.hosts()[place].name.clone();
    let killed = |what: &str, place: usize, stage: &Stage, count: usize| {
        (count > 0).then(|| format!("{what} of {} killed", at(place, stage)))
    };
    let description = match kind {
        Kind::Server => {
            stage.ferry.server.kill();
            Some("server killed".to_owned())
        }
        Kind::SourceAgent => killed("agent", source, stage, kill_now(&stage.hosts()[source], is_agent)),
        Kind::DestinationAgent => killed("agent", destination, stage, kill_now(&stage.hosts()[destination], is_agent)),
        Kind::SourceCarrier => {
            killed("carrier", source, stage, kill_soon(&stage.hosts()[source], |one| carries(one, aim.job)))
        }
        Kind::DestinationCarrier => {
            killed("carrier", destination, stage, kill_soon(&stage.hosts()[destination], |one| carries(one, aim.job)))
        }
        Kind::SourceLibvirtd => killed("libvirtd", source, stage, kill_now(&stage.hosts()[source], is_libvirtd)),
        Kind::DestinationLibvirtd => {
            killed("libvirtd", destination, stage, kill_now(&stage.hosts()[destination], is_libvirtd))
        }
        Kind::DestinationQemu => kill_receiver(stage, observer, aim),
        Kind::Smbd => {
            let smbd = in_network(&stage.ferry.lab.namespace(), |comm| comm.starts_with("smbd"))?;
            smbd.iter().for_each(|process| process.signal(Signal::SIGKILL));
            (!smbd.is_empty()).then(|| "smbd killed".to_owned())
        }
        Kind::SourceHost => Some(kill_host(stage, source)?),
        Kind::DestinationHost => Some(kill_host(stage, destination)?),
        Kind::Link => {
            cut(&stage.hosts()[source], &stage.hosts()[destination])?;
            Some(format!("link of {} and {} cut", at(source, stage), at(destination, stage)))
        }
        Kind::SourceLibvirtdBeforeFinish => kill_unanswered(stage, observer, aim),
        Kind::SourceLibvirtdAfterFinish => kill_before_it_hears(stage, observer, aim),
        Kind::AdminResumeSource
        | Kind::AdminResumeDestination
        | Kind::AdminDestroySource
        | Kind::AdminDestroyDestination
        | Kind::AdminMigrate
        | Kind::AdminStart
        | Kind::GuestCrash => {
            let act = admin::act(stage, observer, kind, aim)?;
            return Ok(act.map(|act| Hit { act: Some(act.clone()), ..Hit::plain(act.description) }));
        }
        Kind::Alias => {
            let aliased = alias::define(stage, aim, run)?;
            return Ok(aliased.map(|one| Hit { aliased: Some(one.clone()), ..Hit::plain(one.description) }));
        }
    };
    Ok(description.map(Hit::plain))
}

/// Restarts what was killed. A whole host is restarted by the stage.
///
/// # Errors
/// A program does not start.
pub fn heal(stage: &mut Stage, kind: Kind, aim: &Aim) -> anyhow::Result<()> {
    match kind {
        Kind::Server => {
            stage.ferry.server = start_server(&stage.ferry.lab)?;
            Ok(())
        }
        Kind::SourceAgent => stage.start_agent(aim.source),
        Kind::DestinationAgent => stage.start_agent(aim.destination),
        Kind::SourceLibvirtd | Kind::SourceLibvirtdAfterFinish => start_libvirtd(&stage.hosts()[aim.source]),
        Kind::SourceLibvirtdBeforeFinish => {
            let started = start_libvirtd(&stage.hosts()[aim.source]);
            signal_libvirtd(&stage.hosts()[aim.destination], Signal::SIGCONT);
            started
        }
        Kind::DestinationLibvirtd => stage.hosts()[aim.destination].start_libvirt(),
        Kind::Smbd => stage.ferry.files.start_daemon(&stage.ferry.lab),
        Kind::Link => [aim.source, aim.destination]
            .iter()
            .try_for_each(|place| stage.hosts()[*place].run(&["nft", "delete", "table", "inet", CUT]).map(drop)),
        Kind::SourceCarrier
        | Kind::DestinationCarrier
        | Kind::DestinationQemu
        | Kind::SourceHost
        | Kind::DestinationHost
        | Kind::AdminResumeSource
        | Kind::AdminResumeDestination
        | Kind::AdminDestroySource
        | Kind::AdminDestroyDestination
        | Kind::AdminMigrate
        | Kind::AdminStart
        | Kind::GuestCrash
        | Kind::Alias => Ok(()),
    }
}

/// Restarts it, unless it runs: then there was nothing to hit.
fn start_libvirtd(host: &Host) -> anyhow::Result<()> {
    if processes(host.init).iter().any(is_libvirtd) { Ok(()) } else { host.start_libvirt() }
}

/// Kills the receiving QEMU if the source still has the VM. QEMU is stopped first: a heartbeat from the source after
/// that proves that the hand-over had not happened, and while QEMU is stopped it cannot happen.
fn kill_receiver(stage: &Stage, observer: &Observer, aim: &Aim) -> Option<String> {
    let (source, destination) = (&stage.hosts()[aim.source], &stage.hosts()[aim.destination]);
    let until = Instant::now() + APPEAR_DEADLINE;
    let receiver = loop {
        let found = processes(destination.init).into_iter().find(|process| is_qemu(process, &aim.guest));
        match found {
            Some(process) => break process,
            None if Instant::now() > until => return None,
            None => std::thread::sleep(POLL_EVERY),
        }
    };
    receiver.signal(Signal::SIGSTOP);
    let stopped = crate::observe::now();
    let proof = wait_for("a beat from the source", PROOF_DEADLINE, || {
        observer.last(&aim.guest).filter(|heard| heard.host == source.name && heard.at > stopped)
    });
    if proof.is_err() {
        receiver.signal(Signal::SIGCONT);
        return None;
    }
    receiver.signal(Signal::SIGKILL);
    Some(format!("QEMU of {} on {} killed", aim.guest, destination.name))
}

/// Kills the source's libvirtd in the hand-over while the destination's libvirtd is stopped, so that it has not
/// finished the hand-over. The destination's libvirtd stays stopped until the fault is repaired.
fn kill_unanswered(stage: &Stage, observer: &Observer, aim: &Aim) -> Option<String> {
    let (source, destination) = (&stage.hosts()[aim.source], &stage.hosts()[aim.destination]);
    signal_libvirtd(destination, Signal::SIGSTOP);
    if observer.last(&aim.guest).is_none_or(|heard| heard.host != source.name) {
        signal_libvirtd(destination, Signal::SIGCONT);
        return None;
    }
    kill_now(source, is_libvirtd);
    Some(format!("libvirtd of {} killed, that of {} stopped", source.name, destination.name))
}

/// Kills the source's libvirtd after the destination's libvirtd has finished the hand-over. The source's libvirtd is
/// stopped before it can receive the reply; the destination's is stopped until then.
fn kill_before_it_hears(stage: &Stage, observer: &Observer, aim: &Aim) -> Option<String> {
    let (source, destination) = (&stage.hosts()[aim.source], &stage.hosts()[aim.destination]);
    signal_libvirtd(destination, Signal::SIGSTOP);
    std::thread::sleep(ASKS_WITHIN);
    signal_libvirtd(source, Signal::SIGSTOP);
    let heard = observer.last(&aim.guest).filter(|heard| heard.host == source.name);
    let is_paused = heard.is_some_and(|heard| heard.at + ASKS_WITHIN / 2 < crate::observe::now());
    signal_libvirtd(destination, Signal::SIGCONT);
    let is_complete = || {
        let output = destination.virsh(&["domstate", &aim.guest, "--reason"]).unwrap_or_default();
        (output.starts_with("paused") && !output.contains("migrat") && !output.contains("start")).then_some(())
    };
    if !is_paused || wait_for("its copy is complete", FINISHES_WITHIN, is_complete).is_err() {
        signal_libvirtd(source, Signal::SIGCONT);
        return None;
    }
    kill_now(source, is_libvirtd);
    Some(format!("libvirtd of {} killed, the copy on {} being complete", source.name, destination.name))
}

fn signal_libvirtd(host: &Host, signal: Signal) {
    processes(host.init).iter().filter(|one| is_libvirtd(one)).for_each(|libvirtd| libvirtd.signal(signal));
}

/// All processes of the host end with its first one. Before that, the host's network is cut, because a machine without
/// power does not close its connections.
fn kill_host(stage: &mut Stage, place: usize) -> anyhow::Result<String> {
    let (name, init) = (stage.hosts()[place].name.clone(), stage.hosts()[place].init);
    stage.hosts()[place].set_link(false)?;
    Process { pid: init, words: Vec::new() }.signal(Signal::SIGKILL);
    stage.ferry.agents[place].program.kill();
    wait_for("a killed host ends", Duration::from_secs(20), || processes(init).is_empty().then_some(()))?;
    Ok(format!("host {name} died"))
}

/// Each end drops packets from the other. Guests, the file server and Ferry's server stay reachable.
fn cut(source: &Host, destination: &Host) -> anyhow::Result<()> {
    for (here, there) in [(source, destination), (destination, source)] {
        let rules = format!(
            "table inet {CUT} {{\n chain input {{\n  type filter hook input priority -10; policy accept;\n  \
             ip saddr {} drop\n }}\n}}\n",
            there.ip
        );
        fs::write(here.path("/run/chaos.nft"), rules)?;
        here.run(&["nft", "-f", "/run/chaos.nft"])?;
    }
    Ok(())
}
