//! Files of an agent's own that are damaged when it starts: they are put aside, told of, and hold up nothing else.

use std::{collections::BTreeSet, fs, path::PathBuf};

use crate::site::{Job, Site, refusal};
use ferry_core::{
    api::agent::Verb,
    finding::{Finding, FindingId},
    migration::Presence,
};
use ferry_testkit::logs::expects_warning;

async fn damaged(site: &Site) -> Vec<Finding> {
    let facts = site.hosts[0].client.host().await.expect("it answers");
    facts.findings.into_iter().filter(|finding| finding.id == FindingId::HostDamaged).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_damaged_files_starts_and_tells_of_each() {
    expects_warning("A damaged file was put aside");
    // Nobody releases the move: its carriers end with the test, one after the other.
    expects_warning("The control connection from the source is gone");
    let mut site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let job = Job::new(7, 1, vm, "web01", 0);
    site.prepare(&job).await;
    assert_eq!(damaged(&site).await, []);
    let state = site.hosts[0].config.state_dir.clone();
    let files = ["journal/7.json", "offline/8.json", "storage/9.json", "seeds/a-vda.json", "ended.json", "shares.json"];
    let aside = |file: &str| state.join(format!("{file}.damaged-1"));
    for file in files {
        // Cut off in the midst, as by a file system that was repaired.
        fs::write(state.join(file), "{\"job\": 7, \"gene").expect("written");
    }
    let Site { hosts, key, .. } = &mut site;
    hosts[0].restart_agent(key).await;

    let findings = damaged(&site).await;
    let objects: BTreeSet<PathBuf> = findings.iter().map(|finding| PathBuf::from(&finding.object)).collect();
    assert_eq!(objects, files.iter().map(|file| aside(file)).collect(), "{findings:#?}");
    for (file, words) in [("journal/7.json", "`ferry job show 7`"), ("shares.json", "ferry share attach")] {
        let of = findings.iter().find(|finding| finding.object == aside(file).display().to_string()).expect("told");
        assert!(of.fix.to_string().contains(words), "{of:?}");
    }
    for file in files {
        assert!(!state.join(file).exists() && aside(file).exists(), "{file}");
    }
    // What it knows nothing of any more stays as it is: the VM runs, and is held.
    assert_eq!(refusal(site.hosts[0].client.ask(job.attempt, Verb::Abort).await), (404, FindingId::JobUnknown));
    assert_eq!(site.presences(&job).0, Presence::Running);
    assert!(site.hosts[0].holds(vm));

    // Damaged again: neither is lost.
    fs::write(state.join("ended.json"), "[").expect("written");
    let Site { hosts, key, .. } = &mut site;
    hosts[0].restart_agent(key).await;
    assert_eq!(damaged(&site).await.len(), files.len() + 1);
    for finding in damaged(&site).await {
        fs::remove_file(&finding.object).expect("removed");
    }
    assert_eq!(damaged(&site).await, []);
}
