//! What prevents a move between two hosts, as tables.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::*;
use crate::{
    files::DiskMove,
    fixtures,
    host::HostFacts,
    id::{HostId, JobId, ShareId, VmId},
    network::{HostAddress, MigrationNetworks},
    share::{AttachMode, AttachedShare, FileSystem},
    units::ByteCount,
    vm::{DiskFormat, FileRole, Stall, VmFacts, VmState},
};

const VM: VmId = VmId(Uuid::from_u128(1));
const SHARE: ShareId = ShareId(Uuid::from_u128(2));
/// On the first host only.
const OTHER: ShareId = ShareId(Uuid::from_u128(7));
const KVM1: HostId = HostId(Uuid::from_u128(3));

/// A VM and two hosts without any problem; each test changes one fact.
struct Fixture {
    vm: VmFacts,
    busy: Option<JobId>,
    source: Host,
    destination: Host,
    share_identity: BTreeMap<ShareId, ShareIdentity>,
    migrated_disks: Vec<DiskMove>,
}

struct Host {
    name: &'static str,
    reachable: bool,
    maintenance: bool,
    networks: MigrationNetworks,
    facts: HostFacts,
    vms: Vec<VmFacts>,
    shares: Vec<AttachedShare>,
}

fn attached() -> AttachedShare {
    fixtures::attached(SHARE.0.as_u128())
}

fn host(name: &'static str) -> Host {
    Host {
        name,
        reachable: true,
        maintenance: false,
        networks: MigrationNetworks::default(),
        facts: fixtures::host(name),
        vms: Vec::new(),
        shares: vec![attached()],
    }
}

fn disk(place: Location) -> VmFile {
    fixtures::disk("vda", place)
}

fn no_file(kind: &str, place: Location) -> VmFile {
    VmFile { role: FileRole::NotAFile, kind: Some(kind.to_owned().into()), ..disk(place) }
}

fn on_share() -> Location {
    Location::Share { share: SHARE, path: "web01/disk.raw".into() }
}

fn local(path: &str) -> Location {
    Location::Local { host: KVM1, path: path.into() }
}

fn vm() -> VmFacts {
    fixtures::vm(VM.0.as_u128(), vec![disk(on_share())])
}

impl Fixture {
    fn new() -> Self {
        Self {
            vm: vm(),
            busy: None,
            source: Host { shares: vec![attached(), AttachedShare { id: OTHER, ..attached() }], ..host("kvm1") },
            destination: host("kvm2"),
            share_identity: BTreeMap::from([(SHARE, ShareIdentity::Proven)]),
            migrated_disks: Vec::new(),
        }
    }

    fn findings(&self) -> Vec<Finding> {
        self.judged(live)
    }

    fn judged(&self, how: fn(&LiveFacts<'_>) -> Vec<Finding>) -> Vec<Finding> {
        let shares = BTreeMap::from([(SHARE, NamedShare { name: "vms".into(), source: attached().source })]);
        how(&LiveFacts {
            vm: &self.vm,
            busy: self.busy,
            source: self.source.side(),
            destination: self.destination.side(),
            shares: &shares,
            share_identity: &self.share_identity,
            migrated_disks: &self.migrated_disks,
            promised: &[],
            overcommit: false,
        })
    }
}

impl Host {
    fn side(&self) -> Side<'_> {
        Side {
            name: self.name,
            reachable: self.reachable,
            maintenance: self.maintenance,
            networks: self.networks,
            facts: Some(&self.facts),
            vms: &self.vms,
            shares: &self.shares,
        }
    }
}

#[test]
fn nothing_stands_against_a_good_move() {
    assert_eq!(Fixture::new().findings(), []);
}

#[test]
fn a_host_is_a_candidate_unless_a_finding_blocks_it_which_is_the_reason_then() {
    let warning =
        Finding { severity: Severity::Warns, ..Finding::of_text(FindingId::DiskUnsafe, "vda", "It is odd", "Mend it") };
    let block = Finding::of_text(FindingId::HostMemory, "kvm2", "It is full", "Choose another");
    let good =
        Assessment::new(Some(MoveKind::Live), Message::Text { text: "It reaches all".into() }, vec![warning.clone()]);
    assert_eq!((good.kind, good.why.to_string().as_str()), (Some(MoveKind::Live), "It reaches all"));
    let bad = Assessment::new(good.kind, good.why, vec![warning.clone(), block.clone()]);
    assert_eq!((bad.kind, bad.why.to_string().as_str(), bad.findings), (None, "It is full", vec![block, warning]));
}

