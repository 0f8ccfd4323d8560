//! Moves of a running VM's disks, asked of an agent over its API: what of the files stays, whatever happens when.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::site::{Job, SHARE, SOON, Site, reached, refusal, wait_until};
use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{Check, ConfirmRequest, PrepareStorage, Report, Stage, Verb},
    files::DiskMove,
    finding::FindingId,
    id::{Generation, JobId, VmId},
    location::Location,
    units::ByteCount,
    vm::DiskFormat,
};
use ferry_drivers::hypervisor::{
    BlockCopy as _, Domains as _,
    fake::{FakeGuest, Hold, Point},
};
use ferry_testkit::logs::{expects_warning, logged};
use serde_json::{Value, json};

/// Bytes of each disk.
const SIZE: usize = 3 << 20;

/// A VM with two disks on the first host, in folders of their own.
struct Disks {
    site: Site,
    vm: VmId,
    old: [PathBuf; 2],
}

fn attempt(job: u64) -> Attempt {
    Attempt { job: JobId(job), generation: Generation(1) }
}

impl Disks {
    async fn new(change: impl FnOnce(&mut FakeGuest)) -> Self {
        let site = Site::new().await;
        let top = site.hosts[0].config.storage_roots[0].clone();
        let old = ["a/vda.raw", "b/vdb.raw"].map(|name| top.join(name));
        let vm = Self::run(&site, "db", &old, change);
        for folder in ["new", "other"] {
            fs::create_dir(top.join(folder)).expect("made");
        }
        Self { site, vm, old }
    }

    fn run(site: &Site, name: &str, disks: &[PathBuf], change: impl FnOnce(&mut FakeGuest)) -> VmId {
        for (number, disk) in disks.iter().enumerate() {
            fs::create_dir_all(disk.parent().expect("a folder")).expect("made");
            fs::write(disk, vec![number as u8 + 1; SIZE]).expect("written");
        }
        site.run_vm(name, |guest| {
            guest.facts.files = FakeGuest::new(name, disks).facts.files;
            change(guest);
        })
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.site.hosts[0].config.storage_roots[0].join(inside)
    }

    fn local(&self, path: &Path) -> Location {
        let host = self.site.hosts[0].agent.enrolment.watch_host().borrow().expect("enrolled");
        Location::Local { host, path: path.display().to_string() }
    }

    /// From the files that the VM uses to these.
    fn request(&self, to: &[(&str, Location)]) -> PrepareStorage {
        let facts = self.site.hosts[0].hypervisor.vm(self.vm).expect("reachable").expect("there");
        let from = |device: &str| facts.files.iter().find(|file| file.device == device).expect("a disk").place.clone();
        let one = |(device, to): &(&str, Location)| DiskMove {
            device: (*device).to_owned(),
            from: self.local(&from(device)),
            real: None,
            to: to.clone(),
            format: DiskFormat::Raw,
        };
        PrepareStorage {
            vm: self.vm,
            vm_name: "db".to_owned(),
            disks: to.iter().map(one).collect(),
            bandwidth_bytes_per_s: None,
            whole: false,
        }
    }

    /// Both into a folder.
    fn both(&self) -> PrepareStorage {
        let to = |name: &str| self.local(&self.path(name));
        self.request(&[("vda", to("new/vda.raw")), ("vdb", to("new/vdb.raw"))])
    }

    fn new_files(&self) -> [PathBuf; 2] {
        ["new/vda.raw", "new/vdb.raw"].map(|name| self.path(name))
    }

    async fn begin(&self, job: u64, request: &PrepareStorage) {
        let client = &self.site.hosts[0].client;
        client.prepare(attempt(job), request).await.expect("prepared");
        client.ask(attempt(job), Verb::Perform).await.expect("begun");
    }

    async fn until(&self, job: u64, stages: &[Stage]) -> Report {
        let until = Instant::now() + SOON;
        let mut after = 0;
        loop {
            let asked = self.site.hosts[0].client.report(attempt(job), after, Duration::from_secs(2)).await;
            let report = asked.expect("a report");
            if stages.contains(&report.stage) {
                return report;
            }
            assert!(Instant::now() < until, "{stages:?} was not reached: {report:?}");
            after = report.sequence;
        }
    }

