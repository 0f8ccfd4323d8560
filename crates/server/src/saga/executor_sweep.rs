//! The sweep: each step fails, the server dies in each step, each undo fails or the server dies in it. The invariants
//! must then still hold.

use std::{
    collections::HashSet,
    io::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use ferry_core::{
    backoff::Backoff,
    id::{HostId, JobId, VmId},
    job::JobKind,
    job_text::JobText,
    migration::{LogEvent, Phase, Step, StepClass},
};
use tokio::sync::Notify;
use uuid::Uuid;

use super::executor::{Log, RetryPolicy, Saga, StepFailed, drive};
use crate::{
    jobs::running::Running,
    store::{Created, HostName, LogEntry, NewJob, Store, StoreError},
};

/// What happens when a step is run or undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    FailsBefore,
    FailsAfter,
    DiesBefore,
    DiesAfter,
}

const FAULTS: [Fault; 4] = [Fault::FailsBefore, Fault::FailsAfter, Fault::DiesBefore, Fault::DiesAfter];

/// What a job has changed on the hosts; it survives the server.
#[derive(Debug)]
struct World {
    /// The plan's steps.
    steps: Vec<Step>,
    effects: HashSet<Step>,
    run_faults: Vec<(Step, Fault)>,
    undo_faults: Vec<(Step, Fault)>,
    cancel_in: Option<Step>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            steps: Step::ALL.to_vec(),
            effects: HashSet::new(),
            run_faults: Vec::new(),
            undo_faults: Vec::new(),
            cancel_in: None,
        }
    }
}

impl World {
    fn before(&self, step: Step) -> Vec<Step> {
        self.steps.iter().copied().take_while(|other| *other != step).collect()
    }

    fn after(&self, step: Step) -> Vec<Step> {
        self.steps.iter().copied().skip_while(|other| *other != step).skip(1).collect()
    }
}

/// One run of the server.
struct ServerRun {
    world: Arc<Mutex<World>>,
    died: Arc<Notify>,
    store: Store,
    job: JobId,
    running: Arc<Running>,
    steps: Vec<Step>,
}

impl ServerRun {
    fn new(world: Arc<Mutex<World>>, store: &Store, job: JobId) -> Self {
        let steps = world.lock().expect("nobody panics with it").steps.clone();
        Self { world, died: Arc::default(), store: store.clone(), job, running: Arc::default(), steps }
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world.lock().expect("nobody panics with it")
    }

    async fn die(&self) -> ! {
        self.died.notify_one();
        std::future::pending().await
    }

    async fn act(&self, fault: Option<Fault>, effect: impl Fn(&mut World)) -> Result<(), StepFailed> {
        let failed = || Err(StepFailed(JobText::Text { text: "as planned".into() }));
        match fault {
            None => {}
            Some(Fault::FailsBefore) => return failed(),
            Some(Fault::DiesBefore) => self.die().await,
            Some(Fault::FailsAfter | Fault::DiesAfter) => {}
        }
        effect(&mut self.world());
        match fault {
            Some(Fault::FailsAfter) => failed(),
            Some(Fault::DiesAfter) => self.die().await,
            None | Some(Fault::FailsBefore | Fault::DiesBefore) => Ok(()),
        }
    }
}

fn taken(faults: &mut Vec<(Step, Fault)>, step: Step) -> Option<Fault> {
    let at = faults.iter().position(|(of, _)| *of == step)?;
    Some(faults.remove(at).1)
}

impl Saga for ServerRun {
    fn steps(&self) -> &[Step] {
        &self.steps
    }

    async fn probe(&mut self, step: Step) -> bool {
        step == Step::Perform && self.world().effects.contains(&step)
    }

    async fn run(&mut self, step: Step) -> Result<(), StepFailed> {
        let (fault, cancel) = {
            let mut world = self.world();
            for earlier in world.before(step) {
                assert!(world.effects.contains(&earlier), "{step:?} runs without {earlier:?}");
            }
            (taken(&mut world.run_faults, step), world.cancel_in.take_if(|at| *at == step).is_some())
        };
        if cancel {
            let event = LogEntry::Event(LogEvent::CancelRequested { by: "admin".into() });
            self.store.append(self.job, &[event], 2).await.expect("stored");
            if step == Step::Perform {
                return Err(StepFailed(JobText::WasCancelled));
            }
        }
        // An error of the pivot promises that the source has the VM.
        let fault = match (step.class(), fault) {
            (StepClass::Pivot, Some(Fault::FailsAfter)) => Some(Fault::FailsBefore),
            (_, fault) => fault,
        };
        self.act(fault, |world| {
            world.effects.insert(step);
        })
        .await
    }

