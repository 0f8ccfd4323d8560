//! Bad input gets a clear error that names the object and the fix, and changes nothing. One row per case.

use ferry_client::ClientError;
use ferry_core::{
    api::server::{AddHost, AddShare, AttachShare, MigrateVm},
    finding::FindingId as Id,
    id::VmId,
    job::MoveKind,
    units::ByteCount,
    vm::{FileRole, VmFile, VmState},
};
use ferry_drivers::{
    hypervisor::fake::FakeGuest,
    share::fake::{FakeExport, FakeFileServers},
};
use ferry_testkit::logs::expects_warning;

use crate::support::{Host, Lab, in_lab, refusal, unc, wait_for};

/// Two hosts, a good VM `web01` on kvm1, and a bad one that a row may create.
struct Fabric<'a> {
    lab: &'a Lab,
    kvm1: Host,
    kvm2: Host,
    web01: VmId,
}

impl Fabric<'_> {
    /// A running VM `bad` on kvm1.
    async fn bad(&self, change: impl FnOnce(&mut FakeGuest)) {
        self.lab.run(&self.kvm1, "bad", change).await;
    }

    /// Waits until kvm2 has this finding about itself.
    async fn kvm2_says(&self, id: Id) {
        let has_finding = async || {
            let facts = self.lab.client.host("kvm2").await.expect("known").facts;
            facts.is_some_and(|facts| facts.findings.iter().any(|finding| finding.id == id))
        };
        wait_for(id.as_str(), has_finding).await;
    }
}

/// Spoils something, and returns the move to request then: VM, destination.
type Spoil = for<'a> fn(
    &'a mut Fabric<'_>,
) -> std::pin::Pin<Box<dyn std::future::Future<Output = (&'static str, &'static str)> + 'a>>;

macro_rules! spoil {
    ($fabric:ident => $body:block) => {
        |$fabric| Box::pin(async move { $body })
    };
}

