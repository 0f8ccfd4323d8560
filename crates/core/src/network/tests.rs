use proptest::prelude::*;

use super::*;

fn subnet(text: &str) -> Subnet {
    text.parse().expect(text)
}

fn networks(texts: &[&str]) -> MigrationNetworks {
    texts.iter().map(|text| subnet(text)).collect::<Vec<_>>().try_into().expect("few")
}

/// Addresses of one host, `ADDRESS/BITS`.
fn addresses(texts: &[&str]) -> Vec<HostAddress> {
    let one = |text: &&str| {
        let (address, bits) = text.split_once('/').expect("an address and a prefix");
        let (address, prefix_bits) = (address.parse().expect(text), bits.parse().expect(text));
        HostAddress { interface: "eth0".into(), address, prefix_bits }
    };
    texts.iter().map(one).collect()
}

/// The route between hosts with these networks and addresses, in short.
fn found(source: (&[&str], &[&str]), destination: (&[&str], &[&str])) -> String {
    let (here, there) = (addresses(source.1), addresses(destination.1));
    let source = End { networks: networks(source.0), addresses: &here };
    let destination = End { networks: networks(destination.0), addresses: &there };
    match route(source, destination) {
        Ok(None) => "any".to_owned(),
        Ok(Some(route)) => route.to_string(),
        Err(NoRoute) => "none".to_owned(),
    }
}

#[test]
fn a_subnet_is_written_with_its_first_address_and_its_prefix() {
    for text in ["10.78.0.0/24", "0.0.0.0/0", "10.78.0.1/32", "fd00:78::/64", "::/0", "fd00::1/128"] {
        assert_eq!(subnet(text).to_string(), text);
        let json = format!("\"{text}\"");
        assert_eq!(serde_json::to_string(&subnet(text)).expect("JSON"), json);
        assert_eq!(serde_json::from_str::<Subnet>(&json).expect("read"), subnet(text));
    }
    for text in
        ["", "10.78.0.0", "10.78.0/24", "10.78.0.0/33", "10.78.0.0/-1", "10.78.0.0/+8", "::/129", "x/8", "10.78.0.0/"]
    {
        assert_eq!(text.parse::<Subnet>(), Err(NetworkError::Form(text.to_owned())));
    }
    for (text, meant) in [("10.78.0.5/24", "10.78.0.0/24"), ("fd00:78::1/64", "fd00:78::/64")] {
        let error = text.parse::<Subnet>().expect_err(text);
        assert_eq!(error, NetworkError::Address { text: text.to_owned(), subnet: subnet(meant) });
        assert!(error.to_string().contains(meant), "{error}");
    }
}

#[test]
fn a_host_has_at_most_eight_networks_and_each_once() {
    let all: Vec<Subnet> = (0..9).map(|number| subnet(&format!("10.{number}.0.0/16"))).collect();
    assert_eq!(MigrationNetworks::try_from(all.clone()), Err(NetworkError::TooMany(9)));
    let networks = MigrationNetworks::try_from(all[..8].to_vec()).expect("few");
    assert_eq!(networks.iter().collect::<Vec<_>>(), all[..8], "in their order");
    assert_eq!(networks.to_string().parse(), Ok(networks));
    assert_eq!(serde_json::to_value(networks).expect("JSON"), serde_json::json!(all[..8]));
    assert_eq!("".parse(), Ok(MigrationNetworks::default()));
    assert_eq!(MigrationNetworks::try_from(vec![all[0], all[1], all[0]]), Err(NetworkError::Twice(all[0])));
}

#[test]
fn a_move_uses_the_first_network_in_which_both_hosts_have_an_address() {
    let (here, there): (&[&str], &[&str]) =
        (&["10.77.0.1/24", "10.78.0.1/24", "fd00:78::1/64"], &["10.77.0.2/24", "10.78.0.2/24", "fd00:78::2/64"]);
    let (first, second) = ("10.77.0.0/24 (10.77.0.1 → 10.77.0.2)", "10.78.0.0/24 (10.78.0.1 → 10.78.0.2)");
    for (row, source, destination, expected) in [
        ("no lists", &[][..], &[][..], "any"),
        ("in the source's order", &["10.78.0.0/24", "10.77.0.0/24"], &[], second),
        ("in the source's order, other way", &["10.77.0.0/24", "10.78.0.0/24"], &[], first),
        ("the first does not match", &["10.99.0.0/24", "10.77.0.0/24"], &[], first),
        ("none matches", &["10.99.0.0/24"], &[], "none"),
        ("the source has no list", &[], &["10.78.0.0/24"], second),
        ("the destination lists it too", &["10.77.0.0/24", "10.78.0.0/24"], &["10.78.0.0/24"], second),
        ("the destination lists a larger one", &["10.78.0.0/24"], &["10.78.0.0/16"], second),
        ("the destination lists a smaller one", &["10.78.0.0/16"], &["10.78.0.0/24"], "none"),
        ("the lists have nothing in common", &["10.77.0.0/24"], &["10.78.0.0/24"], "none"),
        ("IPv6", &["fd00:78::/64"], &[], "fd00:78::/64 (fd00:78::1 → fd00:78::2)"),
        ("of any network", &["0.0.0.0/0"], &[], "0.0.0.0/0 (10.77.0.1 → 10.77.0.2)"),
    ] {
        assert_eq!(found((source, here), (destination, there)), expected, "{row}");
    }
}

