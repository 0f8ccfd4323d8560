//! The other host of a move, whose agent or carrier is reached with the keys of one session.

use std::net::SocketAddr;

use ferry_core::{
    error::chain,
    finding::{Command, FindingId, Message},
    id::SessionId,
    network::Route,
    pin::{Pin, Secret},
};
use ferry_trust::{Clients, KeyPair, client_config, server_config};
use ferry_wire::{
    WireError,
    session::{Acceptor, Dialer, SessionKey},
};

use crate::{AgentError, config::Config, refusal::refused};

/// Listens for the source of a session, whose key is known: at the address of the route, if there is one.
///
/// # Errors
/// If no configured port is free there, or the host does not have that address.
pub(crate) async fn listen(
    config: &Config,
    source: Pin,
    session: SessionId,
    secret: Secret,
    route: Option<Route>,
) -> Result<Acceptor, AgentError> {
    let key = KeyPair::load_or_create(&config.key_path())?;
    let tls = server_config(&key, Clients::Only(source))?;
    let ports = config
        .ports()
        .ok_or_else(|| AgentError::failed(format!("data_ports = {:?} is no range", config.data_ports)))?;
    let here = route.map_or(config.data_address, |route| route.destination);
    Acceptor::bind(here, ports, tls, SessionKey { session, secret })
        .await
        .map_err(|error| AgentError::because(format!("No port of {} is free at {here}", config.data_ports), error))
}

/// Creates a dialer to the destination of a session, at the address that it reported and with its known key. It connects
/// from the address of the route, if there is one: routing then takes the interface of that network.
///
/// # Errors
/// If that is not an address, or not that of the route. Nothing is sent.
pub(crate) fn dialer(
    config: &Config,
    address: &str,
    destination: Pin,
    session: SessionId,
    secret: Secret,
    route: Option<Route>,
) -> Result<Dialer, AgentError> {
    let key = KeyPair::load_or_create(&config.key_path())?;
    let address: SocketAddr = address
        .parse()
        .map_err(|_| AgentError::failed(format!("The destination says that it listens at {address:?}")))?;
    let tls = client_config(Some(&key), destination)?;
    let key = SessionKey { session, secret };
    match route {
        None => Ok(Dialer::new(address, tls, key)),
        Some(route) if route.destination == address.ip() => Ok(Dialer::from_here(route.source, address, tls, key)),
        Some(route) => Err(AgentError::failed(format!(
            "The destination listens at {address}, and not in the migration network {}",
            route.network
        ))),
    }
}

/// Why the destination's carrier or agent was not reached: a refusal if a route was given, which another network never
/// replaces.
pub(crate) fn not_reached(address: &str, route: Option<Route>, error: WireError) -> AgentError {
    match route {
        Some(Route { network, source, destination }) if !matches!(error, WireError::Refused(_)) => {
            let (here, there) = (source.to_string(), destination.to_string());
            let message = Message::NetworkSilent {
                network: network.to_string(),
                here: here.clone(),
                there: address.to_owned(),
                reason: chain(&error),
            };
            let fix = Command::CheckNetwork { source: "this host".to_owned(), here, there };
            refused(FindingId::HostNetwork, network, message, fix)
        }
        Some(_) | None => AgentError::because(format!("Could not reach the destination at {address}"), error),
    }
}
