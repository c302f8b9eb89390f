//! What is worth asking in a world: addresses at the borders of its blocks, ports at the borders of its ranges.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;

use super::RandomFacts;
use crate::policy::model::{
    ClusterPort, ClusterProtocol, ClusterRule, Flow, PolicyFacts, PolicyPeer, PolicyPort, PortRef, Protocol,
};

/// ICMP, ICMPv6 and GRE: what has no ports.
const PORTLESS: [u8; 3] = [1, 58, 47];

/// What could make a difference in a world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interesting {
    /// Of pods and nodes, at both sides of the borders of blocks, unknown ones and strangers.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of pods, which have policies.
    pub pods: BTreeSet<IpAddr>,
    /// Protocol and destination port: at both sides of the borders of ranges, and protocols without ports.
    pub transports: BTreeSet<(u8, Option<u16>)>,
}

impl Interesting {
    /// All of a world.
    pub fn of(facts: &PolicyFacts) -> Self {
        let pods = facts.pods.values().flat_map(|p| p.ips.iter().copied()).collect();
        Self { addresses: addresses(facts), pods, transports: transports(facts) }
    }

    /// Every flow with a pod at one end.
    pub fn flows(&self) -> impl Iterator<Item = Flow> + '_ {
        self.ends().into_iter().flat_map(|(source, destination)| {
            self.transports.iter().map(move |(protocol, port)| Flow {
                source,
                destination,
                protocol: *protocol,
                port: *port,
            })
        })
    }

    fn ends(&self) -> Vec<(IpAddr, IpAddr)> {
        let all = self.addresses.iter().flat_map(|a| self.addresses.iter().map(move |b| (*a, *b)));
        let wanted = |(a, b): &(IpAddr, IpAddr)| {
            a.is_ipv4() == b.is_ipv4() && (self.pods.contains(a) || self.pods.contains(b))
        };
        all.filter(wanted).collect()
    }
}

/// One flow that could make a difference: of a pod, in a world that has one with an address.
pub fn flow(facts: &RandomFacts) -> impl Strategy<Value = Flow> + use<> {
    let all = Interesting::of(&facts.0);
    let mut ends = all.ends();
    if ends.is_empty() {
        let strangers = all.addresses.iter().filter(|ip| ip.is_ipv4());
        ends.extend(strangers.map(|ip| (*ip, *ip)));
    }
    let transports: Vec<_> = all.transports.into_iter().collect();
    (prop::sample::select(ends), prop::sample::select(transports))
        .prop_map(|((source, destination), (protocol, port))| Flow { source, destination, protocol, port })
}

fn addresses(facts: &PolicyFacts) -> BTreeSet<IpAddr> {
    let mut out: BTreeSet<IpAddr> = facts.pods.values().flat_map(|p| p.ips.iter().copied()).collect();
    out.extend(facts.nodes.values().flat_map(|n| n.ips.iter().copied()));
    // Nobody's, in the cluster's prefixes and outside.
    let strangers = ["10.1.77.7", "fd01::77", "198.51.100.9", "2001:db8:77::1"];
    out.extend(strangers.iter().filter_map(|text| text.parse::<IpAddr>().ok()));
    for cidr in blocks(facts) {
        let Ok(block) = cidr.parse::<IpNet>() else { continue };
        let (first, last) = (block.network(), block.broadcast());
        // Addresses that no packet bears are none.
        let borders = [step(first, false), Some(first), Some(last), step(last, true)];
        out.extend(borders.into_iter().flatten().filter(|ip| !is_mapped(ip)));
    }
    out
}

/// `::ffff:a.b.c.d`, which the data path drops.
fn is_mapped(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

fn step(ip: IpAddr, up: bool) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => {
            let bits = u32::from(ip);
            let next = if up { bits.checked_add(1) } else { bits.checked_sub(1) };
            next.map(|bits| Ipv4Addr::from(bits).into())
        }
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            let next = if up { bits.checked_add(1) } else { bits.checked_sub(1) };
            next.map(|bits| Ipv6Addr::from(bits).into())
        }
    }
}

fn peers(facts: &PolicyFacts) -> impl Iterator<Item = &PolicyPeer> {
    facts.network_policies.values().flat_map(|policy| {
        let from = policy.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
        from.chain(policy.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten()))
    })
}

fn rules(facts: &PolicyFacts) -> impl Iterator<Item = &ClusterRule> {
    facts.cluster_policies.values().flat_map(|policy| policy.ingress.iter().chain(&policy.egress))
}

fn blocks(facts: &PolicyFacts) -> BTreeSet<&str> {
    let ours = peers(facts).filter_map(|peer| peer.ip_block.as_ref());
    let mut out: BTreeSet<&str> =
        ours.flat_map(|block| block.except.iter().chain([&block.cidr])).map(String::as_str).collect();
    let networks =
        rules(facts).flat_map(|rule| rule.from.iter().chain(&rule.to)).filter_map(|p| p.networks.as_ref());
    out.extend(networks.flatten().map(String::as_str));
    out
}

fn transports(facts: &PolicyFacts) -> BTreeSet<(u8, Option<u16>)> {
    let mut numbers: BTreeSet<u16> = [0, 80, 65535].into();
    for number in port_numbers(facts) {
        let near = [number.checked_sub(1), Some(number), number.checked_add(1)];
        numbers.extend(near.into_iter().flatten().filter_map(|n| u16::try_from(n).ok()));
    }
    let with_ports = Protocol::ALL.iter().flat_map(|p| numbers.iter().map(|n| (p.number(), Some(*n))));
    with_ports.chain(PORTLESS.map(|protocol| (protocol, None))).collect()
}

/// Numbers that objects mention.
fn port_numbers(facts: &PolicyFacts) -> BTreeSet<i64> {
    let mut out = BTreeSet::new();
    out.extend(facts.pods.values().flat_map(|p| &p.ports).map(|p| i64::from(p.port)));
    let policies = facts.network_policies.values();
    let ports = policies.flat_map(|policy| {
        let ingress = policy.ingress.iter().flatten().flat_map(|rule| rule.ports.iter().flatten());
        ingress.chain(policy.egress.iter().flatten().flat_map(|rule| rule.ports.iter().flatten()))
    });
    for PolicyPort { port, end_port, .. } in ports {
        if let Some(PortRef::Number(number)) = port {
            out.insert(*number);
        }
        out.extend(end_port);
    }
    for entry in rules(facts).flat_map(|rule| rule.protocols.iter().flatten()) {
        let ClusterProtocol { tcp, udp, sctp, .. } = entry;
        let ports = [tcp, udp, sctp].into_iter().flatten().filter_map(|p| p.destination_port.as_ref());
        for ClusterPort { number, range } in ports {
            out.extend(number);
            out.extend(range.iter().flat_map(|r| [r.start, r.end]));
        }
    }
    out
}
