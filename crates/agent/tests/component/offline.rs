//! Offline moves between two agents, as a server asks for them.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use crate::networks::route;
use crate::site::{Host, SHARE, SOON, Site, reached, refusal, wait_until};
use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{
        Check, CheckOffline, ConfirmRequest, OfflineFile, OfflineReady, ReceiveOffline, Report, SendOffline, Stage,
        Verb,
    },
    error::chain,
    files::FileMove,
    finding::FindingId,
    id::{Generation, JobId, SessionId, VmId},
    location::Location,
    network::Route,
    units::ByteCount,
    vm::FileRole,
};
use ferry_drivers::hypervisor::fake::{FakeGuest, Hold, Point};
use ferry_testkit::logs::expects_warning;
use ferry_trust::random_secret;
use serde_json::json;
use uuid::Uuid;

/// More than is thrown away when a copy is not finished.
const DISK_BYTES: usize = 8 << 20;
/// In which a file is compared.
const BLOCK_BYTES: usize = ferry_wire::content::index::BLOCK_BYTES as usize;

/// A VM that is shut off on the first host, with one disk.
struct Lot {
    site: Site,
    vm: VmId,
    session: SessionId,
    secret: ferry_core::pin::Secret,
    /// What the definition is expected to say.
    name: String,
    route: Option<Route>,
}

fn attempt(generation: u64) -> Attempt {
    Attempt { job: JobId(1), generation: Generation(generation) }
}

fn content() -> Vec<u8> {
    (0..DISK_BYTES).map(|index| (index / 4096 % 251 + 1) as u8).collect()
}

fn on_share(path: &str) -> Location {
    Location::Share { share: SHARE, path: path.into() }
}

impl Lot {
    async fn new() -> Self {
        let site = Site::new().await;
        for folder in ["old", "new"] {
            fs::create_dir_all(site.hosts[0].path(folder)).expect("made");
        }
        let mut guest = FakeGuest::new("web01", &[site.hosts[0].path("old/vda.raw")]);
        guest.facts.autostart = true;
        let vm = site.hosts[0].hypervisor.define(guest).expect("defined");
        fs::write(site.hosts[0].path("old/vda.raw"), content()).expect("written");
        Self {
            site,
            vm,
            session: SessionId(Uuid::new_v4()),
            secret: random_secret(),
            name: "web01".into(),
            route: None,
        }
    }

    async fn restart_agent(&mut self, host: usize) {
        let Site { hosts, key, .. } = &mut self.site;
        hosts[host].restart_agent(key).await;
    }

    fn source(&self) -> &Host {
        &self.site.hosts[0]
    }

    fn destination(&self) -> &Host {
        &self.site.hosts[1]
    }

    fn old(&self) -> PathBuf {
        self.source().path("old/vda.raw")
    }

    fn new_file(&self) -> PathBuf {
        self.destination().path("new/vda.raw")
    }

    fn part(&self) -> PathBuf {
        self.destination().path(&format!("new/vda.raw.{}.ferry-part", self.vm))
    }

    fn files(&self) -> Vec<OfflineFile> {
        let file = FileMove {
            device: "vda".into(),
            role: FileRole::Disk,
            from: on_share("old/vda.raw"),
            real: None,
            to: on_share("new/vda.raw"),
            shareable: false,
            kept: false,
        };
        let size = ByteCount(DISK_BYTES as u64);
        vec![OfflineFile { file, length: size, allocated: size }]
    }

    fn receive_body(&self) -> ReceiveOffline {
        ReceiveOffline {
            session: self.session,
            secret: self.secret,
            source_pin: self.source().agent.key.pin(),
            vm: self.vm,
            vm_name: self.name.clone(),
            shares: Vec::new(),
            files: self.files(),
            absent: Vec::new(),
            route: self.route,
        }
    }

    async fn receive(&self, generation: u64) -> Result<OfflineReady, ClientError> {
        self.destination().client.prepare(attempt(generation), &self.receive_body()).await
    }

    fn send_body(&self, destination: OfflineReady) -> SendOffline {
        SendOffline {
            session: self.session,
            secret: self.secret,
            destination_pin: self.destination().agent.key.pin(),
            destination,
            vm: self.vm,
            files: self.files(),
            absent: Vec::new(),
            route: self.route,
        }
    }

    async fn send(&self, generation: u64, destination: OfflineReady) -> Result<Report, ClientError> {
        self.source().client.prepare(attempt(generation), &self.send_body(destination)).await
    }

    async fn prepare(&self, generation: u64) {
        let ready = self.receive(generation).await.expect("the destination is ready");
        self.send(generation, ready).await.expect("the source is ready");
    }

