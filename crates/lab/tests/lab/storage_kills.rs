//! Agent and server are killed in each phase of a move of disks on real hosts, including between two disks.

use std::time::{Duration, Instant};

use ferry_core::{api::server::JobView, files::DiskStage, migration::Phase, vm::DiskFormat::Raw};
use ferry_lab::{
    images::{Disk, Place},
    local::FOLDER as LOCAL,
    run::wait_for,
    site::Site,
};

const SOON: Duration = Duration::from_secs(30);
/// Distance of sectors that distributes them over a disk of 64 MiB.
const ALL_OVER_KIB: u32 = 512;

/// What is observed when a move has reached the phase in which it is interrupted.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// The new file exists.
    Made,
    /// A part is copied.
    Copying,
    /// Everything is copied.
    Ready,
    /// The agent's journal contains this.
    Written(&'static str),
    /// According to libvirt, the disk uses the new file.
    Switched,
    /// The old file is removed.
    Removed,
    /// The agent has forgotten the move.
    Released,
}

/// A move of vda from one format to the other on the host's own disk.
struct MoveUnderTest {
    job: JobView,
    old: String,
    new: String,
}

impl MoveUnderTest {
    fn start(site: &Site) -> Self {
        let old = site.disk("vda").expect("a disk");
        let format = if old.ends_with(".raw") { "qcow2" } else { "raw" };
        let requested = format!("vda={LOCAL},format={format}");
        let job = site.start_move(&["--disk", &requested, "--bandwidth", "16"]).expect("accepted");
        Self { job, old, new: format!("{LOCAL}/disk.{format}") }
    }

    fn wait(&self, site: &Site, seen: Seen) {
        let id = self.job.id;
        let stage = |job: &JobView, stage| job.disks.first().is_some_and(|disk| disk.stage == stage);
        let there = |what: &str, is: &dyn Fn() -> bool| {
            wait_for(what, SOON, || is().then_some(())).expect("it comes to that");
        };
        match seen {
            Seen::Made => there("the new file is there", &|| site.real(&self.new).exists()),
            Seen::Copying => {
                let copying = |job: &JobView| stage(job, DiskStage::Copying) && job.disks[0].copied.0 > 0;
                site.wait_job(id, "it is copied", copying).expect("it is");
            }
            Seen::Ready => {
                site.wait_job(id, "it is ready", |job| stage(job, DiskStage::Ready)).expect("it is");
            }
            Seen::Written(stage) => site.wait_written(id, stage).expect("it is"),
            Seen::Switched => there("it is switched over", &|| site.disk("vda").is_ok_and(|path| path == self.new)),
            Seen::Removed => there("the old file is removed", &|| !site.real(&self.old).exists()),
            Seen::Released => {
                let journal = site.host().path(&format!("/run/ferry-agent/storage/{id}.json"));
                there("the old file is removed", &|| !site.real(&self.old).exists());
                there("the agent forgot it", &|| !journal.exists());
            }
        }
    }

    /// The failpoint held it: otherwise it would have ended by now.
    fn assert_open(&self, site: &Site) {
        let job = site.job(self.job.id).expect("known");
        assert!(!job.phase.ended(), "{job:#?}");
    }

    /// Checks that it ends as `expected`, with the VM on one intact file and the other file removed.
    fn check(&self, site: &Site, expected: Phase, row: &str) {
        let ended = site.wait_ended(self.job.id).unwrap_or_else(|error| panic!("{row}: {error}"));
        assert_eq!(ended.phase, expected, "{row}: {ended:#?}");
        let (used, gone) = if expected == Phase::Succeeded { (&self.new, &self.old) } else { (&self.old, &self.new) };
        assert_eq!(site.disk("vda").expect("a disk"), *used, "{row}: {ended:#?}");
        assert!(!site.real(gone).exists(), "{row}: {gone} is left");
        site.verify().unwrap_or_else(|error| panic!("{row}: {error}"));
    }
}

#[test]
fn an_agent_killed_in_any_phase_of_a_storage_move_loses_nothing() {
    let mut site = Site::up(vec![Disk::new(Place::Local, Raw)], ALL_OVER_KIB, "").expect("a guest");
    for (point, seen, expected) in [
        // The copy had not begun: the new file is removed.
        ("agent-prepared-storage=pause", Seen::Made, Phase::Failed),
        ("", Seen::Copying, Phase::Succeeded),
        ("agent-storage-ready=pause", Seen::Ready, Phase::Succeeded),
        ("agent-storage-pivot=pause", Seen::Written("switching"), Phase::Succeeded),
        ("agent-storage-pivoted=pause", Seen::Switched, Phase::Succeeded),
        ("agent-storage-confirm=pause", Seen::Written("moved"), Phase::Succeeded),
        ("agent-storage-removed=pause", Seen::Removed, Phase::Succeeded),
    ] {
        let begun = Instant::now();
        site.kill_agent().expect("killed");
        site.start_agent(point).expect("started");
        let test = MoveUnderTest::start(&site);
        test.wait(&site, seen);
        test.assert_open(&site);
        site.kill_agent().expect("killed");
        site.start_agent("").expect("started again");
        test.check(&site, expected, point);
        eprintln!("{seen:?} {point}: {expected:?} in {} ms", begun.elapsed().as_millis());
    }
}

