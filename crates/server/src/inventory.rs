//! Hosts and the latest reports of their agents. One task per host repeatedly asks its agent for anything newer, until
//! the host is removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use ferry_client::{ClientError, agent::AgentClient};
use ferry_core::{
    admission::Limits,
    api::{agent::Observation, problem::Title, server::Event},
    backoff::Backoff,
    error::chain,
    finding::{Action, Command, Finding, FindingId, Message},
    id::{HostId, ShareId, VmId},
    preflight::{Placed, Side, resolve_vm},
    vm::{VmFacts, VmState},
};
use ferry_trust::KeyPair;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::now_ms,
    events::Events,
    failure::{Failure, fault_finding},
    store::{HostName, HostRecord, HostSettings},
};

/// How long an agent may delay its answer while it has nothing newer. Together with the client's grace time, this is
/// the deadline after which a silent host counts as unreachable.
const OBSERVE_WAIT: Duration = Duration::from_secs(5);
/// How often an unreachable agent is asked.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
/// How long to wait until a host's agent sees a job's change there: libvirt answers late while it ends a migration.
const REFRESH_WITHIN: Duration = Duration::from_secs(15);
/// How often the agent is made to refresh until then.
const REFRESH_EVERY: Duration = Duration::from_millis(100);
/// How long to wait until an agent's own action appears in its observations.
const SEEN_WITHIN: Duration = Duration::from_secs(3);
/// How long a host that is asked before a decision may take to answer before it counts as unreachable.
const REFRESH_DEADLINE: Duration = Duration::from_secs(6);

/// The current knowledge about a host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The last observation.
    pub(crate) observation: Option<Arc<Observation>>,
    /// Whether the agent answered the last call.
    pub(crate) reachable: bool,
    /// When the agent last answered, in Unix milliseconds.
    pub(crate) seen_at_ms: Option<u64>,
    /// Why the host is not reachable.
    pub(crate) trouble: Option<Finding>,
}

impl Seen {
    /// The host's VMs.
    pub(crate) fn vms(&self) -> &[VmFacts] {
        self.observation.as_ref().map_or(&[], |observation| &observation.vms)
    }

    /// The VM with this id, if the host has it.
    pub(crate) fn vm(&self, vm: VmId) -> Option<&VmFacts> {
        self.vms().iter().find(|facts| facts.id == vm)
    }

    /// Whether a share is attached on this host.
    pub(crate) fn has_share(&self, share: ShareId) -> bool {
        self.observation.as_ref().is_some_and(|last| last.shares.iter().any(|attached| attached.id == share))
    }

    /// The host as input for preflight.
    pub(crate) fn side<'a>(&'a self, host: &'a Host) -> Side<'a> {
        let settings = host.settings();
        Side {
            name: host.name(),
            reachable: self.reachable,
            maintenance: settings.maintenance,
            networks: settings.migration_networks,
            facts: self.observation.as_ref().map(|observation| &observation.host),
            vms: self.vms(),
            shares: self.observation.as_ref().map_or(&[], |observation| &observation.shares),
        }
    }
}

/// A host that an administrator added.
#[derive(Debug)]
pub(crate) struct Host {
    /// Its stored record.
    pub(crate) record: HostRecord,
    /// The client of its agent.
    pub(crate) agent: AgentClient,
    seen: watch::Sender<Seen>,
    settings: Mutex<HostSettings>,
    removed: CancellationToken,
}

impl Host {
    /// The current knowledge about it.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Its administrator's settings.
    pub(crate) fn settings(&self) -> HostSettings {
        *self.settings.lock().expect("nobody panics with it")
    }

    /// The host as a job records it.
    pub(crate) fn named(&self) -> HostName {
        HostName { id: self.record.id, name: self.record.name.clone() }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.record.name
    }

    /// Waits until `is_so` holds, at most [`SEEN_WITHIN`], and returns the current knowledge either way. An agent
    /// learns of its own actions from its hypervisor's events, some milliseconds later.
    pub(crate) async fn wait_until(&self, is_so: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.subscribe();
        let _ = tokio::time::timeout(SEEN_WITHIN, seen.wait_for(is_so)).await;
        self.seen()
    }
}

