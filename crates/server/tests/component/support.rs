//! A server, hosts with real agents over fake hypervisors, and file servers: all in one process, with real TLS, HTTP,
//! wire and database.

use std::{collections::BTreeSet, net::TcpListener, path::PathBuf, sync::Arc, time::Duration};

use ferry_agent::{Agent, http, live::Launcher, setup};
use ferry_client::{ClientError, server::ServerClient};
use ferry_core::{
    api::server::{AddHost, AddShare, AttachShare, HostView, JobView, MigrateVm, ShareView},
    finding::FindingId,
    id::{JobId, VmId},
    migration::Phase,
    pin::Pin,
    unc::UncPath,
    vm::VmState,
};
use ferry_drivers::{
    hypervisor::fake::{FakeGuest, FakeHypervisor, World},
    share::fake::{FakeExport, FakeFileServers, FakeShares},
};
use ferry_server::{Server, config::Config};
use ferry_testkit::logs::{Watch, expects_warning};
use tokio::sync::oneshot;
use uuid::Uuid;

/// Nothing here takes longer unless it hangs.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The share that every host of a [`Lab`] has.
pub const UNC: &str = "\\\\fs1.ferry.lab\\vms";

/// A server, its client, and everything that its hosts share.
pub struct Lab {
    folder: PathBuf,
    pub world: World,
    pub file_servers: FakeFileServers,
    config: Config,
    server: Option<Server>,
    pub client: ServerClient,
}

/// A host, with its agent running or stopped.
pub struct Host {
    pub name: &'static str,
    folder: PathBuf,
    pub hypervisor: Arc<FakeHypervisor>,
    file_servers: FakeFileServers,
    pub config: ferry_agent::config::Config,
    running: Option<(Arc<Agent>, oneshot::Sender<()>, tokio::task::JoinHandle<()>)>,
}

/// Runs a test in its own lab. The lab's folder outlives everything that runs in it.
pub fn in_lab(test: impl AsyncFnOnce(&mut Lab)) {
    let logs = Watch::start();
    // The disks of fake guests do not speak NBD.
    expects_warning("An NBD connection is not understood and is carried as it is");
    // A fake's carrier ends with its task, without notice to its peer.
    expects_warning("Channel failed");
    expects_warning("The channel was ended with the move");
    // So does its QEMU.
    expects_warning("The local socket could not be reached");
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let mut lab = Lab::new(folder.path().to_owned()).await;
        test(&mut lab).await;
        lab.stop_server().await;
    });
    drop(runtime);
    folder.close().expect("removed");
    drop(logs);
}

impl Lab {
    /// A server without hosts, and a file server with the share `vms`.
    async fn new(folder: PathBuf) -> Self {
        let config = Config {
            retention_days: 365,
            listen: "127.0.0.1:0".parse().expect("an address"),
            state_dir: folder.join("server"),
            database: None,
            metrics_listen: Some("127.0.0.1:0".parse().expect("an address")),
        };
        let file_servers = FakeFileServers::new();
        let export = folder.join("export");
        std::fs::create_dir(&export).expect("made");
        file_servers.export(&unc(), FakeExport::new(export));
        let server = Server::start(&config).await.expect("the server starts");
        let client = client_of(&config, &server.address().to_string());
        Self { folder, world: World::new(), file_servers, config, server: Some(server), client }
    }

    /// Two hosts with the share, and a VM on the first that runs from it.
    pub async fn two_hosts(&self) -> (Host, Host, VmId) {
        let (kvm1, kvm2) = (self.host("kvm1").await, self.host("kvm2").await);
        self.add(&kvm1).await.expect("added");
        self.add(&kvm2).await.expect("added");
        self.client.add_share(&AddShare { name: "vms".into(), source: UNC.into() }).await.expect("added");
        self.attach(&kvm1).await.expect("attached");
        self.attach(&kvm2).await.expect("attached");
        let vm = self.define(&kvm1, "web01", |_| {}).await;
        self.client.start_vm("web01").await.expect("started");
        (kvm1, kvm2, vm)
    }

