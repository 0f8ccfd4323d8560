//! Two real agents, called directly: properties that must hold whoever controls them.

use std::{fs, time::Duration};

use ferry_client::agent::{AgentClient, Attempt};
use ferry_core::{
    api::agent::{
        AttachRequest, ConfirmRequest, EnrolRequest, PrepareDestination, PrepareSource, Report, ShareCredentials,
        Stage, Verb,
    },
    id::{Generation, HostId, JobId, SessionId, ShareId, VmId},
    migration::{Presence, Verdict, verdict},
    pin::EnrolmentToken,
    transfer::Preset,
};
use ferry_lab::{
    fabric::FABRIC_IP,
    ferry::{Agent, in_fabric},
    guest::Ticker,
    lab::Lab,
    observe::{Capture, Observer, judge},
    samba::{FileServer, PASSWORD, USER},
};
use ferry_trust::{KeyPair, random_secret};
use uuid::Uuid;

/// The name of the socket to the other host's libvirt.
const RPC_SOCKET: &str = "rpc.sock";
const SECONDS_20: Duration = Duration::from_secs(20);

struct Bench {
    key: KeyPair,
    share: ShareId,
    ticker: Ticker,
    agents: Vec<Agent>,
    observer: Observer,
    files: FileServer,
    lab: Lab,
}

/// Two hosts with agents, the share attached on both, and a ticker that runs on the first.
fn bench(environment: &[(&str, &str)]) -> Bench {
    let lab = Lab::up(2).expect("a lab");
    let files = lab.file_server("fs1", FABRIC_IP, "").expect("a file server");
    let agents: Vec<Agent> = lab
        .hosts
        .iter()
        .map(|host| {
            host.set_firewall(false).expect("a firewall");
            Agent::start(&lab, host, environment).expect("an agent")
        })
        .collect();
    let observer = Observer::start(&lab).expect("observers");
    let bench = Bench {
        key: KeyPair::generate().expect("keys"),
        share: ShareId(Uuid::new_v4()),
        ticker: Ticker::new("ticker", 101),
        agents,
        observer,
        files,
        lab,
    };
    bench.talk(async |bench| {
        for client in bench.clients() {
            let agent = &bench.agents[client.0];
            let token: EnrolmentToken = agent.token.parse().expect("a token");
            let request = EnrolRequest { secret: token.secret, host: HostId(Uuid::new_v4()) };
            client.1.enrol(&request).await.expect("enrolled");
            let request = AttachRequest {
                source: bench.files.unc().parse().expect("a UNC path"),
                credentials: Some(ShareCredentials { user: USER.into(), password: PASSWORD.into() }),
                at: None,
            };
            client.1.attach_share(bench.share, &request).await.expect("attached");
        }
    });
    bench.start_ticker();
    bench
}

impl Bench {
    fn talk<T: Send>(&self, work: impl AsyncFnOnce(&Self) -> T + Send) -> T {
        in_fabric(&self.lab, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(work(self)))
        })
        .expect("the fabric can be entered")
    }

    fn clients(&self) -> Vec<(usize, AgentClient)> {
        let client = |(index, agent): (usize, &Agent)| {
            let token: EnrolmentToken = agent.token.parse().expect("a token");
            (index, AgentClient::new(&agent.address, token.agent_pin, &self.key).expect("a client"))
        };
        self.agents.iter().enumerate().map(client).collect()
    }

    fn start_ticker(&self) {
        let host = &self.lab.hosts[0];
        let mount = host.share_root.join(self.share.to_string());
        let definition = self.ticker.prepare(&self.lab, &self.files.share, &mount).expect("files");
        fs::write(host.path("/run/ticker.xml"), definition).expect("written");
        host.virsh(&["define", "/run/ticker.xml"]).expect("defined");
        host.virsh(&["start", "ticker"]).expect("started");
        self.observer.wait_on("ticker", "kvm1", Duration::from_secs(60)).expect("it boots");
    }

    fn vm(&self) -> VmId {
        VmId(self.ticker.uuid)
    }

    /// Prepares both sides, as a server does.
    async fn prepare(&self, job: u64, from: usize, to: usize) -> Attempt {
        let clients = self.clients();
        let (source, destination) = (&clients[from].1, &clients[to].1);
        let pins: Vec<EnrolmentToken> = self.agents.iter().map(|agent| agent.token.parse().expect("a token")).collect();
        let attempt = Attempt { job: JobId(job), generation: Generation(1) };
        let (session, secret) = (SessionId(Uuid::new_v4()), random_secret());
        let ready = destination
            .prepare(
                attempt,
                &PrepareDestination {
                    session,
                    secret,
                    source_pin: pins[from].agent_pin,
                    vm: self.vm(),
                    vm_name: "ticker".into(),
                    shares: vec![self.share],
                    persistent: true,
                    downtime_limit_ms: 300,
                    disks: Vec::new(),
                    route: None,
                },
            )
            .await
            .expect("the destination is ready");
        source
            .prepare(
                attempt,
                &PrepareSource {
                    session,
                    secret,
                    destination_pin: pins[to].agent_pin,
                    destination: ready,
                    vm: self.vm(),
                    downtime_limit_ms: 300,
                    bandwidth_bytes_per_s: None,
                    disk_bandwidth_bytes_per_s: None,
                    performance: Preset::Standard,
                    timeout_ms: 120_000,
                    on_stall: ferry_core::job::OnStall::default(),
                    disks: Vec::new(),
                    shares_proven: true,
                    route: None,
                },
            )
            .await
            .expect("the source is ready");
        attempt
    }

    /// Moves the ticker as a server does; returns the last reports of source and destination.
    async fn migrate(&self, job: u64, from: usize, to: usize) -> (Report, Report) {
        let attempt = self.prepare(job, from, to).await;
        let clients = self.clients();
        let (source, destination) = (&clients[from].1, &clients[to].1);
        source.ask(attempt, Verb::Perform).await.expect("begun");
        let mut report = source.report(attempt, 0, Duration::ZERO).await.expect("a report");
        while matches!(report.stage, Stage::Prepared | Stage::Performing) {
            report = source.report(attempt, report.sequence, SECONDS_20).await.expect("a report");
        }
        let mut other = destination.report(attempt, 0, Duration::ZERO).await.expect("a report");
        while report.stage == Stage::Delivered && other.stage != Stage::Resumed {
            other = destination.report(attempt, other.sequence, SECONDS_20).await.expect("a report");
        }
        if report.stage == Stage::Delivered {
            source
                .ask(attempt, Verb::Confirm(ConfirmRequest { autostart: false, keep_source: false }))
                .await
                .expect("confirmed");
            destination
                .ask(attempt, Verb::Confirm(ConfirmRequest { autostart: false, keep_source: false }))
                .await
                .expect("confirmed");
            source.release(attempt).await.expect("released");
            destination.release(attempt).await.expect("released");
        }
        (report, other)
    }
}

