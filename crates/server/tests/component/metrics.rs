//! The metrics that Prometheus reads.

use std::sync::Arc;

use ferry_core::migration::Phase;
use ferry_drivers::hypervisor::fake::Point;
use ferry_testkit::metrics::Scraped;

use crate::support::{Lab, in_lab, wait_for};

async fn scrape(lab: &Lab) -> Scraped {
    let address = lab.metrics_address();
    let answer = reqwest::get(format!("http://{address}/metrics")).await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], ferry_core::metrics::MEDIA_TYPE);
    Scraped::read(&answer.text().await.expect("a text"))
}

#[test]
fn figures_follow_a_move_from_its_queue_to_its_end() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _vm) = lab.two_hosts().await;
        let before = scrape(lab).await;
        assert_eq!(before.value("ferry_host_reachable{host=\"kvm1\"}"), 1.0);
        assert_eq!(before.value("ferry_slots_limit{host=\"kvm2\",slot=\"live\"}"), 2.0);
        assert_eq!(before.value("ferry_slots_used{host=\"kvm1\",slot=\"live\"}"), 0.0);
        assert_eq!(before.value("ferry_queue_length"), 0.0);
        let hold = Arc::new(kvm1.hypervisor.faults().hold(Point::Pass(2)));
        let first = lab.migrate("web01", "kvm2").await.expect("accepted");
        for name in ["db", "mail"] {
            lab.run(&kvm1, name, |_| {}).await;
            lab.migrate(name, "kvm2").await.expect("accepted");
        }
        wait_for("two run and one waits", async || {
            let now = scrape(lab).await;
            let used = now.value("ferry_slots_used{host=\"kvm1\",slot=\"live\"}");
            let ended = now.value("ferry_jobs_ended_total{kind=\"live\",phase=\"succeeded\"}");
            (used, ended) == (1.0, 2.0) && now.value("ferry_jobs{kind=\"live\",phase=\"migrating\"}") == 1.0
        })
        .await;
        hold.release();
        lab.ends(&first, Phase::Succeeded).await;
        let ended = "ferry_jobs_ended_total{kind=\"live\",phase=\"succeeded\"}";
        wait_for("all have ended", async || scrape(lab).await.value(ended) == 3.0).await;
        let after = scrape(lab).await;
        assert_eq!(after.value("ferry_downtime_seconds_count"), 3.0);
        assert_eq!(after.value("ferry_job_duration_seconds_bucket{le=\"+Inf\"}"), 3.0);
        assert!(after.value("ferry_moved_bytes_total{stage=\"wire\"}") > 0.0, "{after:?}");
        let asked = after.sum("ferry_http_requests_total", "route=\"/api/v1/vms/{vm}/migrate\",status=\"202\"");
        assert_eq!(asked, 3.0, "{after:?}");
    });
}

#[test]
fn the_dashboard_shows_what_there_is() {
    in_lab(async |lab| {
        let kvm1 = lab.host("kvm1").await;
        lab.add(&kvm1).await.expect("added");
        let mut known = scrape(lab).await.names;
        known.extend(Scraped::read(&ferry_agent::http::metrics::text(kvm1.agent())).names);
        let texts = [include_str!("../../../../docs/grafana/ferry.json"), include_str!("../../../../docs/metrics.md")];
        for text in texts {
            let mut shown = 0;
            for word in text.split(|each: char| !each.is_ascii_alphanumeric() && each != '_') {
                if word.starts_with("ferry_") {
                    let name = word.strip_suffix("_bucket").unwrap_or(word);
                    assert!(known.contains(name), "{name} is shown, and is not told");
                    shown += 1;
                }
            }
            assert!(shown >= known.len() / 2, "only {shown} metrics are shown");
        }
        let table = texts[1];
        let missing: Vec<_> = known.iter().filter(|name| !table.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
    });
}

#[test]
fn an_agent_tells_of_its_host() {
    in_lab(async |lab| {
        let (kvm1, _kvm2, _vm) = lab.two_hosts().await;
        wait_for("the VM is counted", async || {
            let now = Scraped::read(&ferry_agent::http::metrics::text(kvm1.agent()));
            now.value("ferry_agent_vms{state=\"running\"}") == 1.0
                && now.value("ferry_agent_shares{state=\"ok\"}") == 1.0
        })
        .await;
        let now = Scraped::read(&ferry_agent::http::metrics::text(kvm1.agent()));
        assert_eq!(now.value("ferry_agent_libvirt_reachable"), 1.0);
        let observed = now.sum("ferry_agent_http_requests_total", "route=\"/v1/observe\",status=\"200\"");
        assert!(observed > 0.0, "{now:?}");
    });
}
