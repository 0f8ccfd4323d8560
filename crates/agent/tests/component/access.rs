//! Who may call an agent, and what it says of its host.

use std::time::Duration;

use crate::site::{SHARE, SOON, Site, enrol, refusal, serve};
use ferry_client::agent::AgentClient;
use ferry_core::{
    api::agent::{AttachRequest, EnrolRequest, Power, ShareCredentials, ShareToken},
    error::chain,
    finding::FindingId,
    id::{Generation, HostId, Incarnation, ShareId},
    location::Location,
    share::AttachMode,
    vm::VmState,
};
use ferry_drivers::hypervisor::{Power as _, fake::Point};
use ferry_testkit::logs::expects_warning;
use ferry_trust::{KeyPair, random_secret};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn only_the_server_that_an_agent_is_enrolled_with_may_call_it() {
    let site = Site::new().await;
    let foreign = KeyPair::generate().expect("keys");
    let (stranger, _stop) = serve(site.hosts[0].agent.clone(), &foreign);
    let denied = (403, FindingId::AuthKey);
    assert_eq!(refusal(stranger.host().await), denied);
    assert_eq!(refusal(stranger.observe(None, Duration::ZERO).await), denied);
    assert_eq!(refusal(stranger.detach_share(SHARE).await), denied);
    // The other host's agent has a key too, and is no server.
    let (other_agent, _stop) = serve(site.hosts[0].agent.clone(), &site.hosts[1].agent.key);
    assert_eq!(refusal(other_agent.host().await), denied);
    let guess = EnrolRequest { secret: random_secret(), host: HostId(Uuid::new_v4()) };
    assert_eq!(refusal(stranger.enrol(&guess).await), (403, FindingId::AuthEnrolment));
    assert!(site.hosts[0].client.host().await.is_ok(), "nothing changed for the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_gives_an_agent_to_another_server() {
    let site = Site::new().await;
    let (other, _stop) = serve(site.hosts[0].agent.clone(), &site.hosts[1].agent.key);
    enrol(&site.hosts[0], &other).await.expect("with a new token");
    assert!(other.host().await.is_ok());
    assert_eq!(refusal(site.hosts[0].client.host().await), (403, FindingId::AuthKey));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_used_up_only_when_the_host_could_be_told() {
    expects_warning("libvirt does not answer");
    expects_warning(r#"A request failed title="libvirt on this host does not answer: it is not running"#);
    let site = Site::new().await;
    let host = &site.hosts[0];
    let token = host.agent.enrolment.new_token(host.agent.key.pin()).expect("a token");
    let (other, _stop) = serve(host.agent.clone(), &site.hosts[1].agent.key);
    // A server makes another id for the host each time that it is asked to add it.
    let enrol = async || other.enrol(&EnrolRequest { secret: token.secret, host: HostId(Uuid::new_v4()) }).await;
    host.hypervisor.set_reachable(false);
    let error = enrol().await.expect_err("libvirt does not answer");
    assert_eq!(error.problem().map(|problem| problem.status), Some(500), "{}", chain(&error));
    assert_eq!(refusal(other.host().await), (403, FindingId::AuthKey), "it is not that server's yet");
    host.hypervisor.set_reachable(true);
    enrol().await.expect("with the same token");
    assert_eq!(refusal(enrol().await), (403, FindingId::AuthEnrolment), "now it is used up");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_there_at_once_also_when_libvirt_gives_no_answer() {
    let mut site = Site::new().await;
    // Whoever asks libvirt hangs: the agent that ends, the one that begins, and its observer.
    let hangs = site.hosts[0].hypervisor.faults().hold_all(Point::Host);
    tokio::time::timeout(SOON, site.hosts[0].restart_agent(&site.key)).await.expect("it does not wait for libvirt");
    let foreign = KeyPair::generate().expect("keys");
    let (stranger, _stop) = serve(site.hosts[0].agent.clone(), &foreign);
    assert_eq!(refusal(stranger.host().await), (403, FindingId::AuthKey), "it answers");
    let places = site.hosts[0].client.places().await.expect("what needs no libvirt works");
    assert!(!places.is_empty());
    hangs.release();
    assert!(site.hosts[0].client.host().await.is_ok(), "the rest is known as soon as libvirt answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_another_key_is_not_spoken_to() {
    let site = Site::new().await;
    let address = site.hosts[0].client_address();
    let wrong = AgentClient::new(&address, site.hosts[1].agent.key.pin(), &site.key).expect("a client");
    let error = wrong.host().await.expect_err("another key");
    assert!(matches!(error, ferry_client::ClientError::WrongKey { .. }), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observation_names_files_by_share_and_news_end_the_wait() {
    let site = Site::new().await;
    let vm = site.run_vm("web01", |_| {});
    let client = site.hosts[0].client.clone();
    let mut seen = client.observe(None, Duration::ZERO).await.expect("seen");
    while seen.vms.iter().all(|facts| facts.state != VmState::Running) {
        seen = client.observe(Some((seen.incarnation, seen.generation)), SOON).await.expect("news");
    }
    assert_eq!(seen.vms[0].files[0].place, Location::Share { share: SHARE, path: "web01.raw".into() });
    assert_eq!(seen.shares.len(), 1);
    let known = (seen.incarnation, seen.generation);
    let waiting = tokio::spawn(async move { client.observe(Some(known), SOON).await });
    site.hosts[0].client.power(vm, Power::Shutdown).await.expect("asked");
    let news = waiting.await.expect("no panic").expect("news");
    assert!(news.generation > known.1 && news.incarnation == known.0);
    let unknown = (Incarnation(Uuid::new_v4()), Generation(u64::MAX));
    let whole = site.hosts[0].client.observe(Some(unknown), SOON).await.expect("at once");
    assert_eq!(whole.incarnation, known.0);
    site.hosts[0].client.power(vm, Power::Start).await.expect("started");
    assert_eq!(refusal(site.hosts[1].client.power(vm, Power::Start).await), (404, FindingId::VmUnknown));
    site.hosts[0].hypervisor.destroy(vm).expect("ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_has_its_shares_and_a_new_incarnation() {
    let mut site = Site::new().await;
    let before = site.hosts[0].client.observe(None, Duration::ZERO).await.expect("seen");
    std::fs::remove_file(site.hosts[0].mount()).expect("the mount is gone, as after a restart of the host");
    site.hosts[0].restart_agent(&site.key).await;
    let client = &site.hosts[0].client;
    let mut after = client.observe(None, Duration::ZERO).await.expect("seen");
    assert_ne!(after.incarnation, before.incarnation);
    while after.shares[0].trouble.is_some() {
        after = client.observe(Some((after.incarnation, after.generation)), SOON).await.expect("news");
    }
    assert_eq!((after.shares[0].id, after.shares[0].mode), (SHARE, AttachMode::Mounted));
    assert!(site.hosts[0].mount().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_refused_by_finding_and_nothing_is_attached() {
    let site = Site::new().await;
    let client = &site.hosts[0].client;
    let id = ShareId(Uuid::new_v4());
    let attempt = |password: &str, at: Option<String>| AttachRequest {
        source: (&site.unc).into(),
        credentials: Some(ShareCredentials { user: "ferry".into(), password: password.into() }),
        at,
    };
    assert_eq!(refusal(client.attach_share(id, &attempt("wrong", None)).await), (422, FindingId::SharePassword));
    let outside = attempt("secret", Some("/mnt/elsewhere".into()));
    assert_eq!(refusal(client.attach_share(id, &outside).await), (422, FindingId::ShareMount));
    let empty = site.hosts[0].config.share_root.join("empty").display().to_string();
    assert_eq!(refusal(client.attach_share(id, &attempt("secret", Some(empty))).await), (422, FindingId::ShareMount));
    let seen = client.observe(None, Duration::ZERO).await.expect("seen");
    assert_eq!(seen.shares.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_written_on_one_host_is_read_on_the_other() {
    let site = Site::new().await;
    let [one, other] = [&site.hosts[0].client, &site.hosts[1].client];
    let token = ShareToken { content: "abc123".into() };
    one.write_token(SHARE, "proof", &token).await.expect("written");
    assert_eq!(other.read_token(SHARE, "proof").await.expect("read"), token);
    one.remove_token(SHARE, "proof").await.expect("removed");
    assert_eq!(refusal(other.read_token(SHARE, "proof").await).0, 404);
    assert_eq!(refusal(one.write_token(SHARE, "../proof", &token).await), (400, FindingId::RequestInvalid));
    let nowhere = ShareId(Uuid::new_v4());
    assert_eq!(refusal(one.write_token(nowhere, "proof", &token).await), (422, FindingId::ShareNotAttached));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_waits_for_news_is_told_that_the_agent_obeys_another() {
    let site = Site::new().await;
    let client = site.hosts[0].client.clone();
    let mut seen = client.observe(None, Duration::ZERO).await.expect("seen");
    while seen.shares[0].free.is_none() {
        seen = client.observe(Some((seen.incarnation, seen.generation)), SOON).await.expect("news");
    }
    let known = Some((seen.incarnation, seen.generation));
    let waiting = tokio::spawn(async move { client.observe(known, Duration::from_secs(30)).await });
    let (other, _stop) = serve(site.hosts[0].agent.clone(), &site.hosts[1].agent.key);
    enrol(&site.hosts[0], &other).await.expect("with a new token");
    let answer = tokio::time::timeout(SOON, waiting).await.expect("at once").expect("no panic");
    assert_eq!(refusal(answer), (403, FindingId::AuthKey));
}

#[tokio::test]
async fn an_agent_waits_until_the_one_before_it_has_let_its_address_go() {
    let before = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = before.local_addr().expect("bound");
    let mut after = std::pin::pin!(ferry_agent::http::listen(address));
    let first = tokio::time::timeout(Duration::from_millis(1), &mut after).await;
    assert!(first.is_err(), "it is in use");
    drop(before);
    assert_eq!(after.await.expect("free").local_addr().expect("bound"), address);
    let elsewhere = ferry_agent::http::listen("192.0.2.1:7421".parse().expect("an address")).await;
    assert!(elsewhere.is_err(), "an address of another host is no matter of waiting");
}
