//! Live moves of which each meets other faults. The saga is the real one, with its executor; its server ([`site`]) and its
//! hosts ([`hosts`]), with agents, carriers and libvirt, are a model ([`world`]) which moves on by chance.
//!
//! ```text
//! libvirt   Memory ─▶ Stopped ─▶ Finishing ─▶ Delivered          any broken channel before Delivered: the source runs on
//! source    Running   HandedOver HandedOver   Off
//! dest.     Receiving Receiving  Arrived      Arrived ─ told by its carrier, or asked by its agent ─▶ Running
//! ```
//! A libvirtd of the source that dies once the memory is sent leaves the source's copy as it is (`Left`), whatever the
//! destination has. Where the storage locks disks, a source's copy does not run on as long as the destination's has them
//! (`Stopped`); its carrier runs it as soon as they are free. A guest may crash wherever it runs (`Halted`), or shut itself down
//! (`Ended`, which libvirt knows here for good). A source may lose its power, and is away for long then. An administrator
//! who sees a VM stand still runs the copy that is at the destination, may shut it off there, or move it on to a third host:
//! one of the inventory, or, once the server has seen that it was there, one that Ferry does not know.
//!
//! At every moment: the VM never runs twice, and one whole copy is somewhere. At the end: all is done or all is taken back.

mod hosts;
mod site;
mod world;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ferry_core::{
    id::JobId,
    job::JobKind,
    migration::{LogEvent, Phase, Presence, Step, newest_attempt, phase},
};

use super::{
    executor::{Patience, Saga as _, drive},
    migrate::Migrate,
    models,
};
use crate::{jobs::running::Running, plan::Kept as _, store::JobRecord};
use hosts::{Shared, lock};
use site::Model;
use world::{ServerLife, World};

/// Unless `FERRY_SIMULATED_MOVES` asks for another number.
const MOVES: u64 = 10_000;

/// The job of a move. Every fifth takes a disk along.
fn job(number: u64) -> JobRecord {
    let (kind, along) = match number.is_multiple_of(5) {
        true => (JobKind::LiveVsm, vec![models::disk()]),
        false => (JobKind::Live, Vec::new()),
    };
    models::record(kind, models::live_plan(along, false).to_json())
}

/// Lives of the server, one after another, until the job has ended.
async fn play(number: u64) -> (World, Phase) {
    let world: Shared = Arc::new(Mutex::new(World::new(number)));
    let record = job(number);
    let phase = loop {
        let site = Model(world.clone());
        let running = Arc::new(Running::default());
        let life = ServerLife { cancelled: running.cancelled.clone(), ..ServerLife::default() };
        {
            let mut world = lock(&world);
            world.life = life.clone();
            if newest_attempt(&world.log).iter().any(|event| matches!(event, LogEvent::CancelRequested { .. })) {
                running.cancelled.cancel();
            }
        }
        let mut saga = Migrate::new(site.clone(), record.clone(), running).expect("its hosts and plan are there");
        assert_eq!(saga.steps().len(), 8);
        tokio::select! {
            biased;
            () = life.died.cancelled() => {}
            () = life.waits.cancelled() => break phase(&lock(&world).log),
            phase = drive(&site, JobId(1), &mut saga, Patience::USUAL) => break phase,
        }
        lock(&world).tick();
    };
    let ended = std::mem::replace(&mut *lock(&world), World::new(0));
    (ended, phase)
}

/// Wherever a crash cuts the log, what is left folds to a phase that the job may be in.
fn every_prefix_is_legal(log: &[LogEvent]) -> Result<(), String> {
    let mut arrived = false;
    for length in 1..=log.len() {
        let (event, now) = (&log[length - 1], phase(&log[..length]));
        arrived |= *event == LogEvent::Succeeded { step: Step::Perform };
        let undone = matches!(event, LogEvent::Undone { .. } | LogEvent::UndoFailed { .. });
        let forward = matches!(now, Phase::Completing | Phase::Succeeded | Phase::Stuck);
        if arrived && (undone || !forward) {
            return Err(format!("after the pivot, line {length} is {event:?}, which makes it {now:?}"));
        }
        if now.ended() && length < log.len() {
            return Err(format!("the job ended with line {length} and went on"));
        }
    }
    Ok(())
}

#[test]
fn ten_thousand_moves_with_faults_neither_lose_nor_double_a_vm() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let mut ends = BTreeMap::<&str, u32>::new();
    let asked = std::env::var("FERRY_SIMULATED_MOVES").ok().map(|text| text.parse().expect("a number"));
    let moves: u64 = asked.unwrap_or(MOVES);
    for number in 0..moves {
        let (world, phase) = runtime.block_on(play(number));
        let story = || format!("move {number} {phase:?}: {:#?}\n{:#?}", world.log, world.past);
        every_prefix_is_legal(&world.log).unwrap_or_else(|error| panic!("{error}: {}", story()));
        let (source, destination) = (&world.source, &world.destination);
        let here = (source.process, source.held, source.known);
        let there = (destination.process, destination.known, world.reserved);
        match phase {
            Phase::Succeeded => {
                assert_eq!(here, (Presence::Absent, false, false), "{}", story());
                let process = match destination.process {
                    // An administrator has seen to it.
                    seen @ (Presence::Off | Presence::Halted) => seen,
                    Presence::Absent if world.elsewhere => Presence::Absent,
                    _ => Presence::Running,
                };
                assert_eq!(there, (process, false, false), "{}", story());
            }
            Phase::Failed | Phase::Cancelled => {
                let process = match source.process {
                    seen @ (Presence::Halted | Presence::Ended) => seen,
                    Presence::Off if world.died_there => Presence::Off,
                    _ => Presence::Running,
                };
                assert_eq!(here, (process, false, false), "{}", story());
                assert_eq!(there, (Presence::Absent, false, false), "{}", story());
            }
            // Somebody has it in his own hands: nothing is taken away or let go.
            Phase::Migrating | Phase::RollingBack | Phase::Stuck if world.elsewhere || world.against => {
                let still = matches!(source.process, Presence::Off | Presence::Left | Presence::Stopped);
                assert!(still && source.held, "{}", story());
                continue;
            }
            _ => panic!("it has not ended: {}", story()),
        }
        *ends.entry(phase.title()).or_default() += 1;
    }
    // Every end is met often: the faults are neither too few nor too many.
    assert!(ends.len() == 3 && ends.values().all(|count| u64::from(*count) > moves / 20), "{ends:?}");
}
