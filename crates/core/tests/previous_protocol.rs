//! Bodies as the previous version wrote and read them. Server and agents are upgraded one after the other, so each must
//! understand the other's bodies. When a body changes, the text here stays unchanged.

use ferry_core::{
    api::{
        agent::{AttachRequest, ConfirmRequest, DestinationReady, PrepareDestination, PrepareSource, Report},
        server::{HostView, MigrateVm},
    },
    host::HostFacts,
    id::{Generation, SessionId, VmId},
    job::OnStall,
    pin::{Pin, Secret},
    share::AttachedShare,
    share_source::ShareSource,
    transfer::Preset,
    units::ByteCount,
    vm::{NotAFile, VmFacts, VmFile},
};
use serde::{Deserialize, de::DeserializeOwned};
use uuid::Uuid;

const PREPARE_SOURCE: &str = r#"{
    "session": "00000000-0000-0000-0000-000000000007",
    "secret": "0707070707070707070707070707070707070707070707070707070707070707",
    "destination_pin": "sha256:0909090909090909090909090909090909090909090909090909090909090909",
    "destination": {"carrier": "10.0.0.2:7430", "mounts": [], "socket_dir": "/run/ferry/m/7"},
    "vm": "00000000-0000-0000-0000-000000000001",
    "downtime_limit_ms": 300, "bandwidth_bytes_per_s": null, "timeout_ms": 3600000
}"#;
const PREPARE_DESTINATION: &str = r#"{
    "session": "00000000-0000-0000-0000-000000000007",
    "secret": "0707070707070707070707070707070707070707070707070707070707070707",
    "source_pin": "sha256:0909090909090909090909090909090909090909090909090909090909090909",
    "vm": "00000000-0000-0000-0000-000000000001", "vm_name": "web01", "shares": [], "persistent": true,
    "downtime_limit_ms": 300
}"#;
const REPORT: &str = r#"{
    "job": 4, "generation": 5, "role": "source", "sequence": 9, "stage": "delivered", "finish_delivered": true,
    "presence": "absent", "progress": null, "error": null,
    "figures": {"total_ms": 0, "accepted_to_migrate_ms": 0, "migrate_ms": 1400, "downtime_ms": 0,
        "qemu_downtime_ms": 80, "sent": 1048576, "wire": 1048999, "iterations": 3}
}"#;

const HOST: &str = r#"{
    "hostname": "kvm1", "machine_id": "1", "hypervisor_uuid": "1", "cpus": 2, "memory_total": 1, "memory_free": 1,
    "libvirt_version": "11.3.0", "qemu_version": "10.0.2", "agent_version": "0.1.0", "api_versions": [1, 2], "findings": []
}"#;

const ATTACHED_SHARE: &str = r#"{
    "id": "00000000-0000-0000-0000-000000000005", "unc": "\\\\fs1.contoso.com\\vms", "mode": "mounted", "trouble": null, "free": 7
}"#;

const VM: &str = r#"{
    "id": "00000000-0000-0000-0000-000000000001", "name": "web01", "state": "running", "persistent": true,
    "autostart": false, "vcpus": 1, "memory": 1048576, "snapshots": 0, "host_devices": [], "tpm": false, "networks": [],
    "files": [{"role": "disk", "device": "vda", "place": {"on": "share", "share": "00000000-0000-0000-0000-000000000005",
        "path": "x.raw"}, "read_only": false, "shareable": false, "has_backing": false, "stops_on_error": true,
        "format": "raw", "unmaps": true, "detects_zeroes": true}]
}"#;

const NETWORK_DISK: &str = r#"{
    "role": "not_a_file", "device": "vdb", "place": {"on": "local", "host": "00000000-0000-0000-0000-000000000002",
        "path": "pool/img"}, "read_only": false, "shareable": false, "has_backing": false, "stops_on_error": false,
        "kind": "network rbd"
}"#;

