//! Measures the cost of jobs: `cargo xtask bench jobs`. The server is a separate process; hosts are agents over fake
//! hypervisors.

#![allow(dead_code, unused_imports, reason = "the component tests' support has more than is needed here")]

#[path = "../tests/component/support.rs"]
mod support;

use std::{
    fmt::Write as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ferry_client::server::ServerClient;
use ferry_core::{
    api::server::{JobView, MigrateMany, MigrateVm, SetHost},
    migration::Phase,
    units::ByteCount,
};
use ferry_drivers::hypervisor::{
    Power as _,
    fake::{FakeGuest, Hold, Point},
};
use support::{Host, Lab, in_lab, wait_for};

const ADDRESS: &str = "127.0.0.1:27420";
/// Two processors start 400 carriers in this time.
const START: Duration = Duration::from_secs(50);
const PAIRS: usize = 4;
const RUNNING: usize = 200;
const QUEUED: usize = 1_000;
const NAMES: [&str; 2 * PAIRS] = ["kvm1", "kvm2", "kvm3", "kvm4", "kvm5", "kvm6", "kvm7", "kvm8"];

/// The server as a separate process.
struct Process(Child);

impl Process {
    fn start(lab: &Lab) -> Self {
        let path = lab.folder("process").join("server.toml");
        let text = format!("listen = {ADDRESS:?}\nstate_dir = {:?}\n", lab.config().state_dir);
        std::fs::write(&path, text).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferry-server"));
        command.arg("run").arg("--config").arg(path).env("FERRY_LOG", "warn").stdin(Stdio::null());
        Self(command.spawn().expect("the server starts"))
    }

    fn kill(&mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }

    /// Its resident memory.
    fn resident(&self) -> ByteCount {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a kernel says so");
        ByteCount::kib(line.trim().trim_end_matches("kB").trim().parse().expect("a number"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Figure {
    name: &'static str,
    value: f64,
    bound: f64,
}

async fn answers(client: &ServerClient) -> bool {
    client.hosts().await.is_ok_and(|hosts| hosts.len() == NAMES.len() && hosts.iter().all(|host| host.reachable))
}

/// Runs small guests on a host.
fn run_guests(host: &Host, prefix: &str, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("{prefix}{number}")).collect();
    for name in &names {
        let mut guest = FakeGuest::new(name, &[host.on_share(&format!("{name}/disk.raw"))]);
        guest.facts.memory = ByteCount::mib(1);
        guest.resident = ByteCount::kib(64);
        let vm = host.hypervisor.define(guest).expect("defined");
        host.hypervisor.start(vm).expect("started");
    }
    names
}

async fn move_all(client: &ServerClient, vms: &[String], to: &str) -> JobView {
    let how = MigrateVm { destination: to.into(), ..MigrateVm::default() };
    client.migrate_many(&MigrateMany { vms: vms.to_vec(), how }).await.expect("accepted")
}

async fn seen(client: &ServerClient, count: usize) {
    wait_for("the guests are seen", async || client.vms().await.is_ok_and(|vms| vms.len() >= count)).await;
}

async fn jobs(client: &ServerClient) -> Vec<JobView> {
    let jobs = client.jobs(None, Some(500)).await.unwrap_or_default();
    let bad = jobs.iter().find(|job| job.vm.is_some() && job.phase == Phase::Failed);
    assert!(bad.is_none(), "no move should fail: {:?}", bad.map(|job| &job.summary));
    jobs.into_iter().filter(|job| job.vm.is_some()).collect()
}

/// Counts the running jobs of which this run of the server has received a report.
async fn followed(client: &ServerClient) -> usize {
    let jobs = jobs(client).await;
    jobs.iter().filter(|job| job.phase == Phase::Migrating && job.progress.is_some()).count()
}

fn percentile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * part).ceil() as usize).clamp(1, values.len()) - 1]
}

/// Kills the server while 200 jobs run, and starts it again.
async fn restarted(lab: &Lab, client: &ServerClient, process: &mut Process, figures: &mut Vec<Figure>) {
    let mut times = Vec::new();
    for _ in 0..5 {
        process.kill();
        let begun = Instant::now();
        *process = Process::start(lab);
        // Progress is not stored: a job that has progress was reported to this run of the server.
        wait_for("every job is followed again", async || followed(client).await == RUNNING).await;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let value = percentile(times, 0.5);
    figures.push(Figure {
        name: "killed server's start to 200 running jobs followed again, ms",
        value,
        bound: 2_000.0,
    });
    let value = process.resident().0 as f64 / f64::from(1 << 20);
    figures.push(Figure { name: "server with 200 running jobs, MiB", value, bound: 150.0 });
}

/// Moves 40 VMs one after another and measures how long a slot stays free.
async fn queued_starts(client: &ServerClient, vms: &[String], figures: &mut Vec<Figure>) {
    for host in ["kvm1", "kvm5"] {
        client.set_host(host, &SetHost { live_limit: Some(1), ..SetHost::default() }).await.expect("set");
    }
    let parent = move_all(client, vms, "kvm1").await;
    wait_for("they moved", async || client.job(parent.id).await.is_ok_and(|job| job.phase == Phase::Succeeded)).await;
    let mut starts = Vec::new();
    for child in &parent.children {
        let job = client.job(child.id).await.expect("known");
        let started = job.log.iter().find(|line| line.message == "Its turn has come").expect("it came").at_ms;
        starts.push((started, job.ended_at_ms.expect("it ended")));
    }
    let gaps: Vec<f64> = starts.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].1) as f64).collect();
    figures.push(Figure {
        name: "slot free → next job begins, median, ms",
        value: percentile(gaps.clone(), 0.5),
        bound: 100.0,
    });
    figures.push(Figure {
        name: "slot free → next job begins, longest, ms",
        value: percentile(gaps, 1.0),
        bound: 100.0,
    });
}