    async fn moved(&self, job: u64, request: &PrepareStorage) {
        self.begin(job, request).await;
        let report = self.until(job, &[Stage::Delivered, Stage::Failed]).await;
        assert_eq!(report.stage, Stage::Delivered, "{report:?}");
    }

    async fn confirm(&self, job: u64) -> Report {
        let confirm = ConfirmRequest { autostart: false, keep_source: false };
        self.site.hosts[0].client.ask(attempt(job), Verb::Confirm(confirm)).await.expect("confirmed")
    }

    async fn release(&self, job: u64) {
        self.site.hosts[0].client.release(attempt(job)).await.expect("released");
        assert!(!self.journal(job).exists());
    }

    fn journal(&self, job: u64) -> PathBuf {
        self.site.hosts[0].config.state_dir.join(format!("storage/{job}.json"))
    }

    /// The agent ends, what it wrote down of a job is changed, and another begins with that.
    async fn rewrite(&mut self, job: u64, change: impl FnOnce(&mut Value)) {
        let text = fs::read_to_string(self.journal(job)).expect("there");
        let mut journal: Value = serde_json::from_str(&text).expect("a journal");
        change(&mut journal);
        fs::write(self.journal(job), journal.to_string()).expect("written");
        self.site.hosts[0].restart_agent(&self.site.key).await;
    }

    async fn held(&self, point: Point) -> Arc<Hold> {
        Arc::new(self.site.hosts[0].hypervisor.faults().hold(point))
    }

    /// The VM went away: its process ends here, and the host knows it no more.
    fn goes_away(&self) {
        self.site.hosts[0].hypervisor.undefine(self.vm).expect("undefined");
        self.site.hosts[0].hypervisor.crash(self.vm);
        assert!(!self.site.hosts[0].knows(self.vm));
    }
}

/// The files that findings of a kind name.
fn named(report: &Report, id: FindingId) -> Vec<PathBuf> {
    report.findings.iter().filter(|finding| finding.id == id).map(|finding| finding.object.clone().into()).collect()
}