/// What the previous agent accepted as [`PrepareSource`].
#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "that it can be read is what matters")]
struct PreviousPrepareSource {
    session: SessionId,
    secret: Secret,
    destination_pin: Pin,
    destination: DestinationReady,
    vm: VmId,
    downtime_limit_ms: u32,
    bandwidth_bytes_per_s: Option<u64>,
    timeout_ms: u64,
}

fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn what_a_server_of_the_version_before_asks_is_understood() {
    let asked: PrepareSource = read(PREPARE_SOURCE);
    assert_eq!((asked.timeout_ms, asked.on_stall), (3_600_000, OnStall::Abort));
    assert!(!asked.shares_proven, "what was not said was not shown");
    assert_eq!((asked.performance, asked.disk_bandwidth_bytes_per_s), (Preset::Standard, None));
    let asked: PrepareDestination = read(PREPARE_DESTINATION);
    assert!(asked.persistent);
    let asked: ConfirmRequest = read(r#"{"autostart": true}"#);
    assert!(asked.autostart);
}

#[test]
fn what_an_agent_or_a_carrier_of_the_version_before_answers_is_understood() {
    let report: Report = read(REPORT);
    assert_eq!((report.generation, report.figures.iterations), (Generation(5), 3));
    let vm: VmFacts = read(VM);
    assert_eq!((vm.checkpoints, vm.files[0].below.len(), vm.files[0].features.len()), (0, 0, 0));
    assert_eq!((vm.machine, vm.files[0].bypasses_cache), (None, false));
    let share: AttachedShare = read(ATTACHED_SHARE);
    assert_eq!((share.free, share.total), (Some(ByteCount(7)), None));
    assert_eq!((share.at, share.file_system), (None, None));
    assert_eq!(share.source.to_string(), r"\\fs1.contoso.com\vms");
    assert_eq!(read::<HostFacts>(HOST).addresses, None, "it is no host without addresses");
}

#[test]
fn an_agent_of_the_version_before_understands_what_is_asked_now() {
    let now = PrepareSource { on_stall: OnStall::Pause, ..read(PREPARE_SOURCE) };
    let text = serde_json::to_string(&now).expect("JSON");
    let previous: PreviousPrepareSource = read(&text);
    assert_eq!(previous.session, SessionId(Uuid::from_u128(7)));
}

#[test]
fn servers_and_agents_of_both_versions_understand_what_is_no_file() {
    let file: VmFile = read(NETWORK_DISK);
    assert_eq!(file.kind, Some(NotAFile::Network(Some("rbd".to_owned()))));
    assert_eq!(serde_json::to_value(&file).expect("JSON")["kind"], "network rbd");
}

/// What the previous agent accepted as [`AttachRequest`].
#[derive(Debug, Deserialize)]
struct PreviousAttachRequest {
    /// It parsed the text as a UNC path.
    unc: String,
}

#[test]
fn agents_of_both_versions_understand_what_share_is_asked_for() {
    let text = r#"{"unc": "\\\\fs1.contoso.com\\vms", "credentials": null, "at": null}"#;
    let asked: AttachRequest = read(text);
    let unc = read::<PreviousAttachRequest>(&serde_json::to_string(&asked).expect("JSON")).unc;
    assert_eq!(asked.source, ShareSource::Smb(unc.parse().expect("a UNC path")));
}

#[test]
fn what_a_server_of_the_version_before_shows_of_a_host_is_understood() {
    let host: HostView = read(
        r#"{"id": "00000000-0000-0000-0000-000000000001", "name": "kvm1", "address": "10.0.0.1:7421",
            "pin": "sha256:0909090909090909090909090909090909090909090909090909090909090909", "reachable": true,
            "seen_at_ms": null, "facts": null, "vms": [], "shares": [], "limits": {"live": 2, "storage": 2},
            "maintenance": false, "moves": []}"#,
    );
    assert_eq!(host.storage_locations, []);
    assert!(host.migration_networks.is_empty());
}

#[test]
fn a_client_of_the_version_before_may_ask_for_a_move() {
    let body: MigrateVm = read(r#"{"destination": "kvm2", "dry_run": false, "downtime_limit_ms": 300}"#);
    assert_eq!(body.on_stall, OnStall::Abort);
}
