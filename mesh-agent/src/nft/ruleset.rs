//! The desired ruleset: source translation into the mesh and to the world, and the plaintext guard of the uplinks.
//!
//! ```text
//!             prerouting -300        forward 0, 10        postrouting 95 (nat)       postrouting 110
//!             refuse_in              refuse_to_node,      translate                  refuse_out
//!                                    refuse_to_service
//!  uplink ──► guarded address? ─┐                                                ┌─► guarded address? ──► uplink
//!                               ├──► pod to a node or ──► slot: snat to mesh ────┤
//!  pod    ──► (not looked at) ──┘    a Service's          uplink: masquerade     └─► (not looked at)  ──► slot, pod
//!                                    by an uplink?
//! ```
//!
//! Beside these, `refuse_host_out` (postrouting 110): what this node itself would send to a peer outside the tunnel, where both
//! want it inside; and `refuse_host_in` (prerouting -300): the same from a peer, where that is asked for. Chains of their own,
//! so that what is exempt there is exempt from nothing else.
//!
//! Translation is at 95, before anybody's 100: kube-proxy and others masquerade there, and conntrack drops a *masqueraded*
//! flow whose output device changes, which is what a switch of slots does. Every nat chain of postrouting is run by
//! conntrack's one hook at 100, so at 110 the source is what the wire would see.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::numbers::{MARK_REJECT, MARK_WIREGUARD};

use super::model::{
    Chain, ChainType, Direction, Elements, End, Family, Hook, InterfaceName, Is, Match, Policy, Ranges, Rule,
    Set, Table, Verdict,
};

#[cfg(test)]
mod tests;

/// Name of the one table, of family `inet`.
pub const TABLE: &str = "hawser";

/// kube-proxy's wish that the source of a packet be translated (its `--iptables-masquerade-bit`, 14 by default).
pub const KUBE_MASQUERADE_MARK: u32 = 0x4000;

/// Before kube-proxy's and everybody's source NAT at 100.
const PRIORITY_TRANSLATE: i32 = 95;
/// After source NAT at 100: the guard judges the packet as the wire would see it.
const PRIORITY_REFUSE_OUT: i32 = 110;
/// `raw`: before connection tracking (-200) and any destination NAT, after defragmentation (-400).
const PRIORITY_REFUSE_IN: i32 = -300;
const PRIORITY_REFUSE_TO_NODE: i32 = 0;
/// After kube-proxy's at 0, which answers for Services without endpoints that it knows.
const PRIORITY_REFUSE_TO_SERVICE: i32 = 10;

