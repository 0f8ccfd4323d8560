//! VMs that are shut off move between real hosts, with their files.

use std::{fs, path::Path, time::Duration};

use ferry_core::{
    api::server::{Candidate, JobView, VmView},
    finding::FindingId,
    job::JobKind,
    migration::Phase,
    vm::{DiskFormat, VmState},
};
use ferry_lab::{
    clones::{self, Alias},
    demo::start_ticker,
    ferry::{Agent, Ferry},
    guest::Ticker,
    images::{self, Disk, Place},
    local::FOLDER as LOCAL,
    observe::Observer,
    run::wait_for,
    warnings::{AGENT_DIES, MOVE_FAILS},
};

const BOOT: Duration = Duration::from_secs(90);
const SECONDS_30: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(120);
const DATA_MIB: u32 = 96;

#[test]
fn a_vm_that_is_shut_off_moves_with_its_files_and_an_interrupted_move_goes_on_where_it_was() {
    let mut ferry = Ferry::up_bare(2, &[]).expect("hosts");
    ferry.warnings.expect_all(AGENT_DIES);
    ferry.warnings.expect_all(MOVE_FAILS);
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let observer = Observer::start(&ferry.lab).expect("observers");
    let with_data = Disk { size_mib: 256, data_mib: DATA_MIB, ..Disk::new(Place::Local, DiskFormat::Raw) };
    let disks = vec![with_data, Disk::new(Place::Local, DiskFormat::Qcow2), Disk::new(Place::Share, DiskFormat::Raw)];
    let ticker = Ticker { memory_mib: 128, pattern_mib: 12, disks, ..Ticker::new("ticker", 101) };
    start_ticker(&ferry, &ticker, 0).expect("a guest");
    observer.wait_on("ticker", "kvm1", BOOT).expect("it boots");
    let line = ["vm", "migrate", "ticker", "--to", "kvm2", "--storage", LOCAL, "--offline"];

    // Never while it runs.
    let tried: Vec<Candidate> = ferry.json(&[&line[..], &["--dry-run"]].concat()).expect("tried");
    assert_eq!(tried[0].kind, None, "{tried:#?}");
    assert_eq!(tried[0].findings[0].id, FindingId::VmRunning, "{tried:#?}");
    ferry.lab.host("kvm1").virsh(&["destroy", "ticker"]).expect("ended");
    let off = wait_for("it is known to be shut off", SECONDS_30, || {
        let tried: Vec<Candidate> = ferry.json(&[&line[..], &["--dry-run"]].concat()).ok()?;
        tried[0].kind.is_some().then_some(())
    });
    off.expect("it is");
    let files = |host: &str| ferry.lab.host(host).run(&["find", LOCAL, "-type", "f"]).expect("listed");
    let sums = |host: &str| {
        let text =
            ferry.lab.host(host).run(&["sh", "-c", &format!("cd {LOCAL}; find . -type f -exec sha256sum {{}} +")]);
        let mut sums: Vec<String> =
            text.expect("read").lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect();
        sums.sort_unstable();
        sums
    };
    let before = sums("kvm1");
    assert_eq!(before.len(), 2, "{}", files("kvm1"));
    let real = |ferry: &Ferry, host: &str, ending: &str| {
        let list = ferry.lab.host(host).run(&["find", LOCAL, "-name", &format!("*{ending}")]).expect("listed");
        ferry.lab.host(host).file(list.lines().next().expect("a file").trim())
    };
    let held = images::nonzero(&real(&ferry, "kvm1", ".raw"), DiskFormat::Raw).expect("read");

    // The destination's agent dies during the move. The VM cannot be started meanwhile.
    ferry.lab.hosts[0].set_link_rate(Some("100mbit")).expect("shaped");
    let job: JobView = ferry.json(&line).expect("accepted");
    assert_eq!(job.kind, JobKind::Offline);
    let show = |ferry: &Ferry| -> JobView { ferry.json(&["job", "show", &job.id.to_string()]).expect("known") };
    let middle = wait_for("most of the disk is copied", END, || {
        let view = show(&ferry);
        assert!(!view.phase.ended(), "{view:#?}");
        (view.disks.first()?.copied.0 > u64::from(DATA_MIB / 2) << 20).then_some(())
    });
    middle.expect("it is");
    let veto = ferry.lab.host("kvm1").try_run(&["virsh", "-c", "qemu:///system", "start", "ticker"]).expect("run");
    assert!(!veto.ok() && veto.err.contains("hook"), "{}{}", veto.out, veto.err);
    let host = ferry.lab.host("kvm2");
    for pid in host.pids("ferry-agent run") {
        let _ = host.try_run(&["kill", "-9", &pid.to_string()]).expect("run");
    }
    ferry.agents[1].program.kill();
    ferry.agents[1].program = Agent::run(&ferry.lab, ferry.lab.host("kvm2"), &[]).expect("started again");
    let ended = wait_for("the job ends", END, || Some(show(&ferry)).filter(|job| job.phase.ended())).expect("it ends");
    assert_eq!(ended.phase, Phase::Failed, "{ended:#?}");
    assert!(ended.summary.contains("stays on kvm1, shut off"), "{}", ended.summary);
    assert_eq!(sums("kvm1"), before, "nothing was changed");
    let left = ferry.lab.host("kvm2").run(&["find", LOCAL, "-type", "f", "-not", "-name", "*.ferry-seed"]);
    assert_eq!(left.expect("listed").trim(), "", "only what is kept for the next attempt");

    let _: JobView = ferry.json(&["job", "restart", &job.id.to_string()]).expect("restarted");
    let ended = wait_for("the job ends", END, || Some(show(&ferry)).filter(|job| job.phase.ended())).expect("it ends");
    assert_eq!(ended.phase, Phase::Succeeded, "{ended:#?}");
    let sent = ended.figures.expect("known").disk_wire.0;
    eprintln!("{DATA_MIB} MiB of data; the second attempt sent {sent} bytes");
    assert!(sent <= u64::from(DATA_MIB / 2 + 8) << 20, "{sent} bytes were sent again");
    assert_eq!(sums("kvm2"), before, "the same bytes");
    assert_eq!(files("kvm1").trim(), "", "old files are gone");
    let takes = images::allocated(&real(&ferry, "kvm2", ".raw")).expect("there");
    eprintln!("raw takes {takes} bytes for {held}");
    assert!(takes as f64 <= 1.02 * held as f64 + f64::from(1 << 20), "{takes} bytes for {held}");
    let defined = |host: &str| ferry.lab.host(host).virsh(&["list", "--all", "--name"]).expect("listed");
    assert_eq!((defined("kvm1").trim(), defined("kvm2").trim()), ("", "ticker"));

    let started = ferry.ferry(&["vm", "start", "ticker"]).expect("run");
    assert!(started.ok(), "{}{}", started.out, started.err);
    observer.wait_on("ticker", "kvm2", BOOT).expect("it boots there");
}

