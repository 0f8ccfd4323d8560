//! Moves, from the REST API to the fake hypervisors.

use std::collections::BTreeSet;

use ferry_core::migration::Phase;

use crate::support::Lab;

fn only(host: &str) -> BTreeSet<String> {
    BTreeSet::from([host.to_owned()])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_moves_there_and_back_and_runs_once_at_any_time() {
    let (lab, _kvm1, _kvm2, vm) = Lab::with_two_hosts().await;
    for (from, to) in [("kvm1", "kvm2"), ("kvm2", "kvm1"), ("kvm1", "kvm2")] {
        let job = lab.migrate("web01", to).await.expect("accepted");
        let job = lab.ends(&job, Phase::Succeeded).await;
        assert_eq!((job.source.as_str(), job.destination.as_str()), (from, to));
        assert_eq!(lab.running_on(vm), only(to));
        let seen = lab.client.vm("web01").await.expect("one VM of that name");
        assert_eq!((seen.host.as_str(), seen.job), (to, None));
        let figures = job.figures.expect("a move that succeeded has figures");
        assert!(figures.total_ms > 0 && figures.wire.0 > 0, "{figures:?}");
        println!("{figures:?}");
    }
}