    /// A host whose agent runs and is not enrolled.
    pub async fn host(&self, name: &'static str) -> Host {
        let folder = self.folder.join(name);
        std::fs::create_dir(&folder).expect("made");
        let hypervisor = FakeHypervisor::new(name, &folder, &self.world).expect("a socket");
        let mut config = ferry_agent::config::Config::new("127.0.0.1:0".parse().expect("an address"));
        config.data_ports = "20000-29999".into();
        config.state_dir = folder.join("state");
        config.run_dir = folder.join("run");
        config.share_root = folder.join("srv");
        config.qemu_conf = folder.join("qemu.conf");
        config.hooks_dir = folder.join("hooks");
        config.apparmor_dir = folder.join("apparmor.d");
        config.storage_roots = vec![folder.join("local")];
        config.machine_id = folder.join("machine-id");
        std::fs::write(&config.machine_id, Uuid::new_v4().simple().to_string()).expect("written");
        std::fs::create_dir(&config.storage_roots[0]).expect("made");
        // QEMU's user is the one that runs the tests.
        std::fs::write(&config.qemu_conf, "user = \"+0\"\n").expect("written");
        let mut host = Host {
            name,
            folder,
            hypervisor: Arc::new(hypervisor),
            file_servers: self.file_servers.clone(),
            config,
            running: None,
        };
        host.set_up();
        host.start().await;
        host
    }

    /// Adds a host with a valid token.
    pub async fn add(&self, host: &Host) -> Result<HostView, ClientError> {
        self.client.add_host(&AddHost { name: host.name.into(), address: host.address(), token: host.token() }).await
    }

    /// Attaches the share `vms`.
    pub async fn attach(&self, host: &Host) -> Result<ShareView, ClientError> {
        let credentials = Some(FakeExport::new("/").credentials());
        self.client.attach_share("vms", host.name, &AttachShare { credentials, at: None }).await
    }

    /// Defines a VM with a disk on the share, and waits until the server sees it.
    pub async fn define(&self, host: &Host, name: &str, change: impl FnOnce(&mut FakeGuest)) -> VmId {
        let disk = host.on_share(&format!("{name}/disk.raw"));
        let mut guest = FakeGuest::new(name, &[disk]);
        change(&mut guest);
        let reference = format!("{}/{name}", host.name);
        let vm = host.hypervisor.define(guest).expect("defined");
        wait_for(&format!("{reference} is seen"), async || self.client.vm(&reference).await.is_ok()).await;
        vm
    }

    /// Defines a VM like [`Self::define`], and starts it.
    pub async fn run(&self, host: &Host, name: &str, change: impl FnOnce(&mut FakeGuest)) -> VmId {
        let vm = self.define(host, name, change).await;
        self.client.start_vm(&format!("{}/{name}", host.name)).await.expect("started");
        vm
    }

    /// Waits until a VM is seen in this state.
    pub async fn wait_for_state(&self, vm: &str, state: VmState) {
        let is_so = async || self.client.vm(vm).await.is_ok_and(|seen| seen.facts.state == state);
        wait_for(&format!("{vm} is {state:?}"), is_so).await;
    }

    /// Starts a move.
    pub async fn migrate(&self, vm: &str, to: &str) -> Result<JobView, ClientError> {
        self.client.migrate(vm, &MigrateVm { destination: to.into(), ..MigrateVm::default() }).await
    }

    /// Waits until `is_it` holds for a job.
    pub async fn wait_for_job(&self, job: JobId, is_it: impl Fn(&JobView) -> bool) -> JobView {
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                let view = self.client.job(job).await.expect("the job is known");
                if is_it(&view) {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        match found.await {
            Ok(view) => view,
            Err(_) => panic!("not so: {:#?}", self.client.job(job).await),
        }
    }

    /// Waits until a job has ended in this phase.
    pub async fn ends(&self, job: &JobView, phase: Phase) -> JobView {
        let view = self.wait_for_job(job.id, |view| view.phase.ended()).await;
        assert_eq!(view.phase, phase, "{view:#?}");
        view
    }

    /// Stops the server as a restart would; jobs stay as they are.
    pub async fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await.expect("a clean end");
        }
    }

    /// Starts the server with the same state; the client calls its new address.
    pub async fn start_server(&mut self) {
        let server = Server::start(&self.config).await.expect("the server starts");
        self.client = self.client_at(&server.address().to_string());
        self.server = Some(server);
    }

    /// A client of a server that runs elsewhere with the same state.
    pub fn client_at(&self, address: &str) -> ServerClient {
        client_of(&self.config, address)
    }

    /// The server's address, its key, and the administrator's token.
    pub fn access(&self) -> (String, Pin, String) {
        let server = self.server.as_ref().expect("it runs");
        (format!("https://{}", server.address()), server.pin(), token_of(&self.config))
    }

    /// The address of the server's metrics.
    pub fn metrics_address(&self) -> std::net::SocketAddr {
        self.server.as_ref().expect("it runs").metrics_address().expect("it tells them")
    }

    /// The server's settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A directory of the lab.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder).expect("made");
        folder
    }

    /// The hosts that run a VM now. Checks that the VM has never run on two hosts.
    pub fn running_on(&self, vm: VmId) -> BTreeSet<String> {
        assert!(self.world.most_at_once(vm) <= 1, "the VM ran twice: {:#?}", self.world.history(vm));
        self.world.running_on(vm)
    }
}