/// Names of counters (the comments of the rules that count).
pub mod counter {
    /// Flows whose source became the mesh address on the way into a slot. A nat chain counts first packets only.
    pub const SNAT_INTO_MESH: &str = "snat_into_mesh";
    /// Flows of own pods to the world. A nat chain counts first packets only.
    pub const MASQUERADED_TO_WORLD: &str = "masqueraded_to_world";
    /// Packets of own pods to another node's address that would have left outside the tunnel.
    pub const LEAK_REFUSED_TO_NODE: &str = "leak_refused_to_node";
    /// Packets of pods to a Service's address that is nobody's, or that this node has not heard of yet, or that it leaves to
    /// somebody else who has chosen a backend on another node.
    pub const SERVICE_UNKNOWN: &str = "service_unknown";
    /// A pod's packet to a service without endpoints, answered by a reset or an ICMP error.
    pub const SERVICE_REJECTED: &str = "service_rejected";
    /// IPv4 packets with a guarded address that would have left outside the tunnel.
    pub const LEAK_REFUSED_OUT_V4: &str = "leak_refused_out_v4";
    /// IPv6 packets with a guarded address that would have left outside the tunnel.
    pub const LEAK_REFUSED_OUT_V6: &str = "leak_refused_out_v6";
    /// IPv4 packets with a guarded address that came in outside the tunnel.
    pub const REFUSED_IN_V4: &str = "refused_in_v4";
    /// IPv6 packets with a guarded address that came in outside the tunnel.
    pub const REFUSED_IN_V6: &str = "refused_in_v6";
    /// IPv4 packets of this node to a peer that would have left outside the tunnel, where both want them inside.
    pub const HOST_REFUSED_OUT_V4: &str = "host_refused_out_v4";
    /// The same of IPv6.
    pub const HOST_REFUSED_OUT_V6: &str = "host_refused_out_v6";
    /// IPv4 packets of a peer to this node that came outside the tunnel, where both want them inside.
    pub const HOST_REFUSED_IN_V4: &str = "host_refused_in_v4";
    /// The same of IPv6.
    pub const HOST_REFUSED_IN_V6: &str = "host_refused_in_v6";
    /// What is exempt from that: WireGuard's own packets, neighbour discovery, exempt TCP ports.
    pub const HOST_EXEMPT: &str = "host_exempt";
    /// All of them.
    pub const ALL: [&str; 14] = [
        SNAT_INTO_MESH,
        MASQUERADED_TO_WORLD,
        LEAK_REFUSED_TO_NODE,
        SERVICE_UNKNOWN,
        SERVICE_REJECTED,
        LEAK_REFUSED_OUT_V4,
        LEAK_REFUSED_OUT_V6,
        REFUSED_IN_V4,
        REFUSED_IN_V6,
        HOST_REFUSED_OUT_V4,
        HOST_REFUSED_OUT_V6,
        HOST_REFUSED_IN_V4,
        HOST_REFUSED_IN_V6,
        HOST_EXEMPT,
    ];
}

/// What the ruleset is made from. Lists may hold either family, overlap, and be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NftInput {
    /// Prefixes that never cross between nodes in plaintext: pod CIDRs of this cluster and of each `ClusterPeer`.
    pub guarded: Vec<IpNet>,
    /// Pod CIDRs of this node.
    pub own_pod_cidrs: Vec<IpNet>,
    /// InternalIPs of this node.
    pub own_node_ips: Vec<IpAddr>,
    /// InternalIPs of the other nodes of the cluster.
    pub peer_node_ips: Vec<IpAddr>,
    /// Mesh addresses of this node, at most one of each family.
    pub mesh: Vec<IpAddr>,
    /// Destinations that pods reach with their own address, outside the tunnel, by the administrator's word. What is
    /// also guarded or the address of a node is *not* exempt: `10.0.0.0/8` must not open the pod CIDRs inside it.
    pub non_masquerade: Vec<IpNet>,
    /// Where Services have their addresses: what of a pod would leave to one of them found nobody who has it. A prefix of
    /// `non_masquerade` that lies in one of them whole is open: its administrator knows that other machines are there.
    pub service_cidrs: Vec<IpNet>,
    /// Services are translated by the data path: what somebody else translated into a slot would be answered past them.
    pub translates: bool,
    /// Names of the WireGuard devices.
    pub slots: [String; 2],
    /// How the host side of every pod's veth begins; no other interface may begin so.
    pub pod_veth_prefix: String,
    /// UDP ports of the slots. No rule mentions them: WireGuard runs between node addresses, which are not guarded
    /// (see [`conflicts`]).
    pub tunnel_ports: [u16; 2],
    /// Nodes' own traffic.
    pub hosts: HostGuard,
}

/// What is refused of nodes' own traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostGuard {
    /// Addresses of peers to which this node sends nothing in plaintext.
    pub closed: Vec<IpAddr>,
    /// From these addresses of its own, and its InternalIPs and pods'.
    pub sources: Vec<IpAddr>,
    /// And takes nothing in plaintext from them.
    pub require: bool,
    /// But TCP with these ports at either end.
    pub exempt_tcp: BTreeSet<u16>,
}

