//! The agent: runs on each host next to libvirtd, observes the host and moves the bytes.
//!
//! ```text
//! http ─▶ shares · places · power
//!   ├──── moves ─▶ attempt::locks ─▶ storage · offline · live::Registry ─▶ one carrier process per migration (live::carrier)
//!   └──── observer (what the host has, by events)
//! ```
//! An agent never calls the server: it answers requests, including those for its state.

pub mod attempt;
mod blocking;
mod chains;
mod check;
pub mod checks;
pub mod config;
mod confinement;
mod damaged;
pub mod enrolment;
mod error;
mod failpoint;
mod files;
mod hold;
mod hook;
pub mod host;
pub mod http;
pub mod live;
mod lock;
pub mod lock_trials;
pub mod metrics;
mod moves;
pub mod notify;
pub mod observer;
pub mod offline;
mod peers;
pub mod places;
mod qemu_conf;
mod records;
mod refusal;
mod rewriter;
pub mod setup;
pub mod shares;
mod stalls;
pub mod storage;
pub mod tls;

use std::sync::Arc;

use ferry_core::id::VmId;
use ferry_drivers::{hypervisor::Hypervisor, share::ShareDriver};
use ferry_trust::KeyPair;

pub use error::AgentError;

use crate::{
    attempt::{ended::Ended, locks::JobLocks},
    config::Config,
    enrolment::Enrolment,
    files::{claims::Claims, partial::PartialCopies},
    live::Registry,
    lock_trials::LockTrials,
    metrics::Metrics,
    observer::Observer,
    offline::OfflineMoves,
    rewriter::TextRewriter,
    shares::Shares,
    storage::StorageMoves,
};

/// Everything that the control API works on.
pub struct Agent {
    /// The configuration.
    pub config: Config,
    /// This agent's key.
    pub key: KeyPair,
    /// Which server may call.
    pub enrolment: Enrolment,
    /// The hypervisor of this host.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The file shares of this host.
    pub shares: Arc<Shares>,
    /// Trials of QEMU's locks on them.
    pub lock_trials: Arc<LockTrials>,
    /// The observed state of the host.
    pub observer: Observer,
    /// Runs requests for one job one after another.
    pub locks: Arc<JobLocks>,
    /// The migrations.
    pub migrations: Arc<Registry>,
    /// The offline moves.
    pub offline: Arc<OfflineMoves>,
    /// The storage moves.
    pub storage: Arc<StorageMoves>,
    /// Released attempts.
    pub(crate) ended: Arc<Ended>,
    /// Space promised to requests.
    pub claims: Arc<Claims>,
    /// Counters.
    pub metrics: Metrics,
}

impl Agent {
    /// Creates an agent from its own files, without waiting for libvirt or file servers. In the background it attaches
    /// its shares again, finds its migrations and observes the host.
    ///
    /// # Errors
    /// If its own files cannot be read or written. Damaged files are put aside and reported, except the one that names
    /// the server that may call.
    pub async fn start(
        config: Config,
        hypervisor: Arc<dyn Hypervisor>,
        share_driver: Arc<dyn ShareDriver>,
        launcher: live::Launcher,
    ) -> Result<Arc<Self>, AgentError> {
        ferry_trust::install_provider();
        records::ensure_private_dir(&config.state_dir)?;
        // If the folder did not exist, the hook would veto every start.
        records::ensure_private_dir(&config.holds_dir())?;
        hook::refresh(&config);
        let key = KeyPair::load_or_create(&config.key_path())?;
        let enrolment = Enrolment::load(&config)?;
        let shares = Arc::new(Shares::load(&config, share_driver)?);
        let observer =
            Observer::start(config.clone(), Arc::clone(&hypervisor), Arc::clone(&shares), enrolment.watch_host());
        let partials = Arc::new(PartialCopies::load(&config)?);
        let ended = Arc::new(Ended::load(&config)?);
        let migrations =
            Registry::load(&config, Arc::clone(&hypervisor), launcher, Arc::clone(&partials), Arc::clone(&ended))?;
        let migrations = Arc::new(migrations);
        confinement::selinux::label_sessions(&config);
        tokio::spawn(files::partial::sweep_for_ever(Arc::downgrade(&partials)));
        let storage = Arc::new(StorageMoves::load(&config, Arc::clone(&hypervisor), Arc::clone(&ended))?);
        let offline = Arc::new(OfflineMoves::load(&config, Arc::clone(&hypervisor), partials, Arc::clone(&ended))?);
        let claims = Arc::default();
        let agent = Arc::new(Self {
            config,
            key,
            enrolment,
            hypervisor,
            shares,
            lock_trials: Arc::default(),
            observer,
            locks: Arc::default(),
            migrations,
            offline,
            storage,
            ended,
            claims,
            metrics: Metrics::default(),
        });
        let finder = Arc::clone(&agent);
        tokio::spawn(async move { finder.migrations.find_again(&finder.locks).await });
        tokio::spawn(stalls::watch(Arc::downgrade(&agent)));
        Ok(agent)
    }

    /// The names that users know: of files on shares and of VMs, here and on the other hosts of this host's moves.
    pub(crate) fn rewriter(&self) -> TextRewriter {
        let here = self.shares.roots();
        let there = self.migrations.mounts_elsewhere().into_iter().filter_map(|mount| {
            let share = here.iter().find(|root| root.id == mount.share)?;
            Some((mount.path.into(), share.source.clone()))
        });
        let mounts = here.iter().map(|root| (root.mount.clone(), root.source.clone())).chain(there).collect();
        let seen = self.observer.latest();
        let vms = seen.iter().flat_map(|seen| &seen.vms).map(|vm| (vm.id, vm.name.clone()));
        TextRewriter { mounts, names: vms.chain(self.migrations.names()).collect() }
    }
}

impl stalls::Host for Agent {
    fn hypervisor(&self) -> &Arc<dyn Hypervisor> {
        &self.hypervisor
    }

    fn observer(&self) -> &Observer {
        &self.observer
    }

    fn moves(&self, vm: VmId) -> bool {
        self.migrations.moves(vm)
    }
}