type Spoil = fn(&mut Fixture);

/// One row each: the problem, the id, and words that the finding must contain (the object and the fix).
const ROWS: &[(&str, Spoil, FindingId, &[&str])] = &[
    ("stopped", |f| f.vm.state = VmState::ShutOff, FindingId::VmNotRunning, &["web01", "ferry vm start web01"]),
    ("paused", |f| f.vm.state = VmState::Paused, FindingId::VmPaused, &["web01", "virsh resume web01"]),
    (
        "a disk that could not be read",
        |f| {
            f.vm.state = VmState::Paused;
            f.vm.stall = Some(Stall { devices: vec!["vda".into()], full: false });
        },
        FindingId::VmPaused,
        &["web01", "vda could not be read", "runs again by itself", "virsh resume web01"],
    ),
    (
        "a disk without room",
        |f| {
            f.vm.state = VmState::Paused;
            f.vm.stall = Some(Stall { devices: vec!["vda".into()], full: true });
        },
        FindingId::VmPaused,
        &["web01", "no room for its writes to vda", "Make room", "virsh resume web01"],
    ),
    (
        "crashed",
        |f| f.vm.state = VmState::Crashed,
        FindingId::VmCrashed,
        &["web01 crashed on kvm1", "virsh dump web01", "`virsh destroy web01` on kvm1"],
    ),
    (
        "suspended",
        |f| f.vm.state = VmState::Suspended,
        FindingId::VmSuspended,
        &["web01", "`virsh dompmwakeup web01` on kvm1"],
    ),
    ("incoming", |f| f.vm.state = VmState::Incoming, FindingId::VmBusy, &["web01", "ferry job list"]),
    ("already there", |f| f.destination.name = "kvm1", FindingId::VmAlreadyThere, &["web01", "kvm1"]),
    ("busy", |f| f.busy = Some(JobId(7)), FindingId::VmBusy, &["web01", "ferry job watch 7"]),
    (
        "destination in maintenance",
        |f| f.destination.maintenance = true,
        FindingId::HostMaintenance,
        &["kvm2", "ferry host resume kvm2"],
    ),
    ("destination away", |f| f.destination.reachable = false, FindingId::HostUnreachable, &["kvm2"]),
    ("source away", |f| f.source.reachable = false, FindingId::HostUnreachable, &["kvm1"]),
    (
        "local disk",
        |f| f.vm.files.push(disk(local("/srv/data.raw"))),
        FindingId::DiskNotShared,
        &["vda", "/srv/data.raw", "kvm1", "kvm2"],
    ),
    (
        "shared local disk",
        |f| f.vm.files = vec![VmFile { shareable: true, ..disk(local("/srv/quorum.raw")) }],
        FindingId::DiskNotShared,
        &["vda", "/srv/quorum.raw", "Shut down every VM that uses it"],
    ),
    (
        "block device",
        |f| f.vm.files = vec![VmFile { role: FileRole::NotAFile, ..disk(local("/dev/sdb")) }],
        FindingId::DiskNotShared,
        &["vda", "/dev/sdb"],
    ),
    (
        "network disk",
        |f| f.vm.files = vec![no_file("network rbd", local("pool/image"))],
        FindingId::DiskNotShared,
        &["vda", "pool/image", "network rbd"],
    ),
    (
        "volume without a place",
        |f| f.vm.files = vec![no_file("volume", local("default/web01.raw"))],
        FindingId::DiskNotShared,
        &["vda", "default/web01.raw", "virsh pool-start"],
    ),
    (
        "machine type of a later QEMU",
        |f| f.destination.facts.qemu_version = "7.2.22".into(),
        FindingId::VmMachine,
        &["web01", "kvm2", "pc-q35-10.0", "7.2.22", "QEMU 10.0 or later"],
    ),
    (
        "page cache with an old libvirt at the source",
        |f| {
            f.source.facts.libvirt_version = "9.0.0".into();
            f.vm.files[0].bypasses_cache = false;
        },
        FindingId::HostRelease,
        &["web01 vda", "kvm1", "9.0.0", "cache='none'", "10.9"],
    ),
    (
        "old libvirt at the destination, which gives files back",
        |f| {
            f.destination.facts.libvirt_version = "9.0.0".into();
            f.destination.shares[0].file_system = Some(FileSystem { kind: "ext4".into(), fixed_owner: false });
        },
        FindingId::HostRelease,
        &["web01 vda", "kvm2", "9.0.0", "ext4", "10.9"],
    ),
    (
        "folder below a mount",
        |f| f.vm.files = vec![no_file("dir", on_share())],
        FindingId::DiskNotShared,
        &["vda", "web01/disk.raw", "type dir"],
    ),
    (
        "filesystem",
        |f| f.vm.files = vec![VmFile { device: "share".into(), ..no_file("filesystem virtiofs", local("/home")) }],
        FindingId::DiskNotShared,
        &["share", "/home", "virsh detach-device web01"],
    ),
    (
        "memory in a file",
        |f| f.vm.files = vec![VmFile { device: "nvdimm".into(), ..no_file("nvdimm", local("/pmem")) }],
        FindingId::DiskNotShared,
        &["nvdimm", "/pmem", "Detach"],
    ),
    (
        "drive with a block device",
        |f| f.vm.files = vec![no_file("cdrom block", local("/dev/sr0"))],
        FindingId::VmLocalMedia,
        &["vda", "/dev/sr0", "virsh change-media web01 vda --eject"],
    ),
    (
        "overlay over a local file",
        |f| f.vm.files[0].below = vec![local("/base.raw")],
        FindingId::DiskNotShared,
        &["vda", "/base.raw", "kvm1", "--disk vda=PLACE"],
    ),
    (
        "overlay over a file on another share",
        |f| f.vm.files[0].below = vec![Location::Share { share: OTHER, path: "base.raw".into() }],
        FindingId::ShareNotAttached,
        &["vda", "base.raw", "ferry share attach", "kvm2"],
    ),
    ("checkpoint", |f| f.vm.checkpoints = 2, FindingId::VmCheckpoint, &["2 checkpoint", "--metadata"]),
    (
        "local NVRAM",
        |f| f.vm.files = vec![VmFile { role: FileRole::Nvram, ..disk(local("/var/lib/libvirt/nvram.fd")) }],
        FindingId::DiskNotShared,
        &["NVRAM", "/var/lib/libvirt/nvram.fd", "--storage PLACE", "ferry host browse kvm2"],
    ),
    (
        "local medium",
        |f| f.vm.files.push(VmFile { role: FileRole::Media, device: "sda".into(), ..disk(local("/iso/d.iso")) }),
        FindingId::VmLocalMedia,
        &["sda", "/iso/d.iso", "--eject"],
    ),
    (
        "share on the source only",
        |f| f.destination.shares.clear(),
        FindingId::ShareNotAttached,
        &["vms", "kvm2", "web01/disk.raw", "ferry share attach vms --host kvm2"],
    ),
    (
        "share in trouble",
        |f| {
            // One of several files on it: reported once.
            f.vm.files.push(VmFile { device: "vdb".into(), ..disk(on_share()) });
            let share = &mut f.destination.shares[0];
            let (message, fix) = ("the server refused user root", "Let it take the password again");
            share.finding = Some(Finding::of_text(FindingId::SharePassword, "share", message, fix));
            share.trouble = Some(message.into());
        },
        FindingId::SharePassword,
        &["vms", "kvm2", "the server refused user root", "Let it take the password again"],
    ),
    (
        "share in trouble, as an earlier agent tells it",
        |f| f.destination.shares[0].trouble = Some("the mount does not answer".into()),
        FindingId::ShareUnreachable,
        &["vms", "kvm2", "the mount does not answer"],
    ),
    (
        "two shares of one name",
        |f| {
            f.share_identity.insert(SHARE, ShareIdentity::Different);
        },
        FindingId::ShareNotSame,
        &["vms", "kvm1", "kvm2"],
    ),
    (
        "identity not shown",
        |f| {
            f.share_identity.insert(SHARE, ShareIdentity::NotProven(Message::Text { text: "read only".into() }));
        },
        FindingId::ShareNotSame,
        &["vms", "read only"],
    ),
    (
        "the kernel's SMB client without nobrl, mounted by Ferry",
        |f| f.destination.shares[0].server_locks = true,
        FindingId::ShareLocks,
        &["kvm2", "nobrl", "Shut down", "Ferry mounts it again"],
    ),
    (
        "the same, mounted by the administrator of the source; it was seen as well",
        |f| {
            f.source.shares[0] =
                AttachedShare { server_locks: true, mode: AttachMode::Adopted, ..f.source.shares[0].clone() };
            f.share_identity.insert(SHARE, ShareIdentity::LocksFail(Message::Text { text: "refused".into() }));
        },
        FindingId::ShareLocks,
        &["kvm1", "unmount", "-o nobrl", "remount,nobrl` has no effect"],
    ),
    (
        "locks that let nobody take over",
        |f| {
            f.share_identity
                .insert(SHARE, ShareIdentity::LocksFail(Message::Text { text: "byte 201 is locked".into() }));
        },
        FindingId::ShareLocks,
        &["vms", "kvm1", "kvm2", "byte 201 is locked", "nobrl"],
    ),
    (
        "no memory",
        |f| f.destination.facts.memory_free = ByteCount::gib(1),
        FindingId::HostMemory,
        &["kvm2", "1.1 GiB", "1.0 GiB"],
    ),
    ("snapshot", |f| f.vm.snapshots = 2, FindingId::VmSnapshot, &["web01", "snapshot-delete"]),
    (
        "host device",
        |f| f.vm.host_devices.push("pci 0000:01:00.0".into()),
        FindingId::VmHostDevice,
        &["0000:01:00.0", "Detach"],
    ),
    (
        "TPM",
        |f| f.vm.tpm = true,
        FindingId::VmHostDevice,
        &["TPM", "/var/lib/libvirt/swtpm/00000000-0000-0000-0000-000000000001", "virsh undefine web01 --keep-nvram"],
    ),
    (
        "UUID taken",
        |f| f.destination.vms.push(VmFacts { name: "old".into(), state: VmState::ShutOff, ..vm() }),
        FindingId::VmUuidTaken,
        &["kvm2", "old", "virsh undefine old"],
    ),
    (
        "name taken",
        |f| f.destination.vms.push(VmFacts { id: VmId(Uuid::from_u128(9)), ..vm() }),
        FindingId::VmNameTaken,
        &["kvm2", "web01", "virsh domrename"],
    ),
    (
        "agent of another time",
        |f| f.destination.facts.api_versions = vec![1],
        FindingId::HostVersion,
        &["kvm2", "[1]", "version 2", "Upgrade ferry-agent on kvm2"],
    ),
    (
        "libvirt without shared_filesystems",
        |f| {
            f.destination.facts.findings.push(Finding::of_text(
                FindingId::HostSharedFilesystems,
                "this host",
                "libvirt does not know that /srv/ferry is shared",
                "Run `ferry-agent setup`",
            ));
        },
        FindingId::HostSharedFilesystems,
        &["kvm2", "ferry-agent setup"],
    ),
    (
        "confinement without the rule",
        |f| {
            f.destination.facts.findings.push(Finding::of_text(
                FindingId::HostConfinement,
                "this host",
                "AppArmor does not let VMs use the sockets of moves",
                "Run `ferry-agent setup`",
            ));
        },
        FindingId::HostConfinement,
        &["kvm2", "ferry-agent setup"],
    ),
];

