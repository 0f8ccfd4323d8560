//! A whole Debian system, booted from the moving disk.

use std::{fs, time::Duration};

use ferry_core::{api::server::JobView, carried::Bottleneck, files::DiskStage, migration::Phase};
use ferry_lab::{
    demo::start_ticker,
    ferry::Ferry,
    guest::Ticker,
    images::allocated,
    local::FOLDER as LOCAL,
    observe::{Observer, judge},
};

/// systemd starts about thirty services in software emulation.
const BOOT: Duration = Duration::from_secs(300);
const VERIFY: Duration = Duration::from_secs(120);

#[test]
fn a_debian_moves_to_another_host_compressed_and_its_disk_off_the_share_while_it_runs() {
    // Other labs run beside this one: their guests would be given the CPUs, and nothing would be compressed.
    let mut ferry = Ferry::up_bare(2, &[("FAILPOINTS", "no-cpu-facts=return")]).expect("Ferry on two hosts");
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let guest = Ticker::debian("debian", 103);
    start_ticker(&ferry, &guest, 0).expect("a guest");
    let file = ferry.files.share.join("debian/disk.raw");
    let before = allocated(&file).expect("there");
    eprintln!("its disk takes {} MiB of {} MiB", before >> 20, fs::metadata(&file).expect("there").len() >> 20);
    let serial = || {
        let log = ferry.lab.hosts[0].file("/var/log/libvirt/qemu/debian.serial");
        fs::read_to_string(log).unwrap_or_else(|error| error.to_string())
    };
    observer.wait_on("debian", "kvm1", BOOT).unwrap_or_else(|error| panic!("{error}: {}", serial()));
    observer.wait_verified("debian", 1, VERIFY).expect("it verifies what it writes");

    // On a slow link, where it pays, its memory is compressed, unless it is requested otherwise.
    let move_it = |to: &str, performance: &str| {
        for host in &ferry.lab.hosts {
            host.set_link_rate(Some("200mbit")).expect("limited");
        }
        let line = ["vm", "migrate", "debian", "--to", to, "--performance", performance, "--wait"];
        let job: JobView = ferry.json(&line).expect("it ends");
        assert_eq!(job.phase, Phase::Succeeded, "{job:#?}");
        for host in &ferry.lab.hosts {
            host.set_link_rate(None).expect("no limit");
        }
        observer.wait_on("debian", to, VERIFY).expect("it runs there alone");
        observer.wait_verified("debian", 1, VERIFY).expect("verified");
        let figures = job.figures.expect("known");
        let memory = figures.carried.expect("both ends told").memory;
        eprintln!("{performance}: {} on the wire, {} ms, {memory:?}", figures.wire, figures.total_ms);
        (figures.wire.0, memory)
    };
    let (plain, memory) = move_it("kvm2", "standard");
    assert_eq!(memory.compressed_from, 0, "{memory:?}");
    assert_eq!(memory.bottleneck().map(|(what, _)| what), Some(Bottleneck::Link), "{memory:?}");
    // While other labs leave no CPU to an encoder, it rightly sends the bytes as they are.
    let shrank = ["kvm1", "kvm2", "kvm1", "kvm2"].into_iter().find(|to| {
        let (wire, memory) = move_it(to, "compression");
        wire * 10 < plain * 8 && memory.compressed_from > memory.compressed_to
    });
    let here = shrank.expect("a slow link is worth compressing for");

    let job: JobView = ferry.json(&["vm", "move-storage", "debian", "--to", LOCAL, "--wait"]).expect("it ends");
    assert_eq!((job.phase, job.disks[0].stage), (Phase::Succeeded, DiskStage::Moved), "{job:#?}");
    let after = allocated(&ferry.lab.host(here).file(&format!("{LOCAL}/disk.raw"))).expect("there");
    eprintln!("it takes {} MiB on the host", after >> 20);
    assert!(after < 1 << 30, "4 GiB stay thin: {after}");
    assert!(!file.exists(), "the old file is removed");
    observer.wait_verified("debian", 1, VERIFY).expect("verified");
    judge(&observer.heard("debian")).expect("no promise is broken");
}