const ROWS: &[(&str, Spoil, u16, Id)] = &[
    ("VM unknown", spoil!(_f => { ("nope", "kvm2") }), 404, Id::VmUnknown),
    (
        "VM ambiguous",
        spoil!(f => {
            f.lab.define(&f.kvm2, "web01", |_| {}).await;
            ("web01", "kvm2")
        }),
        409,
        Id::VmAmbiguous,
    ),
    (
        "VM stopped",
        spoil!(f => {
            f.lab.define(&f.kvm1, "bad", |_| {}).await;
            ("bad", "kvm2")
        }),
        409,
        Id::VmNotRunning,
    ),
    (
        "VM paused",
        spoil!(f => {
            let vm = f.lab.run(&f.kvm1, "bad", |_| {}).await;
            f.kvm1.hypervisor.pause(vm);
            f.lab.wait_for_state("bad", VmState::Paused).await;
            ("bad", "kvm2")
        }),
        409,
        Id::VmPaused,
    ),
    (
        "guest crashed",
        spoil!(f => {
            let vm = f.lab.run(&f.kvm1, "bad", |_| {}).await;
            f.kvm1.hypervisor.panic(vm);
            f.lab.wait_for_state("bad", VmState::Crashed).await;
            ("bad", "kvm2")
        }),
        409,
        Id::VmCrashed,
    ),
    (
        "guest suspended to memory",
        spoil!(f => {
            let vm = f.lab.run(&f.kvm1, "bad", |_| {}).await;
            f.kvm1.hypervisor.suspend(vm);
            f.lab.wait_for_state("bad", VmState::Suspended).await;
            ("bad", "kvm2")
        }),
        409,
        Id::VmSuspended,
    ),
    ("VM already there", spoil!(_f => { ("web01", "kvm1") }), 409, Id::VmAlreadyThere),
    ("host unknown", spoil!(_f => { ("web01", "kvm9") }), 404, Id::HostUnknown),
    (
        "host unreachable",
        spoil!(f => {
            f.kvm2.stop().await;
            ("web01", "kvm2")
        }),
        502,
        Id::HostUnreachable,
    ),
    (
        "disk on the host",
        spoil!(f => {
            let disk = f.kvm1.on_host("data.raw");
            f.bad(|guest| guest.facts.files[0].place = disk).await;
            ("bad", "kvm2")
        }),
        409,
        Id::DiskNotShared,
    ),
    (
        "share attached on one host only",
        spoil!(f => {
            f.lab.client.detach_share("vms", "kvm2").await.expect("detached");
            ("web01", "kvm2")
        }),
        409,
        Id::ShareNotAttached,
    ),
    (
        "two different shares behind one name",
        spoil!(f => {
            // The share on kvm2 is replaced by another one after it was attached.
            let mount = f.kvm2.on_share("");
            let mount = mount.to_str().expect("text").trim_end_matches('/').to_owned();
            std::fs::remove_file(&mount).expect("unmounted");
            std::os::unix::fs::symlink(f.lab.folder("other"), mount).expect("mounted");
            ("web01", "kvm2")
        }),
        409,
        Id::ShareNotSame,
    ),
    (
        "destination without memory",
        spoil!(f => {
            f.bad(|guest| guest.facts.memory = ByteCount::gib(1 << 20)).await;
            ("bad", "kvm2")
        }),
        409,
        Id::HostMemory,
    ),
    (
        "local ISO",
        spoil!(f => {
            let place = f.kvm1.on_host("debian.iso");
            f.bad(|guest| {
                let disk = guest.facts.files[0].clone();
                guest.facts.files.push(VmFile { role: FileRole::Media, device: "sda".into(), place, ..disk });
            })
            .await;
            ("bad", "kvm2")
        }),
        409,
        Id::VmLocalMedia,
    ),
    (
        "snapshot",
        spoil!(f => {
            f.bad(|guest| guest.facts.snapshots = 1).await;
            ("bad", "kvm2")
        }),
        409,
        Id::VmSnapshot,
    ),
    (
        "device of the host",
        spoil!(f => {
            f.bad(|guest| guest.facts.host_devices.push("pci 0000:01:00.0".into())).await;
            ("bad", "kvm2")
        }),
        409,
        Id::VmHostDevice,
    ),
    (
        "TPM",
        spoil!(f => {
            f.bad(|guest| guest.facts.tpm = true).await;
            ("bad", "kvm2")
        }),
        409,
        Id::VmHostDevice,
    ),
    (
        "name taken at the destination",
        spoil!(f => {
            f.lab.define(&f.kvm2, "web01", |_| {}).await;
            ("kvm1/web01", "kvm2")
        }),
        409,
        Id::VmNameTaken,
    ),
    (
        "UUID taken at the destination",
        spoil!(f => {
            let id = f.web01;
            f.lab.define(&f.kvm2, "old", |guest| guest.facts.id = id).await;
            ("web01", "kvm2")
        }),
        409,
        Id::VmUuidTaken,
    ),
    (
        "libvirt without shared_filesystems",
        spoil!(f => {
            std::fs::write(&f.kvm2.config.qemu_conf, "").expect("written");
            f.kvm2_says(Id::HostSharedFilesystems).await;
            ("web01", "kvm2")
        }),
        409,
        Id::HostSharedFilesystems,
    ),
    (
        "hook missing",
        spoil!(f => {
            std::fs::remove_dir_all(&f.kvm2.config.hooks_dir).expect("removed");
            f.kvm2_says(Id::HostHook).await;
            ("web01", "kvm2")
        }),
        409,
        Id::HostHook,
    ),
    (
        "AppArmor without the rule",
        spoil!(f => {
            f.kvm2.hypervisor.set_host(|host| host.confined_by = vec!["apparmor".to_owned()]);
            f.kvm2_says(Id::HostConfinement).await;
            ("web01", "kvm2")
        }),
        409,
        Id::HostConfinement,
    ),
];

#[test]
fn a_move_that_cannot_work_is_refused_and_nothing_is_changed() {
    expects_warning("The host's agent does not answer");
    for (row, spoil, status, id) in ROWS {
        in_lab(async |lab| {
            let (kvm1, kvm2, web01) = lab.two_hosts().await;
            let mut fabric = Fabric { lab, kvm1, kvm2, web01 };
            let (vm, destination) = spoil(&mut fabric).await;
            let before: Vec<_> = fabric.states().await;
            assert_eq!(refusal(lab.migrate(vm, destination).await), (*status, vec![*id]), "{row}");
            assert_eq!(lab.client.jobs(None, None).await.expect("answered"), [], "{row}");
            assert_eq!(fabric.states().await, before, "{row}");
            assert_eq!(fabric.kvm1.orphans(), Vec::<String>::new(), "{row}");
            assert_eq!(fabric.kvm2.orphans(), Vec::<String>::new(), "{row}");
            assert_eq!(lab.running_on(web01).len(), 1, "{row}");
        });
    }
}

impl Fabric<'_> {
    async fn states(&self) -> Vec<(String, String, VmState)> {
        let vms = self.lab.client.vms().await.expect("answered");
        vms.into_iter().map(|vm| (vm.host, vm.facts.name, vm.facts.state)).collect()
    }
}

