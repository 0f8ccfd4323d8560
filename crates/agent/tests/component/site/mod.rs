//! Two agents in this process, with fake hypervisors and file servers; TLS, HTTP, carriers and wire are real.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension,
    body::{Body, to_bytes},
    http::Request,
};
use ferry_agent::{Agent, config::Config, http, live::Launcher, tls::Caller};
use ferry_client::{
    ClientError,
    agent::{AgentClient, Attempt},
};
use ferry_core::{
    api::agent::{
        AttachRequest, ConfirmRequest, DestinationReady, EnrolRequest, IncomingDisk, PrepareDestination, PrepareSource,
        Report, SourceReady, Stage, Verb,
    },
    error::chain,
    files::DiskMove,
    finding::FindingId,
    id::{Generation, HostId, JobId, SessionId, ShareId, VmId},
    job::OnStall,
    location::Location,
    migration::{Presence, Verdict, verdict},
    network::Route,
    pin::{EnrolmentToken, Secret},
    transfer::Preset,
    unc::UncPath,
    units::ByteCount,
    vm::DiskFormat,
};
use ferry_drivers::{
    hypervisor::{
        Domains as _, Power as _,
        fake::{FakeGuest, FakeHypervisor, World},
    },
    share::fake::{FakeExport, FakeFileServers, FakeShares},
};
use ferry_testkit::logs::{Watch, expects_warning, logged};
use ferry_trust::{KeyPair, random_secret};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::oneshot};
use tower::ServiceExt as _;
use uuid::Uuid;

/// Everything here takes milliseconds; a machine that is busy elsewhere takes longer.
pub const SOON: Duration = Duration::from_secs(20);
pub const SHARE: ShareId = ShareId(Uuid::from_u128(0x5));

/// One host.
pub struct Host {
    pub config: Config,
    pub hypervisor: Arc<FakeHypervisor>,
    shares: Arc<FakeShares>,
    pub agent: Arc<Agent>,
    pub client: AgentClient,
    address: String,
    stop: Option<oneshot::Sender<()>>,
    /// Where its carriers live, as processes of their own would.
    carriers: Option<Runtime>,
}

/// Two hosts that reach one share, enrolled with one server.
pub struct Site {
    pub world: World,
    pub servers: FakeFileServers,
    pub unc: UncPath,
    pub key: KeyPair,
    pub hosts: [Host; 2],
    /// Removed when all agents are gone.
    _folder: TempDir,
    /// Checked when all agents are gone.
    _logs: Watch,
}

/// Serves the agent at one more address, and calls it there with `key`.
pub fn serve(agent: Arc<Agent>, key: &KeyPair) -> (AgentClient, oneshot::Sender<()>) {
    let (client, stop, _) = serve_at(agent, key);
    (client, stop)
}

fn serve_at(agent: Arc<Agent>, key: &KeyPair) -> (AgentClient, oneshot::Sender<()>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let client = AgentClient::new(&address, agent.key.pin(), key).expect("a client");
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(http::serve_on(agent, listener, async move {
        let _ = stopped.await;
    }));
    (client, stop, address)
}

impl Host {
    async fn start(name: &str, folder: &TempDir, world: &World, servers: &FakeFileServers, key: &KeyPair) -> Self {
        let dir = folder.path().join(name);
        std::fs::create_dir_all(dir.join("local")).expect("made");
        // QEMU's user is whoever runs the tests.
        std::fs::write(dir.join("qemu.conf"), "user = \"+0\"\n").expect("written");
        let config = Config {
            data_ports: "21000-23000".into(),
            state_dir: dir.join("state"),
            run_dir: dir.join("run"),
            share_root: dir.join("srv"),
            qemu_conf: dir.join("qemu.conf"),
            hooks_dir: dir.join("hooks"),
            apparmor_dir: dir.join("apparmor.d"),
            storage_roots: vec![dir.join("local"), dir.join("missing")],
            ..Config::new("127.0.0.1:0".parse().expect("an address"))
        };
        let hypervisor = Arc::new(FakeHypervisor::new(name, dir, world).expect("a fake host"));
        let shares = Arc::new(FakeShares::new(servers.clone()));
        let carriers = Runtime::new().expect("a runtime");
        let launcher = Launcher::On(carriers.handle().clone());
        let agent = Agent::start(config.clone(), hypervisor.clone(), shares.clone(), launcher).await.expect("an agent");
        let (client, stop, address) = serve_at(agent.clone(), key);
        Self { config, hypervisor, shares, agent, client, address, stop: Some(stop), carriers: Some(carriers) }
    }

