//! Migration networks: the subnets in which a host's moves travel, and which addresses a move uses.
//!
//! ```text
//! source's list ──────┐
//! destination's list ─┼─ route ─▶ Route: a subnet and an address of each host in it
//! addresses of both ──┘       └─▶ NoRoute: the move is refused; another network is never used instead
//! ```
//! Without lists there is no route: the destination listens at the address in its agent's configuration.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Limit of migration networks per host: they are an order of preference, written by a person.
pub const NETWORKS_MAX: usize = 8;
/// Limit of addresses that a host reports: each is compared with each of another host.
pub const ADDRESSES_MAX: usize = 32;

/// Why a text is not a list of migration networks.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NetworkError {
    /// It is not an address and a prefix length.
    #[error("{0:?} is no subnet: write one as in 10.78.0.0/24 or fd00:78::/64")]
    Form(String),
    /// It is the address of a host.
    #[error("{text} is an address in the subnet {subnet}: write that")]
    Address {
        /// What was given.
        text: String,
        /// The subnet of that address.
        subnet: Subnet,
    },
    /// There are more than [`NETWORKS_MAX`].
    #[error("There are {0} migration networks; give at most {NETWORKS_MAX}")]
    TooMany(usize),
    /// One is there twice.
    #[error("{0} is given twice")]
    Twice(Subnet),
}

/// A subnet, written `ADDRESS/BITS`; all bits after the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    first: IpAddr,
    prefix_bits: u8,
}

impl Subnet {
    /// The subnet of an address; a prefix longer than the address counts as one of its length.
    pub fn of(address: IpAddr, prefix_bits: u8) -> Self {
        match address {
            IpAddr::V4(address) => {
                let prefix_bits = prefix_bits.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix_bits)).unwrap_or(0);
                Self { first: IpAddr::V4((u32::from(address) & mask).into()), prefix_bits }
            }
            IpAddr::V6(address) => {
                let prefix_bits = prefix_bits.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix_bits)).unwrap_or(0);
                Self { first: IpAddr::V6((u128::from(address) & mask).into()), prefix_bits }
            }
        }
    }

    /// Whether the address lies in it. An IPv4 address never lies in an IPv6 subnet, nor the reverse.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && Self::of(address, self.prefix_bits) == *self
    }

    /// Whether all of the other subnet lies in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix_bits <= other.prefix_bits && self.contains(other.first)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_bits)
    }
}

impl FromStr for Subnet {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let form = || NetworkError::Form(text.to_owned());
        let (address, bits) = text.split_once('/').ok_or_else(form)?;
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let is_number = bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = bits.parse().ok().filter(|bits| is_number && *bits <= most).ok_or_else(form)?;
        let subnet = Self::of(address, bits);
        if subnet.first != address {
            return Err(NetworkError::Address { text: text.to_owned(), subnet });
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

/// A host's migration networks in order of preference: at most [`NETWORKS_MAX`], each once. Empty: its moves travel
/// where its agent's configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Subnet>", into = "Vec<Subnet>")]
pub struct MigrationNetworks([Option<Subnet>; NETWORKS_MAX]);

impl MigrationNetworks {
    /// Each, in order.
    pub fn iter(&self) -> impl Iterator<Item = Subnet> {
        self.0.iter().copied().flatten()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }
}

impl TryFrom<Vec<Subnet>> for MigrationNetworks {
    type Error = NetworkError;

    fn try_from(subnets: Vec<Subnet>) -> Result<Self, NetworkError> {
        if subnets.len() > NETWORKS_MAX {
            return Err(NetworkError::TooMany(subnets.len()));
        }
        let mut networks = Self::default();
        for (place, subnet) in subnets.into_iter().enumerate() {
            if networks.iter().any(|other| other == subnet) {
                return Err(NetworkError::Twice(subnet));
            }
            networks.0[place] = Some(subnet);
        }
        Ok(networks)
    }
}

impl From<MigrationNetworks> for Vec<Subnet> {
    fn from(networks: MigrationNetworks) -> Self {
        networks.iter().collect()
    }
}

/// As it is stored: with a comma between two.
impl fmt::Display for MigrationNetworks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<String> = self.iter().map(String::from).collect();
        f.write_str(&networks.join(","))
    }
}

impl FromStr for MigrationNetworks {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let subnets = text.split(',').filter(|subnet| !subnet.is_empty()).map(str::parse);
        subnets.collect::<Result<Vec<_>, _>>()?.try_into()
    }
}