impl Host {
    /// Does the same as `ferry-agent setup`.
    pub fn set_up(&mut self) {
        let path = self.folder.join("agent.toml");
        std::fs::write(&path, toml::to_string(&self.config).expect("settings")).expect("written");
        setup::run(&path, None, false).expect("set up");
    }

    /// Starts the agent; at the same address, if it ran before.
    pub async fn start(&mut self) {
        let listener = TcpListener::bind(self.config.listen).expect("the address is free");
        self.config.listen = listener.local_addr().expect("it listens");
        self.config.data_address = self.config.listen.ip();
        let shares = Arc::new(FakeShares::new(self.file_servers.clone()));
        let agent = Agent::start(self.config.clone(), self.hypervisor.clone(), shares, Launcher::Task).await;
        let agent = agent.expect("the agent starts");
        let (stop, stopped) = oneshot::channel();
        let served = agent.clone();
        let serving = tokio::spawn(async move {
            let stopped = async move { stopped.await.unwrap_or_default() };
            http::serve_on(served, listener, stopped).await.expect("served");
        });
        self.running = Some((agent, stop, serving));
    }

    /// Stops the agent. Carriers and VMs continue.
    pub async fn stop(&mut self) {
        expects_warning("The host's agent does not answer");
        let (agent, stop, serving) = self.running.take().expect("it runs");
        let _ = stop.send(());
        serving.await.expect("a clean end");
        drop(agent);
    }

    /// Makes the agent reach other file servers from now on, by a restart.
    pub fn reach(&mut self, file_servers: FakeFileServers) {
        self.file_servers = file_servers;
    }

    /// A new enrolment token.
    pub fn token(&self) -> String {
        let agent = self.agent();
        agent.enrolment.new_token(agent.key.pin()).expect("a token").to_string()
    }

    pub fn agent(&self) -> &Arc<Agent> {
        &self.running.as_ref().expect("it runs").0
    }

    pub fn address(&self) -> String {
        self.config.listen.to_string()
    }

    /// A path on this host's mount of the share.
    pub fn on_share(&self, path: &str) -> PathBuf {
        let mount = std::fs::read_dir(&self.config.share_root).expect("the share root").next();
        mount.expect("the share is attached").expect("readable").path().join(path)
    }

    /// Everything that moves left behind: journals, holds, socket directories.
    pub fn orphans(&self) -> Vec<String> {
        let offline = self.config.state_dir.join("offline");
        let folders = [self.config.journal_dir(), self.config.holds_dir(), self.config.sessions_dir(), offline];
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
        entries.map(|entry| entry.expect("readable").path().display().to_string()).collect()
    }

    /// A path that exists on this host only.
    pub fn on_host(&self, path: &str) -> PathBuf {
        self.folder.join("local").join(path)
    }
}

pub fn unc() -> UncPath {
    UNC.parse().expect("well formed")
}

fn token_of(config: &Config) -> String {
    let text = std::fs::read_to_string(config.state_dir.join("admin.token")).expect("the first start wrote it");
    text.trim().to_owned()
}

fn client_of(config: &Config, address: &str) -> ServerClient {
    let pin = std::fs::read_to_string(config.state_dir.join("server.pin")).expect("the first start wrote it");
    let pin = pin.trim().parse().expect("a pin");
    ServerClient::new(&format!("https://{address}"), pin, &token_of(config)).expect("usable")
}

/// Waits until a condition holds.
pub async fn wait_for(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"));
}

/// The HTTP status and the findings of a refusal, in order.
pub fn refusal<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (u16, Vec<FindingId>) {
    match answer {
        Err(ClientError::Refused(problem)) => {
            for finding in &problem.findings {
                assert!(!finding.message.to_string().is_empty() && !finding.fix.to_string().is_empty(), "{finding:?}");
            }
            (problem.status, problem.findings.iter().map(|finding| finding.id).collect())
        }
        other => panic!("not refused: {other:#?}"),
    }
}