/// Every host.
pub(crate) struct Inventory {
    hosts: RwLock<BTreeMap<HostId, Arc<Host>>>,
    running_twice: Mutex<BTreeSet<VmId>>,
    events: Arc<Events>,
    key: KeyPair,
    /// The epoch of this run of the server, which agents are told.
    epoch: u64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Inventory {
    pub(crate) fn new(
        key: KeyPair,
        epoch: u64,
        events: Arc<Events>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { hosts: RwLock::default(), running_twice: Mutex::default(), events, key, epoch, tasks, stop }
    }

    /// A client of the agent that has this address and key.
    pub(crate) fn agent(&self, address: &str, pin: ferry_core::pin::Pin) -> Result<AgentClient, ClientError> {
        AgentClient::in_epoch(address, pin, &self.key, self.epoch)
    }

    /// Adds a host and begins to ask its agent.
    pub(crate) fn add(self: &Arc<Self>, record: HostRecord, agent: AgentClient) -> Arc<Host> {
        let host = Arc::new(Host {
            agent,
            seen: watch::Sender::new(Seen::default()),
            removed: self.stop.child_token(),
            settings: Mutex::new(record.settings),
            record,
        });
        self.hosts.write().expect("nobody panics with it").insert(host.record.id, host.clone());
        let (inventory, asked) = (self.clone(), host.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = asked.removed.cancelled() => {}
                () = inventory.keep_asking(&asked) => {}
            }
        });
        self.events.publish(&Event::Host { name: host.record.name.clone() });
        host
    }

    /// Applies an administrator's settings that are already stored.
    pub(crate) fn set(&self, host: &Host, settings: HostSettings) {
        *host.settings.lock().expect("nobody panics with it") = settings;
        self.publish_change(host);
    }

    /// Informs listeners of a change to a host that is already stored.
    pub(crate) fn publish_change(&self, host: &Host) {
        self.events.publish(&Event::Host { name: host.record.name.clone() });
    }

    /// How many moves each host may take part in at the same time.
    pub(crate) fn limits(&self) -> BTreeMap<HostId, Limits> {
        let hosts = self.hosts.read().expect("nobody panics with it");
        hosts.iter().map(|(id, host)| (*id, host.settings().limits)).collect()
    }

    /// Removes a host: its agent is no longer called.
    pub(crate) fn remove(&self, id: HostId) {
        let removed = self.hosts.write().expect("nobody panics with it").remove(&id);
        if let Some(host) = removed {
            host.removed.cancel();
            self.events.publish(&Event::Host { name: host.record.name.clone() });
        }
    }

    /// Every host, by name.
    pub(crate) fn hosts(&self) -> Vec<Arc<Host>> {
        let mut hosts: Vec<_> = self.hosts.read().expect("nobody panics with it").values().cloned().collect();
        hosts.sort_by(|one, other| one.record.name.cmp(&other.record.name));
        hosts
    }

    /// The host with this id.
    pub(crate) fn by_id(&self, id: HostId) -> Option<Arc<Host>> {
        self.hosts.read().expect("nobody panics with it").get(&id).cloned()
    }

    /// The host with this name or id.
    pub(crate) fn find(&self, reference: &str) -> Result<Arc<Host>, Finding> {
        let id: Option<HostId> = reference.parse().ok();
        let found = self.hosts().into_iter().find(|host| host.record.name == reference || Some(host.record.id) == id);
        found.ok_or_else(|| {
            Finding::blocks(
                FindingId::HostUnknown,
                reference,
                Message::HostNotAdded { host: reference.to_owned() },
                Action::ListHosts,
            )
        })
    }

    /// The VM with this name, UUID or `HOST/NAME`, and its host.
    pub(crate) fn find_vm(&self, title: &Title, reference: &str) -> Result<(Arc<Host>, VmFacts), Failure> {
        let placed = self.placed();
        let vms: Vec<_> = placed.iter().flat_map(|(host, seen)| seen.vms().iter().map(move |vm| (host, vm))).collect();
        let row = |(host, vm): &(&Arc<Host>, &VmFacts)| Placed {
            host: host.name().to_owned(),
            id: vm.id,
            name: vm.name.clone(),
            state: vm.state,
        };
        let rows: Vec<Placed> = vms.iter().map(row).collect();
        let found = resolve_vm(reference, &rows).map_err(|finding| Failure::found(title, finding))?;
        let (host, vm) = vms[found];
        Ok((host.clone(), vm.clone()))
    }

    /// Every host with what is known about it, including its VMs.
    pub(crate) fn placed(&self) -> Vec<(Arc<Host>, Seen)> {
        self.hosts().into_iter().map(|host| (host.clone(), host.seen())).collect()
    }

    /// Asks a host now. Afterwards [`Host::seen`] holds the answer, or that there was none.
    pub(crate) async fn refresh(self: &Arc<Self>, host: &Host) -> Seen {
        if self.refresh_quietly(host).await {
            self.watch_for_split_brain();
        }
        host.seen()
    }

    /// Makes a host's agent refresh its observation now, so that its answer is no older than the question. If it
    /// cannot, it is asked as by [`Self::refresh`].
    pub(crate) async fn refresh_now(self: &Arc<Self>, host: &Host) -> Seen {
        match tokio::time::timeout(REFRESH_DEADLINE, host.agent.refresh()).await {
            Ok(Ok(observation)) => {
                if self.apply_observation(host, observation) {
                    self.watch_for_split_brain();
                }
                host.seen()
            }
            Ok(Err(_)) | Err(_) => self.refresh(host).await,
        }
    }

    /// Makes the agents of all hosts refresh their observations now, in parallel.
    pub(crate) async fn refresh_all(self: &Arc<Self>) {
        let hosts = self.hosts();
        join_all(hosts.iter().map(|host| self.refresh_now(host))).await;
    }

    /// Makes a host's agent refresh until `is_so` holds for the host, for at most [`REFRESH_WITHIN`].
    pub(crate) async fn refresh_until(&self, host: &Host, is_so: impl Fn(&Seen) -> bool) {
        let refreshing = async {
            while !is_so(&host.seen()) {
                match host.agent.refresh().await {
                    Ok(observation) => drop(self.apply_observation(host, observation)),
                    Err(error) => tracing::debug!(host = host.name(), error = %chain(&error), "It could not look"),
                }
                let mut seen = host.seen.subscribe();
                let _ = tokio::time::timeout(REFRESH_EVERY, seen.wait_for(&is_so)).await;
            }
        };
        if tokio::time::timeout(REFRESH_WITHIN, refreshing).await.is_err() {
            tracing::info!(host = host.name(), "What was changed on the host is not seen there yet");
        }
    }

    async fn refresh_quietly(&self, host: &Host) -> bool {
        let asked = tokio::time::timeout(REFRESH_DEADLINE, host.agent.observe(None, Duration::ZERO)).await;
        match asked {
            Ok(answer) => self.apply(host, answer),
            Err(_) => self.apply_silence(host, silence(host)),
        }
    }

    async fn keep_asking(self: &Arc<Self>, host: &Host) {
        let mut retry = RETRY;
        loop {
            let seen = host.seen();
            // After a failure the complete observation is requested at once, so that an agent that is back is noticed
            // without delay.
            let known = seen.observation.filter(|_| seen.reachable).map(|last| (last.incarnation, last.generation));
            let answer = host.agent.observe(known, OBSERVE_WAIT).await;
            let failed = answer.is_err();
            if self.apply(host, answer) {
                self.watch_for_split_brain();
            }
            if failed {
                tokio::time::sleep(retry.pause()).await;
            } else {
                retry = RETRY;
            }
        }
    }

    /// Stores an agent's answer. Returns whether anything changed.
    fn apply(&self, host: &Host, answer: Result<Observation, ClientError>) -> bool {
        match answer {
            Ok(observation) => self.apply_observation(host, observation),
            Err(error) => self.apply_silence(host, fault_finding(host.name(), &error)),
        }
    }

    fn apply_observation(&self, host: &Host, observation: Observation) -> bool {
        let mut changed = false;
        host.seen.send_modify(|seen| {
            changed = !seen.reachable;
            if changed {
                tracing::info!(host = host.name(), "The host's agent answers");
            }
            let newer = seen.observation.as_ref().is_none_or(|last| {
                last.incarnation != observation.incarnation || last.generation <= observation.generation
            });
            if newer {
                changed |= seen.observation.as_deref() != Some(&observation);
                seen.observation = Some(Arc::new(observation));
            }
            *seen = Seen {
                observation: seen.observation.take(),
                reachable: true,
                seen_at_ms: Some(now_ms()),
                trouble: None,
            };
        });
        if changed {
            self.events.publish(&Event::Host { name: host.record.name.clone() });
        }
        changed
    }

    fn apply_silence(&self, host: &Host, trouble: Finding) -> bool {
        let mut changed = false;
        host.seen.send_modify(|seen| {
            changed = seen.reachable || seen.trouble.is_none();
            if changed {
                tracing::warn!(host = host.name(), trouble = %trouble.message, "The host's agent does not answer");
            }
            seen.reachable = false;
            seen.trouble = Some(trouble);
        });
        if changed {
            self.events.publish(&Event::Host { name: host.record.name.clone() });
        }
        changed
    }

    /// Names of the hosts that run the VM, if several hosts do and confirmed it when they were asked again.
    pub(crate) fn split_brain(&self, vm: VmId) -> Vec<String> {
        let confirmed = self.running_twice.lock().expect("nobody panics with it").contains(&vm);
        if confirmed { self.running_on(vm).iter().map(|host| host.record.name.clone()).collect() } else { Vec::new() }
    }

    fn running_on(&self, vm: VmId) -> Vec<Arc<Host>> {
        let runs = |seen: &Seen| seen.vm(vm).is_some_and(|facts| facts.state == VmState::Running);
        self.placed().into_iter().filter(|(_, seen)| runs(seen)).map(|(host, _)| host).collect()
    }

    /// Starts a check of every VM that seems to run on two hosts, unless that is already known.
    fn watch_for_split_brain(self: &Arc<Self>) {
        let running: Vec<(VmId, String)> = self
            .placed()
            .iter()
            .flat_map(|(_, seen)| seen.vms().iter().filter(|vm| vm.state == VmState::Running))
            .map(|vm| (vm.id, vm.name.clone()))
            .collect();
        let mut known = self.running_twice.lock().expect("nobody panics with it");
        known.retain(|vm| running.iter().filter(|(other, _)| other == vm).count() > 1);
        for (vm, name) in &running {
            let twice = running.iter().filter(|(other, _)| other == vm).count() > 1;
            if twice && !known.contains(vm) {
                let inventory = self.clone();
                let (vm, name) = (*vm, name.clone());
                self.tasks.spawn(async move { inventory.confirm_split_brain(vm, &name).await });
            }
        }
    }

    /// Reports once, as an error, that a VM runs on several hosts. Observations of two hosts are of two different
    /// moments, so a VM that just moved may appear in both. Therefore all of them are refreshed twice: if one host runs
    /// the VM both before and after the other host was seen to run it, both ran it at the same time.
    async fn confirm_split_brain(&self, vm: VmId, name: &str) {
        for _ in 0..2 {
            for host in self.running_on(vm) {
                let observed = tokio::time::timeout(REFRESH_DEADLINE, host.agent.refresh()).await;
                let Ok(Ok(observation)) = observed else {
                    // What a host reported before it fell silent proves nothing. It is compared again when it answers.
                    return;
                };
                self.apply_observation(&host, observation);
            }
        }
        let hosts: Vec<String> = self.running_on(vm).iter().map(|host| host.record.name.clone()).collect();
        if hosts.len() > 1 && self.running_twice.lock().expect("nobody panics with it").insert(vm) {
            tracing::error!(vm = %vm, name, hosts = hosts.join(" "), "The VM runs on several hosts at once");
            self.events.publish(&Event::Host { name: hosts[0].clone() });
        }
    }
}

/// The finding about a host that did not answer in time.
fn silence(host: &Host) -> Finding {
    Finding::blocks(
        FindingId::HostUnreachable,
        host.name(),
        Message::HostSilentFor { host: host.name().to_owned(), seconds: REFRESH_DEADLINE.as_secs() },
        Command::StartAgent { host: host.name().to_owned() },
    )
}
