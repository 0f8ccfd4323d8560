//! Which server may call this agent.
//!
//! `ferry-agent setup` creates a single-use secret. The server that presents it becomes the agent's server: the key of
//! its connection is pinned, and the secret is deleted.

use std::{path::PathBuf, sync::Mutex};

use ferry_core::{
    api::agent::EnrolRequest,
    finding::{Action, ByHand, Command, Finding, FindingId, Message},
    id::HostId,
    pin::{EnrolmentToken, Pin, Secret},
};
use ferry_trust::{random_secret, same_secret};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{AgentError, config::Config, lock::lock, records};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Server {
    host: HostId,
    pin: Pin,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Pending {
    secret: Secret,
}

/// The server that may call, kept in `enrolment.json`; the unused secret is in `enrolment.secret`.
pub struct Enrolment {
    server_path: PathBuf,
    secret_path: PathBuf,
    epoch_path: PathBuf,
    server: Mutex<Option<Server>>,
    /// The newest epoch of that server seen so far.
    epoch: Mutex<u64>,
    host: watch::Sender<Option<HostId>>,
}

impl Enrolment {
    /// Reads the existing enrolment.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load(config: &Config) -> Result<Self, AgentError> {
        let server_path = config.state_dir.join("enrolment.json");
        let server: Option<Server> = records::read_json(&server_path)?;
        let epoch_path = config.state_dir.join("epoch.json");
        Ok(Self {
            secret_path: config.state_dir.join("enrolment.secret"),
            epoch: Mutex::new(records::read_json(&epoch_path)?.unwrap_or(0)),
            epoch_path,
            server_path,
            server: Mutex::new(server),
            host: watch::Sender::new(server.map(|server| server.host)),
        })
    }

    /// Creates a token for the next server; it replaces any earlier one.
    ///
    /// # Errors
    /// If the secret cannot be stored.
    pub fn new_token(&self, agent_pin: Pin) -> Result<EnrolmentToken, AgentError> {
        let secret = random_secret();
        records::write_json(&self.secret_path, &Pending { secret })?;
        Ok(EnrolmentToken { agent_pin, secret })
    }

    /// Enrols the server with key `pin` if it presents the secret; the same server may repeat it.
    ///
    /// # Errors
    /// `auth.enrolment` (403) for a wrong or used secret.
    pub fn enrol(&self, pin: Pin, request: &EnrolRequest) -> Result<(), AgentError> {
        let mut server = lock(&self.server);
        let requested = Server { host: request.host, pin };
        if *server == Some(requested) {
            return Ok(());
        }
        self.check_secret(request)?;
        // Each server counts its own epochs.
        let mut epoch = lock(&self.epoch);
        records::write_json(&self.epoch_path, &0)?;
        *epoch = 0;
        records::write_json(&self.server_path, &requested)?;
        records::remove(&self.secret_path)?;
        *server = Some(requested);
        self.host.send_replace(Some(requested.host));
        Ok(())
    }

    /// Whether [`Enrolment::enrol`] would succeed. Changes nothing.
    ///
    /// # Errors
    /// As [`Enrolment::enrol`].
    pub fn check(&self, pin: Pin, request: &EnrolRequest) -> Result<(), AgentError> {
        let server = *lock(&self.server);
        match server == Some(Server { host: request.host, pin }) {
            true => Ok(()),
            false => self.check_secret(request),
        }
    }

    fn check_secret(&self, request: &EnrolRequest) -> Result<(), AgentError> {
        let pending: Option<Pending> = records::read_json(&self.secret_path)?;
        if !pending.is_some_and(|pending| same_secret(&pending.secret, &request.secret)) {
            return Err(AgentError::refused(
                403,
                Finding::blocks(FindingId::AuthEnrolment, "enrolment token", Message::TokenUsed, Command::PrintToken),
            ));
        }
        Ok(())
    }

    /// Checks that the caller with this key is the agent's server.
    ///
    /// # Errors
    /// `auth.key` (403) if not.
    pub fn authorise(&self, caller: Pin) -> Result<(), AgentError> {
        match *lock(&self.server) {
            Some(server) if server.pin == caller => Ok(()),
            Some(_) | None => Err(AgentError::refused(
                403,
                Finding::blocks(FindingId::AuthKey, caller, Message::KeyIsOther, Action::AddHostAnew),
            )),
        }
    }

    /// Enters an epoch of the server. Ok promises that no later request of an earlier epoch is accepted, even after a
    /// restart of this agent.
    ///
    /// # Errors
    /// `request.stale` (409) for an epoch before the newest; or if the epoch could not be stored.
    pub fn enter_epoch(&self, epoch: u64) -> Result<(), AgentError> {
        let mut newest = lock(&self.epoch);
        if epoch < *newest {
            return Err(AgentError::refused(
                409,
                Finding::blocks(
                    FindingId::RequestStale,
                    "server",
                    Message::StaleServer { epoch, newest: *newest },
                    ByHand::ServerAsksAnew,
                ),
            ));
        }
        if epoch > *newest {
            records::write_json(&self.epoch_path, &epoch)?;
            *newest = epoch;
        }
        Ok(())
    }

    /// The host's id, once the agent is enrolled.
    pub fn watch_host(&self) -> watch::Receiver<Option<HostId>> {
        self.host.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_secret_enrols_one_server_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let config =
            Config { state_dir: folder.path().into(), ..Config::new("127.0.0.1:1".parse().expect("an address")) };
        let enrolment = Enrolment::load(&config).expect("empty");
        let (server, other) = (Pin([1; 32]), Pin([2; 32]));
        let token = enrolment.new_token(Pin([9; 32])).expect("stored");
        let request = EnrolRequest { secret: token.secret, host: HostId(Uuid::from_u128(1)) };
        assert!(enrolment.authorise(server).is_err(), "nobody before enrolment");
        let wrong = EnrolRequest { secret: random_secret(), ..request.clone() };
        assert!(enrolment.enrol(server, &wrong).is_err());
        enrolment.enrol(server, &request).expect("the right secret");
        enrolment.enrol(server, &request).expect("the same server may repeat it");
        assert!(enrolment.enrol(other, &request).is_err(), "the secret is used");
        assert!(enrolment.authorise(server).is_ok() && enrolment.authorise(other).is_err());
        let again = Enrolment::load(&config).expect("stored");
        assert!(again.authorise(server).is_ok());
        again.enter_epoch(7).expect("a first life");
        again.enter_epoch(7).expect("the same life");
        assert!(again.enter_epoch(6).is_err(), "an earlier life");
        let again = Enrolment::load(&config).expect("stored");
        assert!(again.enter_epoch(6).is_err(), "also after a restart");
        let token = again.new_token(Pin([9; 32])).expect("stored");
        again.enrol(other, &EnrolRequest { secret: token.secret, ..request }).expect("a new token, a new server");
        assert!(again.authorise(server).is_err(), "one server at a time");
        again.enter_epoch(1).expect("another server counts on its own");
    }
}
