//! The state of the host, kept current by libvirt's events and by polling.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ferry_core::{
    api::agent::Observation,
    error::chain,
    id::{Generation, HostId, Incarnation},
};
use ferry_drivers::hypervisor::{DomainEvent, Hypervisor, HypervisorError};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{chains::Chains, config::Config, host, shares::Shares};

/// Longest wait of a request for news.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a newly started agent may take for its first poll.
const FIRST_POLL: Duration = Duration::from_secs(5);
/// Poll interval without events: libvirt may have been restarted, and memory changes without an event.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// Smaller changes of free memory are not news.
const MEMORY_STEP: u64 = 64 << 20;
/// Limit of queued events; further ones carry no information.
const EVENTS_MAX: usize = 16;

/// The host's state and its cursor.
pub struct Observer {
    latest: watch::Receiver<Option<Observation>>,
    answers: Arc<AtomicBool>,
    /// Dropping it ends the tasks.
    _tasks: JoinSet<()>,
    asked: mpsc::Sender<oneshot::Sender<()>>,
}

impl Observer {
    /// Starts to observe.
    pub fn start(
        config: Config,
        hypervisor: Arc<dyn Hypervisor>,
        shares: Arc<Shares>,
        host: watch::Receiver<Option<HostId>>,
    ) -> Self {
        let (publish, latest) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&shares).supervise());
        let (asked, asks) = mpsc::channel(EVENTS_MAX);
        let answers = Arc::new(AtomicBool::new(true));
        tasks.spawn(observe(config, hypervisor, shares, host, (publish, Arc::clone(&answers)), asks));
        Self { latest, asked, answers, _tasks: tasks }
    }

    /// Polls now, and returns when the result is available: for changes of which libvirt sends no event.
    pub async fn refresh(&self) {
        let (done, polled) = oneshot::channel();
        if self.asked.try_send(done).is_ok() {
            let _ = tokio::time::timeout(FIRST_POLL, polled).await;
        }
    }

    /// Whether libvirt answered the last poll.
    pub fn libvirt_answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// The host's state at the last poll; `None` if libvirt has not answered yet.
    pub fn latest(&self) -> watch::Ref<'_, Option<Observation>> {
        self.latest.borrow()
    }

    /// The host's state as soon as it is newer than the cursor; after `wait` (at most [`WAIT_MAX`]) in any case. `None`
    /// if libvirt has not answered yet.
    pub async fn newer(&self, cursor: Option<(Incarnation, Generation)>, wait: Duration) -> Option<Observation> {
        let mut latest = self.latest.clone();
        let wait = if latest.borrow().is_none() { wait.max(FIRST_POLL) } else { wait };
        let is_news = |observation: &Option<Observation>| {
            observation.as_ref().is_some_and(|observation| {
                cursor.is_none_or(|(incarnation, generation)| {
                    observation.incarnation != incarnation || observation.generation > generation
                })
            })
        };
        let _ = tokio::time::timeout(wait.min(WAIT_MAX), latest.wait_for(is_news)).await;
        self.latest.borrow().clone()
    }
}

async fn observe(
    config: Config,
    hypervisor: Arc<dyn Hypervisor>,
    shares: Arc<Shares>,
    mut host: watch::Receiver<Option<HostId>>,
    (publish, answers): (watch::Sender<Option<Observation>>, Arc<AtomicBool>),
    mut asks: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
    let chains = Chains::default();
    let incarnation = Incarnation(Uuid::new_v4());
    let (event, mut events) = mpsc::channel(EVENTS_MAX);
    let mut share_changes = shares.watch();
    let mut events_watch: Watching = None;
    loop {
        let id = *host.borrow_and_update();
        let know = (&shares, &chains);
        let polled = poll(&config, &hypervisor, know, id, incarnation, events_watch, event.clone()).await;
        let (found, watch) = polled;
        events_watch = watch;
        match found {
            Ok(found) => {
                if !answers.swap(true, Ordering::Relaxed) {
                    info!("libvirt answers again");
                }
                publish.send_if_modified(|latest| replace_if_news(latest, found));
            }
            Err(error) => {
                if answers.swap(false, Ordering::Relaxed) {
                    warn!(error = %chain(&error), "libvirt does not answer");
                }
            }
        }
        // A requested poll is done; the caller may have stopped waiting.
        for done in waiting.drain(..) {
            let _ = done.send(());
        }
        tokio::select! {
            Some(ask) = asks.recv() => {
                waiting.push(ask);
                while let Ok(ask) = asks.try_recv() {
                    waiting.push(ask);
                }
            }
            _ = events.recv() => { while events.try_recv().is_ok() {} }
            _ = share_changes.changed() => {}
            _ = host.changed() => {}
            () = tokio::time::sleep(POLL_EVERY) => {}
        }
    }
}

/// A subscription to events, and whether it was lost with libvirtd.
type Watching = Option<(Box<dyn Send>, Arc<AtomicBool>)>;

async fn poll(
    config: &Config,
    hypervisor: &Arc<dyn Hypervisor>,
    (shares, chains): (&Arc<Shares>, &Chains),
    id: Option<HostId>,
    incarnation: Incarnation,
    watching: Watching,
    event: mpsc::Sender<()>,
) -> (Result<Observation, HypervisorError>, Watching) {
    let (config, hypervisor, shares) = (config.clone(), Arc::clone(hypervisor), Arc::clone(shares));
    let chains = chains.clone();
    let polled = tokio::task::spawn_blocking(move || {
        let mut watching = watching.filter(|(_, lost)| !lost.load(Ordering::Acquire));
        if watching.is_none() {
            let lost = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&lost);
            let sink = Box::new(move |happened| {
                if happened == DomainEvent::ConnectionLost {
                    flag.store(true, Ordering::Release);
                }
                // A full queue means that a poll is due anyway.
                let _ = event.try_send(());
            });
            watching = hypervisor.watch(sink).ok().map(|watch| (watch, lost));
        }
        let found = gather(&config, &*hypervisor, &shares, &chains, id, incarnation);
        (found, watching)
    });
    match polled.await {
        Ok(polled) => polled,
        Err(error) => (Err(HypervisorError::Unreachable(error.to_string())), None),
    }
}

fn gather(
    config: &Config,
    hypervisor: &dyn Hypervisor,
    shares: &Shares,
    chains: &Chains,
    id: Option<HostId>,
    incarnation: Incarnation,
) -> Result<Observation, HypervisorError> {
    let places = shares.places(id.unwrap_or(HostId(Uuid::nil())));
    let mut vms = hypervisor.vms()?;
    chains.fill(&mut vms, &places);
    let mut vms: Vec<_> = vms.into_iter().map(|facts| facts.map_places(|path| places.location(&path))).collect();
    vms.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
    Ok(Observation {
        incarnation,
        generation: Generation(1),
        host: host::facts(config, hypervisor)?,
        vms,
        shares: shares.watch().borrow().clone(),
    })
}

/// Replaces the state with `found`, as the next generation, if they differ by more than noise.
fn replace_if_news(latest: &mut Option<Observation>, mut found: Observation) -> bool {
    if let Some(known) = latest {
        found.generation = known.generation;
        if known.host.memory_free.0.abs_diff(found.host.memory_free.0) < MEMORY_STEP {
            found.host.memory_free = known.host.memory_free;
        }
        if *known == found {
            return false;
        }
        found.generation = known.generation.next();
    }
    *latest = Some(found);
    true
}
