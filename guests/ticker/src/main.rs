//! The init of the ticker guest: a VM that can report whether a move kept its promises.
//!
//! Its threads: [`memory`] keeps pages with a verifiable pattern and dirties them at a set rate. [`disk`] writes
//! sectors of each disk and keeps their expected sequence numbers in memory. [`heart`] broadcasts by UDP, every 10 ms,
//! its counter and the results of the others. Datagrams to its port are requests: `flip` changes one byte of its
//! memory, so that a test can check that this is detected; `crash` reports a crash to its panic device, once;
//! `restless` keeps it permanently busy ([`restless`]), and `hasten` makes it verify as fast as possible, until `rest`.
//! Each heartbeat contains the last of these three requests that was received, because a datagram may be lost.
//!
//! Options on the kernel's command line: `ticker.name=`, `ticker.ip=`, `ticker.memory_mib=`, `ticker.dirty_mib_per_s=`,
//! `ticker.writes_per_s=` (for each disk), `ticker.slower=` (factor by which it beats, dirties and verifies more
//! slowly: with a processor that is emulated twice it would otherwise never be idle), `ticker.stride_kib=` (distance
//! between sectors), `ticker.disks=` (paths separated by commas; all virtio disks if not given), `ticker.root=` (a disk
//! with a whole system, which is booted and must start `/run/ticker`).

mod disk;
mod found;
mod heart;
mod memory;
mod restless;
mod root;
mod settings;
mod sys;

use std::{fs, sync::Arc, thread};

use found::Found;
use settings::Settings;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(restless::TOSS) {
        // It ends when the other process has ended.
        let _ = restless::toss(std::io::stdin().lock(), std::io::stdout().lock());
        return;
    }
    if std::process::id() == 1 {
        boot();
    }
    let settings = Arc::new(Settings::from_command_line(&command_line()));
    println!(
        "ticker: name={} memory_mib={} dirty_mib_per_s={}",
        settings.name, settings.memory_mib, settings.dirty_mib_per_s
    );
    sys::configure_network("lo", std::net::Ipv4Addr::LOCALHOST);
    sys::configure_network("eth0", settings.ip);
    let found = Arc::new(Found::default());
    let for_memory = (Arc::clone(&settings), Arc::clone(&found));
    thread::spawn(move || memory::run(&for_memory.0, &for_memory.1));
    disk::start(&settings, &found);
    heart::run(&settings, &found)
}

fn command_line() -> String {
    fs::read_to_string("/proc/cmdline").unwrap_or_default()
}

/// The first actions of the first process. With `ticker.root=` it does not return: the system on that disk takes over,
/// and starts this program again.
fn boot() {
    sys::mount("proc", "/proc", "proc");
    sys::mount("sysfs", "/sys", "sysfs");
    sys::mount("devtmpfs", "/dev", "devtmpfs");
    let modules = fs::read_to_string("/modules/order").unwrap_or_default();
    for module in modules.lines() {
        sys::load_module(&format!("/modules/{module}"));
    }
    let line = command_line();
    let root = line.split_whitespace().find_map(|word| word.strip_prefix("ticker.root="));
    if let Some(root) = root {
        let error = root::enter(root);
        println!("ticker: the system on {root} cannot be entered: {error}");
    }
}
