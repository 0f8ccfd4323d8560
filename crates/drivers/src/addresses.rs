//! The addresses of this host.

use std::net::IpAddr;

use ferry_core::{
    error::chain,
    network::{ADDRESSES_MAX, HostAddress},
};
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
    sys::socket::SockaddrStorage,
};
use tracing::warn;

/// Addresses of interfaces that are up and connected, without loopback and link-local ones: at most [`ADDRESSES_MAX`], in
/// the kernel's order. None if the kernel does not list them.
pub fn of_this_host() -> Vec<HostAddress> {
    match getifaddrs() {
        Ok(all) => all.filter_map(usable).take(ADDRESSES_MAX).collect(),
        Err(error) => {
            warn!(error = %chain(&error), "The addresses of this host could not be listed");
            Vec::new()
        }
    }
}

fn usable(found: InterfaceAddress) -> Option<HostAddress> {
    let connected = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
    if !found.flags.contains(connected) || found.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        return None;
    }
    let (address, mask) = (ip(&found.address?)?, ip(&found.netmask?)?);
    let prefix_bits = match mask {
        IpAddr::V4(mask) => u32::from(mask).leading_ones(),
        IpAddr::V6(mask) => u128::from(mask).leading_ones(),
    };
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if is_link_local || address.is_loopback() {
        return None;
    }
    Some(HostAddress { interface: found.interface_name, address, prefix_bits: prefix_bits as u8 })
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(flags: InterfaceFlags, address: &str, mask: &str) -> InterfaceAddress {
        let storage = |text: &str| {
            let address: IpAddr = text.parse().expect("an address");
            Some(SockaddrStorage::from(std::net::SocketAddr::new(address, 0)))
        };
        InterfaceAddress {
            interface_name: "eth0".into(),
            flags,
            address: storage(address),
            netmask: storage(mask),
            broadcast: None,
            destination: None,
        }
    }

    #[test]
    fn only_addresses_that_other_hosts_can_reach_are_told() {
        let up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        let found = |flags, address, mask| usable(interface(flags, address, mask)).map(|found| found.to_string());
        assert_eq!(found(up, "10.77.0.1", "255.255.255.0").as_deref(), Some("10.77.0.1/24"));
        assert_eq!(found(up, "fd00:78::1", "ffff:ffff:ffff:ffff::").as_deref(), Some("fd00:78::1/64"));
        for (row, flags, address, mask) in [
            ("no cable", InterfaceFlags::IFF_UP, "10.77.0.1", "255.255.255.0"),
            ("set down", InterfaceFlags::empty(), "10.77.0.1", "255.255.255.0"),
            ("loopback", up | InterfaceFlags::IFF_LOOPBACK, "10.0.0.9", "255.255.255.255"),
            ("loopback's address", up, "127.0.0.1", "255.0.0.0"),
            ("link-local", up, "169.254.1.1", "255.255.0.0"),
            ("link-local", up, "fe80::1", "ffff:ffff:ffff:ffff::"),
        ] {
            assert_eq!(found(flags, address, mask), None, "{row}");
        }
        let none = InterfaceAddress { address: None, ..interface(up, "10.77.0.1", "255.255.255.0") };
        assert_eq!(usable(none), None, "an address of another family");
        assert!(of_this_host().len() <= ADDRESSES_MAX);
    }
}