    async fn undo(&mut self, step: Step) -> Result<(), StepFailed> {
        let fault = {
            let mut world = self.world();
            assert!(!world.effects.contains(&Step::Perform), "{step:?} is taken back after the VM has left");
            for later in world.after(step) {
                assert!(!world.effects.contains(&later), "{step:?} is taken back before {later:?}");
            }
            taken(&mut world.undo_faults, step)
        };
        self.act(fault, |world| {
            world.effects.remove(&step);
        })
        .await
    }

    fn running(&self) -> &Running {
        &self.running
    }
}

const QUICK: RetryPolicy =
    RetryPolicy { backoff: Backoff::new(Duration::ZERO, Duration::from_millis(1)), tries_before_stuck: 3 };

/// A database with one job that was admitted.
async fn with_job() -> (Store, JobId, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open_small(&folder.path().join("ferry.db"), None).await;
    let host = |name: &str| HostName { id: HostId(Uuid::nil()), name: name.into() };
    let job = NewJob {
        kind: JobKind::Live,
        parent: None,
        vm: VmId(Uuid::nil()),
        vm_name: "web01".into(),
        source: host("kvm1"),
        destination: host("kvm2"),
        by: "admin".into(),
        accepted_at_ms: 1,
        plan: "{}".into(),
        findings: Vec::new(),
    };
    let Created::Job(job) = store.create_job(&job).await.expect("stored") else { panic!("nobody else") };
    store.admit(job, 1).await.expect("stored").expect("it waits");
    (store, job, folder)
}

/// Runs of the server, one after another, until the job has ended.
async fn play(world: World) -> (Phase, World, Vec<LogEvent>) {
    let (store, job, _folder) = with_job().await;
    let world = Arc::new(Mutex::new(world));
    let phase = loop {
        let mut server_run = ServerRun::new(world.clone(), &store, job);
        let died = server_run.died.clone();
        tokio::select! {
            phase = drive(&store, job, &mut server_run, QUICK) => break phase,
            () = died.notified() => {}
        }
    };
    assert!(store.open_jobs().await.expect("read").is_empty(), "an ended job is not taken up again");
    let log = store.log(job).await.expect("read");
    let log = log.into_iter().filter_map(|row| match row.entry {
        LogEntry::Event(event) => Some(event),
        LogEntry::Note(_) => None,
    });
    let log = log.collect();
    store.close().await;
    let world = std::mem::take(&mut *world.lock().expect("nobody panics with it"));
    (phase, world, log)
}

#[tokio::test]
async fn a_job_without_faults_does_every_step_once() {
    let (phase, world, log) = play(World::default()).await;
    assert_eq!(phase, Phase::Succeeded);
    assert_eq!(world.effects, HashSet::from(Step::ALL));
    for step in Step::ALL {
        assert_eq!(log.iter().filter(|event| **event == LogEvent::Intent { step }).count(), 1, "{step:?}");
    }
}