    /// The agent ends and another begins with what the first left on disk; carriers go on.
    pub async fn restart_agent(&mut self, key: &KeyPair) {
        drop(self.stop.take());
        let launcher = Launcher::On(self.carriers.as_ref().expect("there").handle().clone());
        let again = Agent::start(self.config.clone(), self.hypervisor.clone(), self.shares.clone(), launcher);
        self.agent = again.await.expect("an agent");
        let (client, stop, address) = serve_at(self.agent.clone(), key);
        (self.client, self.stop, self.address) = (client, Some(stop), address);
    }

    /// Every carrier of this host dies, as by `kill -9`. Only a restarted agent begins new ones.
    pub fn kill_carriers(&mut self) {
        // What those of the other host say of it, and whoever goes on with what they left: which of them depends on the moment.
        for words in [
            "The control connection from the source is gone",
            "The connection to the destination's carrier is gone",
            "The move is ended",
            "libvirt did not take the abort",
            "libvirt's migrate call failed",
            "libvirt left the VM paused at the source",
            "The VM is not taken over; the source keeps it",
            "The destination's carrier gave up",
            "The VM could not be resumed; it is tried until it runs",
        ] {
            expects_warning(words);
        }
        self.carriers.take().expect("there").shutdown_background();
        self.carriers = Some(Runtime::new().expect("a runtime"));
    }

    pub fn client_address(&self) -> String {
        self.address.clone()
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.mount().join(file)
    }

    pub fn mount(&self) -> PathBuf {
        self.config.share_root.join(SHARE.to_string())
    }

    /// A raw disk of 64 MiB that comes, and its new file on this host.
    pub fn incoming_disk(&self, device: &str) -> (IncomingDisk, PathBuf) {
        let host = (*self.agent.enrolment.watch_host().borrow()).expect("it is enrolled");
        let path = self.config.storage_roots[0].join(format!("{device}.raw"));
        let incoming_disk = IncomingDisk {
            device: device.to_owned(),
            to: Location::Local { host, path: path.display().to_string() },
            format: DiskFormat::Raw,
            virtual_size: ByteCount::mib(64),
            allocated: ByteCount::mib(8),
        };
        (incoming_disk, path)
    }

    pub fn holds(&self, vm: VmId) -> bool {
        self.config.state_dir.join("holds").join(vm.to_string()).exists()
    }

    pub fn autostarts(&self, vm: VmId) -> bool {
        self.hypervisor.vm(vm).expect("reachable").is_some_and(|facts| facts.autostart)
    }

    pub fn knows(&self, vm: VmId) -> bool {
        self.hypervisor.vm(vm).expect("reachable").is_some()
    }

    /// Files that a migration leaves until it is released.
    pub fn orphans(&self) -> Vec<PathBuf> {
        let folders = [self.config.journal_dir(), self.config.sessions_dir(), self.config.controls_dir()];
        let list = |folder| std::fs::read_dir(folder).expect("there").map(|entry| entry.expect("read").path());
        folders.into_iter().flat_map(list).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(carriers) = self.carriers.take() {
            carriers.shutdown_background();
        }
    }
}