/// A queue of a thousand jobs.
async fn long_queue(
    lab: &Lab,
    client: &ServerClient,
    process: &mut Process,
    hosts: &[Host],
    figures: &mut Vec<Figure>,
) -> Hold {
    let hold = hosts[1].hypervisor.faults().hold_all(Point::Pass(1));
    client.set_host("kvm2", &SetHost { live_limit: Some(1), ..SetHost::default() }).await.expect("set");
    let vms = run_guests(&hosts[1], "queued", QUEUED);
    seen(client, QUEUED).await;
    let begun = Instant::now();
    for part in vms.chunks(100) {
        move_all(client, part, "kvm6").await;
    }
    eprintln!("{QUEUED} jobs were accepted in {} ms", begun.elapsed().as_millis());
    let mut times = Vec::new();
    for _ in 0..300 {
        let asked = Instant::now();
        let list = client.jobs(None, None).await.expect("answered");
        times.push(asked.elapsed().as_secs_f64() * 1e3);
        assert!(list.iter().any(|job| job.waits.is_some()), "they wait");
    }
    figures.push(Figure {
        name: "list with 1,000 queued jobs, 99 of 100 within, ms",
        value: percentile(times, 0.99),
        bound: 50.0,
    });
    let value = process.resident().0 as f64 / f64::from(1 << 20);
    figures.push(Figure { name: "server with 1,000 queued jobs, MiB", value, bound: 150.0 });
    process.kill();
    let begun = Instant::now();
    *process = Process::start(lab);
    wait_for("the server answers", async || {
        client.jobs(None, None).await.is_ok_and(|list| list.iter().any(|job| job.waits.is_some()))
    })
    .await;
    eprintln!("with {QUEUED} queued jobs the server is back in {} ms", begun.elapsed().as_millis());
    hold
}

fn table(figures: &[Figure]) -> String {
    let mut text = "| figure | measured | bound | |\n|---|---|---|---|\n".to_owned();
    for figure in figures {
        let met = if figure.value <= figure.bound { "met" } else { "**missed**" };
        let _ = writeln!(text, "| {} | {:.1} | {:.0} | {met} |", figure.name, figure.value, figure.bound);
    }
    text
}

/// The cost of the log: one step of a job whose steps do nothing.
fn step_overhead() -> f64 {
    let output = Command::new(env!("CARGO"))
        .args(["test", "--release", "--quiet", "-p", "ferry-server", "--lib", "--", "--ignored", "--nocapture"])
        .arg("what_a_step_costs")
        .output()
        .expect("cargo runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = printed.lines().find_map(|line| line.strip_prefix("step_ms ")).unwrap_or_else(|| panic!("{output:?}"));
    line.parse().expect("a number")
}

fn main() {
    let report = std::env::args().skip_while(|argument| argument != "--report").nth(1);
    let mut figures = Vec::new();
    in_lab(async |lab| {
        let mut hosts = Vec::new();
        lab.client
            .add_share(&ferry_core::api::server::AddShare { name: "vms".into(), source: support::UNC.into() })
            .await
            .expect("added");
        for name in NAMES {
            let host = lab.host(name).await;
            lab.add(&host).await.expect("added");
            lab.attach(&host).await.expect("attached");
            let all = SetHost { live_limit: Some(64), ..SetHost::default() };
            lab.client.set_host(name, &all).await.expect("set");
            hosts.push(host);
        }
        lab.stop_server().await;
        let mut process = Process::start(lab);
        let client = lab.client_at(ADDRESS);
        wait_for("the server answers", async || answers(&client).await).await;

        let mut holds = Vec::new();
        let mut first = Vec::new();
        for pair in 0..PAIRS {
            holds.push(hosts[pair].hypervisor.faults().hold_all(Point::Pass(1)));
            let vms = run_guests(&hosts[pair], &format!("vm{pair}-"), RUNNING / PAIRS);
            seen(&client, (pair + 1) * RUNNING / PAIRS).await;
            move_all(&client, &vms, NAMES[pair + PAIRS]).await;
            if pair == 0 {
                first = vms;
            }
        }
        let begun = Instant::now();
        while followed(&client).await < RUNNING {
            assert!(
                begun.elapsed() < START,
                "only {} of {RUNNING} jobs run: {:#?}",
                followed(&client).await,
                jobs(&client).await.first()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        eprintln!("{RUNNING} jobs run after {} ms", begun.elapsed().as_millis());
        restarted(lab, &client, &mut process, &mut figures).await;
        drop(holds);
        for host in &hosts {
            host.hypervisor.faults().clear();
        }
        wait_for("they all moved", async || {
            let jobs = jobs(&client).await;
            jobs.iter().filter(|job| job.phase == Phase::Succeeded).count() == RUNNING
        })
        .await;
        queued_starts(&client, &first[..40], &mut figures).await;
        let hold = long_queue(lab, &client, &mut process, &hosts, &mut figures).await;
        process.kill();
        drop(hold);
    });
    figures.push(Figure { name: "executor, per step, on SQLite, ms", value: step_overhead(), bound: 5.0 });
    let table = table(&figures);
    println!("{table}");
    if let Some(path) = report {
        let head = "# `cargo xtask bench jobs`\n\nServer: a process of its own, release build, SQLite on a disk. Hosts: agents over fake hypervisors in another process, on\nthe same two processors.\n\n";
        std::fs::write(path, format!("{head}{table}")).expect("written");
    }
}