#[test]
fn each_fact_that_stands_against_a_move_is_found_alone_and_named() {
    for (row, spoil, id, words) in ROWS {
        let mut fixture = Fixture::new();
        spoil(&mut fixture);
        let findings = fixture.findings();
        let [finding] = &findings[..] else { panic!("{row}: {findings:#?}") };
        assert_eq!((finding.id, finding.severity), (*id, Severity::Blocks), "{row}");
        let text = format!("{}\n{}\n{}", finding.object, finding.message, finding.fix);
        for word in *words {
            assert!(text.contains(word), "{row}: {word:?} is not in {text}");
        }
        assert!(!finding.message.to_string().ends_with('.') && !finding.fix.to_string().is_empty(), "{row}: {text}");
    }
}

#[test]
fn old_releases_stand_against_nothing_that_they_can_do() {
    let mut fixture = Fixture::new();
    for host in [&mut fixture.source, &mut fixture.destination] {
        host.facts.libvirt_version = "9.0.0".into();
        host.facts.qemu_version = "7.2.22".into();
    }
    fixture.vm.machine = Some("pc-q35-7.2".into());
    assert_eq!(fixture.findings(), []);
    // Migrated disks are not checked.
    fixture.vm.files[0].bypasses_cache = false;
    let (from, to) = (on_share(), local("/n/x.raw"));
    fixture.migrated_disks = vec![DiskMove { device: "vda".into(), from, real: None, to, format: DiskFormat::Raw }];
    assert_eq!(fixture.findings(), []);
}

