//! Adds a host: shows its agent the enrolment secret, but only to the agent that the token names.

use ferry_client::ClientError;
use ferry_core::{
    api::{
        agent::{API_VERSION, EnrolRequest},
        server::{AddHost, HostView},
    },
    error::chain,
    finding::{Finding, FindingId},
    host::HostFacts,
    id::HostId,
    pin::EnrolmentToken,
};
use std::sync::Arc;
use uuid::Uuid;

use super::{App, check_name, invalid, show_hosts};
use crate::{
    failure::Failure,
    store::{HostRecord, HostSettings, StoreError},
};

pub(crate) async fn add_host(app: &Arc<App>, body: &AddHost) -> Result<HostView, Failure> {
    let title = format!("Could not add host {}", body.name);
    check_name(&title, &body.name)?;
    let token: EnrolmentToken = body.token.parse().map_err(|error: ferry_core::pin::NotAToken| {
        let fix = "Print the token on the host with `ferry-agent token` and give the whole line";
        Failure::found(&title, Finding::blocks(FindingId::AuthEnrolment, &body.name, error.to_string(), fix))
    })?;
    // Before the agent is called: a secret is used up by being shown.
    for host in app.inventory.hosts() {
        if host.record.name == body.name {
            return Err(twice(&title, &body.name, format!("A host named {} was added before", body.name)));
        }
        if host.record.pin == token.agent_pin {
            let message = format!("The agent that this token is of was added before, as host {}", host.record.name);
            return Err(twice(&title, &host.record.name, message));
        }
    }
    let agent = app.inventory.agent(&body.address, token.agent_pin).map_err(|error| {
        invalid(&title, &body.address, error.to_string(), "Give the agent's ADDRESS:PORT, as in 10.0.0.1:7421")
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
        StoreError::Duplicate => {
            twice(&title, &body.name, format!("Host {} or one like it was added at the same time", body.name))
        }
        other @ (StoreError::Database(_) | StoreError::Content { .. } | StoreError::Newer { .. }) => {
            Failure::Store(other)
        }
    })?;
    tracing::info!(host = record.name, address = record.address, pin = %record.pin, "A host was added");
    let host = app.inventory.add(record, agent);
    host.wait_until(|seen| seen.observation.is_some() || seen.trouble.is_some()).await;
    show_hosts::shown(app, &host).await
}

fn check_facts(app: &App, title: &str, name: &str, facts: &HostFacts) -> Result<(), Failure> {
    if !facts.api_versions.contains(&API_VERSION) {
        let message = format!(
            "The agent on {name} speaks versions {:?} of the agent API, this server version {API_VERSION}",
            facts.api_versions
        );
        let fix = "Upgrade ferry-agent on the host, or the server if it is the older";
        return Err(Failure::found(title, Finding::blocks(FindingId::HostVersion, name, message, fix)));
    }
    for host in app.inventory.hosts() {
        let (which, value) = if host.record.machine_id == facts.machine_id {
            ("machine id (/etc/machine-id)", &facts.machine_id)
        } else if host.record.hypervisor_uuid == facts.hypervisor_uuid {
            ("libvirt host UUID (host_uuid in libvirtd.conf)", &facts.hypervisor_uuid)
        } else {
            continue;
        };
        let message = format!("Host {} has the same {which}: {value}", host.record.name);
        return Err(twice(title, name, message));
    }
    Ok(())
}

fn twice(title: &str, name: &str, message: String) -> Failure {
    let fix =
        "If it is the same host, use it as it is; if it is a clone, give it its own name, machine id and host UUID";
    Failure::found(title, Finding::blocks(FindingId::HostTwice, name, message, fix))
}

fn not_enrolled(title: &str, body: &AddHost, error: &ClientError) -> Failure {
    match error {
        ClientError::WrongKey { .. } => Failure::found(
            title,
            Finding::blocks(
                FindingId::AuthEnrolment,
                &body.name,
                format!("The agent at {} is not the one that this token is of; the secret was not sent", body.address),
                format!("Print the token with `ferry-agent token` on the host whose address is {}", body.address),
            ),
        ),
        ClientError::Unreachable { .. } => Failure::found(
            title,
            Finding::blocks(
                FindingId::HostUnreachable,
                &body.name,
                format!("Nothing at {} answers as an agent: {}", body.address, chain(&error)),
                "Check the address and port, that `ferry-agent run` is running there, and that the firewall lets this server through",
            ),
        ),
        ClientError::Refused(_)
        | ClientError::NotUnderstood { .. }
        | ClientError::OldVersion { .. }
        | ClientError::Unusable { .. } => Failure::of_agent(title, &body.name, error),
    }
}
