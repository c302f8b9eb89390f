use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::nft::encode;

fn published(protocol: Protocol, host_ip: Option<&str>, host_port: u16, to: &[&str], port: u16) -> Published {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    Published {
        port: HostPort { protocol, host_port, host_ip, container_port: port },
        ips: to.iter().map(|ip| ip.parse().unwrap()).collect(),
    }
}

/// Where a packet to an address of the node goes: rule by rule, as nf_tables documents.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "a match that these chains do not use is a failure of the test"
)]
fn evaluate(table: &Table, chain: &str, to: (u8, SocketAddr)) -> Option<SocketAddr> {
    let chain = table.chains.iter().find(|found| found.name == chain).expect("the chain exists");
    let set =
        |name: &String| &table.sets.iter().find(|set| set.name == *name).expect("the set exists").elements;
    let holds = |wanted: &Match| match wanted {
        Match::Family(family) => Family::of(to.1.ip()) == *family,
        Match::LocalDestination => true,
        Match::AddressIn(family, End::Destination, is, name) => {
            let Elements::Addresses(ranges) = set(name) else { panic!("{name} holds no addresses") };
            Family::of(to.1.ip()) == *family && ranges.contains(to.1.ip()) == (*is == Is::Yes)
        }
        other => panic!("no rule of these chains asks for {other:?}"),
    };
    chain.rules.iter().filter(|rule| rule.matches.iter().all(holds)).find_map(|rule| {
        let Verdict::Dnat(name) = &rule.verdict else { panic!("{rule:?}") };
        let Elements::Ports(map) = set(name) else { panic!("{name} is no map") };
        let address = map.by_address().then_some(to.1.ip());
        map.entries().get(&Port { address, protocol: to.0, port: to.1.port() }).copied()
    })
}

fn host_ports() -> impl Strategy<Value = Vec<Published>> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let address =
        prop::sample::select(vec![None, Some("0.0.0.0"), Some("::"), Some("192.0.2.1"), Some("2001:db8::1")]);
    let ips = prop::sample::select(vec![
        vec!["10.244.1.5"],
        vec!["fd00::5"],
        vec!["10.244.1.5", "fd00::5"],
        vec!["10.244.1.6", "fd00::6"],
    ]);
    let one = (protocol, address, 1_u16..5, ips, 1_u16..4)
        .prop_map(|(protocol, ip, port, to, container)| published(protocol, ip, port, &to, container));
    prop::collection::vec(one, 0..5)
}

proptest! {
    #[test]
    fn a_packet_goes_to_a_pod_that_published_its_port_at_its_address_or_past_all(
        all in host_ports(), protocol in prop::sample::select(vec![1_u8, 6, 17, 132]), port in 0_u16..6,
        at in prop::sample::select(vec!["192.0.2.1", "192.0.2.9", "127.0.0.1", "2001:db8::1", "2001:db8::9", "::1"]),
    ) {
        let Some(table) = ruleset(&all, "hw") else { prop_assert!(all.is_empty()); return Ok(()) };
        prop_assert!(encode::replace(&table, &Default::default()).is_ok());
        let at: IpAddr = at.parse().unwrap();
        let serves = |published: &&Published| {
            let ip = match published.port.host_ip {
                None => true,
                Some(ip) if ip.is_unspecified() => ip.is_ipv6() || at.is_ipv4(),
                Some(ip) => ip == at,
            };
            let number = match published.port.protocol { Protocol::Tcp => 6, Protocol::Udp => 17, Protocol::Sctp => 132 };
            ip && number == protocol && published.port.host_port == port && at.to_string() != "::1"
        };
        let wanted: BTreeSet<SocketAddr> = all.iter().filter(serves).flat_map(|published| {
            let own = published.ips.iter().filter(|ip| ip.is_ipv4() == at.is_ipv4());
            own.map(|ip| SocketAddr::new(*ip, published.port.container_port))
        }).collect();
        for chain in ["arrive", "leave"] {
            let found = evaluate(&table, chain, (protocol, SocketAddr::new(at, port)));
            prop_assert_eq!(found.is_some(), !wanted.is_empty());
            prop_assert!(found.is_none_or(|found| wanted.contains(&found)), "{:?} of {:?}", found, wanted);
        }
    }
}

#[test]
fn every_rule_counts_under_a_name_of_the_list() {
    let table = ruleset(&[published(Protocol::Tcp, None, 80, &["10.244.1.5"], 8080)], "hw").unwrap();
    let rules = table.chains.iter().flat_map(|chain| &chain.rules);
    let names: BTreeSet<_> =
        rules.inspect(|rule| assert!(rule.counter)).map(|rule| rule.comment.clone()).collect();
    assert_eq!(names, counter::ALL.iter().map(|name| (*name).to_owned()).collect());
}

#[test]
fn the_loopback_is_opened_for_ports_that_are_there_alone() {
    for (host_ip, ips, on) in [
        (None, &["10.244.1.5"][..], true),
        (None, &["fd00::5"], false),
        (Some("0.0.0.0"), &["10.244.1.5"], true),
        (Some("127.0.0.1"), &["10.244.1.5"], true),
        (Some("192.0.2.1"), &["10.244.1.5"], false),
    ] {
        assert_eq!(published(Protocol::Tcp, host_ip, 80, ips, 80).on_loopback(), on, "{host_ip:?} {ips:?}");
    }
}