/// An address at which other hosts may reach a host: of an interface that is up, and neither loopback nor link-local.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HostAddress {
    /// The interface's name in the kernel.
    pub interface: String,
    /// The address.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub address: IpAddr,
    /// Length of the prefix of the network that the interface is in, in bits.
    pub prefix_bits: u8,
}

impl HostAddress {
    /// Whether the interface reaches the address without a router.
    fn reaches(&self, address: IpAddr) -> bool {
        Subnet::of(self.address, self.prefix_bits).contains(address)
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// Where the bytes of a move travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Route {
    /// The migration network.
    pub network: Subnet,
    /// The address from which the source connects.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub source: IpAddr,
    /// The address at which the destination listens.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub destination: IpAddr,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} → {})", self.network, self.source, self.destination)
    }
}

/// One host of a move.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Its migration networks.
    pub networks: MigrationNetworks,
    /// Its addresses.
    pub addresses: &'a [HostAddress],
}

/// No migration network of the hosts connects them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoute;

/// The route of a move; `None`: neither host has migration networks.
///
/// It is in the first subnet of the source's list (the destination's, if the source has none) that the other list
/// covers, if there is one, and in which both hosts have an address. Addresses that both hosts have, such as those of
/// bridges for VMs, lead to neither. Among several pairs, one that needs no router comes first, then the order of the
/// addresses.
///
/// # Errors
/// [`NoRoute`] if there is no such subnet.
pub fn route(source: End<'_>, destination: End<'_>) -> Result<Option<Route>, NoRoute> {
    let (order, other) = match (source.networks.is_empty(), destination.networks.is_empty()) {
        (true, true) => return Ok(None),
        (true, false) => (destination.networks, source.networks),
        (false, _) => (source.networks, destination.networks),
    };
    let allowed = |network: &Subnet| other.is_empty() || other.iter().any(|other| other.covers(network));
    let found = order.iter().filter(allowed).find_map(|network| route_in(network, source, destination));
    found.map(Some).ok_or(NoRoute)
}

fn route_in(network: Subnet, source: End<'_>, destination: End<'_>) -> Option<Route> {
    let (ours, theirs) = (usable(network, source, destination), usable(network, destination, source));
    let direct = ours.iter().find_map(|here| {
        let is_direct = |there: &&&HostAddress| here.reaches(there.address) && there.reaches(here.address);
        Some((*here, *theirs.iter().find(is_direct)?))
    });
    let (here, there) = direct.or_else(|| Some((*ours.first()?, *theirs.first()?)))?;
    Some(Route { network, source: here.address, destination: there.address })
}

/// The addresses of one host in a network that the other does not have, too.
fn usable<'a>(network: Subnet, end: End<'a>, other: End<'_>) -> Vec<&'a HostAddress> {
    let is_of_both = |address: &HostAddress| other.addresses.iter().any(|other| other.address == address.address);
    let addresses = end.addresses.iter();
    addresses.filter(|address| network.contains(address.address) && !is_of_both(address)).collect()
}

#[cfg(feature = "schema")]
mod schema {
    //! Subnets are strings; what is derived would show how they are kept.

    use utoipa::{
        PartialSchema, ToSchema,
        openapi::{
            Ref, RefOr, Schema,
            schema::{ArrayBuilder, ObjectBuilder, Type},
        },
    };

    use super::{MigrationNetworks, NETWORKS_MAX, Subnet};

    impl PartialSchema for Subnet {
        fn schema() -> RefOr<Schema> {
            let text = ObjectBuilder::new().schema_type(Type::String);
            text.description(Some("A subnet, `ADDRESS/BITS`; all bits after the prefix are zero")).build().into()
        }
    }

    impl ToSchema for Subnet {}

    impl PartialSchema for MigrationNetworks {
        fn schema() -> RefOr<Schema> {
            let list = ArrayBuilder::new().items(RefOr::Ref(Ref::from_schema_name("Subnet")));
            let list = list.max_items(Some(NETWORKS_MAX));
            list.description(Some("Subnets in order of preference, each once")).build().into()
        }
    }

    impl ToSchema for MigrationNetworks {
        fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
            schemas.push(("Subnet".to_owned(), Subnet::schema()));
        }
    }
}

#[cfg(test)]
mod tests;