#[test]
fn an_address_that_both_hosts_have_leads_to_neither_and_no_router_is_preferred() {
    let all: &[&str] = &["0.0.0.0/0"];
    let bridge = "192.168.122.1/24";
    let expected = "0.0.0.0/0 (10.77.0.1 → 10.77.0.2)";
    assert_eq!(found((all, &[bridge, "10.77.0.1/24"]), (&[], &[bridge, "10.77.0.2/24"])), expected);
    assert_eq!(found((all, &[bridge]), (&[], &[bridge])), "none");
    assert_eq!(found((all, &[bridge, "10.77.0.1/24"]), (&[], &[bridge])), "none");
    let direct = found((all, &["10.1.0.1/24", "10.77.0.1/24"]), (&[], &["10.2.0.1/24", "10.77.0.2/24"]));
    assert_eq!(direct, expected);
    assert_eq!(found((all, &["10.1.0.1/24"]), (&[], &["10.2.0.1/24"])), "0.0.0.0/0 (10.1.0.1 → 10.2.0.1)", "routed");
    assert_eq!(found((&["10.0.0.0/8"], &["10.1.0.1/24"]), (&[], &["fd00::1/64"])), "none", "of two families");
}

fn any_address() -> impl Strategy<Value = HostAddress> {
    let any = prop_oneof![
        (0_u32..64).prop_map(|low| IpAddr::V4((0x0a00_0000 + low).into())),
        (0_u128..16).prop_map(|low| IpAddr::V6(((0xfd_u128 << 120) + low).into()))
    ];
    (any, 26_u8..33).prop_map(|(address, prefix_bits)| HostAddress { interface: "eth0".into(), address, prefix_bits })
}

fn any_networks() -> impl Strategy<Value = MigrationNetworks> {
    let any = (any_address(), 24_u8..33).prop_map(|(address, bits)| Subnet::of(address.address, bits));
    prop::collection::btree_set(any, 0..4).prop_map(|some| Vec::from_iter(some).try_into().expect("few"))
}

proptest! {
    #[test]
    fn a_route_is_strict_and_there_is_one_whenever_there_can_be_one(
        here in any_networks(), there in any_networks(),
        ours in prop::collection::vec(any_address(), 0..6), theirs in prop::collection::vec(any_address(), 0..6),
    ) {
        let has = |end: &[HostAddress], address: IpAddr| end.iter().any(|each| each.address == address);
        let (source, destination) =
            (End { networks: here, addresses: &ours }, End { networks: there, addresses: &theirs });
        let order = if here.is_empty() { there } else { here };
        let allowed = |network: &Subnet| [here, there].iter().all(|list| {
            list.is_empty() || list.iter().any(|each| each.covers(network))
        });
        let possible = |network: Subnet| {
            let usable = |end: &[HostAddress], other: &[HostAddress]| {
                end.iter().any(|each| network.contains(each.address) && !has(other, each.address))
            };
            allowed(&network) && usable(&ours, &theirs) && usable(&theirs, &ours)
        };
        let first = order.iter().find(|network| possible(*network));
        match route(source, destination) {
            Ok(None) => prop_assert!(here.is_empty() && there.is_empty()),
            Err(NoRoute) => prop_assert!(!order.is_empty() && first.is_none()),
            Ok(Some(route)) => {
                prop_assert_eq!(Some(route.network), first);
                prop_assert!(route.network.contains(route.source) && route.network.contains(route.destination));
                prop_assert!(has(&ours, route.source) && !has(&theirs, route.source));
                prop_assert!(has(&theirs, route.destination) && !has(&ours, route.destination));
            }
        }
    }
}