/// A contradiction in an [`NftInput`] that makes the guard stop WireGuard itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "node address {address} lies inside the guarded prefix {prefix}: WireGuard on UDP {} and {} with that address is \
     refused as plaintext; take the node network out of the cluster's pod CIDRs", ports[0], ports[1]
)]
pub struct NodeAddressGuarded {
    /// Address of this node or of a peer.
    pub address: IpAddr,
    /// The guarded prefix or own pod CIDR that holds it.
    pub prefix: IpNet,
    /// The tunnel ports concerned.
    pub ports: [u16; 2],
}

/// Node addresses that the guard would cut off.
#[must_use]
pub fn conflicts(input: &NftInput) -> Vec<NodeAddressGuarded> {
    let prefixes = || input.guarded.iter().chain(&input.own_pod_cidrs);
    let nodes = input.own_node_ips.iter().chain(&input.peer_node_ips);
    let inside =
        nodes.filter_map(|address| prefixes().find(|net| net.contains(address)).map(|net| (*address, *net)));
    inside
        .map(|(address, prefix)| NodeAddressGuarded { address, prefix, ports: input.tunnel_ports })
        .collect()
}

/// The desired table. Same input, same table.
#[must_use]
pub fn ruleset(input: &NftInput) -> Table {
    let sides = Family::BOTH.map(|family| Side::new(family, input));
    let mut sets = vec![Set {
        name: SLOTS.to_owned(),
        elements: Elements::Interfaces(input.slots.iter().cloned().collect()),
    }];
    let mut chains = [
        base("refuse_in", ChainType::Filter, Hook::Prerouting, PRIORITY_REFUSE_IN),
        base("refuse_to_node", ChainType::Filter, Hook::Forward, PRIORITY_REFUSE_TO_NODE),
        base("refuse_to_service", ChainType::Filter, Hook::Forward, PRIORITY_REFUSE_TO_SERVICE),
        base("translate", ChainType::Nat, Hook::Postrouting, PRIORITY_TRANSLATE),
        base("refuse_out", ChainType::Filter, Hook::Postrouting, PRIORITY_REFUSE_OUT),
    ];
    for side in &sides {
        sets.extend(side.sets());
        let [refuse_in, refuse_to_node, refuse_to_service, translate, refuse_out] = &mut chains;
        refuse_in.rules.extend(side.guard(Direction::In, &input.pod_veth_prefix));
        refuse_to_node.rules.extend(side.to_node(&input.pod_veth_prefix));
        refuse_to_service.rules.extend(side.to_service(&input.pod_veth_prefix));
        if input.translates {
            refuse_to_service.rules.extend(side.translated_by_others(&input.pod_veth_prefix));
        }
        translate.rules.extend(side.translate(&input.pod_veth_prefix));
        refuse_out.rules.extend(side.guard(Direction::Out, &input.pod_veth_prefix));
    }
    let [refuse_in, ..] = &mut chains;
    refuse_in.rules.extend(reject_marked(&input.pod_veth_prefix));
    let mut chains: Vec<Chain> = chains.into();
    let veths = input.pod_veth_prefix.as_str();
    if !input.hosts.closed.is_empty() {
        let mut chain = base("refuse_host_out", ChainType::Filter, Hook::Postrouting, PRIORITY_REFUSE_OUT);
        // The mark alone proves nothing: it is one bit, and others' marks may have it, too.
        let from_slot = |port| {
            let marked = Match::Mark { mask: MARK_WIREGUARD, value: MARK_WIREGUARD };
            vec![marked, Match::Protocol(UDP), Match::Port(End::Source, port)]
        };
        chain.rules = host_exempt(input.tunnel_ports.map(from_slot).into(), &input.hosts);
        chain.rules.extend(sides.iter().filter_map(|side| side.host_out(veths)));
        chains.push(chain);
    }
    if !input.hosts.closed.is_empty() && input.hosts.require {
        let mut chain = base("refuse_host_in", ChainType::Filter, Hook::Prerouting, PRIORITY_REFUSE_IN);
        let to_slot = |port| vec![Match::Protocol(UDP), Match::Port(End::Destination, port)];
        chain.rules = host_exempt(input.tunnel_ports.map(to_slot).into(), &input.hosts);
        chain.rules.extend(sides.iter().filter_map(|side| side.host_in(veths)));
        chains.push(chain);
    }
    Table { name: TABLE.to_owned(), sets, chains }
}