#[test]
fn a_disk_that_shows_errors_to_the_guest_is_warned_of_and_moved() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _) = lab.two_hosts().await;
        lab.run(&kvm1, "risky", |guest| guest.facts.files[0].stops_on_error = false).await;
        let body = MigrateVm { destination: "kvm2".into(), ..MigrateVm::default() };
        let candidate = lab.client.try_migrate("risky", &body).await.expect("judged");
        assert_eq!(candidate.kind, Some(MoveKind::Live));
        assert_eq!(candidate.findings[0].id, Id::DiskUnsafe);
        let job = lab.migrate("risky", "kvm2").await.expect("accepted");
        let job = lab.ends(&job, ferry_core::migration::Phase::Succeeded).await;
        assert_eq!(job.findings[0].id, Id::DiskUnsafe);
    });
}

#[test]
fn numbers_out_of_range_are_refused() {
    in_lab(async |lab| {
        let (_kvm1, _kvm2, _) = lab.two_hosts().await;
        let good = MigrateVm { destination: "kvm2".into(), ..MigrateVm::default() };
        for bad in [
            MigrateVm { downtime_limit_ms: Some(5), ..good.clone() },
            MigrateVm { bandwidth_bytes_per_s: Some(0), ..good.clone() },
            MigrateVm { timeout_ms: Some(1), ..good.clone() },
        ] {
            assert_eq!(refusal(lab.client.migrate("web01", &bad).await), (400, vec![Id::RequestInvalid]), "{bad:?}");
        }
        assert_eq!(lab.client.jobs(None, None).await.expect("answered"), []);
    });
}

#[test]
fn a_host_is_added_once() {
    in_lab(async |lab| {
        let kvm1 = lab.host("kvm1").await;
        lab.add(&kvm1).await.expect("added");
        let twice = (409, vec![Id::HostTwice]);
        assert_eq!(refusal(lab.add(&kvm1).await), twice, "the name");
        let renamed = AddHost { name: "kvm9".into(), address: kvm1.address(), token: kvm1.token() };
        assert_eq!(refusal(lab.client.add_host(&renamed).await), twice, "the agent");
        let clone = lab.host("clone").await;
        std::fs::copy(&kvm1.config.machine_id, &clone.config.machine_id).expect("cloned");
        assert_eq!(refusal(lab.add(&clone).await), twice, "the machine id");
        let sister = lab.host("sister").await;
        use ferry_drivers::hypervisor::HostInfo as _;
        let uuid = kvm1.hypervisor.host().expect("answered").uuid;
        sister.hypervisor.set_host(|host| host.uuid = uuid);
        assert_eq!(refusal(lab.add(&sister).await), twice, "libvirt's host UUID");
        assert_eq!(lab.client.hosts().await.expect("answered").len(), 1);
    });
}

#[test]
fn a_host_that_is_not_there_is_not_added() {
    in_lab(async |lab| {
        let mut kvm1 = lab.host("kvm1").await;
        let token = kvm1.token();
        let add =
            |name: &str, address: &str| AddHost { name: name.into(), address: address.into(), token: token.clone() };
        let address = kvm1.address();
        let rows = [
            ("-x", address.as_str(), 400, Id::RequestInvalid),
            ("a b", &address, 400, Id::RequestInvalid),
            ("", &address, 400, Id::RequestInvalid),
            ("kvm1", "no address", 400, Id::RequestInvalid),
        ];
        for (name, address, status, id) in rows {
            assert_eq!(refusal(lab.client.add_host(&add(name, address)).await), (status, vec![id]), "{name} {address}");
        }
        kvm1.stop().await;
        let away = lab.client.add_host(&add("kvm1", &address)).await;
        assert_eq!(refusal(away), (502, vec![Id::HostUnreachable]));
        assert_eq!(lab.client.hosts().await.expect("answered"), []);
    });
}

#[test]
fn a_share_needs_a_good_path_and_is_added_once() {
    in_lab(async |lab| {
        let add = async |name: &str, unc: &str| {
            lab.client.add_share(&AddShare { name: name.into(), source: unc.into() }).await
        };
        assert_eq!(refusal(add("vms", "\\\\fs1\\vms").await), (400, vec![Id::ShareNotQualified]));
        assert_eq!(refusal(add("vms", "fs1.ferry.lab:vms").await), (400, vec![Id::ShareForm]));
        assert_eq!(refusal(add("v/s", "\\\\fs1.ferry.lab\\vms").await), (400, vec![Id::RequestInvalid]));
        assert_eq!(lab.client.shares().await.expect("answered"), []);
        add("vms", "\\\\fs1.ferry.lab\\vms").await.expect("added");
        assert_eq!(refusal(add("vms", "\\\\fs2.ferry.lab\\vms").await), (409, vec![Id::ShareTwice]));
        assert_eq!(refusal(add("other", "\\\\FS1.ferry.lab\\VMS").await), (409, vec![Id::ShareTwice]));
        assert_eq!(lab.client.shares().await.expect("answered").len(), 1);
    });
}