#[test]
fn an_emulated_vm_of_an_old_qemu_is_warned_of() {
    let mut fixture = Fixture::new();
    fixture.vm.machine = Some("pc-q35-7.2".into());
    fixture.source.facts.qemu_version = "7.2.22".into();
    assert_eq!(fixture.findings(), [], "KVM's kernel keeps the bitmap");
    fixture.vm.emulated = true;
    let findings = fixture.findings();
    let [finding] = &findings[..] else { panic!("{findings:#?}") };
    assert_eq!((finding.id, finding.severity), (FindingId::HostRelease, Severity::Warns));
    assert!(
        finding.message.to_string().contains("QEMU 7.2.22 on kvm1") && finding.fix.to_string().contains("`--offline`"),
        "{finding:?}"
    );
    fixture.source.facts.qemu_version = "10.0.2".into();
    assert_eq!(fixture.findings(), []);
}

#[test]
fn a_disk_that_shows_errors_to_the_guest_is_warned_of() {
    let mut fixture = Fixture::new();
    fixture.vm.files[0].stops_on_error = false;
    let findings = fixture.findings();
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].id, findings[0].severity), (FindingId::DiskUnsafe, Severity::Warns));
    // A disk on a local file system has no file server.
    let (from, to) = (on_share(), local("/n/x.raw"));
    fixture.migrated_disks = vec![DiskMove { device: "vda".into(), from, real: None, to, format: DiskFormat::Raw }];
    assert_eq!(fixture.findings(), []);
}