/// The data path marks what pods send to a service without endpoints: the stack tells them that nobody is there.
fn reject_marked(veths: &str) -> [Rule; 2] {
    let matches = |more: Option<Match>| {
        let veth = InterfaceName::Prefix(veths.to_owned());
        let mark = Match::Mark { mask: MARK_REJECT, value: MARK_REJECT };
        [Match::Interface(Direction::In, Is::Yes, veth), mark].into_iter().chain(more).collect()
    };
    [
        rule(counter::SERVICE_REJECTED, matches(Some(Match::Protocol(TCP))), Verdict::RejectReset),
        rule(counter::SERVICE_REJECTED, matches(None), Verdict::RejectPort),
    ]
}

/// What nodes say to each other outside the tunnel whatever is closed; what is WireGuard's own, first.
fn host_exempt(wireguard: Vec<Vec<Match>>, hosts: &HostGuard) -> Vec<Rule> {
    let pass = |matches| rule(counter::HOST_EXEMPT, matches, Verdict::Return);
    // RFC 4861: router and neighbour solicitation and advertisement, redirect.
    let discovery = vec![Match::Family(Family::V6), Match::Protocol(58), Match::Icmpv6Type(133, 137)];
    // Who answers from such a port does not open a connection from it.
    let ports = hosts.exempt_tcp.iter().flat_map(|port| {
        let to = vec![Match::Protocol(TCP), Match::Port(End::Destination, *port)];
        let from = vec![Match::Protocol(TCP), Match::Port(End::Source, *port), Match::TcpOpens(Is::No)];
        [from, to]
    });
    wireguard.into_iter().chain([discovery]).chain(ports).map(pass).collect()
}

const TCP: u8 = 6;
const UDP: u8 = 17;

const SLOTS: &str = "slots";

/// The input's share of one family. A set without elements is neither created nor mentioned: what needs an address in
/// it is left out, what needs an address outside it always holds.
struct Side {
    family: Family,
    /// Guarded prefixes, and the own pod CIDRs even where the configuration forgot them.
    guarded: Ranges,
    own_pods: Ranges,
    /// Sources that cryptokey routing of the receiver accepts from this node.
    own: Ranges,
    peers: Ranges,
    exempt: Ranges,
    services: Ranges,
    closed: Ranges,
    /// What this node itself sends bears one of them. Empty where nothing is closed.
    sources: Ranges,
    mesh: Option<IpAddr>,
}

impl Side {
    fn new(family: Family, input: &NftInput) -> Self {
        let own_pods = Ranges::of_nets(family, &input.own_pod_cidrs);
        let guarded = Ranges::of_nets(family, &input.guarded).union(&own_pods);
        let own_nodes = Ranges::of_addresses(family, &input.own_node_ips);
        let peers = Ranges::of_addresses(family, &input.peer_node_ips);
        let exempt =
            Ranges::of_nets(family, &input.non_masquerade).minus(&guarded.union(&own_nodes).union(&peers));
        let own = own_pods.union(&own_nodes);
        let inside = |net: &&IpNet| input.service_cidrs.iter().any(|services| services.contains(*net));
        let opened = Ranges::of_nets(family, input.non_masquerade.iter().filter(inside));
        let closed = Ranges::of_addresses(family, &input.hosts.closed);
        let sources = if closed.is_empty() {
            Ranges::of_addresses(family, [])
        } else {
            own.union(&Ranges::of_addresses(family, &input.hosts.sources))
        };
        Self {
            family,
            own,
            guarded,
            own_pods,
            peers,
            exempt,
            services: Ranges::of_nets(family, &input.service_cidrs).minus(&opened),
            closed,
            sources,
            mesh: input.mesh.iter().copied().find(|address| Family::of(*address) == family),
        }
    }