#[test]
fn a_server_killed_in_any_phase_of_a_storage_move_goes_on_with_it() {
    let mut site = Site::up(vec![Disk::new(Place::Local, Raw)], ALL_OVER_KIB, "").expect("a guest");
    for (point, seen) in [
        ("saga-done-PrepareDestination=pause", Seen::Made),
        ("", Seen::Copying),
        ("saga-done-Perform=pause", Seen::Written("moved")),
        ("saga-intent-Confirm=pause", Seen::Written("moved")),
        ("saga-done-Confirm=pause", Seen::Removed),
        ("saga-done-Release=pause", Seen::Released),
    ] {
        let begun = Instant::now();
        site.restart_server(point).expect("started");
        let test = MoveUnderTest::start(&site);
        test.wait(&site, seen);
        test.assert_open(&site);
        site.restart_server("").expect("started again");
        test.check(&site, Phase::Succeeded, point);
        eprintln!("{seen:?} {point}: in {} ms", begun.elapsed().as_millis());
    }
}

/// Both disks of the guest, and their destinations.
struct Pair {
    job: JobView,
    old: [String; 2],
    new: [String; 2],
}

impl Pair {
    fn start(site: &Site) -> Self {
        let old = ["vda", "vdb"].map(|device| site.disk(device).expect("a disk"));
        let format = if old[0].ends_with(".raw") { "qcow2" } else { "raw" };
        let requested = ["vda", "vdb"].map(|device| format!("{device}={LOCAL},format={format}"));
        let job = site.start_move(&["--disk", &requested[0], "--disk", &requested[1]]).expect("accepted");
        Self { job, old, new: ["disk", "disk-vdb"].map(|name| format!("{LOCAL}/{name}.{format}")) }
    }

    /// Waits until one disk is pivoted and the other is not, and nothing is removed that may still be needed.
    fn wait_between(&self, site: &Site) {
        let switched = wait_for("the first is switched over", SOON, || {
            site.disk("vda").is_ok_and(|path| path == self.new[0]).then_some(())
        });
        switched.expect("it is");
    }

    fn assert_between(&self, site: &Site) {
        assert_eq!(site.disk("vda").expect("a disk"), self.new[0]);
        assert_eq!(site.disk("vdb").expect("a disk"), self.old[1]);
        for file in &self.old {
            assert!(site.real(file).exists(), "{file} is removed before every disk is moved");
        }
    }

    fn assert_moved(&self, site: &Site, ended: &JobView) {
        assert_eq!(ended.phase, Phase::Succeeded, "{ended:#?}");
        assert!(ended.disks.iter().all(|disk| disk.stage == DiskStage::Moved), "{ended:#?}");
        assert_eq!(["vda", "vdb"].map(|device| site.disk(device).expect("a disk")), self.new);
        for file in &self.old {
            assert!(!site.real(file).exists(), "{file} is left");
        }
        site.verify().expect("verified");
    }
}

#[test]
fn between_two_disks_agent_and_server_die_and_the_rest_is_moved_after() {
    let disks = vec![Disk::new(Place::Local, Raw); 2];
    let mut site = Site::up(disks, ALL_OVER_KIB, "agent-storage-pivoted=pause").expect("a guest");

    // The agent dies: the other disk is not pivoted, and the VM runs with one old and one new file.
    let pair = Pair::start(&site);
    pair.wait_between(&site);
    site.kill_agent().expect("killed");
    let waits = site.wait_job(pair.job.id, "the job waits", |job| job.summary.contains("Waits for: "));
    assert_eq!(waits.expect("it says so").phase, Phase::Migrating);
    pair.assert_between(&site);
    site.verify().expect("it runs on both");
    pair.assert_between(&site);
    // Delayed after its first pivot, so that the server can be killed meanwhile.
    site.start_agent("agent-storage-pivoted=1*off->1*sleep(6000)").expect("started again");
    pair.assert_moved(&site, &site.wait_ended(pair.job.id).expect("it ends"));

    // The server dies: the agent continues, and the restarted server learns of it.
    let pair = Pair::start(&site);
    pair.wait_between(&site);
    site.ferry.server.kill();
    pair.assert_between(&site);
    site.restart_server("").expect("started again");
    pair.assert_moved(&site, &site.wait_ended(pair.job.id).expect("it ends"));
}

#[test]
fn a_move_that_fails_between_two_disks_says_which_moved_and_is_finished_by_a_restart() {
    let disks = vec![Disk::new(Place::Local, Raw); 2];
    let site = Site::up(disks, ALL_OVER_KIB, "agent-storage-pivot=1*off->1*return").expect("a guest");
    site.ferry.warnings.expect("The storage move failed");
    let pair = Pair::start(&site);
    let ended = site.wait_ended(pair.job.id).expect("it ends");
    assert_eq!(ended.phase, Phase::Failed, "{ended:#?}");
    assert!(ended.summary.contains("on kvm1 has some disks moved and others not"), "{}", ended.summary);
    assert!(ended.summary.contains("vda moved, vdb not"), "{}", ended.summary);
    let stages: Vec<DiskStage> = ended.disks.iter().map(|disk| disk.stage).collect();
    assert!(stages[0] == DiskStage::Moved && stages[1] != DiskStage::Moved, "{stages:?}");
    pair.assert_between(&site);
    assert!(!site.real(&pair.new[1]).exists(), "a copy that no disk uses is left");
    site.verify().expect("it runs on both");

    let line = ["job", "restart", &pair.job.id.to_string(), "--wait"];
    let again: JobView = site.ferry.json(&line).expect("it ends");
    pair.assert_moved(&site, &again);
}