impl Drop for Site {
    /// Every line about a move says which move it is about.
    fn drop(&mut self) {
        let of_moves = ["storage", "offline", "live"].map(|module| format!(" ferry_agent::{module}::"));
        let is_of_a_move = |line: &String| of_moves.iter().any(|module| line.contains(module));
        let names_its_move = |line: &String| line.contains(" move{job=") && line.contains(" vm=");
        let bare: Vec<String> =
            logged().into_iter().filter(|line| is_of_a_move(line) && !names_its_move(line)).collect();
        assert!(bare.is_empty() || std::thread::panicking(), "{bare:#?}");
    }
}

impl Site {
    pub async fn new() -> Self {
        let logs = Watch::start();
        // The disks of fake guests are no NBD.
        expects_warning("An NBD connection is not understood and is carried as it is");
        // A fake's carrier ends with its task, without a word to its peer.
        expects_warning("Channel failed");
        expects_warning("The channel was ended with the move");
        let folder = TempDir::new().expect("a folder");
        let backing = folder.path().join("backing");
        std::fs::create_dir(&backing).expect("made");
        let (world, servers) = (World::new(), FakeFileServers::new());
        let unc: UncPath = r"\\fs1.ferry.test\vms".parse().expect("a UNC path");
        let export = FakeExport::new(backing);
        let credentials = Some(export.credentials());
        servers.export(&unc, export);
        let key = KeyPair::generate().expect("keys");
        let hosts = [
            Host::start("one", &folder, &world, &servers, &key).await,
            Host::start("two", &folder, &world, &servers, &key).await,
        ];
        for host in &hosts {
            enrol(host, &host.client).await.expect("enrolled");
            let request = AttachRequest { source: (&unc).into(), credentials: credentials.clone(), at: None };
            host.client.attach_share(SHARE, &request).await.expect("attached");
        }
        Self { world, servers, unc, key, hosts, _folder: folder, _logs: logs }
    }

    /// A VM that runs on the first host.
    pub fn run_vm(&self, name: &str, change: impl FnOnce(&mut FakeGuest)) -> VmId {
        let host = &self.hosts[0];
        let mut guest = FakeGuest::new(name, &[host.path(&format!("{name}.raw"))]);
        change(&mut guest);
        let vm = host.hypervisor.define(guest).expect("defined");
        host.hypervisor.start(vm).expect("started");
        vm
    }

    pub fn presences(&self, job: &Job) -> (Presence, Presence) {
        use ferry_core::api::agent::Role;
        let at = |host: usize, role| self.hosts[host].hypervisor.presence(job.vm, role).expect("reachable");
        (at(job.from, Role::Source), at(job.to, Role::Destination))
    }

    /// Both ends stand ready.
    pub async fn prepare(&self, job: &Job) {
        let ready = self.prepare_destination(job).await.expect("the destination is ready");
        self.prepare_source(job, ready).await.expect("the source is ready");
    }

    pub fn destination_body(&self, job: &Job) -> PrepareDestination {
        PrepareDestination {
            session: job.session,
            secret: job.secret,
            source_pin: self.hosts[job.from].agent.key.pin(),
            vm: job.vm,
            vm_name: job.name.clone(),
            shares: vec![SHARE],
            persistent: true,
            downtime_limit_ms: 300,
            disks: job.disks.clone(),
            route: job.route,
        }
    }

    pub async fn prepare_destination(&self, job: &Job) -> Result<DestinationReady, ClientError> {
        self.hosts[job.to].client.prepare(job.attempt, &self.destination_body(job)).await
    }

    pub fn source_body(&self, job: &Job, ready: DestinationReady) -> PrepareSource {
        PrepareSource {
            session: job.session,
            secret: job.secret,
            destination_pin: self.hosts[job.to].agent.key.pin(),
            destination: ready,
            vm: job.vm,
            downtime_limit_ms: job.downtime_limit_ms,
            bandwidth_bytes_per_s: None,
            disk_bandwidth_bytes_per_s: None,
            performance: Preset::Standard,
            timeout_ms: job.timeout_ms,
            on_stall: job.on_stall,
            disks: job.migrated.clone(),
            shares_proven: true,
            route: job.route,
        }
    }

