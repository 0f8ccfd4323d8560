//! The other host of a move, whose agent or carrier is reached with the keys of one session.

use std::net::SocketAddr;

use ferry_core::{
    id::SessionId,
    pin::{Pin, Secret},
};
use ferry_trust::{Clients, KeyPair, client_config, server_config};
use ferry_wire::session::{Acceptor, Dialer, SessionKey};

use crate::{AgentError, config::Config};

/// Listens for the source of a session, whose key is known.
///
/// # Errors
/// If no configured port is free.
pub(crate) async fn listen(
    config: &Config,
    source: Pin,
    session: SessionId,
    secret: Secret,
) -> Result<Acceptor, AgentError> {
    let key = KeyPair::load_or_create(&config.key_path())?;
    let tls = server_config(&key, Clients::Only(source))?;
    let ports = config
        .ports()
        .ok_or_else(|| AgentError::failed(format!("data_ports = {:?} is no range", config.data_ports)))?;
    Acceptor::bind(config.data_address, ports, tls, SessionKey { session, secret }).await.map_err(|error| {
        AgentError::because(format!("No port of {} is free at {}", config.data_ports, config.data_address), error)
    })
}

/// Creates a dialer to the destination of a session, at the address that it reported and with its known key.
///
/// # Errors
/// If that is not an address. Nothing is sent.
pub(crate) fn dialer(
    config: &Config,
    address: &str,
    destination: Pin,
    session: SessionId,
    secret: Secret,
) -> Result<Dialer, AgentError> {
    let key = KeyPair::load_or_create(&config.key_path())?;
    let address: SocketAddr = address
        .parse()
        .map_err(|_| AgentError::failed(format!("The destination says that it listens at {address:?}")))?;
    let tls = client_config(Some(&key), destination)?;
    Ok(Dialer::new(address, tls, SessionKey { session, secret }))
}