#[test]
fn an_encrypted_disk_needs_its_secret_where_it_goes() {
    let mut fixture = Fixture::new();
    fixture.vm.files[0].features = vec![DiskFeature::Encrypted];
    let findings = fixture.findings();
    let [finding] = &findings[..] else { panic!("{findings:#?}") };
    assert_eq!((finding.id, finding.severity), (FindingId::DiskEncrypted, Severity::Warns));
    assert!(
        finding.message.to_string().contains("kvm2") && finding.fix.to_string().contains("virsh secret-define"),
        "{finding:?}"
    );
    // For a disk that cannot be migrated, that is reported instead.
    let (from, to) = (on_share(), local("/n/x.raw"));
    fixture.migrated_disks = vec![DiskMove { device: "vda".into(), from, real: None, to, format: DiskFormat::Raw }];
    assert_eq!(fixture.findings(), []);
}

#[test]
fn a_share_that_is_not_mounted_hard_is_warned_of() {
    let mut fixture = Fixture::new();
    fixture.destination.shares[0].soft = true;
    let findings = fixture.findings();
    let [finding] = &findings[..] else { panic!("{findings:#?}") };
    assert_eq!((finding.id, finding.severity), (FindingId::ShareSoft, Severity::Warns));
    assert!(finding.message.to_string().contains("kvm2") && finding.fix.to_string().contains("-o hard"), "{finding:?}");
    // A VM that does not use it is not affected.
    fixture.vm.files.clear();
    assert_eq!(fixture.findings(), []);
}

#[test]
fn locks_do_not_matter_where_no_qemu_takes_over_from_another() {
    let mut fixture = Fixture::new();
    fixture.source.shares[0].server_locks = true;
    fixture.share_identity.insert(SHARE, ShareIdentity::LocksFail(Message::Text { text: "refused".into() }));
    assert_eq!(fixture.findings().len(), 1, "the disk stays on the share");
    // The disk leaves the share with the move.
    let (from, to) = (on_share(), local("/n/x.raw"));
    fixture.migrated_disks = vec![DiskMove { device: "vda".into(), from, real: None, to, format: DiskFormat::Raw }];
    assert_eq!(fixture.findings(), []);
    fixture.migrated_disks.clear();
    let off = fixture.judged(offline);
    assert_eq!(off.iter().find(|finding| finding.id == FindingId::ShareLocks), None, "{off:#?}");
}