/// A guest without a kernel: its boot sector executes `code` and halts.
fn boot_sector(name: &str, code: &[u8], folder: &Path) -> String {
    let disk = folder.join("disk.raw").display().to_string();
    let code: Vec<u8> = code.iter().copied().chain([0xf4, 0xeb, 0xfd]).collect();
    let mut sector = vec![0; 1 << 20];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::create_dir_all(folder).expect("made");
    fs::write(&disk, sector).expect("written");
    let uuid = uuid::Uuid::new_v4();
    format!(
        "<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
  <on_crash>preserve</on_crash><pm><suspend-to-mem enabled='yes'/></pm>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' error_policy='stop'/>
      <source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
    <panic model='isa'/><memballoon model='none'/>
  </devices>
</domain>"
    )
}

#[test]
fn a_guest_that_crashed_or_sleeps_has_a_process_and_is_neither_started_nor_moved() {
    let ferry = Ferry::up(2).expect("Ferry on two hosts");
    let home = &ferry.lab.hosts[0];
    let mount = ferry.mount_of(home).expect("mounted");
    // mov dx, 0x505; mov al, 1; out dx, al: reports a crash to its panic device.
    let crashes: &[u8] = &[0xba, 0x05, 0x05, 0xb0, 0x01, 0xee];
    // mov dx, 0x604; mov ax, 0x2400; out dx, ax: suspends itself to memory through the q35's ACPI control register.
    let sleeps: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x24, 0xef];
    for (name, code, state, word, id) in [
        ("crash01", crashes, VmState::Crashed, "crashed", FindingId::VmCrashed),
        ("sleep01", sleeps, VmState::Suspended, "suspended", FindingId::VmSuspended),
    ] {
        let xml = boot_sector(name, code, &ferry.files.share.join(name));
        let xml = xml.replace(&ferry.files.share.display().to_string(), &mount.display().to_string());
        fs::write(home.path(&format!("/run/{name}.xml")), xml).expect("written");
        home.virsh(&["define", &format!("/run/{name}.xml")]).expect("defined");
        home.virsh(&["start", name]).expect("started");
        let shown = |requested: VmState| {
            let seen = wait_for(&format!("{name} is {requested:?}"), SECONDS_30, || {
                let seen: VmView = ferry.json(&["vm", "show", name]).ok()?;
                (seen.facts.state == requested).then_some(())
            });
            seen.unwrap_or_else(|error| panic!("{error:#}: {:?}", home.virsh(&["domstate", name, "--reason"])));
        };
        shown(state);
        let list = ferry.must(&["vm", "list"]).expect("listed");
        assert!(list.lines().any(|line| line.contains(name) && line.contains(word)), "{list}");

        let before = home.virsh(&["domstate", name]).expect("told");
        for (how, expected) in [(&[][..], id), (&["--offline"][..], FindingId::VmRunning)] {
            let line = [&["vm", "migrate", name, "--to", "kvm2", "--dry-run"][..], how].concat();
            let tried: Vec<Candidate> = ferry.json(&line).expect("tried");
            assert!(
                tried[0].kind.is_none() && tried[0].findings.iter().any(|found| found.id == expected),
                "{tried:#?}"
            );
            let moved = ferry.ferry(&[&["vm", "migrate", name, "--to", "kvm2"][..], how].concat()).expect("run");
            assert!(!moved.ok() && moved.err.contains(expected.as_str()), "{}{}", moved.out, moved.err);
        }
        let started = ferry.ferry(&["vm", "start", name]).expect("run");
        assert!(!started.ok() && started.err.contains(id.as_str()), "{}{}", started.out, started.err);
        assert_eq!(home.virsh(&["domstate", name]).expect("told"), before, "it was left as it is");
        assert!(!ferry.lab.hosts[1].virsh(&["list", "--all", "--name"]).expect("listed").contains(name));

        // As its fix states.
        if state == VmState::Crashed {
            home.virsh(&["destroy", name]).expect("ended");
            shown(VmState::ShutOff);
            let moved: JobView =
                ferry.json(&["vm", "migrate", name, "--to", "kvm2", "--offline", "--wait"]).expect("moved");
            assert_eq!(moved.phase, Phase::Succeeded, "{moved:#?}");
        } else {
            home.virsh(&["dompmwakeup", name]).expect("woken");
            shown(VmState::Running);
        }
    }
}

