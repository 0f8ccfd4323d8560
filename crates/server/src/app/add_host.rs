//! Adds a host: shows its agent the enrolment secret, but only if the agent has the key that the token names.

use ferry_client::ClientError;
use ferry_core::{
    api::{
        agent::{API_VERSION, EnrolRequest},
        problem::Title,
        server::{AddHost, HostView},
    },
    error::chain,
    finding::{ByHand, Command, Finding, FindingId, Message},
    host::HostFacts,
    id::HostId,
    pin::EnrolmentToken,
    preflight::versions_differ,
};
use std::sync::Arc;
use uuid::Uuid;

use super::{App, check_name, invalid, show_hosts};
use crate::{
    failure::Failure,
    store::{HostRecord, HostSettings, StoreError},
};

pub(crate) async fn add_host(app: &Arc<App>, body: &AddHost) -> Result<HostView, Failure> {
    let title = Title::AddHost { host: body.name.clone() };
    check_name(&title, &body.name)?;
    let token: EnrolmentToken = body.token.parse().map_err(|_| {
        let (message, fix) = (Message::NotAToken, Command::PrintWholeToken);
        Failure::found(&title, Finding::blocks(FindingId::AuthEnrolment, &body.name, message, fix))
    })?;
    // Checked before the agent is called, because showing a secret uses it up.
    for host in app.inventory.hosts() {
        if host.record.name == body.name {
            return Err(twice(&title, &body.name, Message::HostNameTaken { host: body.name.clone() }));
        }
        if host.record.pin == token.agent_pin {
            let message = Message::AgentAddedBefore { host: host.record.name.clone() };
            return Err(twice(&title, &host.record.name, message));
        }
    }
    let agent = app.inventory.agent(&body.address, token.agent_pin).map_err(|error| {
        invalid(&title, &body.address, Message::Verbatim { text: error.to_string() }, ByHand::GiveAddress)
    })?;
    let id = HostId(Uuid::new_v4());
    let enrolled = agent.enrol(&EnrolRequest { secret: token.secret, host: id }).await;
    let facts = enrolled.map_err(|error| not_enrolled(&title, body, &error))?;
    check_facts(app, &title, &body.name, &facts)?;
    let record = HostRecord {
        id,
        name: body.name.clone(),
        address: body.address.clone(),
        pin: token.agent_pin,
        machine_id: facts.machine_id,
        hypervisor_uuid: facts.hypervisor_uuid,
        settings: HostSettings::default(),
    };
    app.store.add_host(&record).await.map_err(|error| match error {
        StoreError::Duplicate => twice(&title, &body.name, Message::HostAddedMeanwhile { host: body.name.clone() }),
        other @ (StoreError::Database(_) | StoreError::Content { .. } | StoreError::Newer { .. }) => {
            Failure::Store(other)
        }
    })?;
    tracing::info!(host = record.name, address = record.address, pin = %record.pin, "A host was added");
    let host = app.inventory.add(record, agent);
    host.wait_until(|seen| seen.observation.is_some() || seen.trouble.is_some()).await;
    show_hosts::shown(app, &host).await
}

fn check_facts(app: &App, title: &Title, name: &str, facts: &HostFacts) -> Result<(), Failure> {
    if !facts.api_versions.contains(&API_VERSION) {
        return Err(Failure::found(title, versions_differ(name, &facts.api_versions)));
    }
    for host in app.inventory.hosts() {
        let other = host.record.name.clone();
        let message = if host.record.machine_id == facts.machine_id {
            Message::MachineTaken { host: other, id: facts.machine_id.clone() }
        } else if host.record.hypervisor_uuid == facts.hypervisor_uuid {
            Message::LibvirtUuidTaken { host: other, uuid: facts.hypervisor_uuid.clone() }
        } else {
            continue;
        };
        return Err(twice(title, name, message));
    }
    Ok(())
}

fn twice(title: &Title, name: &str, message: Message) -> Failure {
    Failure::found(title, Finding::blocks(FindingId::HostTwice, name, message, ByHand::UseHostOrRename))
}

fn not_enrolled(title: &Title, body: &AddHost, error: &ClientError) -> Failure {
    match error {
        ClientError::WrongKey { .. } => Failure::found(
            title,
            Finding::blocks(
                FindingId::AuthEnrolment,
                &body.name,
                Message::AgentIsOther { address: body.address.clone() },
                Command::PrintTokenAt { address: body.address.clone() },
            ),
        ),
        ClientError::Unreachable { .. } => Failure::found(
            title,
            Finding::blocks(
                FindingId::HostUnreachable,
                &body.name,
                Message::NothingAnswers { address: body.address.clone(), reason: chain(&error) },
                Command::CheckAddress,
            ),
        ),
        ClientError::Refused(_)
        | ClientError::NotUnderstood { .. }
        | ClientError::OldVersion { .. }
        | ClientError::Unusable { .. } => Failure::of_agent(title, &body.name, error),
    }
}
