//! Simulated moves, each with different faults. The sagas and the executor are the real ones. The server and the hosts,
//! with agents, carriers and libvirt, are a model that advances at random: [`live`], [`offline`], [`storage`].
//!
//! At every moment the model checks that no VM is lost or duplicated. At the end either everything is done or
//! everything is undone.

mod faults;
#[expect(clippy::wildcard_enum_match_arm, reason = "where a model is wrong about the rest, a move fails")]
mod live;
mod offline;
mod storage;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use ferry_core::{
    job::JobKind,
    job_text::JobText,
    migration::{LogEvent, Phase, Step, phase},
};

use super::{
    executor::{RetryPolicy, Saga},
    migrate::Migrate,
    models::{
        jobs,
        site::{ModelSite, run_of_server},
        world::{Model, lock},
    },
    move_offline::MoveOffline,
    move_storage::MoveStorage,
};
use crate::{jobs::running::Running, store::JobRecord};

/// The number of moves, unless `FERRY_SIMULATED_MOVES` sets another.
const MOVES: u64 = 100_000;

fn kind(number: u64) -> JobKind {
    match number % 10 {
        0..=4 => JobKind::Live,
        5 => JobKind::LiveVsm,
        6 | 7 => JobKind::Offline,
        _ => JobKind::Storage,
    }
}

/// Plays a move. Returns how it ended, as judged by its world.
async fn play(number: u64) -> Option<Phase> {
    let kind = kind(number);
    match kind {
        JobKind::Live | JobKind::LiveVsm => {
            let world = live::World::new(number, kind == JobKind::LiveVsm);
            // The move itself asks what the source does at boot.
            judged(number, false, world, Migrate::new, live::World::judge).await
        }
        JobKind::Offline => {
            let world = offline::World::new(number);
            judged(number, world.autostart, world, MoveOffline::new, offline::World::judge).await
        }
        JobKind::Storage => {
            judged(number, false, storage::World::new(number), MoveStorage::new, storage::World::judge).await
        }
        JobKind::Several | JobKind::Drain => panic!("no job of one VM"),
    }
}

/// Runs of the server until the job has ended; `None`: it rightly waits for a human.
async fn judged<M: Model, S: Saga>(
    number: u64,
    autostart: bool,
    world: M,
    saga: impl Fn(ModelSite<M>, JobRecord, Arc<Running>) -> Result<S, JobText>,
    judge: impl Fn(&M, Phase) -> Result<bool, String>,
) -> Option<Phase> {
    let world = Arc::new(Mutex::new(world));
    let record = jobs::job(kind(number), autostart);
    let ended = run_of_server(&world, &record, RetryPolicy::USUAL, saga).await;
    let mut world = lock(&world);
    let whole = every_prefix_is_legal(&world.server().log).and_then(|()| judge(&world, ended));
    let has_ended = whole.unwrap_or_else(|error| panic!("move {number} {ended:?}: {error}"));
    has_ended.then_some(ended)
}

/// Wherever a crash cuts the log, the remaining part folds to a phase that is possible for the job.
fn every_prefix_is_legal(log: &[LogEvent]) -> Result<(), String> {
    let mut arrived = false;
    for length in 1..=log.len() {
        let (event, now) = (&log[length - 1], phase(&log[..length]));
        arrived |= *event == LogEvent::Succeeded { step: Step::Perform };
        let undone = matches!(event, LogEvent::Undone { .. } | LogEvent::UndoFailed { .. });
        let forward = matches!(now, Phase::Completing | Phase::Succeeded | Phase::Stuck);
        if arrived && (undone || !forward) {
            return Err(format!("after the pivot, line {length} is {event:?}, which makes it {now:?}: {log:#?}"));
        }
        if now.ended() && length < log.len() {
            return Err(format!("the job ended with line {length} and went on: {log:#?}"));
        }
    }
    Ok(())
}

/// The ends of jobs by kind, with how often each occurred.
type Outcomes = BTreeMap<(&'static str, &'static str), u64>;

/// Plays moves until all numbers are taken.
fn play_some(next: &AtomicU64, moves: u64) -> Outcomes {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let mut outcomes = Outcomes::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= moves {
            return outcomes;
        }
        if let Some(phase) = runtime.block_on(play(number)) {
            *outcomes.entry((kind(number).title(), phase.title())).or_default() += 1;
        }
    }
}

#[test]
fn moves_with_faults_neither_lose_nor_double_a_vm() {
    let asked = std::env::var("FERRY_SIMULATED_MOVES").ok().map(|text| text.parse().expect("a number"));
    let moves: u64 = asked.unwrap_or(MOVES);
    let (next, processors) = (AtomicU64::new(0), thread::available_parallelism().map_or(1, usize::from));
    let outcomes = thread::scope(|scope| {
        let threads: Vec<_> = (0..processors).map(|_| scope.spawn(|| play_some(&next, moves))).collect();
        let mut all = Outcomes::new();
        for thread in threads {
            // The panic's message has been printed already.
            for (end, count) in thread.join().expect("every move ends as it should") {
                *all.entry(end).or_default() += count;
            }
        }
        all
    });
    // Every kind of job reaches every end often: the faults are neither too few nor too many.
    assert!(outcomes.len() == 4 * 3 && outcomes.values().all(|count| *count > moves / 300), "{outcomes:?}");
}