#[test]
fn a_share_that_cannot_be_used_is_not_attached() {
    expects_warning(r#"A request failed title="The file server of"#);
    in_lab(async |lab| {
        let kvm1 = lab.host("kvm1").await;
        lab.add(&kvm1).await.expect("added");
        lab.client.add_share(&AddShare { name: "vms".into(), source: unc().to_string() }).await.expect("added");
        let attach = async |share: &str, host: &str, password: &str| {
            let mut credentials = FakeExport::new("/").credentials();
            credentials.password = password.into();
            lab.client.attach_share(share, host, &AttachShare { credentials: Some(credentials), at: None }).await
        };
        assert_eq!(refusal(attach("vms", "kvm1", "wrong").await), (422, vec![Id::SharePassword]));
        assert_eq!(refusal(attach("nope", "kvm1", "secret").await), (404, vec![Id::ShareUnknown]));
        assert_eq!(refusal(attach("vms", "nope", "secret").await), (404, vec![Id::HostUnknown]));
        lab.file_servers.change(&unc(), |export| export.dialect = None);
        assert_eq!(refusal(attach("vms", "kvm1", "secret").await), (422, vec![Id::ShareDialect]));
        lab.file_servers.change(&unc(), |export| export.is_up = false);
        assert_eq!(refusal(attach("vms", "kvm1", "secret").await), (502, vec![Id::ShareUnreachable]));
        let local = AttachShare { credentials: None, at: Some(lab.folder("local").display().to_string()) };
        let adopted = lab.client.attach_share("vms", "kvm1", &local).await;
        assert_eq!(refusal(adopted), (422, vec![Id::ShareMount]));
        assert_eq!(lab.client.share("vms").await.expect("known").hosts, []);
    });
}

#[test]
fn another_share_of_the_same_name_is_not_attached() {
    expects_warning("The host's agent does not answer");
    in_lab(async |lab| {
        let (kvm1, mut kvm2) = (lab.host("kvm1").await, lab.host("kvm2").await);
        lab.add(&kvm1).await.expect("added");
        lab.add(&kvm2).await.expect("added");
        lab.client.add_share(&AddShare { name: "vms".into(), source: unc().to_string() }).await.expect("added");
        lab.attach(&kvm1).await.expect("attached");
        let elsewhere = FakeFileServers::new();
        elsewhere.export(&unc(), FakeExport::new(lab.folder("other")));
        kvm2.stop().await;
        kvm2.reach(elsewhere);
        kvm2.start().await;
        wait_for("kvm2 is back", async || lab.client.host("kvm2").await.expect("known").reachable).await;
        assert_eq!(refusal(lab.attach(&kvm2).await), (409, vec![Id::ShareNotSame]));
        let hosts = lab.client.share("vms").await.expect("known").hosts;
        let names: Vec<_> = hosts.iter().map(|on| on.host.as_str()).collect();
        assert_eq!(names, ["kvm1"], "the attach was taken back");
    });
}

#[test]
fn a_share_in_use_stays() {
    in_lab(async |lab| {
        let (_kvm1, _kvm2, _) = lab.two_hosts().await;
        assert_eq!(refusal(lab.client.detach_share("vms", "kvm1").await), (409, vec![Id::ShareInUse]));
        assert_eq!(refusal(lab.client.remove_share("vms").await), (409, vec![Id::ShareInUse]));
        lab.client.detach_share("vms", "kvm2").await.expect("no VM there uses it");
        let hosts = lab.client.share("vms").await.expect("known").hosts;
        assert_eq!(hosts.len(), 1);
    });
}

#[test]
fn a_removed_host_is_unknown() {
    in_lab(async |lab| {
        let (_kvm1, _kvm2, _) = lab.two_hosts().await;
        lab.client.remove_host("kvm2").await.expect("removed");
        assert_eq!(refusal(lab.migrate("web01", "kvm2").await), (404, vec![Id::HostUnknown]));
        assert!(matches!(lab.client.vm("kvm2/web01").await, Err(ClientError::Refused(_))));
    });
}