    pub async fn prepare_source(&self, job: &Job, ready: DestinationReady) -> Result<SourceReady, ClientError> {
        self.hosts[job.from].client.prepare(job.attempt, &self.source_body(job, ready)).await
    }

    /// The answer to what a server of the version before asks; `null` if it says no more than that it was done.
    pub async fn version_1(&self, host: usize, method: &str, path: &str, body: Value) -> Value {
        let router = http::router(self.hosts[host].agent.clone()).layer(Extension(Caller(self.key.pin())));
        let body = if body.is_null() { Body::empty() } else { body.to_string().into() };
        let request = Request::builder().method(method).uri(format!("/v1/{path}"));
        let request = request.header("content-type", "application/json").body(body).expect("a request");
        let answer = router.oneshot(request).await.expect("an answer");
        let status = answer.status();
        let text = to_bytes(answer.into_body(), 1 << 20).await.expect("read");
        assert!(status.is_success(), "{method} {path}: {status} {}", String::from_utf8_lossy(&text));
        if text.is_empty() { Value::Null } else { serde_json::from_slice(&text).expect("JSON") }
    }

    /// The first report that a server of the version before gets of this stage.
    pub async fn version_1_until(&self, host: usize, path: &str, stage: &str) -> Value {
        let until = Instant::now() + SOON;
        let mut after = json!(0);
        loop {
            let report = self.version_1(host, "GET", &format!("{path}?after={after}&wait_ms=2000"), Value::Null).await;
            if report["stage"] == stage {
                return report;
            }
            assert!(Instant::now() < until, "{stage} did not come: {report}");
            after = report["sequence"].clone();
        }
    }

    pub async fn perform(&self, job: &Job) {
        self.hosts[job.from].client.ask(job.attempt, Verb::Perform).await.expect("begun");
    }

    /// One end's report as soon as it is at one of `stages`.
    pub async fn wait_stage(&self, job: &Job, host: usize, stages: &[Stage]) -> Report {
        self.wait_report(job, host, |report| stages.contains(&report.stage)).await
    }

    /// One end's report as soon as it is as asked.
    pub async fn wait_report(&self, job: &Job, host: usize, is: impl Fn(&Report) -> bool) -> Report {
        let until = Instant::now() + SOON;
        let mut after = 0;
        loop {
            let report = self.hosts[host].client.report(job.attempt, after, Duration::from_secs(2)).await;
            let report = report.expect("a report");
            if is(&report) {
                return report;
            }
            assert!(Instant::now() < until, "what was waited for did not come: {report:?}");
            after = report.sequence;
        }
    }

    /// The source's and the destination's last reports.
    pub async fn follow(&self, job: &Job) -> (Report, Report) {
        let ended = [Stage::Delivered, Stage::Failed, Stage::Aborted];
        let source = self.wait_stage(job, job.from, &ended).await;
        let destination = if source.stage == Stage::Delivered {
            self.wait_stage(job, job.to, &[Stage::Resumed]).await
        } else {
            self.hosts[job.to].client.report(job.attempt, 0, Duration::ZERO).await.expect("a report")
        };
        (source, destination)
    }

    pub async fn finish(&self, job: &Job, autostart: bool) {
        let (source, destination) = (&self.hosts[job.from].client, &self.hosts[job.to].client);
        destination
            .ask(job.attempt, Verb::Confirm(ConfirmRequest { autostart, keep_source: false }))
            .await
            .expect("confirmed");
        source
            .ask(job.attempt, Verb::Confirm(ConfirmRequest { autostart: false, keep_source: false }))
            .await
            .expect("confirmed");
        source.release(job.attempt).await.expect("released");
        destination.release(job.attempt).await.expect("released");
    }

