//! Long links: real delay and loss between the hosts, by the kernel's netem.

use ferry_core::api::server::JobView;
use ferry_lab::stock::site::StockSite;

use crate::verified;

/// Configures netem for both directions of the migration network; a round trip has the delay of both.
fn set_links(site: &StockSite, netem: &str) {
    for machine in &site.machines {
        machine.shape(&format!("netem {netem} limit 20000")).expect("shaped");
    }
}

/// Round trips of 1, 20 and 100 ms, one lost packet in a thousand, and jitter.
const LINKS: [&str; 4] = [
    "delay 500us",
    "delay 10ms loss 0.1%",
    "delay 50ms",
    // With a rate, netem keeps packets in order, as links do: without it, jitter mainly causes reordering.
    "delay 25ms 5ms rate 1gbit loss 0.1%",
];

/// Moves the guest of stock1 over each kind of link, and removes the links afterwards.
pub(crate) fn vms_move_over_long_links(site: &StockSite) {
    let there_and_back = ["stock2", "stock1"].iter().cycle();
    for (netem, to) in LINKS.into_iter().zip(there_and_back) {
        set_links(site, netem);
        let job: JobView = site.migrate("ticker", to, &[]).unwrap_or_else(|error| panic!("{netem}: {error:#}"));
        let figures = job.figures.expect("measured");
        println!(
            "{netem}: {} ms, of these memory {} ms, downtime {} ms; {} KiB",
            figures.total_ms,
            figures.migrate_ms,
            figures.downtime_ms,
            figures.wire.0 >> 10
        );
        verified(site, "ticker");
    }
    for machine in &site.machines {
        machine.unshape().expect("as it was");
    }
}