    /// The source's report when the copy has ended.
    async fn copied(&self, generation: u64) -> Report {
        let source = &self.source().client;
        source.ask(attempt(generation), Verb::Perform).await.expect("begun");
        let until = std::time::Instant::now() + SOON;
        let mut after = 0;
        loop {
            let report = source.report(attempt(generation), after, Duration::from_secs(2)).await;
            let report = report.expect("a report");
            if !matches!(report.stage, Stage::Prepared | Stage::Performing) {
                return report;
            }
            assert!(std::time::Instant::now() < until, "it does not end: {report:?}");
            after = report.sequence;
        }
    }

    /// The source has sent every file, and is about to say so.
    fn after_the_copy(&self) -> Arc<Hold> {
        Arc::new(self.source().hypervisor.faults().hold_nth(Point::Definition, 2))
    }

    async fn undo(&self, generation: u64) {
        for client in [&self.destination().client, &self.source().client] {
            client.ask(attempt(generation), Verb::Abort).await.expect("ended");
            client.release(attempt(generation)).await.expect("released");
        }
    }

    fn journal(&self, host: usize) -> PathBuf {
        self.site.hosts[host].config.state_dir.join("offline/1.json")
    }

    fn assert_at_source(&self) {
        assert!(self.source().autostarts(self.vm) && !self.source().holds(self.vm));
        assert!(!self.destination().knows(self.vm) && !self.new_file().exists());
        assert!(!self.journal(0).exists() && !self.journal(1).exists());
        assert!(fs::read(self.old()).expect("there") == content());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_version_before_moves_a_vm_that_is_shut_off() {
    let lot = Lot::new().await;
    let (of, nothing) = ("offline-moves/1/1", serde_json::Value::Null);
    let check = json!({"vm": lot.vm, "files": lot.files()});
    lot.site.version_1(1, "PUT", "offline-moves/check", check).await;
    let ready = lot.site.version_1(1, "PUT", &format!("{of}/destination"), json!(lot.receive_body())).await;
    let body = json!(lot.send_body(serde_json::from_value(ready).expect("ready")));
    let report = lot.site.version_1(0, "PUT", &format!("{of}/source"), body).await;
    assert_eq!((&report["role"], &report["stage"]), (&json!("source"), &json!("prepared")));
    lot.site.version_1(0, "PUT", &format!("{of}/perform"), nothing.clone()).await;
    let report = lot.site.version_1_until(0, of, "copied").await;
    assert!(report["wire"].as_u64() >= Some(DISK_BYTES as u64) && report["autostart"].is_boolean(), "{report}");
    assert_eq!((&report["files"][0]["device"], &report["remarks"]), (&json!("vda"), &json!([])));
    assert_eq!(lot.site.version_1(1, "PUT", &format!("{of}/define"), nothing.clone()).await["stage"], "defined");
    for host in [1, 0] {
        let body = json!({"autostart": true, "keep_source": false});
        assert_eq!(lot.site.version_1(host, "PUT", &format!("{of}/confirm"), body).await["stage"], "confirmed");
        lot.site.version_1(host, "DELETE", of, nothing.clone()).await;
    }
    assert!(lot.destination().autostarts(lot.vm) && !lot.source().knows(lot.vm) && !lot.old().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_only_fail_is_refused_before_a_file_is_made() {
    expects_warning(r#"A request failed title="Could not take the definition of VM"#);
    expects_warning("What the source sent could not be taken");
    let mut lot = Lot::new().await;
    let made = |lot: &Lot| fs::read_dir(lot.destination().path("new")).expect("there").count();
    for (generation, why) in [(1, "its state was saved"), (2, "its file /x does not lie on a share")] {
        let ready = lot.receive(generation).await.expect("ready");
        lot.source().hypervisor.faults().fail(Point::Definition, why);
        let error = lot.send(generation, ready).await.expect_err("it cannot be moved");
        assert!(error.problem().is_some_and(|problem| format!("{problem:?}").contains(why)), "{}", chain(&error));
        assert_eq!(made(&lot), 0, "{why}");
        lot.destination().client.release(attempt(generation)).await.expect("released");
        lot.assert_at_source();
    }
    // What only the destination refuses.
    lot.name = "another".into();
    lot.prepare(3).await;
    let report = lot.copied(3).await;
    assert_eq!(report.stage, Stage::Failed);
    assert!(
        report.error.as_ref().is_some_and(|error| error.contains("expected") || error.contains("another")),
        "{report:?}"
    );
    assert_eq!((made(&lot), report.figures.disk_wire), (0, ByteCount(0)));
    lot.undo(3).await;
    lot.assert_at_source();

    let mut files = lot.files();
    files[0].allocated = ByteCount::gib(11);
    let requested = CheckOffline { vm: lot.vm, files, absent: Vec::new() };
    assert_eq!(
        refusal(lot.destination().client.check(&Check::OfflineDestination(requested)).await),
        (409, FindingId::FileSpace)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_its_name_when_it_is_whole_and_whatever_was_left_is_a_beginning() {
    let lot = Lot::new().await;
    // Left by an attempt that nobody knows of, but for one block.
    let mut left = content();
    left[3 * BLOCK_BYTES] ^= 1;
    fs::write(lot.part(), left).expect("written");
    lot.prepare(1).await;
    let hold = lot.after_the_copy();
    let copying = lot.source().client.ask(attempt(1), Verb::Perform).await;
    copying.expect("begun");
    reached(&hold).await;
    assert!(lot.part().exists() && !lot.new_file().exists(), "it is not the VM's yet");
    hold.release();
    let report = lot.copied(1).await;
    assert_eq!(
        (report.stage, report.figures.disk_wire),
        (Stage::Delivered, ByteCount(BLOCK_BYTES as u64)),
        "{report:?}"
    );

    // Somebody makes a file of that name meanwhile.
    fs::write(lot.new_file(), "precious").expect("written");
    let refused = lot.destination().client.ask(attempt(1), Verb::Define).await;
    assert_eq!(refusal(refused), (409, FindingId::FileExists));
    assert_eq!(fs::read(lot.new_file()).expect("there"), b"precious");
    fs::remove_file(lot.new_file()).expect("removed");
    lot.destination().client.ask(attempt(1), Verb::Define).await.expect("defined");
    assert!(fs::read(lot.new_file()).expect("there") == content() && !lot.part().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_in_the_midst_costs_the_next_attempt_little() {
    let mut lot = Lot::new().await;
    lot.prepare(1).await;
    let hold = lot.after_the_copy();
    lot.source().client.ask(attempt(1), Verb::Perform).await.expect("begun");
    reached(&hold).await;
    lot.restart_agent(1).await;
    assert!(!lot.new_file().exists());
    hold.release();
    lot.copied(1).await;
    lot.prepare(2).await;
    assert!(!lot.new_file().exists() && !lot.part().exists(), "no file is made before the definition has come");
    let report = lot.copied(2).await;
    assert_eq!((report.stage, report.figures.disk_wire), (Stage::Delivered, ByteCount(0)), "{report:?}");
    lot.destination().client.ask(attempt(2), Verb::Define).await.expect("defined");
    assert!(fs::read(lot.new_file()).expect("there") == content());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_knows_what_to_take_back_before_it_changes_anything() {
    expects_warning(r#"A request failed title="Could not set autostart of VM"#);
    let mut lot = Lot::new().await;
    let ready = lot.receive(1).await.expect("ready");
    let hold = Arc::new(lot.source().hypervisor.faults().hold(Point::SetAutostart));
    // Who asked is gone as soon as it is held.
    tokio::select! {
        sent = lot.send(1, ready) => panic!("autostart is held: {sent:?}"),
        () = reached(&hold) => {}
    }
    assert!(lot.source().holds(lot.vm) && lot.journal(0).exists());
    hold.release();
    wait_until("autostart is cleared", || !lot.source().autostarts(lot.vm)).await;
    // The agent ends, and nobody but the journal knows.
    lot.restart_agent(0).await;
    lot.undo(1).await;
    lot.assert_at_source();

    // What fails in between is taken back at once.
    let ready = lot.receive(2).await.expect("ready");
    lot.source().hypervisor.faults().fail(Point::SetAutostart, "not now");
    lot.send(2, ready).await.expect_err("it failed");
    assert!(lot.source().autostarts(lot.vm) && !lot.source().holds(lot.vm) && !lot.journal(0).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_attempt_is_not_begun_again_and_a_number_of_another_vm_takes_nothing() {
    let mut lot = Lot::new().await;
    lot.prepare(1).await;
    lot.undo(1).await;
    lot.restart_agent(1).await;
    assert_eq!(refusal(lot.receive(1).await), (409, FindingId::RequestStale));
    lot.assert_at_source();

    lot.prepare(2).await;
    let (ready, vm) = (lot.receive(2).await.expect("repeated"), lot.vm);
    let other = FakeGuest::new("db", &[lot.source().path("old/vda.raw")]);
    lot.vm = lot.source().hypervisor.define(other).expect("defined");
    assert_eq!(refusal(lot.receive(3).await), (409, FindingId::JobOpen));
    assert_eq!(refusal(lot.send(3, ready).await), (409, FindingId::JobOpen));
    lot.vm = vm;
    assert!(lot.source().holds(vm), "it is still being moved");
    lot.undo(2).await;
    lot.assert_at_source();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_waits_for_ends_before_the_next_of_its_job_and_holds_up_no_other_job() {
    let lot = Lot::new().await;
    lot.prepare(1).await;
    assert_eq!(lot.copied(1).await.stage, Stage::Delivered);
    let hold = Arc::new(lot.destination().hypervisor.faults().hold(Point::Define));
    let (client, address) = (&lot.destination().client, lot.destination().client_address());
    let impatient = ferry_client::agent::AgentClient::new(&address, lot.destination().agent.key.pin(), &lot.site.key);
    let impatient = impatient.expect("a client");
    // The connection goes with the client.
    let asked = tokio::spawn(async move { impatient.ask(attempt(1), Verb::Define).await });
    reached(&hold).await;
    asked.abort();
    let _ = asked.await;
    let abort = client.ask(attempt(1), Verb::Abort);
    tokio::pin!(abort);
    let other = Attempt { job: JobId(2), generation: Generation(1) };
    tokio::select! {
        ended = &mut abort => panic!("the VM is being defined: {ended:?}"),
        released = client.release(other) => released.expect("another job's turn is its own"),
    }
    hold.release();
    assert_eq!(refusal(abort.await), (409, FindingId::JobPastPivot), "its turn came when the VM was defined");
    let report = client.report(attempt(1), 0, Duration::ZERO).await.expect("known");
    assert_eq!(report.stage, Stage::Delivered);
    assert!(lot.destination().knows(lot.vm) && lot.new_file().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_written_to_fails_the_copy_or_stays() {
    expects_warning("An old file stays");
    let lot = Lot::new().await;
    lot.prepare(1).await;
    let hold = lot.after_the_copy();
    // Written to while it is copied: the stamp was taken before the first byte went.
    let first = Arc::new(lot.source().hypervisor.faults().hold(Point::Definition));
    lot.source().client.ask(attempt(1), Verb::Perform).await.expect("begun");
    reached(&first).await;
    let mut other = content();
    other[0] ^= 1;
    fs::write(lot.old(), &other).expect("written");
    first.release();
    let report = lot.copied(1).await;
    hold.release();
    assert_eq!(report.stage, Stage::Failed);
    assert!(
        report.error.as_ref().is_some_and(|error| error.contains("was written to while it was copied")),
        "{report:?}"
    );
    lot.undo(1).await;
    lot.source().hypervisor.faults().clear();

    // Written to after the copy: the destination has what was there before, and the administrator must know.
    lot.prepare(2).await;
    assert_eq!(lot.copied(2).await.stage, Stage::Delivered);
    lot.destination().client.ask(attempt(2), Verb::Define).await.expect("defined");
    fs::write(lot.old(), content()).expect("written");
    let body = ConfirmRequest { autostart: true, keep_source: false };
    lot.destination().client.ask(attempt(2), Verb::Confirm(body)).await.expect("confirmed");
    let report = lot.source().client.ask(attempt(2), Verb::Confirm(body)).await.expect("confirmed");
    let messages: Vec<String> = report.findings.iter().map(|finding| finding.message.to_string()).collect();
    assert!(messages.len() == 1 && messages[0].contains("VM web01 stays: something has written to it"), "{messages:?}");
    assert!(lot.old().exists() && !lot.source().knows(lot.vm));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_travel_by_the_route_that_is_given_and_without_it_nothing_is_changed() {
    let mut lot = Lot::new().await;
    lot.route = Some(route([127, 0, 78, 1]));
    let ready = lot.receive(1).await.expect("the destination is ready");
    assert!(ready.address.starts_with("127.0.78.2:"), "{ready:?}");
    lot.send(1, ready.clone()).await.expect("reached");
    let report = lot.copied(1).await;
    assert_eq!((report.stage, report.error), (Stage::Delivered, None));

    // No host has this address.
    let mut lot = Lot::new().await;
    lot.route = Some(route([198, 51, 100, 1]));
    let ready = lot.receive(1).await.expect("the destination is ready");
    assert_eq!(refusal(lot.send(1, ready).await), (409, FindingId::HostNetwork));
    assert!(!lot.source().holds(lot.vm) && lot.source().autostarts(lot.vm), "nothing is changed");
}