    fn named(&self) -> [(&'static str, &Ranges); 8] {
        [
            ("guarded", &self.guarded),
            ("own_pods", &self.own_pods),
            ("own", &self.own),
            ("peers", &self.peers),
            ("exempt", &self.exempt),
            ("services", &self.services),
            ("closed", &self.closed),
            ("sources", &self.sources),
        ]
    }

    fn set_name(&self, stem: &str) -> String {
        format!("{stem}_{}", self.family)
    }

    fn sets(&self) -> impl Iterator<Item = Set> {
        self.named().into_iter().filter(|(_, ranges)| !ranges.is_empty()).map(|(stem, ranges)| Set {
            name: self.set_name(stem),
            elements: Elements::Addresses(ranges.clone()),
        })
    }

    fn inside(&self, end: End, stem: &str) -> Match {
        Match::AddressIn(self.family, end, Is::Yes, self.set_name(stem))
    }

    /// Nothing to ask where the set is empty.
    fn outside(&self, end: End, stem: &'static str) -> Option<Match> {
        let empty = self.named().iter().any(|(name, ranges)| *name == stem && ranges.is_empty());
        (!empty).then(|| Match::AddressIn(self.family, end, Is::No, self.set_name(stem)))
    }

    /// A guarded address at one end and no exempt address at the other, by an interface that is none of ours.
    fn guard(&self, direction: Direction, veths: &str) -> Vec<Rule> {
        let comment = match (direction, self.family) {
            (Direction::Out, Family::V4) => counter::LEAK_REFUSED_OUT_V4,
            (Direction::Out, Family::V6) => counter::LEAK_REFUSED_OUT_V6,
            (Direction::In, Family::V4) => counter::REFUSED_IN_V4,
            (Direction::In, Family::V6) => counter::REFUSED_IN_V6,
        };
        if self.guarded.is_empty() {
            return Vec::new();
        }
        let ends = [(End::Destination, End::Source), (End::Source, End::Destination)];
        let rules = ends.into_iter().map(|(guarded, other)| {
            let mut matches = foreign_interface(direction, veths);
            matches.push(self.inside(guarded, "guarded"));
            matches.extend(self.outside(other, "exempt"));
            rule(comment, matches, Verdict::Drop)
        });
        rules.collect()
    }

    /// Of pods. Must stand before the masquerade, which would make it look like traffic of the node itself.
    fn to_node(&self, veths: &str) -> Option<Rule> {
        let refused = || self.forwarded("peers", counter::LEAK_REFUSED_TO_NODE, veths);
        (!self.peers.is_empty()).then(refused)
    }

    /// Dropped and not refused: who speaks to a Service that was just made is not told that nobody is there, and tries again.
    fn to_service(&self, veths: &str) -> Option<Rule> {
        let refused = || self.forwarded("services", counter::SERVICE_UNKNOWN, veths);
        (!self.services.is_empty()).then(refused)
    }

    /// A backend's answer out of the tunnel goes into its pod at once, and would bear the backend's address. kube-proxy may hear
    /// of a Service before we do: dropped, so that the next try finds it with us.
    fn translated_by_others(&self, veths: &str) -> Option<Rule> {
        let matches = || {
            vec![
                Match::Interface(Direction::In, Is::Yes, InterfaceName::Prefix(veths.to_owned())),
                Match::InterfaceIn(Direction::Out, Is::Yes, SLOTS.to_owned()),
                Match::BegunTo(self.family, self.set_name("services")),
            ]
        };
        (!self.services.is_empty()).then(|| rule(counter::SERVICE_UNKNOWN, matches(), Verdict::Drop))
    }

    /// Drops what pods would send by an uplink to what is in a set.
    fn forwarded(&self, set: &str, comment: &str, veths: &str) -> Rule {
        let mut matches =
            vec![Match::Interface(Direction::In, Is::Yes, InterfaceName::Prefix(veths.to_owned()))];
        matches.extend(foreign_interface(Direction::Out, veths));
        matches.push(self.inside(End::Destination, set));
        rule(comment, matches, Verdict::Drop)
    }

    /// From an address that the peer would accept out of the tunnel, so what is sent from others is none of ours.
    fn host_out(&self, veths: &str) -> Option<Rule> {
        let comment = match self.family {
            Family::V4 => counter::HOST_REFUSED_OUT_V4,
            Family::V6 => counter::HOST_REFUSED_OUT_V6,
        };
        (!self.closed.is_empty() && !self.sources.is_empty()).then(|| {
            let mut matches = foreign_interface(Direction::Out, veths);
            matches.extend([self.inside(End::Destination, "closed"), self.inside(End::Source, "sources")]);
            rule(comment, matches, Verdict::Drop)
        })
    }

    /// Before destinations are translated, so that node ports are among what is refused.
    fn host_in(&self, veths: &str) -> Option<Rule> {
        let comment = match self.family {
            Family::V4 => counter::HOST_REFUSED_IN_V4,
            Family::V6 => counter::HOST_REFUSED_IN_V6,
        };
        (!self.closed.is_empty()).then(|| {
            let mut matches = foreign_interface(Direction::In, veths);
            matches.extend([self.inside(End::Source, "closed"), Match::LocalDestination]);
            rule(comment, matches, Verdict::Drop)
        })
    }

    fn translate(&self, veths: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        if !self.peers.is_empty() && !self.guarded.is_empty() {
            // What `refuse_to_node` does not see: kube-proxy's IPVS sends a pod's packets as if they were the node's own, and what comes
            // out of the tunnel for a port of this node may have its backend at another one. The last moment before the source is
            // translated, here or by others, and nothing tells any more that a pod has sent it.
            let mut matches = foreign_interface(Direction::Out, veths);
            matches.extend([self.inside(End::Source, "guarded"), self.inside(End::Destination, "peers")]);
            rules.push(rule(counter::LEAK_REFUSED_TO_NODE, matches, Verdict::Drop));
        }
        if let Some(mesh) = self.mesh {
            let by_slot = || Match::InterfaceIn(Direction::Out, Is::Yes, SLOTS.to_owned());
            let marked = Match::Mark { mask: KUBE_MASQUERADE_MARK, value: KUBE_MASQUERADE_MARK };
            let wished = vec![by_slot(), Match::Family(self.family), marked];
            rules.push(rule(counter::SNAT_INTO_MESH, wished, Verdict::Snat(mesh)));
            let mut stranger = vec![by_slot(), Match::Family(self.family)];
            stranger.extend(self.outside(End::Source, "own"));
            rules.push(rule(counter::SNAT_INTO_MESH, stranger, Verdict::Snat(mesh)));
        }
        if !self.own_pods.is_empty() {
            let mut matches = foreign_interface(Direction::Out, veths);
            matches.push(self.inside(End::Source, "own_pods"));
            matches.extend(self.outside(End::Destination, "guarded"));
            matches.extend(self.outside(End::Destination, "exempt"));
            rules.push(rule(counter::MASQUERADED_TO_WORLD, matches, Verdict::Masquerade));
        }
        rules
    }
}

/// Neither a slot, nor a pod's veth, nor the loopback: all that leads to other machines, or that we know nothing of.
fn foreign_interface(direction: Direction, veths: &str) -> Vec<Match> {
    vec![
        Match::InterfaceIn(direction, Is::No, SLOTS.to_owned()),
        Match::Interface(direction, Is::No, InterfaceName::Prefix(veths.to_owned())),
        Match::Interface(direction, Is::No, InterfaceName::Exact("lo".to_owned())),
    ]
}

fn base(name: &str, kind: ChainType, hook: Hook, priority: i32) -> Chain {
    Chain { name: name.to_owned(), kind, hook, priority, policy: Policy::Accept, rules: Vec::new() }
}

fn rule(comment: &str, matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { matches, verdict, counter: true, comment: comment.to_owned() }
}