#[test]
fn a_running_vm_moves_there_and_back_encrypted_and_whole() {
    let bench = bench(&[]);
    let capture = Capture::start(&bench.lab, &bench.lab.hosts[0]).expect("a capture");
    for (job, from, to) in [(1, 0, 1), (2, 1, 0)] {
        let (source, destination) = bench.talk(async |bench| bench.migrate(job, from, to).await);
        eprintln!("{source:#?}\n{destination:#?}");
        assert_eq!((source.stage, destination.stage), (Stage::Delivered, Stage::Resumed), "{source:?} {destination:?}");
        let name = &bench.lab.hosts[to].name;
        bench.observer.wait_on("ticker", name, SECONDS_20).expect("it runs there alone");
        bench.observer.wait_verified("ticker", 1, Duration::from_secs(120)).expect("verified");
    }
    let verified = judge(&bench.observer.heard("ticker")).expect("no promise is broken");
    let (captured, hits) = capture.so_far();
    eprintln!("{verified:?}, {captured} bytes captured");
    assert!(captured > 10 << 20 && hits == 0, "{captured} bytes captured, {hits} hold guest memory");
}

#[test]
fn a_lost_finish_reply_never_runs_the_vm_twice() {
    let bench = bench(&[("FAILPOINTS", "drop-finish-reply=return")]);
    let (source, destination) = bench.talk(async |bench| bench.migrate(1, 0, 1).await);
    assert_eq!(source.stage, Stage::Failed, "{source:?}");
    assert!(!source.finish_delivered && !destination.finish_delivered);
    assert_eq!(destination.presence, Presence::Arrived, "{destination:?}");
    assert_eq!(
        verdict(source.presence, destination.presence, false, false),
        Verdict::Source,
        "{source:?} {destination:?}"
    );
    let attempt = Attempt { job: JobId(1), generation: Generation(1) };
    bench.talk(async |bench| {
        for (_, client) in bench.clients().into_iter().rev() {
            client.ask(attempt, Verb::Abort).await.expect("undone");
            client.release(attempt).await.expect("released");
        }
    });
    bench.observer.wait_on("ticker", "kvm1", SECONDS_20).expect("it goes on at the source");
    let listed = bench.lab.hosts[1].virsh(&["list", "--all", "--name"]).expect("listed");
    assert_eq!(listed.trim(), "", "nothing is left at the destination");
    bench.observer.wait_verified("ticker", 1, Duration::from_secs(120)).expect("verified");
    judge(&bench.observer.heard("ticker")).expect("never heard from two hosts");
}

#[test]
fn the_way_to_the_other_libvirt_is_open_to_nothing_but_this_move() {
    let bench = bench(&[]);
    let attempt = bench.talk(async |bench| bench.prepare(1, 0, 1).await);
    let host = &bench.lab.hosts[0];
    let found = host.run(&["find", "/run/ferry", "-type", "s", "-name", RPC_SOCKET]).expect("searched");
    let socket = found.lines().next().expect("the source listens where libvirt will connect");
    let uri = format!("qemu+unix:///system?socket={socket}");
    // The source's administrator connects in libvirt's place.
    let output = host.try_run(&["timeout", "20", "virsh", "-c", &uri, "list", "--all"]).expect("it ends");
    assert!(!output.ok() && !output.out.contains("Id"), "{output:?}");
    assert!(output.err.contains("refused libvirt call"), "libvirt tells why: {output:?}");
    let refused = |agent: &Agent| agent.program.output().contains("Refused libvirt call");
    assert!(bench.agents.iter().any(refused), "nobody said that it was refused");
    bench.talk(async |bench| {
        for (_, client) in bench.clients().into_iter().rev() {
            client.ask(attempt, Verb::Abort).await.expect("undone");
            client.release(attempt).await.expect("released");
        }
    });
    bench.observer.wait_on("ticker", "kvm1", SECONDS_20).expect("it goes on at the source");
}