fn are_there(files: &[PathBuf]) -> Vec<bool> {
    files.iter().map(|file| file.exists()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_version_before_moves_disks() {
    let disks = Disks::new(|_| {}).await;
    let (of, body, nothing) = ("storage-moves/1/1", json!(disks.both()), Value::Null);
    let takes = disks.site.version_1(0, "PUT", "storage-moves/check", body.clone()).await;
    assert_eq!(takes.as_array().map(Vec::len), Some(2));
    assert_eq!(disks.site.version_1(0, "PUT", of, body).await["stage"], "prepared");
    let begun = disks.site.version_1(0, "PUT", &format!("{of}/perform"), nothing.clone()).await;
    assert_eq!((&begun["job"], &begun["generation"]), (&json!(1), &json!(1)));
    let report = disks.site.version_1_until(0, of, "moved").await;
    assert_eq!((&report["disks"][1]["stage"], &report["error"]), (&json!("moved"), &nothing));
    let report = disks.site.version_1(0, "PUT", &format!("{of}/confirm"), json!({"keep_source": false})).await;
    assert_eq!((&report["stage"], &report["findings"]), (&json!("confirmed"), &json!([])));
    disks.site.version_1(0, "DELETE", of, nothing).await;
    assert_eq!((are_there(&disks.old), are_there(&disks.new_files())), (vec![false; 2], vec![true; 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_this_host_knows_of_another_kind_is_not_taken_up() {
    let disks = Disks::new(|_| {}).await;
    disks.begin(1, &disks.both()).await;
    let vm = disks.site.run_vm("web01", |_| {});
    let job = Job::new(1, 2, vm, "web01", 1);
    assert_eq!(refusal(disks.site.prepare_destination(&job).await), (409, FindingId::JobOpen));
    disks.until(1, &[Stage::Delivered]).await;
    disks.confirm(1).await;
    disks.release(1).await;
    // It is the VM's own host that is asked.
    assert_eq!(refusal(disks.site.prepare_destination(&job).await), (409, FindingId::VmUuidTaken));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_that_was_switched_over_to_outlives_the_vms_going_away() {
    expects_warning("The storage move failed");
    expects_warning("A new file stays: it may hold the newest data of its disk");
    // Between two disks.
    let disks = Disks::new(|_| {}).await;
    let hold = disks.held(Point::PivotedDisk).await;
    disks.begin(1, &disks.both()).await;
    reached(&hold).await;
    disks.goes_away();
    hold.release();
    disks.until(1, &[Stage::Failed]).await;
    let report = disks.site.hosts[0].client.ask(attempt(1), Verb::Abort).await.expect("it has ended");
    assert_eq!(named(&report, FindingId::FileKept), disks.new_files()[..1], "{report:?}");
    disks.release(1).await;
    // Of the thread that moves disks, and of a request's.
    for words in ["The storage move failed", "A new file stays: it may hold"] {
        let line = logged().into_iter().find(|line| line.contains(words)).expect("it was logged");
        assert!(line.contains(&format!(" move{{job=1 generation=1 vm={}", disks.vm)), "{line}");
    }
    assert_eq!(are_there(&disks.new_files()), [true, false], "the second held nothing new");
    assert_eq!(are_there(&disks.old), [true, true]);

    // Before the old files go, which then stay, and after.
    for confirms_first in [false, true] {
        let disks = Disks::new(|_| {}).await;
        disks.moved(1, &disks.both()).await;
        if confirms_first {
            assert_eq!(disks.confirm(1).await.findings, []);
        }
        disks.goes_away();
        let report = disks.confirm(1).await;
        let stay = if confirms_first { &[][..] } else { &disks.old[..] };
        assert_eq!(named(&report, FindingId::FileKept), stay, "{report:?}");
        disks.release(1).await;
        assert_eq!(are_there(&disks.new_files()), [true, true]);
        assert_eq!(are_there(&disks.old), [!confirms_first, !confirms_first]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_a_move_long_over_takes_no_file_away() {
    expects_warning("A new file stays: it may hold the newest data of its disk");
    let mut disks = Disks::new(|_| {}).await;
    disks.moved(1, &disks.both()).await;
    disks.confirm(1).await;
    disks.goes_away();
    // Jobs are counted anew.
    let failed = |journal: &mut Value| (journal["stage"], journal["error"]) = ("failed".into(), "no".into());
    disks.rewrite(1, failed).await;
    disks.release(1).await;
    assert_eq!(are_there(&disks.new_files()), [true, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_attempt_is_not_begun_again_and_a_number_of_another_vm_takes_nothing() {
    let mut disks = Disks::new(|_| {}).await;
    let request = disks.both();
    disks.site.hosts[0].client.prepare(attempt(1), &request).await.expect("prepared");
    disks.site.hosts[0].client.ask(attempt(1), Verb::Abort).await.expect("ended");
    disks.release(1).await;
    disks.site.hosts[0].restart_agent(&disks.site.key).await;
    let client = &disks.site.hosts[0].client;
    assert_eq!(refusal(client.prepare(attempt(1), &request).await), (409, FindingId::RequestStale));
    assert_eq!(are_there(&disks.new_files()), [false, false]);

    let other = Disks::run(&disks.site, "mail", &[disks.path("c/vda.raw")], |_| {});
    client.prepare(attempt(2), &request).await.expect("prepared");
    let next = Attempt { generation: Generation(2), ..attempt(2) };
    let taken = PrepareStorage { vm: other, vm_name: "mail".to_owned(), ..request };
    assert_eq!(refusal(client.prepare(next, &taken).await), (409, FindingId::JobOpen));
    assert_eq!(are_there(&disks.new_files()), [true, true], "they are those of the first VM's move");
    client.ask(attempt(2), Verb::Abort).await.expect("ended");
    disks.release(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_files_of_a_vm_without_a_kept_definition_stay() {
    expects_warning("A new file stays: it may hold the newest data of its disk");
    let disks = Disks::new(|guest| guest.facts.persistent = false).await;
    disks.moved(1, &disks.both()).await;
    let report = disks.confirm(1).await;
    assert_eq!(named(&report, FindingId::FileKept), disks.old, "{report:?}");
    assert!(report.findings[0].message.to_string().contains("keeps no definition"), "{report:?}");
    // Its process ends, and nothing names a file any more.
    disks.site.hosts[0].hypervisor.crash(disks.vm);
    disks.release(1).await;
    assert_eq!((are_there(&disks.old), are_there(&disks.new_files())), (vec![true, true], vec![true, true]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_file_stays_until_the_next_start_uses_the_new_one() {
    let disks = Disks::new(|_| {}).await;
    disks.moved(1, &disks.both()).await;
    // An edit that waits for the next start, of a definition from before the move.
    let old = disks.old[0].clone();
    disks.site.hosts[0].hypervisor.edit(disks.vm, |facts| facts.files[0].place = old);
    let report = disks.confirm(1).await;
    assert_eq!(named(&report, FindingId::FileKept), disks.old[..1], "{report:?}");
    assert_eq!(are_there(&disks.old), [true, false]);
    disks.release(1).await;

    // One that names neither.
    let request = disks.request(&[("vdb", disks.local(&disks.path("other/vdb.raw")))]);
    disks.moved(2, &request).await;
    let other = disks.path("a/other.raw");
    disks.site.hosts[0].hypervisor.edit(disks.vm, |facts| facts.files[1].place = other);
    let report = disks.confirm(2).await;
    assert_eq!(named(&report, FindingId::FileKept), disks.new_files()[1..], "{report:?}");
    assert!(report.findings[0].message.to_string().contains("does not name the new file"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_file_that_is_used_by_another_name_or_is_a_link_stays() {
    let disks = Disks::new(|_| {}).await;
    // The first is the base of a clone that is shut off, which names it through a link; the second is a link itself.
    symlink("a", disks.path("store")).expect("made");
    let (clone, data) = (disks.path("other/clone.qcow2"), disks.path("b/data.raw"));
    let mut tool = std::process::Command::new("qemu-img");
    tool.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(disks.path("store/vda.raw")).arg(&clone);
    assert!(tool.status().expect("qemu-img is installed").success());
    let mut guest = FakeGuest::new("clone", &[clone]);
    guest.facts.files[0].format = Some(DiskFormat::Qcow2);
    disks.site.hosts[0].hypervisor.define(guest).expect("defined");
    fs::rename(&disks.old[1], &data).expect("renamed");
    symlink("data.raw", &disks.old[1]).expect("made");

    disks.moved(1, &disks.both()).await;
    let report = disks.confirm(1).await;
    assert_eq!(named(&report, FindingId::FileKept), disks.old, "{report:?}");
    assert!(report.findings[0].message.to_string().contains("perhaps by another name"), "{report:?}");
    assert!(report.findings[1].message.to_string().contains("a symbolic link"), "{report:?}");
    disks.release(1).await;
    assert!(disks.old[0].is_file() && disks.old[1].is_symlink() && data.is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_that_is_another_one_by_now_or_is_used_by_another_name_stays() {
    expects_warning("A file stays: it is not the one that was made for the move");
    expects_warning("A new file stays file=");
    let disks = Disks::new(|_| {}).await;
    disks.site.hosts[0].client.prepare(attempt(1), &disks.both()).await.expect("prepared");
    let [vda, vdb] = disks.new_files();
    fs::remove_file(&vda).expect("there");
    fs::write(&vda, "precious").expect("written");
    symlink("new", disks.path("store")).expect("made");
    let guest = FakeGuest::new("other", &[disks.path("store/vdb.raw")]);
    disks.site.hosts[0].hypervisor.define(guest).expect("defined");
    disks.release(1).await;
    assert_eq!(fs::read(&vda).expect("there"), b"precious");
    assert!(vdb.exists(), "a VM uses it");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_is_removed_once_and_never_what_took_its_name() {
    expects_warning(r#"A request failed title="A test made it fail at agent-storage-new-file-removed"#);
    let mut disks = Disks::new(|_| {}).await;
    disks.site.hosts[0].client.prepare(attempt(1), &disks.both()).await.expect("prepared");
    let [vda, vdb] = disks.new_files();
    // A mount that tells no lasting identity.
    let by_path = |journal: &mut Value| {
        for disk in journal["disks"].as_array_mut().expect("disks") {
            disk["mark"] = "path".into();
        }
    };
    disks.rewrite(1, by_path).await;
    fail::cfg("agent-storage-new-file-removed", "return").expect("a failpoint");
    disks.site.hosts[0].client.release(attempt(1)).await.expect_err("it was made to fail");
    assert_eq!(are_there(&[vda.clone(), vdb.clone()]), [false, true]);
    fs::write(&vda, "precious").expect("written");
    fail::remove("agent-storage-new-file-removed");
    disks.release(1).await;
    assert_eq!(fs::read(&vda).expect("there"), b"precious");
    assert!(!vdb.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_room_is_asked_for_disks_that_have_moved() {
    let disks = Disks::new(|_| {}).await;
    let on_share = |name: &str| Location::Share { share: SHARE, path: name.to_owned() };
    let mut request = disks.request(&[("vda", on_share("vda.raw")), ("vdb", on_share("vdb.raw"))]);
    let one = PrepareStorage { disks: request.disks[..1].to_vec(), ..request.clone() };
    disks.moved(1, &one).await;
    disks.confirm(1).await;
    disks.release(1).await;
    // Room for one of them.
    disks.site.servers.change(&disks.site.unc, |export| export.space.free = ByteCount(SIZE as u64 * 3 / 2));
    let client = &disks.site.hosts[0].client;
    client.check(&Check::Storage(request.clone())).await.expect("only the second needs room");
    request.disks[0].to = on_share("again.raw");
    request.disks[0].from = on_share("vda.raw");
    assert_eq!(refusal(client.check(&Check::Storage(request.clone())).await).1, FindingId::FileSpace);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_the_definition_follows_and_a_foreign_file_is_told_of() {
    let disks = Disks::new(|_| {}).await;
    let to = |name: &str| disks.local(&disks.path(name));
    // The second disk leaves the folder that the first comes to.
    let whole = |request: PrepareStorage| PrepareStorage { whole: true, ..request };
    let request = whole(disks.request(&[("vda", to("b/vda.raw")), ("vdb", to("other/vdb.raw"))]));
    disks.moved(1, &request).await;
    assert_eq!(disks.confirm(1).await.findings, []);
    let copy_in = |folder: &str| fs::read_to_string(disks.path(folder).join("db.xml"));
    assert!(copy_in("b").expect("kept").contains("b/vda.raw"));

    // One disk goes on. What is kept says so: beside the disk, as long as it is there, then where it goes.
    disks.moved(2, &disks.request(&[("vdb", to("new/vdb.raw"))])).await;
    assert_eq!(disks.confirm(2).await.findings, []);
    assert!(copy_in("b").expect("kept").contains("new/vdb.raw"));
    disks.moved(4, &disks.request(&[("vda", to("other/vda.raw"))])).await;
    assert_eq!(disks.confirm(4).await.findings, []);
    assert!(copy_in("other").expect("kept").contains("other/vda.raw"));
    assert!(copy_in("b").is_err(), "no disk is there any more");

    fs::write(disks.path("a/db.xml"), "an administrator's").expect("written");
    let request = whole(disks.request(&[("vda", to("a/vda.raw")), ("vdb", to("a/vdb.raw"))]));
    disks.moved(3, &request).await;
    let report = disks.confirm(3).await;
    assert_eq!(named(&report, FindingId::DefinitionNotKept), [disks.path("a/vda.raw")], "{report:?}");
    assert_eq!(copy_in("a").expect("there"), "an administrator's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_hangs_holds_up_no_other() {
    let disks = Disks::new(|_| {}).await;
    let mail = [disks.path("mail/vda.raw")];
    let vm = Disks::run(&disks.site, "mail", &mail, |_| {});
    let mut request = disks.request(&[("vda", disks.local(&disks.path("new/mail.raw")))]);
    (request.vm, request.disks[0].from) = (vm, disks.local(&mail[0]));
    let client = &disks.site.hosts[0].client;
    client.prepare(attempt(2), &request).await.expect("prepared");

    let hold = disks.held(Point::CopyDisk).await;
    disks.begin(1, &disks.both()).await;
    reached(&hold).await;
    let aborts = tokio::spawn({
        let client = client.clone();
        async move { client.ask(attempt(1), Verb::Abort).await }
    });
    tokio::time::timeout(SOON / 2, client.ask(attempt(2), Verb::Abort)).await.expect("at once").expect("ended");
    client.release(attempt(2)).await.expect("released");
    assert!(!aborts.is_finished());
    hold.release();
    aborts.await.expect("no panic").expect("ended");
    disks.release(1).await;
    assert_eq!(fs::read_dir(disks.path("new")).expect("there").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_dies_while_it_makes_files_leaves_none_that_it_does_not_know() {
    expects_warning("A file stays: it is not the one that was made for the move");
    let mut disks = Disks::new(|_| {}).await;
    let request = disks.both();
    disks.site.hosts[0].client.prepare(attempt(1), &request).await.expect("prepared");
    // It dies when it has made one file and not said so, and before it makes the other one.
    let making = |journal: &mut Value| {
        for disk in journal["disks"].as_array_mut().expect("disks") {
            assert_eq!(disk["made"], true);
            (disk["made"], disk["mark"]) = (false.into(), "making".into());
        }
    };
    let [vda, vdb] = disks.new_files();
    fs::remove_file(&vdb).expect("there");
    disks.rewrite(1, making).await;
    disks.site.hosts[0].client.prepare(attempt(1), &request).await.expect("it makes what is missing");
    assert_eq!(are_there(&[vda.clone(), vdb.clone()]), [true, true]);

    // Somebody else's file is not taken for its own.
    fs::write(&vdb, "precious").expect("written");
    disks.rewrite(1, making).await;
    let again = disks.site.hosts[0].client.prepare(attempt(1), &request).await;
    assert_eq!(refusal(again).1, FindingId::FileExists);
    assert_eq!(are_there(&[vda, disks.journal(1)]), [false, false]);
    assert_eq!(fs::read(&vdb).expect("there"), b"precious");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_made_and_not_be_forgotten_stays_known() {
    expects_warning("libvirt does not answer");
    expects_warning(r#"A request failed title="libvirt on this host does not answer"#);
    expects_warning("What a storage move made could not be removed yet");
    let disks = Disks::new(|_| {}).await;
    let hypervisor = disks.site.hosts[0].hypervisor.clone();
    fail::cfg_callback("agent-storage-file-made", move || hypervisor.set_reachable(false)).expect("a failpoint");
    let client = &disks.site.hosts[0].client;
    client.prepare(attempt(1), &disks.both()).await.expect_err("libvirt went away");
    assert_eq!(are_there(&disks.new_files()), [true, false]);
    assert!(disks.journal(1).exists());
    fail::remove("agent-storage-file-made");
    disks.site.hosts[0].hypervisor.set_reachable(true);
    client.report(attempt(1), 0, Duration::ZERO).await.expect("it is known");
    disks.release(1).await;
    assert_eq!(are_there(&disks.new_files()), [false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_beneath_a_mount_point_or_where_qemu_cannot_write() {
    let disks = Disks::new(|_| {}).await;
    let host = &disks.site.hosts[0];
    let request = disks.request(&[("vda", Location::Share { share: SHARE, path: "vda.raw".to_owned() })]);
    fs::remove_file(host.mount()).expect("unmounted");
    fs::create_dir(host.mount()).expect("a mount point");
    assert_eq!(refusal(host.client.prepare(attempt(1), &request).await).1, FindingId::ShareMount);
    assert_eq!(fs::read_dir(host.mount()).expect("there").count(), 0);

    let closed = disks.path("new");
    fs::write(&host.config.qemu_conf, "user = \"nobody\"\n").expect("written");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).expect("closed");
    assert_eq!(refusal(host.client.prepare(attempt(1), &disks.both()).await).1, FindingId::PlaceNotWritable);
    assert_eq!(fs::read_dir(&closed).expect("there").count(), 0);
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_was_to_end_does_not_go_on_after_a_restart() {
    expects_warning(r#"A request failed title="A test made it fail at agent-storage-ending"#);
    let mut disks = Disks::new(|_| {}).await;
    let hold = disks.held(Point::CopyPart).await;
    disks.begin(1, &disks.both()).await;
    reached(&hold).await;
    // The agent dies when it has written the wish down and before it acts.
    fail::cfg("agent-storage-ending", "return").expect("a failpoint");
    let aborts = tokio::spawn({
        let client = disks.site.hosts[0].client.clone();
        async move { client.ask(attempt(1), Verb::Abort).await }
    });
    let (journal, is_written) = (disks.journal(1), |text: String| text.contains("\"wish\": \"End\""));
    wait_until("the wish is written", || fs::read_to_string(&journal).is_ok_and(is_written)).await;
    hold.release();
    aborts.await.expect("no panic").expect_err("a test made it fail");
    fail::remove("agent-storage-ending");
    disks.site.hosts[0].restart_agent(&disks.site.key).await;
    let report = disks.until(1, &[Stage::Aborted, Stage::Delivered]).await;
    assert_eq!(report.stage, Stage::Aborted, "{report:?}");
    for device in ["vda", "vdb"] {
        assert_eq!(disks.site.hosts[0].hypervisor.disk_copy(disks.vm, device).expect("reachable"), None);
    }
    let performed = disks.site.hosts[0].client.ask(attempt(1), Verb::Perform).await.expect("it has ended");
    assert_eq!(performed.stage, Stage::Aborted);
    disks.release(1).await;
    assert_eq!((are_there(&disks.old), are_there(&disks.new_files())), (vec![true, true], vec![false, false]));
}

#[tokio::test(flavor = "multi_thread")]
async fn too_late_a_wish_to_end_holds_up_nothing() {
    let disks = Disks::new(|_| {}).await;
    let hold = disks.held(Point::PivotDisk).await;
    disks.begin(1, &disks.both()).await;
    reached(&hold).await;
    let asked: Result<Report, ClientError> = disks.site.hosts[0].client.ask(attempt(1), Verb::Abort).await;
    assert_eq!(refusal(asked).1, FindingId::JobPastPivot);
    hold.release();
    disks.until(1, &[Stage::Delivered]).await;
    assert_eq!(disks.confirm(1).await.findings, []);
    disks.release(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_that_is_away_for_a_look_fails_no_move() {
    let disks = Disks::new(|_| {}).await;
    let hold = disks.held(Point::CopyPart).await;
    disks.begin(1, &disks.both()).await;
    reached(&hold).await;
    let faults = disks.site.hosts[0].hypervisor.faults();
    faults.cut(Point::CopyDisk);
    faults.cut(Point::Vms);
    faults.cut(Point::PivotDisk);
    faults.cut(Point::PivotedDisk);
    hold.release();
    let report = disks.until(1, &[Stage::Delivered, Stage::Failed]).await;
    assert_eq!(report.stage, Stage::Delivered, "{report:?}");
    disks.confirm(1).await;
    disks.release(1).await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_move_whose_thread_panics_has_failed_and_can_be_forgotten() {
    let disks = Disks::new(|_| {}).await;
    fail::cfg("agent-storage-ready", "1*panic").expect("a failpoint");
    disks.begin(1, &disks.both()).await;
    let report = disks.until(1, &[Stage::Failed, Stage::Delivered]).await;
    assert!(report.error.is_some_and(|error| error.contains("panicked")));
    disks.release(1).await;
    assert_eq!((are_there(&disks.old), are_there(&disks.new_files())), (vec![true, true], vec![false, false]));
}