#[tokio::test]
async fn whatever_happens_in_a_step_all_is_done_or_all_is_taken_back() {
    for step in Step::ALL {
        for fault in FAULTS {
            let faulty = World { run_faults: vec![(step, fault)], ..World::default() };
            let (phase, world, _) = play(faulty).await;
            let fails = matches!(fault, Fault::FailsBefore | Fault::FailsAfter);
            if fails && step.class().is_taken_back() {
                assert_eq!((phase, world.effects), (Phase::Failed, HashSet::new()), "{step:?} {fault:?}");
            } else {
                let all = HashSet::from(Step::ALL);
                assert_eq!((phase, world.effects), (Phase::Succeeded, all), "{step:?} {fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_undo_that_fails_or_dies_is_repeated_until_it_is_done() {
    let compensable = Step::ALL.into_iter().filter(|step| step.class() == StepClass::Compensable);
    for step in compensable {
        for fault in FAULTS {
            let faulty = World {
                run_faults: vec![(Step::Perform, Fault::FailsBefore)],
                undo_faults: vec![(step, fault)],
                ..World::default()
            };
            let (phase, world, _) = play(faulty).await;
            assert_eq!((phase, world.effects), (Phase::Failed, HashSet::new()), "{step:?} {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_step_that_must_be_done_shows_as_stuck_once_and_is_tried_on() {
    let faulty = World { run_faults: vec![(Step::Confirm, Fault::FailsBefore); 7], ..World::default() };
    let (phase, _, log) = play(faulty).await;
    assert_eq!(phase, Phase::Succeeded);
    let stuck = |event: &&LogEvent| matches!(event, LogEvent::Failed { step: Step::Confirm, .. });
    assert_eq!(log.iter().filter(stuck).count(), 1);
}

/// A different order of steps, as a cluster manager will need it: an additional compensable step between reserving and
/// preparing, and an additional retriable one before the last.
const OTHER_ORDER: [Step; 8] = [
    Step::Preflight,
    Step::Reserve,
    Step::PrepareSource,
    Step::PrepareDestination,
    Step::Perform,
    Step::Confirm,
    Step::Resume,
    Step::Release,
];

#[tokio::test]
async fn steps_are_done_and_taken_back_in_the_order_of_the_plan() {
    for step in OTHER_ORDER {
        for fault in FAULTS {
            let faulty = World { steps: OTHER_ORDER.to_vec(), run_faults: vec![(step, fault)], ..World::default() };
            let (phase, world, log) = play(faulty).await;
            let fails = matches!(fault, Fault::FailsBefore | Fault::FailsAfter) && step.class().is_taken_back();
            let expected = if fails { (Phase::Failed, 0) } else { (Phase::Succeeded, 8) };
            assert_eq!((phase, world.effects.len()), expected, "{step:?} {fault:?}");
            let begun = log.iter().filter_map(|event| {
                let LogEvent::Intent { step } = event else { return None };
                Some(*step)
            });
            assert!(OTHER_ORDER.starts_with(&begun.collect::<Vec<_>>()), "{step:?} {fault:?}: {log:?}");
        }
    }
}

#[tokio::test]
async fn a_cancel_before_the_switchover_takes_everything_back_and_after_it_nothing() {
    for step in Step::ALL {
        let (phase, world, _) = play(World { cancel_in: Some(step), ..World::default() }).await;
        match step.class() {
            StepClass::Compensable | StepClass::Pivot => {
                assert_eq!((phase, world.effects), (Phase::Cancelled, HashSet::new()), "{step:?}");
            }
            StepClass::Retriable | StepClass::Last => {
                assert_eq!((phase, world.effects), (Phase::Succeeded, HashSet::from(Step::ALL)), "{step:?}");
            }
        }
    }
}

/// A database at one of whose writes the server dies.
struct DyingLog<'a> {
    store: &'a Store,
    died: &'a Notify,
    /// Writes until the death; `None`: the server does not die.
    left: Mutex<Option<u32>>,
    /// Whether that write reaches the disk.
    written: bool,
}

impl Log for DyingLog<'_> {
    async fn events(&self, job: JobId) -> Result<Vec<LogEvent>, StoreError> {
        Log::events(self.store, job).await
    }

    async fn append(&self, job: JobId, events: &[LogEvent]) -> Result<(), StoreError> {
        let dies = {
            let mut left = self.left.lock().expect("nobody panics with it");
            let dies = *left == Some(0);
            *left = left.and_then(|left| left.checked_sub(1));
            dies
        };
        if !dies || self.written {
            Log::append(self.store, job, events).await?;
        }
        if dies {
            self.died.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_server_that_dies_at_any_durable_write_goes_on_from_there() {
    for fault in [None, Some(Fault::FailsBefore)] {
        for written in [false, true] {
            for write in 0.. {
                let (store, job, _folder) = with_job().await;
                let run_faults = fault.map(|fault| (Step::Perform, fault)).into_iter().collect();
                let world = Arc::new(Mutex::new(World { run_faults, ..World::default() }));
                let died = Notify::new();
                let mut server_run = ServerRun::new(world.clone(), &store, job);
                let log = DyingLog { store: &store, died: &died, left: Mutex::new(Some(write)), written };
                let survived = tokio::select! {
                    phase = drive(&log, job, &mut server_run, QUICK) => Some(phase),
                    () = died.notified() => None,
                };
                let phase = drive(&store, job, &mut server_run, QUICK).await;
                // A failure that is not on disk did not happen: the next run tries the step again, and this time it
                // succeeds.
                assert!(phase == Phase::Succeeded || fault.is_some(), "write {write}: {phase:?}");
                let done = if phase == Phase::Succeeded { HashSet::from(Step::ALL) } else { HashSet::new() };
                assert_eq!(world.lock().expect("nobody panics with it").effects, done, "write {write}");
                store.close().await;
                if survived.is_some() {
                    assert!(write > 8, "every write was the last one once");
                    break;
                }
            }
        }
    }
}

/// A database that fails once at each write, either before or after writing.
struct FailingLog<'a> {
    store: &'a Store,
    /// The last write, and whether it was reported as failed.
    last: Mutex<(Vec<LogEvent>, bool)>,
    written: bool,
}

impl Log for FailingLog<'_> {
    async fn events(&self, job: JobId) -> Result<Vec<LogEvent>, StoreError> {
        Log::events(self.store, job).await
    }

    async fn append(&self, job: JobId, events: &[LogEvent]) -> Result<(), StoreError> {
        let fails = {
            let mut last = self.last.lock().expect("nobody panics with it");
            let fails = *last != (events.to_vec(), true);
            *last = (events.to_vec(), fails);
            fails
        };
        if !fails || self.written {
            Log::append(self.store, job, events).await?;
        }
        if fails { Err(StoreError::Database(sqlx::Error::PoolTimedOut)) } else { Ok(()) }
    }
}

/// Drives a job whose database fails at each write.
async fn with_failing_writes(step: Step, fault: Option<Fault>, written: bool) {
    let (store, job, _folder) = with_job().await;
    let run_faults = fault.map(|fault| (step, fault)).into_iter().collect();
    let world = Arc::new(Mutex::new(World { run_faults, ..World::default() }));
    let mut server_run = ServerRun::new(world.clone(), &store, job);
    let log = FailingLog { store: &store, last: Mutex::default(), written };
    let phase = drive(&log, job, &mut server_run, QUICK).await;
    let fails = fault.is_some() && step.class().is_taken_back();
    let expected = match fails {
        true => (Phase::Failed, HashSet::new()),
        false => (Phase::Succeeded, HashSet::from(Step::ALL)),
    };
    let effects = std::mem::take(&mut server_run.world().effects);
    assert_eq!((phase, effects), expected, "{step:?} {fault:?} written: {written}");
    assert!(!server_run.running.now().waits(), "{step:?}: nothing is waited for any more");
    store.close().await;
}

#[tokio::test]
async fn a_write_that_fails_changes_nothing_but_the_time_that_a_job_takes() {
    let mut jobs = Vec::new();
    for step in Step::ALL {
        for fault in [None, Some(Fault::FailsBefore)] {
            jobs.extend([false, true].map(|written| with_failing_writes(step, fault, written)));
        }
    }
    futures_util::future::join_all(jobs).await;
}

/// Returns when the job shows that it waits for its database.
async fn waits(running: &Running) {
    let waiting = async {
        while !running.now().waits() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it waits");
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_the_job_goes_on_from_where_it_was() {
    let (roomy, job, folder) = with_job().await;
    let store = Store::open_small(&folder.path().join("ferry.db"), Some(roomy.pages().await)).await;
    let mut server_run = ServerRun::new(Arc::default(), &store, job);
    // Full to the last byte: not even a short line fits.
    for length in [500, 50, 0] {
        while store.append(job, &[LogEntry::Note(JobText::Text { text: "x".repeat(length) })], 1).await.is_ok() {}
    }
    let (running, world) = (server_run.running.clone(), server_run.world.clone());
    let driving = drive(&store, job, &mut server_run, QUICK);
    let freed = async {
        waits(&running).await;
        assert_eq!(
            world.lock().expect("nobody panics with it").effects,
            HashSet::new(),
            "no step is run whose intent is not on the disk"
        );
        roomy.remove_notes().await;
    };
    let (phase, ()) = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(driving, freed) })
        .await
        .expect("it goes on");
    assert_eq!((phase, server_run.world().effects.clone()), (Phase::Succeeded, HashSet::from(Step::ALL)));
    assert!(!server_run.running.now().waits());
    store.close().await;
    roomy.close().await;
}

#[tokio::test]
async fn a_busy_database_is_waited_for_and_the_job_goes_on_from_where_it_was() {
    let (store, job, _folder) = with_job().await;
    let mut server_run = ServerRun::new(Arc::default(), &store, job);
    let busy = store.occupy().await;
    let running = server_run.running.clone();
    let freed = async {
        waits(&running).await;
        drop(busy);
    };
    let driving = drive(&store, job, &mut server_run, QUICK);
    let (phase, ()) = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(driving, freed) })
        .await
        .expect("it goes on");
    assert_eq!((phase, server_run.world().effects.clone()), (Phase::Succeeded, HashSet::from(Step::ALL)));
    store.close().await;
}

/// Not a promise that a test can keep on a busy machine: `cargo xtask bench jobs` runs it.
#[tokio::test]
#[ignore = "a figure of `cargo xtask bench jobs`"]
async fn what_a_step_costs() {
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = std::time::Instant::now();
        play(World::default()).await;
        times.push(begun.elapsed());
    }
    times.sort();
    // Includes creating and closing the database, so the figure is an upper bound.
    let step_ms = times[times.len() / 2].as_secs_f64() * 1e3 / Step::ALL.len() as f64;
    writeln!(std::io::stdout(), "step_ms {step_ms:.3}").expect("somebody listens");
}