    /// As the server does: newest first.
    pub async fn undo(&self, job: &Job) {
        for client in [&self.hosts[job.from].client, &self.hosts[job.to].client] {
            client.ask(job.attempt, Verb::Abort).await.expect("undone");
            client.release(job.attempt).await.expect("released");
        }
    }

    /// Who has the VM, from what both hosts say.
    pub async fn verdict(&self, job: &Job) -> Verdict {
        let ask = |host: usize| self.hosts[host].client.report(job.attempt, 0, Duration::ZERO);
        let (source, destination) = (ask(job.from).await.expect("a report"), ask(job.to).await.expect("a report"));
        let delivered = source.finish_delivered || destination.finish_delivered;
        verdict(source.presence, destination.presence, delivered, false)
    }

    /// The VM runs on this host alone, it never ran twice, and nothing of the move is left.
    pub fn assert_settled(&self, vm: VmId, host: usize) {
        let names = ["one", "two"];
        assert_eq!(self.world.running_on(vm), [names[host].to_owned()].into());
        assert_eq!(self.world.most_at_once(vm), 1, "{:?}", self.world.history(vm));
        assert!(self.hosts[host].knows(vm) && !self.hosts[1 - host].knows(vm));
        for host in &self.hosts {
            assert_eq!(host.orphans(), Vec::<PathBuf>::new());
            assert!(!host.holds(vm));
        }
    }
}

/// One attempt of a move.
pub struct Job {
    pub vm: VmId,
    pub name: String,
    pub from: usize,
    pub to: usize,
    pub attempt: Attempt,
    pub session: SessionId,
    pub secret: Secret,
    pub timeout_ms: u64,
    pub on_stall: OnStall,
    /// Disks that the destination gets new files for.
    pub disks: Vec<IncomingDisk>,
    /// As the source is told of them.
    pub migrated: Vec<DiskMove>,
    pub downtime_limit_ms: u32,
    pub route: Option<Route>,
}

impl Job {
    pub fn new(number: u64, generation: u64, vm: VmId, name: &str, from: usize) -> Self {
        Self {
            vm,
            name: name.to_owned(),
            from,
            to: 1 - from,
            attempt: Attempt { job: JobId(number), generation: Generation(generation) },
            session: SessionId(Uuid::new_v4()),
            secret: random_secret(),
            timeout_ms: 60_000,
            on_stall: OnStall::Abort,
            disks: Vec::new(),
            migrated: Vec::new(),
            downtime_limit_ms: 300,
            route: None,
        }
    }
}

pub async fn enrol(host: &Host, client: &AgentClient) -> Result<(), ClientError> {
    let token: EnrolmentToken = host.agent.enrolment.new_token(host.agent.key.pin()).expect("a token");
    let request = EnrolRequest { secret: token.secret, host: HostId(Uuid::new_v4()) };
    client.enrol(&request).await.map(drop)
}

/// The one finding and the status with which a call was refused.
pub fn refusal<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (u16, FindingId) {
    let error = answer.expect_err("a refusal");
    let problem = error.problem().unwrap_or_else(|| panic!("no problem: {}", chain(&error)));
    assert_eq!(problem.findings.len(), 1, "{problem:?}");
    (problem.status, problem.findings[0].id)
}

/// Waits until a condition holds.
pub async fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !is() {
        assert!(Instant::now() < until, "in vain: {what}");
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
}

/// Waits for something that blocks, without holding up the agents.
pub async fn reached(hold: &Arc<ferry_drivers::hypervisor::fake::Hold>) {
    let hold = Arc::clone(hold);
    let reached = tokio::task::spawn_blocking(move || hold.wait_reached(SOON)).await.expect("no panic");
    assert!(reached, "nobody came to the point");
}

impl Site {
    /// For a source that never took part.
    pub async fn undo_destination_only(&self, job: &Job) {
        let client = &self.hosts[job.to].client;
        client.ask(job.attempt, Verb::Abort).await.expect("undone");
        client.release(job.attempt).await.expect("released");
    }
}
