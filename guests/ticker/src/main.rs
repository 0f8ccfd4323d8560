//! The init of the ticker guest: a VM that can tell whether a move kept its promises.
//!
//! Its threads: [`memory`] keeps pages with a checkable pattern and dirties them at a set rate, [`disk`] writes sectors
//! of each disk, whose expected sequence numbers it keeps in memory, and [`heart`] tells the world by UDP broadcast, every
//! 10 ms, how far it counted and what the others found. A datagram `flip` to its port changes one byte of its
//! memory, so that a test can see that it would be found; `crash` tells its panic device, once, that it crashed; `restless` gives
//! it no rest ([`restless`]), and `hasten` has it verify as fast as it can, until `rest`. Each heartbeat tells which of these
//! three it heard last: a datagram may be lost.
//!
//! Options on the kernel's command line: `ticker.name=`, `ticker.ip=`, `ticker.memory_mib=`, `ticker.dirty_mib_per_s=`,
//! `ticker.writes_per_s=` (of each disk), `ticker.slower=` (it beats, dirties and verifies so many times slower: where its
//! processor is emulated twice, it would have no rest otherwise), `ticker.stride_kib=` (from one sector to the next),
//! `ticker.disks=` (paths with commas between them; all virtio disks if not given), `ticker.root=` (a disk with a whole
//! system, which is booted and has to start `/run/ticker`).

mod disk;
mod found;
mod heart;
mod memory;
mod restless;
mod root;
mod sys;
mod wanted;

use std::{fs, sync::Arc, thread};

use found::Found;
use wanted::Wanted;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(restless::TOSS) {
        // It ends when there is nobody any more.
        let _ = restless::toss(std::io::stdin().lock(), std::io::stdout().lock());
        return;
    }
    if std::process::id() == 1 {
        boot();
    }
    let wanted = Arc::new(Wanted::from_command_line(&command_line()));
    println!(
        "ticker: name={} memory_mib={} dirty_mib_per_s={}",
        wanted.name, wanted.memory_mib, wanted.dirty_mib_per_s
    );
    sys::configure_network("lo", std::net::Ipv4Addr::LOCALHOST);
    sys::configure_network("eth0", wanted.ip);
    let found = Arc::new(Found::default());
    let for_memory = (Arc::clone(&wanted), Arc::clone(&found));
    thread::spawn(move || memory::run(&for_memory.0, &for_memory.1));
    disk::start(&wanted, &found);
    heart::run(&wanted, &found)
}

fn command_line() -> String {
    fs::read_to_string("/proc/cmdline").unwrap_or_default()
}

/// What the first process does before anything else. With `ticker.root=` it does not return: the system on that disk
/// takes over, and starts this program again.
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