#[test]
fn a_template_that_a_clone_names_through_a_link_or_a_bind_mount_stays_and_the_clone_starts() {
    let mut ferry = Ferry::up_bare(2, &[]).expect("hosts");
    ferry.enrol().expect("enrolled");
    ferry.add_share("vms").expect("a share");
    let with_data = Disk { size_mib: 256, data_mib: DATA_MIB, ..Disk::new(Place::Local, DiskFormat::Raw) };
    let golden = Ticker { memory_mib: 128, pattern_mib: 12, disks: vec![with_data], ..Ticker::new("golden", 101) };
    start_ticker(&ferry, &golden, 0).expect("a guest");
    let kvm1 = ferry.lab.host("kvm1");
    kvm1.virsh(&["destroy", "golden"]).expect("ended");
    let base = kvm1.run(&["find", &format!("{LOCAL}/golden"), "-name", "*.raw"]).expect("listed").trim().to_owned();
    let (folder, name) = base.rsplit_once('/').expect("a path");
    Alias::Link.make(kvm1, folder, "/var/lib/libvirt/linked").expect("a link");
    Alias::Bind.make(kvm1, folder, "/var/lib/libvirt/bound").expect("bound");
    let aliases = ["linked", "bound"].map(|alias| format!("/var/lib/libvirt/{alias}/{name}"));
    let line = ["vm", "migrate", "golden", "--to", "kvm2", "--storage", LOCAL, "--offline"];
    let tried = || -> Vec<Candidate> { ferry.json(&[&line[..], &["--dry-run"]].concat()).expect("tried") };

    // Before a move, each of these aliases causes a refusal.
    let free = wait_for("it may move", SECONDS_30, || tried()[0].kind.is_some().then_some(()));
    free.expect("nothing stands against it");
    for alias in &aliases {
        clones::define(kvm1, "clone", alias, DiskFormat::Raw).expect("a clone");
        let refused = wait_for("the clone is in the way", SECONDS_30, || {
            let findings = tried().remove(0).findings;
            findings.iter().any(|finding| finding.id == FindingId::DiskTwice).then_some(())
        });
        refused.expect(alias);
        kvm1.virsh(&["undefine", "clone"]).expect("undefined");
        let free = wait_for("it may move again", SECONDS_30, || tried()[0].kind.is_some().then_some(()));
        free.expect("nothing stands against it any more");
    }

    // Clones that are defined during the move do not lose their base.
    ferry.lab.hosts[0].set_link_rate(Some("100mbit")).expect("shaped");
    let job: JobView = ferry.json(&line).expect("accepted");
    let show = |ferry: &Ferry| -> JobView { ferry.json(&["job", "show", &job.id.to_string()]).expect("known") };
    let begun =
        wait_for("the disk is copied", END, || show(&ferry).disks.first().filter(|disk| disk.copied.0 > 0).map(drop));
    begun.expect("it is");
    for (number, alias) in aliases.iter().enumerate() {
        clones::define(kvm1, &format!("clone{number}"), alias, DiskFormat::Raw).expect("a clone");
    }
    let ended = wait_for("the job ends", END, || Some(show(&ferry)).filter(|job| job.phase.ended())).expect("it ends");
    assert_eq!(ended.phase, Phase::Succeeded, "{ended:#?}");
    assert!(
        ended.log.iter().any(|line| line.message.contains("old file") && line.message.contains("stay")),
        "{ended:#?}"
    );
    kvm1.run(&["test", "-f", &base]).expect("the base is there");
    for number in 0..aliases.len() {
        kvm1.virsh(&["start", &format!("clone{number}")]).expect("the clone starts");
    }
}
