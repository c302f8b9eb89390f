//! The table of hostPorts.
//!
//! ```text
//!  prerouting -300 (refuse_loopback)   prerouting -99 (arrive)   output -99 (leave)         postrouting 95 (translate)
//!  pod to 127.0.0.0/8: dropped         to an own address and a port in the maps: to the pod   127.0.0.1 into a pod: masquerade
//! ```
//!
//! After kube-proxy's and everybody's destination NAT at -100: an address that is a service's stays the service's, as with the
//! reference plugin. Replies and later packets are connection tracking's.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use mesh_core::policy::model::Protocol;

use crate::facts::pod::HostPort;
use crate::nft::model::{
    Chain, ChainType, Direction, Elements, End, Family, Hook, InterfaceName, Is, Match, Policy, Port,
    PortMap, Ranges, Rule, Set, Table, Verdict,
};

/// Name of the table, of family `inet`.
pub const TABLE: &str = "hawser_hostports";

/// Names of counters (the comments of the rules that count).
pub mod counter {
    /// Flows to a hostPort, from outside or from another pod. A nat chain counts first packets only.
    pub const HOST_PORT_IN: &str = "host_port_in";
    /// Flows of the node itself to a hostPort.
    pub const HOST_PORT_LOCAL: &str = "host_port_local";
    /// Flows of the node to a hostPort at 127.0.0.0/8, whose source was translated.
    pub const HOST_PORT_LOOPBACK: &str = "host_port_loopback";
    /// Packets of pods to the node's loopback, dropped.
    pub const LOOPBACK_REFUSED: &str = "loopback_refused";
    /// All of them.
    pub const ALL: [&str; 4] = [HOST_PORT_IN, HOST_PORT_LOCAL, HOST_PORT_LOOPBACK, LOOPBACK_REFUSED];
}

/// Behind everybody's -100.
const PRIORITY_DNAT: i32 = -99;
/// As our other table: before everybody's masquerade at 100.
const PRIORITY_SNAT: i32 = 95;
/// `raw`: what is for the loopback has not been translated here, so that it was sent there.
const PRIORITY_REFUSE: i32 = -300;

/// A hostPort with the addresses of the pod behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The port.
    pub port: HostPort,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
}

impl Published {
    /// Number of the transport protocol.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.port.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// Does it lead from 127.0.0.0/8, too?
    #[must_use]
    pub fn on_loopback(&self) -> bool {
        let at = |ip: IpAddr| ip.is_unspecified() || (ip.is_ipv4() && ip.is_loopback());
        self.port.host_ip.is_none_or(at) && self.ips.iter().any(IpAddr::is_ipv4)
    }

    /// Entries of the maps: per family that is meant and that the pod has.
    fn entries(&self) -> impl Iterator<Item = (Port, SocketAddr)> {
        let host_ip = self.port.host_ip;
        // 0.0.0.0 stands for IPv4 alone; :: and none for both families.
        let meant = move |ip: &&IpAddr| match host_ip {
            None => true,
            Some(at) if at.is_unspecified() && at.is_ipv6() => true,
            Some(at) => at.is_ipv4() == ip.is_ipv4(),
        };
        let address = host_ip.filter(|ip| !ip.is_unspecified());
        let port = Port { address, protocol: self.protocol(), port: self.port.host_port };
        self.ips.iter().filter(meant).map(move |ip| (port, SocketAddr::new(*ip, self.port.container_port)))
    }
}

const LOOPBACK_V4: &str = "loopback_v4";
const LOOPBACK_V6: &str = "loopback_v6";

/// The desired table; none: there is nothing to serve. `veths` is how pods' links begin.
#[must_use]
pub fn ruleset(published: &[Published], veths: &str) -> Option<Table> {
    if published.is_empty() {
        return None;
    }
    let loopback_v4 = Ranges::of_nets(Family::V4, &["127.0.0.0/8".parse().expect("invariant: a prefix")]);
    let loopback_v6 = Ranges::of_addresses(Family::V6, &[Ipv6Addr::LOCALHOST.into()]);
    let mut sets = vec![
        Set { name: LOOPBACK_V4.to_owned(), elements: Elements::Addresses(loopback_v4) },
        Set { name: LOOPBACK_V6.to_owned(), elements: Elements::Addresses(loopback_v6) },
    ];
    let mut arrive = base("arrive", ChainType::Nat, Hook::Prerouting, PRIORITY_DNAT);
    let mut leave = base("leave", ChainType::Nat, Hook::Output, PRIORITY_DNAT);
    for family in Family::BOTH {
        // What names an address comes first, though no two pods can want both.
        for by_address in [true, false] {
            let name = format!("{}_{family}", if by_address { "at" } else { "any" });
            let entries = published.iter().flat_map(Published::entries);
            let map = PortMap::of(family, by_address, entries);
            sets.push(Set { name: name.clone(), elements: Elements::Ports(map) });
            // Maps may be empty: the rules are always the same.
            for (chain, comment) in
                [(&mut arrive, counter::HOST_PORT_IN), (&mut leave, counter::HOST_PORT_LOCAL)]
            {
                chain.rules.push(rule(comment, to_own_address(family), Verdict::Dnat(name.clone())));
            }
        }
    }
    let from_pod = Match::Interface(Direction::In, Is::Yes, InterfaceName::Prefix(veths.to_owned()));
    let to_loopback = Match::AddressIn(Family::V4, End::Destination, Is::Yes, LOOPBACK_V4.to_owned());
    let mut refuse = base("refuse_loopback", ChainType::Filter, Hook::Prerouting, PRIORITY_REFUSE);
    refuse.rules.push(rule(counter::LOOPBACK_REFUSED, vec![from_pod, to_loopback], Verdict::Drop));
    let into_pod = Match::Interface(Direction::Out, Is::Yes, InterfaceName::Prefix(veths.to_owned()));
    let from_loopback = Match::AddressIn(Family::V4, End::Source, Is::Yes, LOOPBACK_V4.to_owned());
    let mut translate = base("translate", ChainType::Nat, Hook::Postrouting, PRIORITY_SNAT);
    translate.rules.push(rule(
        counter::HOST_PORT_LOOPBACK,
        vec![into_pod, from_loopback],
        Verdict::Masquerade,
    ));
    Some(Table { name: TABLE.to_owned(), sets, chains: vec![refuse, arrive, leave, translate] })
}

/// To an address of this node, of this family, but for ::1: the kernel has no way off the loopback for that.
fn to_own_address(family: Family) -> Vec<Match> {
    let mut matches = vec![Match::Family(family), Match::LocalDestination];
    if family == Family::V6 {
        matches.push(Match::AddressIn(family, End::Destination, Is::No, LOOPBACK_V6.to_owned()));
    }
    matches
}

fn base(name: &str, kind: ChainType, hook: Hook, priority: i32) -> Chain {
    Chain { name: name.to_owned(), kind, hook, priority, policy: Policy::Accept, rules: Vec::new() }
}

fn rule(comment: &str, matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { matches, verdict, counter: true, comment: comment.to_owned() }
}

#[cfg(test)]
mod tests;
