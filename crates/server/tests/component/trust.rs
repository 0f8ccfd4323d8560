//! Which programs may call which.

use ferry_client::{ClientError, agent::AgentClient, server::ServerClient};
use ferry_core::{
    api::server::AddHost,
    finding::FindingId,
    pin::{EnrolmentToken, Pin},
};
use ferry_testkit::logs::expects_warning;
use ferry_trust::{KeyPair, random_secret};

use crate::support::{in_lab, refusal, wait_for};

#[test]
fn every_call_needs_the_token_and_the_right_server() {
    in_lab(async |lab| {
        let (base, pin, token) = lab.access();
        let stranger = ServerClient::new(&base, pin, "ferry_0000").expect("usable");
        assert_eq!(refusal(stranger.hosts().await), (401, vec![FindingId::AuthToken]));
        assert_eq!(refusal(stranger.events(None).await), (401, vec![FindingId::AuthToken]));
        let nobody = ServerClient::new(&base, pin, "").expect("usable");
        assert_eq!(refusal(nobody.vms().await), (401, vec![FindingId::AuthToken]));
        let impostor = ServerClient::new(&base, Pin([7; 32]), &token).expect("usable");
        assert!(matches!(impostor.hosts().await, Err(ClientError::WrongKey { .. })));
    });
}

#[test]
fn an_agent_obeys_the_key_that_it_is_enrolled_with_and_no_other() {
    in_lab(async |lab| {
        let (kvm1, kvm2) = (lab.host("kvm1").await, lab.host("kvm2").await);
        let stranger = KeyPair::generate().expect("keys");
        let pin = kvm1.agent().key.pin();
        let unknown = AgentClient::new(&kvm1.address(), pin, &stranger).expect("usable");
        assert_eq!(refusal(unknown.host().await), (403, vec![FindingId::AuthKey]), "nobody is enrolled");
        lab.add(&kvm1).await.expect("added");
        assert_eq!(refusal(unknown.host().await), (403, vec![FindingId::AuthKey]));
        // Host B's key is used on agent A.
        let neighbour = AgentClient::new(&kvm1.address(), pin, &kvm2.agent().key).expect("usable");
        assert_eq!(refusal(neighbour.host().await), (403, vec![FindingId::AuthKey]));
    });
}

#[test]
fn a_server_whose_host_went_to_another_server_is_told_so() {
    expects_warning("The host's agent does not answer");
    in_lab(async |lab| {
        let kvm1 = lab.host("kvm1").await;
        lab.add(&kvm1).await.expect("added");
        let other = KeyPair::generate().expect("keys");
        let token: EnrolmentToken = kvm1.token().parse().expect("a token");
        let agent = AgentClient::new(&kvm1.address(), token.agent_pin, &other).expect("usable");
        let host = ferry_core::id::HostId(uuid::Uuid::new_v4());
        let request = ferry_core::api::agent::EnrolRequest { secret: token.secret, host };
        agent.enrol(&request).await.expect("the token is good");
        let is_reported = async || {
            let host = lab.client.host("kvm1").await.expect("known");
            !host.reachable && host.facts.is_some_and(|facts| facts.findings[0].id == FindingId::AuthKey)
        };
        wait_for("the host shows as lost", is_reported).await;
        lab.client.remove_host("kvm1").await.expect("removed");
        assert_eq!(refusal(lab.client.host("kvm1").await), (404, vec![FindingId::HostUnknown]));
        lab.add(&kvm1).await.expect("a new token brings it back");
    });
}

#[test]
fn a_secret_is_shown_only_to_the_agent_that_the_token_names() {
    in_lab(async |lab| {
        let (kvm1, kvm2) = (lab.host("kvm1").await, lab.host("kvm2").await);
        let token = kvm1.token();
        let add = |token: String, address: String| AddHost { name: "kvm1".into(), address, token };
        let refused = (403, vec![FindingId::AuthEnrolment]);
        let elsewhere = lab.client.add_host(&add(token.clone(), kvm2.address())).await;
        assert_eq!(refusal(elsewhere), refused);
        let wrong = EnrolmentToken { agent_pin: kvm1.agent().key.pin(), secret: random_secret() };
        assert_eq!(refusal(lab.client.add_host(&add(wrong.to_string(), kvm1.address())).await), refused);
        assert_eq!(refusal(lab.client.add_host(&add("nonsense".into(), kvm1.address())).await), refused);
        assert_eq!(lab.client.hosts().await.expect("answered"), [], "nothing was changed");
        lab.client.add_host(&add(token.clone(), kvm1.address())).await.expect("the right agent");
        lab.client.remove_host("kvm1").await.expect("removed");
        let again = lab.client.add_host(&add(token, kvm1.address())).await;
        assert_eq!(refusal(again), refused, "a secret enrols once");
    });
}
