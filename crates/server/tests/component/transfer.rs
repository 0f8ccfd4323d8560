//! How the bytes of moves travel: set for hosts, requested for a move, shown before it and recorded after it.

use ferry_core::{
    api::server::{MigrateVm, SetHost},
    finding::FindingId,
    migration::Phase,
    transfer::{HostTransfer, Preset, RateLimits, Transfer},
    units::ByteCount,
};

use crate::support::{in_lab, refusal};

const MIB: u64 = 1 << 20;

fn mib(count: u64) -> Option<ByteCount> {
    Some(ByteCount(count * MIB))
}

#[test]
fn what_hosts_are_set_to_holds_for_their_moves_unless_less_is_requested() {
    in_lab(async |lab| {
        let (_kvm1, _kvm2, _) = lab.two_hosts().await;
        let to_kvm2 = MigrateVm { destination: "kvm2".into(), ..MigrateVm::default() };
        let tried = lab.client.try_migrate("web01", &to_kvm2).await.expect("judged").transfer;
        let fresh = Transfer { preset: Preset::Compression, limits: RateLimits::default() };
        assert_eq!(tried, Some(fresh), "by default both hosts compress and limit nothing");

        let kvm1 = SetHost { memory_bandwidth_bytes_per_s: Some(500 * MIB), ..SetHost::default() };
        lab.client.set_host("kvm1", &kvm1).await.expect("set");
        let kvm2 = SetHost {
            performance: Some(Preset::Standard),
            memory_bandwidth_bytes_per_s: Some(400 * MIB),
            storage_bandwidth_bytes_per_s: Some(300 * MIB),
            ..SetHost::default()
        };
        lab.client.set_host("kvm2", &kvm2).await.expect("set");
        lab.stop_server().await;
        lab.start_server().await;
        let shown = lab.client.host("kvm2").await.expect("shown").transfer;
        let limits = RateLimits { memory: mib(400), storage: mib(300) };
        assert_eq!(shown, HostTransfer { preset: Preset::Standard, limits }, "also after a restart");

        let requested = MigrateVm {
            performance: Some(Preset::Compression),
            bandwidth_bytes_per_s: Some(1_000 * MIB),
            storage_bandwidth_bytes_per_s: Some(200 * MIB),
            ..to_kvm2.clone()
        };
        let expected =
            Transfer { preset: Preset::Compression, limits: RateLimits { memory: mib(400), storage: mib(200) } };
        let tried = lab.client.try_migrate("web01", &requested).await.expect("judged").transfer;
        assert_eq!(tried, Some(expected), "a request exceeds no host's limit");
        let job = lab.client.migrate("web01", &requested).await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        let shown = lab.client.job(job.id).await.expect("known").transfer;
        assert_eq!(shown, Some(expected), "what was tried is what was done");
        let back = MigrateVm { destination: "kvm1".into(), ..MigrateVm::default() };
        let job = lab.client.migrate("web01", &back).await.expect("accepted");
        lab.ends(&job, Phase::Succeeded).await;
        let records = lab.client.audit(None, None).await.expect("answered").records;
        let presets: Vec<&str> = records.iter().map(|record| record.preset.as_str()).collect();
        assert_eq!(presets, ["compression", "standard"], "without a request both hosts must compress");

        let none = SetHost { memory_bandwidth_bytes_per_s: Some(0), ..SetHost::default() };
        let limits = lab.client.set_host("kvm2", &none).await.expect("set").transfer.limits;
        assert_eq!(limits, RateLimits { memory: None, storage: mib(300) }, "0 takes one limit away");
        let too_little = SetHost { storage_bandwidth_bytes_per_s: Some(1), ..SetHost::default() };
        assert_eq!(refusal(lab.client.set_host("kvm2", &too_little).await), (400, vec![FindingId::RequestInvalid]));
        let too_little = MigrateVm { storage_bandwidth_bytes_per_s: Some(1), ..to_kvm2 };
        assert_eq!(refusal(lab.client.migrate("web01", &too_little).await), (400, vec![FindingId::RequestInvalid]));
    });
}
