//! Breaks each promise on purpose, without Ferry, to check that the harness detects it.

use std::{fs, time::Duration};

use clap::ValueEnum;

use super::{
    aim::Aim,
    judge::Broken,
    processes::{kill_qemu, stop_server},
    stage::Stage,
};
use crate::{observe::Observer, run::wait_for};

/// How long a move may take, and a second copy to boot.
const MOVE_DEADLINE: Duration = Duration::from_secs(60);
const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// The promise to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// The QEMU of a running VM is killed; its host stays alive.
    Lost,
    /// A second copy of the guest is started on another host.
    Split,
    /// A byte of the guest's memory is changed.
    Corrupt,
    /// The server is stopped permanently during a move.
    Stuck,
}

impl Sabotage {
    /// The only promise that must be reported as broken.
    pub fn broken(self) -> Broken {
        match self {
            Self::Lost => Broken::Lost,
            Self::Split => Broken::Split,
            Self::Corrupt => Broken::Corrupt,
            Self::Stuck => Broken::Stuck,
        }
    }
}

/// Performs the sabotage, on the guest of `aim` after its move, or on the server during the move. Returns a
/// description.
///
/// # Errors
/// What could not be done.
pub fn commit(
    stage: &Stage,
    observer: &Observer,
    sabotage: Sabotage,
    aim: &Aim,
    accepted: impl Fn() -> bool,
) -> anyhow::Result<String> {
    let destination = &stage.hosts()[aim.destination];
    wait_for("the move is accepted", MOVE_DEADLINE, || accepted().then_some(()))?;
    if sabotage == Sabotage::Stuck {
        stop_server(stage)?;
        return Ok("server stopped for good".to_owned());
    }
    observer.wait_on(&aim.guest, &destination.name, MOVE_DEADLINE)?;
    wait_for("the move ends", MOVE_DEADLINE, || {
        stage.jobs_after(0).ok()?.iter().all(|job| job.phase.ended()).then_some(())
    })?;
    match sabotage {
        Sabotage::Lost => {
            anyhow::ensure!(kill_qemu(destination, &aim.guest), "{} has no QEMU", aim.guest);
            Ok(format!("QEMU of {} on {} killed for good", aim.guest, destination.name))
        }
        Sabotage::Split => second_copy(stage, observer, aim),
        Sabotage::Corrupt => {
            observer.flip(&stage.ferry.lab, guest(stage, aim))?;
            Ok(format!("a byte of {}'s memory changed", aim.guest))
        }
        Sabotage::Stuck => unreachable!("done above"),
    }
}

fn guest<'a>(stage: &'a Stage, aim: &Aim) -> &'a crate::guest::Ticker {
    stage.guests.iter().find(|guest| guest.name == aim.guest).expect("the aim is one of the guests")
}

/// With a disk of its own, so that two writers on one disk are not reported as corruption as well.
fn second_copy(stage: &Stage, observer: &Observer, aim: &Aim) -> anyhow::Result<String> {
    let (guest, host) = (guest(stage, aim), &stage.hosts()[aim.source]);
    let copy = crate::guest::Ticker { name: format!("{}-copy", guest.name), ..guest.clone() };
    copy.prepare(&stage.ferry.lab, &stage.ferry.files.share, &stage.ferry.mount_of(host)?)?;
    let definition = guest.definition(&stage.ferry.mount_of(host)?.join(&copy.name));
    fs::write(host.path("/run/copy.xml"), definition)?;
    host.virsh(&["create", "/run/copy.xml"])?;
    wait_for("the second copy is heard", BOOT_DEADLINE, || {
        observer.runs_on(&guest.name).contains(&host.name).then_some(())
    })?;
    Ok(format!("a second copy of {} started on {}", guest.name, host.name))
}
