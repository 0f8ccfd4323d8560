//! Behaviour of the fake according to its fault plan. Sessions need no carriers here: their sockets are links to the
//! destination's.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ferry_core::{api::agent::Role, id::VmId, migration::Presence};
use ferry_drivers::hypervisor::{
    Domains as _, HypervisorError, MEMORY_SOCKET, MigrateRequest, Migration as _, Power as _, RPC_SOCKET, Sockets as _,
    fake::{FakeGuest, FakeHypervisor, Point, World},
};

const DEADLINE: Duration = Duration::from_secs(20);

struct Pair {
    base: tempfile::TempDir,
    world: World,
    source: FakeHypervisor,
    destination: FakeHypervisor,
    vm: VmId,
    request: MigrateRequest,
}

/// Two hosts, a session between them, and a VM that runs at the source.
fn pair() -> Pair {
    let base = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| -> PathBuf {
        let path = base.path().join(name);
        std::fs::create_dir(&path).expect("created");
        path
    };
    let world = World::new();
    let source = FakeHypervisor::new("kvm1", folder("a"), &world).expect("listening");
    let destination = FakeHypervisor::new("kvm2", folder("b"), &world).expect("listening");
    let (session, share) = (folder("s"), folder("share"));
    symlink(destination.rpc_socket(), session.join(RPC_SOCKET)).expect("linked");
    let memory = session.join(MEMORY_SOCKET);
    symlink(destination.reach(&memory), &memory).expect("linked");
    let vm = source.define(FakeGuest::new("web01", &[share.join("web01.raw")])).expect("defined");
    source.start(vm).expect("started");
    let request = MigrateRequest {
        vm,
        socket_dir: session,
        translate: vec![(share.clone(), share)],
        disks: Vec::new(),
        persistent: true,
        downtime_limit: Duration::from_millis(300),
        bandwidth_bytes_per_s: None,
        auto_converge: false,
        vouched: false,
    };
    Pair { base, world, source, destination, vm, request }
}

impl Pair {
    fn presences(&self) -> (Presence, Presence) {
        (
            self.source.presence(self.vm, Role::Source).expect("reachable"),
            self.destination.presence(self.vm, Role::Destination).expect("reachable"),
        )
    }

    fn fails_with(&self, words: &str) {
        let error = self.source.migrate(&self.request).expect_err("a failure");
        assert!(matches!(&error, HypervisorError::Failed { reason, .. } if reason.contains(words)), "{error}");
    }

    /// The destination notices asynchronously that a channel has ended.
    fn wait_for(&self, expected: (Presence, Presence)) {
        let end = Instant::now() + DEADLINE;
        while self.presences() != expected {
            assert!(Instant::now() < end, "{:?} is not {expected:?}", self.presences());
            thread::yield_now();
        }
        assert!(self.world.most_at_once(self.vm) <= 1);
    }
}

#[test]
fn a_libvirt_that_cannot_be_told_of_shares_moves_a_vm_when_somebody_vouches() {
    let mut pair = pair();
    pair.source.set_host(|host| host.libvirt_version = "9.0.0".to_owned());
    pair.fails_with("Unsafe migration");
    assert_eq!(pair.presences(), (Presence::Running, Presence::Absent));
    pair.request.vouched = true;
    pair.source.migrate(&pair.request).expect("moved");
    assert_eq!(pair.presences(), (Presence::Off, Presence::Arrived));
}

#[test]
fn memory_arrives_as_it_was_when_the_guest_stopped() {
    let pair = pair();
    let hold = pair.source.faults().hold(Point::Finish);
    thread::scope(|scope| {
        let migration = scope.spawn(|| pair.source.migrate(&pair.request));
        assert!(hold.wait_reached(DEADLINE));
        assert_eq!(pair.presences().0, Presence::HandedOver);
        let sent = pair.source.memory_checksum(pair.vm);
        hold.release();
        migration.join().expect("no thread panicked").expect("moved");
        assert!(sent.is_some());
        assert_eq!(pair.destination.memory_checksum(pair.vm), sent);
    });
    let stats = pair.destination.completed_stats(pair.vm).expect("reachable").expect("counted");
    assert!(stats.iteration > 2 && stats.memory_processed > stats.memory_total, "{stats:?}");
    pair.wait_for((Presence::Off, Presence::Arrived));
}

