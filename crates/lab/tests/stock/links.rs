//! Long links: real delay and loss between the hosts, made by the kernel's netem.

use ferry_core::api::server::JobView;
use ferry_lab::stock::{
    image::Release::Trixie,
    site::{StockSite, small_ticker},
};

use crate::verified;

/// Gives both directions of the migration network what netem is told; a round trip has both.
fn set_links(site: &StockSite, netem: &str) {
    for machine in &site.machines {
        machine.run(&format!("tc qdisc replace dev mig0 root netem {netem} limit 20000")).expect("shaped");
    }
}

#[test]
fn vms_move_over_long_links_and_one_that_loses_packets() {
    let site = StockSite::up(&[Trixie, Trixie]).expect("two stock hosts");
    site.add_smb_share("vms").expect("mounted");
    site.start_tickers(&[(&small_ticker("ticker", 101), 0)]).expect("a guest");
    let there_and_back = ["stock2", "stock1"].iter().cycle();
    // Round trips of 1, 20 and 100 ms. Not with jitter: netem then changes the order of packets, as no link does, and with
    // 5 ms of it a move had not ended after 4 minutes.
    let links = ["delay 500us", "delay 10ms loss 0.1%", "delay 50ms"];
    for (netem, to) in links.into_iter().zip(there_and_back) {
        set_links(&site, netem);
        let job: JobView = site.migrate("ticker", to, &[]).unwrap_or_else(|error| panic!("{netem}: {error:#}"));
        let figures = job.figures.expect("measured");
        println!(
            "{netem}: {} ms, of these memory {} ms, downtime {} ms; {} KiB",
            figures.total_ms,
            figures.migrate_ms,
            figures.downtime_ms,
            figures.wire.0 >> 10
        );
        verified(&site, "ticker");
    }
    site.nothing_denied().expect("nothing");
}