#[test]
fn blocking_findings_come_first() {
    let mut fixture = Fixture::new();
    fixture.vm.files[0].stops_on_error = false;
    fixture.destination.facts.memory_free = ByteCount(0);
    let severities: Vec<_> = fixture.findings().iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Blocks, Severity::Warns]);
}

fn networks(texts: &[&str]) -> MigrationNetworks {
    let all: Vec<_> = texts.iter().map(|text| text.parse().expect("a subnet")).collect();
    all.try_into().expect("few")
}

fn addresses(texts: &[&str]) -> Option<Vec<HostAddress>> {
    let one = |text: &&str| HostAddress {
        interface: "eth0".into(),
        address: text.parse().expect("an address"),
        prefix_bits: 24,
    };
    Some(texts.iter().map(one).collect())
}

#[test]
fn hosts_that_no_migration_network_connects_are_told_and_so_are_agents_that_know_none() {
    let mut fixture = Fixture::new();
    fixture.source.facts.addresses = addresses(&["10.77.0.1", "10.78.0.1"]);
    fixture.destination.facts.addresses = addresses(&["10.77.0.2"]);
    let route = |fixture: &Fixture| route_between(&fixture.source.side(), &fixture.destination.side());
    assert_eq!((fixture.findings(), route(&fixture)), (Vec::new(), None), "without lists");
    fixture.source.networks = networks(&["10.78.0.0/24", "10.77.0.0/24"]);
    assert_eq!(fixture.findings(), []);
    let found = route(&fixture).expect("a route");
    assert_eq!(found.to_string(), "10.77.0.0/24 (10.77.0.1 → 10.77.0.2)");

    for (of_source, of_destination) in
        [(&["10.78.0.0/24"][..], &[][..]), (&[], &["10.78.0.0/24"]), (&["10.77.0.0/24"], &["10.78.0.0/24"])]
    {
        (fixture.source.networks, fixture.destination.networks) = (networks(of_source), networks(of_destination));
        for how in [live, offline] {
            let findings = fixture.judged(how);
            assert_eq!(findings.len(), 1, "{findings:?}");
            let (id, severity, object) = (findings[0].id, findings[0].severity, findings[0].object.as_str());
            assert_eq!((id, severity, object), (FindingId::HostNetwork, Severity::Blocks, "kvm2"));
            let (message, fix) = (findings[0].message.to_string(), findings[0].fix.to_string());
            for word in ["kvm1", "kvm2", "10.77.0.1/24", "10.78.0.1/24", "10.77.0.2/24"] {
                assert!(message.contains(word), "{word}: {message}");
            }
            assert!(of_source.iter().chain(of_destination).all(|network| message.contains(network)), "{message}");
            assert!(fix.contains("ferry host set HOST --migration-network"), "{fix}");
        }
        assert_eq!(route(&fixture), None);
    }

    // What is seen of one host alone.
    let alone = |fixture: &Fixture| unusable_networks(&fixture.source.side());
    for (of_source, has_one) in [(&[][..], true), (&["10.99.0.0/24", "10.78.0.0/24"], true), (&["10.99.0.0/24"], false)]
    {
        fixture.source.networks = networks(of_source);
        assert_eq!(alone(&fixture).is_none(), has_one, "{of_source:?}");
    }
    let found = alone(&fixture).expect("found");
    assert_eq!((found.id, found.object.as_str()), (FindingId::HostNetwork, "kvm1"));
    let message = found.message.to_string();
    assert!(message.contains("[10.99.0.0/24]") && message.contains("10.77.0.1/24, 10.78.0.1/24"), "{message}");
    assert!(found.fix.to_string().contains("ferry host set kvm1 --migration-network"), "{found:?}");

    fixture.source.networks = networks(&["10.77.0.0/24"]);
    fixture.destination.networks = networks(&[]);
    for (old, host) in [(0, "kvm1"), (1, "kvm2")] {
        let both = [&mut fixture.source, &mut fixture.destination];
        let told = std::mem::take(&mut both[old].facts.addresses);
        let findings = fixture.findings();
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0].id, findings[0].object.as_str()), (FindingId::HostNetwork, host));
        assert!(findings[0].message.to_string().contains("earlier version"), "{findings:?}");
        assert!(findings[0].fix.to_string().contains(host), "{findings:?}");
        assert_eq!(route(&fixture), None);
        let both = [&mut fixture.source, &mut fixture.destination];
        both[old].facts.addresses = told;
    }
    assert_eq!(fixture.findings(), []);
}