#[test]
fn whatever_fails_before_the_point_of_no_return_leaves_the_vm_at_the_source() {
    for (at_source, point) in [
        (true, Point::Migrate),
        (true, Point::Pass(1)),
        (true, Point::Pass(2)),
        (true, Point::Stopped),
        (true, Point::Finish),
        (false, Point::Prepare),
        (false, Point::TakeOver),
    ] {
        let pair = pair();
        let host = if at_source { &pair.source } else { &pair.destination };
        host.faults().fail(point, "it was planned");
        pair.fails_with("it was planned");
        pair.wait_for((Presence::Running, Presence::Absent));
        assert!(pair.destination.vm(pair.vm).expect("reachable").is_none(), "{point:?} left something behind");
        // Each entry of the plan strikes once.
        pair.source.migrate(&pair.request).expect("moved");
        pair.wait_for((Presence::Off, Presence::Arrived));
    }
}

#[test]
fn a_channel_that_breaks_before_finish_leaves_no_copy_behind() {
    for (at_source, point) in
        [(true, Point::Pass(2)), (true, Point::Stopped), (true, Point::Finish), (false, Point::TakeOver)]
    {
        let pair = pair();
        let host = if at_source { &pair.source } else { &pair.destination };
        host.faults().cut(point);
        pair.source.migrate(&pair.request).expect_err("a channel broke");
        pair.wait_for((Presence::Running, Presence::Absent));
    }
}

#[test]
fn a_lost_finish_reply_leaves_a_paused_copy_and_locks_keep_the_source_stopped() {
    for locks_hold in [false, true] {
        let pair = pair();
        pair.world.set_locks_hold(locks_hold);
        pair.destination.faults().cut(Point::FinishReply);
        pair.source.migrate(&pair.request).expect_err("the reply was lost");
        let source = if locks_hold { Presence::Stopped } else { Presence::Running };
        pair.wait_for((source, Presence::Arrived));
        assert_eq!(pair.source.resume(pair.vm).is_err(), locks_hold);
        pair.destination.destroy(pair.vm).expect("dropped");
        pair.source.resume(pair.vm).expect("resumed");
        pair.wait_for((Presence::Running, Presence::Off));
    }
}

#[test]
fn a_move_that_does_not_converge_goes_on_until_it_is_aborted() {
    let mut pair = pair();
    let disk = pair.base.path().join("share/busy.raw");
    pair.vm = pair.source.define(FakeGuest { dirty_ratio: 2.0, ..FakeGuest::new("busy", &[disk]) }).expect("defined");
    pair.request.vm = pair.vm;
    pair.source.start(pair.vm).expect("started");
    thread::scope(|scope| {
        let migration = scope.spawn(|| pair.source.migrate(&pair.request));
        let end = Instant::now() + DEADLINE;
        let passes = || pair.source.migration_stats(pair.vm).expect("reachable").map_or(0, |stats| stats.iteration);
        while passes() < 4 {
            assert!(Instant::now() < end);
            thread::yield_now();
        }
        pair.source.abort_migration(pair.vm).expect("aborted");
        let result = migration.join().expect("no thread panicked");
        assert!(matches!(result, Err(HypervisorError::Aborted { .. })), "{result:?}");
    });
    pair.wait_for((Presence::Running, Presence::Absent));
}

#[test]
fn a_disk_that_the_destination_does_not_see_is_named() {
    let mut pair = pair();
    let there = Path::new("/nowhere");
    pair.request.translate[0].1 = there.to_owned();
    pair.fails_with("/nowhere/web01.raw");
    pair.wait_for((Presence::Running, Presence::Absent));
}

#[test]
fn a_daemon_that_is_away_answers_nothing_and_moves_nothing() {
    let pair = pair();
    pair.destination.set_reachable(false);
    pair.source.migrate(&pair.request).expect_err("nobody answers");
    assert!(matches!(pair.destination.vms(), Err(HypervisorError::Unreachable(_))));
    pair.destination.set_reachable(true);
    pair.source.migrate(&pair.request).expect("moved");
    pair.wait_for((Presence::Off, Presence::Arrived));
}
