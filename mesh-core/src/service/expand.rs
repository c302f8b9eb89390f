//! What a Service wants of the tables: from its own object and its slices to claims and pools.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::model::{
    DEFAULT_AFFINITY, EndpointSliceFacts, LABEL_HEADLESS, LABEL_OTHER_PROXY, LABEL_REMOTE,
    LoadBalancerIngress, MAX_AFFINITY, Meta, Nodes, OwnNode, ServiceFacts, ServicePort,
};
use super::problem::{Owner, ServiceProblem};
use super::select::{self, Candidate, Choice};
use super::tables::FrontendKey;
use super::wanted::{Claim, Family, Members, PoolKey, Rank, Reach, Target, Wanted};
use crate::name::NodeName;
use crate::policy::model::Protocol;
use crate::prefix;

/// Is the object another proxy's, or nobody's?
fn left_alone(meta: &Meta) -> bool {
    meta.labels.contains_key(LABEL_OTHER_PROXY) || meta.labels.contains_key(LABEL_HEADLESS)
}

/// What a service wants. `slices` by their names.
pub(super) fn of_service<'a>(
    owner: &Owner,
    facts: &'a ServiceFacts,
    slices: impl Iterator<Item = (&'a str, &'a EndpointSliceFacts)>,
    own: &OwnNode,
    nodes: &Nodes,
) -> Wanted {
    let spec = &facts.spec;
    let mut wanted = Wanted::default();
    let known = ["", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&spec.kind.as_str());
    if !known {
        let reason = "of a type that is not known, nothing is served; wanted ClusterIP, NodePort, LoadBalancer or ExternalName";
        wanted.complain(malformed(owner, "spec.type", &spec.kind, reason));
    }
    let headless = spec.cluster_ip == "None" || spec.cluster_ips.iter().any(|ip| ip == "None");
    if !known || headless || spec.kind == "ExternalName" || left_alone(&facts.metadata) {
        return wanted;
    }
    let slices: Vec<_> = slices.filter(|(_, slice)| !left_alone(&slice.metadata)).collect();
    let ports = ports_of(&mut wanted, owner, spec.ports.as_slice());
    let affinity = affinity_of(&mut wanted, owner, facts);
    let one = std::slice::from_ref(&spec.cluster_ip);
    let cluster_ips = if spec.cluster_ips.is_empty() { one } else { spec.cluster_ips.as_slice() };
    for cluster_ip in addresses(&mut wanted, owner, "spec.clusterIPs", cluster_ips) {
        let family = Family::of(cluster_ip);
        if wanted.claims.contains_key(&FrontendKey::address(cluster_ip)) {
            continue; // written twice
        }
        let mut of_family = OfFamily {
            owner,
            own,
            nodes,
            facts,
            affinity,
            cluster_ip,
            outside: outside_addresses(&mut wanted, owner, facts, family, own),
            endpoints: endpoints_of(&mut wanted, owner, &slices, family, own),
            refuse_rest: true,
        };
        for port in &ports {
            of_family.port(&mut wanted, port);
        }
        let target = Target::Rest { refuse: of_family.refuse_rest };
        wanted.claim(FrontendKey::address(cluster_ip), Claim { rank: Rank::ClusterIp, target, affinity: 0 });
    }
    wanted.prune();
    wanted
}

/// Does each node hand what comes in by its NodePorts on to its own endpoints alone?
pub(super) fn held_to_nodes(facts: &ServiceFacts) -> bool {
    let typed = matches!(facts.spec.kind.as_str(), "NodePort" | "LoadBalancer");
    typed && facts.spec.external_traffic_policy == "Local"
}

fn malformed(owner: &Owner, field: &str, value: &str, reason: &'static str) -> ServiceProblem {
    ServiceProblem::FieldMalformed {
        owner: owner.clone(),
        field: field.to_owned(),
        value: value.to_owned(),
        reason,
    }
}

/// A port whose numbers make sense.
struct Port<'a> {
    index: usize,
    name: &'a str,
    protocol: Protocol,
    port: u16,
    /// Of a type that has them.
    node_port: Option<u16>,
}

fn protocol_of(text: &str) -> Option<Protocol> {
    match text {
        "" | "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn port_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

fn ports_of<'a>(wanted: &mut Wanted, owner: &Owner, all: &'a [ServicePort]) -> Vec<Port<'a>> {
    let mut ports: Vec<Port<'a>> = Vec::new();
    for (index, port) in all.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let Some(protocol) = protocol_of(&port.protocol) else {
            let reason = "the port is not served; wanted TCP, UDP or SCTP";
            wanted.complain(malformed(owner, &field("protocol"), &port.protocol, reason));
            continue;
        };
        let Some(number) = port_number(port.port) else {
            let reason = "the port is not served; wanted 1 to 65535";
            wanted.complain(malformed(owner, &field("port"), &port.port.to_string(), reason));
            continue;
        };
        if ports.iter().any(|other| other.name == port.name && other.protocol == protocol) {
            let reason = "another port of the service has that name and protocol; the first one is served";
            wanted.complain(malformed(owner, &field("name"), &port.name, reason));
            continue;
        }
        let node_port = port_number(port.node_port);
        if node_port.is_none() && port.node_port != 0 {
            let reason = "the NodePort is not served; wanted 1 to 65535";
            wanted.complain(malformed(owner, &field("nodePort"), &port.node_port.to_string(), reason));
        }
        ports.push(Port { index, name: &port.name, protocol, port: number, node_port });
    }
    ports
}

fn affinity_of(wanted: &mut Wanted, owner: &Owner, facts: &ServiceFacts) -> u32 {
    match facts.spec.session_affinity.as_str() {
        "" | "None" => 0,
        "ClientIP" => {
            let Some(seconds) = facts.spec.session_affinity_config.client_ip.timeout_seconds else {
                return DEFAULT_AFFINITY;
            };
            let fits = u32::try_from(seconds).ok().filter(|s| (1..=MAX_AFFINITY).contains(s));
            fits.unwrap_or_else(|| {
                let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                let reason = "10800 counts instead; wanted 1 to 86400";
                wanted.complain(malformed(owner, field, &seconds.to_string(), reason));
                DEFAULT_AFFINITY
            })
        }
        other => {
            let reason = "no affinity is kept; wanted None or ClientIP";
            wanted.complain(malformed(owner, "spec.sessionAffinity", other, reason));
            0
        }
    }
}

/// Addresses that clients can say. An empty text is an address not allocated yet.
fn addresses(wanted: &mut Wanted, owner: &Owner, field: &str, texts: &[String]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(addr) if prefix::is_unicast(addr) => found.push(addr),
            Ok(_) | Err(_) => {
                let reason = "not an address that a host can have; not served; correct it";
                wanted.complain(malformed(owner, &format!("{field}[{index}]"), text, reason));
            }
        }
    }
    found
}

/// Addresses of the family beside the cluster IP, and whether this node's pods may use them.
fn outside_addresses(
    wanted: &mut Wanted,
    owner: &Owner,
    facts: &ServiceFacts,
    family: Family,
    own: &OwnNode,
) -> Vec<(IpAddr, Rank, bool)> {
    let mut found = Vec::new();
    let of_family = |addr: &IpAddr| Family::of(*addr) == family;
    // Mode Proxy: the balancer wants the packets itself (KEP-1860).
    let stands_in = |ingress: &&LoadBalancerIngress| matches!(ingress.ip_mode.as_str(), "" | "VIP");
    let ingress = facts.status.load_balancer.ingress.iter().filter(stands_in).map(|i| i.ip.clone());
    let vips = addresses(wanted, owner, "status.loadBalancer.ingress", &ingress.collect::<Vec<_>>());
    let vips: Vec<IpAddr> = vips.into_iter().filter(of_family).collect();
    if !vips.is_empty() {
        let allowed = inside_source_ranges(wanted, owner, facts, family, own);
        found.extend(vips.into_iter().map(|addr| (addr, Rank::LoadBalancer, allowed)));
    }
    let external = addresses(wanted, owner, "spec.externalIPs", &facts.spec.external_ips);
    found.extend(external.into_iter().filter(of_family).map(|addr| (addr, Rank::External, true)));
    found
}

/// May this node's pods use the load balancer's addresses? As with kube-proxy, ranges of one family do not close the
/// other; a range that cannot be read closes both, and contains nobody.
fn inside_source_ranges(
    wanted: &mut Wanted,
    owner: &Owner,
    facts: &ServiceFacts,
    family: Family,
    own: &OwnNode,
) -> bool {
    let written = &facts.spec.load_balancer_source_ranges;
    let mut ranges = Vec::new();
    let mut unread = false;
    for (index, text) in written.iter().enumerate() {
        match text.trim().parse::<IpNet>() {
            Ok(range) => ranges.push(range),
            Err(_) => {
                unread = true;
                let field = format!("spec.loadBalancerSourceRanges[{index}]");
                wanted.complain(malformed(owner, &field, text, "not a CIDR; it lets nobody in; correct it"));
            }
        }
    }
    ranges.retain(|range| Family::of(range.addr()) == family);
    if ranges.is_empty() {
        return !unread;
    }
    let ranges = IpNet::aggregate(&ranges);
    let mut allowed = true;
    for cidr in own.pod_cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == family) {
        if prefix::inside(&ranges, cidr) {
            continue;
        }
        allowed = false;
        if ranges.iter().any(|range| prefix::overlap(range, cidr)) {
            wanted.complain(ServiceProblem::SourceRangesSplit {
                owner: owner.clone(),
                ranges: written.join(","),
                cidr: cidr.to_string(),
            });
        }
    }
    allowed
}

type Endpoints<'a> = BTreeMap<(&'a str, Protocol), BTreeMap<SocketAddr, Candidate<'a>>>;

/// Endpoints of the family by name and protocol of the service's port.
fn endpoints_of<'a>(
    wanted: &mut Wanted,
    owner: &Owner,
    slices: &[(&'a str, &'a EndpointSliceFacts)],
    family: Family,
    own: &OwnNode,
) -> Endpoints<'a> {
    let mut found: Endpoints<'a> = BTreeMap::new();
    let wanted_type = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    for (slice, facts) in slices.iter().filter(|(_, facts)| facts.address_type == wanted_type) {
        let complaint = |field: String, value: &str, reason| ServiceProblem::SliceMalformed {
            owner: owner.clone(),
            slice: (*slice).to_owned(),
            field,
            value: value.to_owned(),
            reason,
        };
        let mut ports = Vec::new();
        for (index, port) in facts.ports.iter().enumerate() {
            let number = port.port.filter(|number| *number != 0);
            match (protocol_of(&port.protocol), number.map(port_number)) {
                (Some(protocol), Some(Some(number))) => ports.push((port.name.as_str(), protocol, number)),
                (None, _) => {
                    let reason = "the entry is ignored; wanted TCP, UDP or SCTP";
                    wanted.complain(complaint(format!("ports[{index}].protocol"), &port.protocol, reason));
                }
                (_, Some(None)) => {
                    let value = number.unwrap_or(0).to_string();
                    let reason = "the entry is ignored; wanted 1 to 65535";
                    wanted.complain(complaint(format!("ports[{index}].port"), &value, reason));
                }
                (Some(_), None) => {}
            }
        }
        let remote = facts.metadata.labels.contains_key(LABEL_REMOTE);
        for (index, endpoint) in facts.endpoints.iter().enumerate() {
            let Some(text) = endpoint.addresses.first() else { continue };
            let addr = text.parse::<IpAddr>().ok();
            let Some(addr) = addr.filter(|addr| Family::of(*addr) == family && prefix::is_unicast(*addr))
            else {
                let reason = "not an address of that type that a host can have; the endpoint gets nothing";
                wanted.complain(complaint(format!("endpoints[{index}].addresses[0]"), text, reason));
                continue;
            };
            for (name, protocol, number) in &ports {
                let candidate = Candidate::new(SocketAddr::new(addr, *number), endpoint, own, remote);
                let of_port = found.entry((*name, *protocol)).or_default();
                if of_port.get(&candidate.addr).is_none_or(|other| candidate.better_than(other)) {
                    of_port.insert(candidate.addr, candidate);
                }
            }
        }
    }
    found
}

/// A service in one family.
struct OfFamily<'a> {
    owner: &'a Owner,
    own: &'a OwnNode,
    nodes: &'a Nodes,
    facts: &'a ServiceFacts,
    affinity: u32,
    cluster_ip: IpAddr,
    outside: Vec<(IpAddr, Rank, bool)>,
    endpoints: Endpoints<'a>,
    refuse_rest: bool,
}

impl OfFamily<'_> {
    fn port(&mut self, wanted: &mut Wanted, port: &Port<'_>) {
        let none = BTreeMap::new();
        let endpoints = self.endpoints.get(&(port.name, port.protocol)).unwrap_or(&none);
        let candidates: Vec<Candidate<'_>> = endpoints.values().cloned().collect();
        let pool = |reach: &Reach| PoolKey {
            port: port.name.to_owned(),
            protocol: port.protocol,
            family: Family::of(self.cluster_ip),
            reach: reach.clone(),
        };
        let inside = match self.facts.spec.internal_traffic_policy.as_str() {
            "Local" => Reach::Local,
            _ => Reach::Cluster,
        };
        let mut claims = Vec::new();
        let said = |addr, port, protocol| FrontendKey { addr, port, protocol: Some(protocol) };
        if self.port_kept(wanted, port, "port", port.port, &candidates) {
            claims.push((said(self.cluster_ip, port.port, port.protocol), Rank::ClusterIp, Some(inside)));
            for (addr, rank, allowed) in &self.outside {
                let reach = allowed.then_some(Reach::Cluster);
                claims.push((said(*addr, port.port, port.protocol), *rank, reach));
            }
        } else {
            self.refuse_rest = false;
        }
        let node_port =
            port.node_port.filter(|_| matches!(self.facts.spec.kind.as_str(), "NodePort" | "LoadBalancer"));
        if let Some(number) = node_port
            && self.port_kept(wanted, port, "nodePort", number, &candidates)
        {
            let everywhere = FrontendKey::node_port(self.cluster_ip, number, port.protocol);
            if held_to_nodes(self.facts) {
                claims.push((everywhere, Rank::NodePort, Some(Reach::NoNode)));
                for (addr, reach) in self.nodes_asked(&candidates) {
                    claims.push((said(addr, number, port.protocol), Rank::NodePortOfNode, Some(reach)));
                }
            } else {
                claims.push((everywhere, Rank::NodePort, Some(Reach::Cluster)));
            }
        }
        let used: BTreeSet<&Reach> = claims.iter().filter_map(|(_, _, reach)| reach.as_ref()).collect();
        for reach in used {
            let Choice { chosen, leaving, elsewhere } = match reach {
                Reach::Cluster => select::cluster(&candidates, self.own),
                Reach::Local => select::local(&candidates),
                Reach::Node(node) => select::on_node(&candidates, node),
                Reach::NoNode => select::on_node(&candidates, ""),
            };
            wanted.pools.insert(pool(reach), Members { chosen, leaving, silent: elsewhere });
        }
        for (key, rank, reach) in claims {
            let target = reach.map_or(Target::Nowhere, |reach| Target::Pool(pool(&reach)));
            wanted.claim(key, Claim { rank, target, affinity: self.affinity });
        }
    }

    /// Addresses of nodes at which a NodePort has somebody under `externalTrafficPolicy: Local`. This node's has whoever the service
    /// has: its own pods are not what comes from outside (as with kube-proxy).
    fn nodes_asked(&self, candidates: &[Candidate<'_>]) -> Vec<(IpAddr, Reach)> {
        let of_family = |addr: &&IpAddr| Family::of(**addr) == Family::of(self.cluster_ip);
        let own = self.own.addresses.iter().filter(of_family).map(|addr| (*addr, Reach::Cluster));
        let with: BTreeSet<&str> =
            candidates.iter().filter(|c| c.alive()).filter_map(Candidate::node).collect();
        let others = with.into_iter().flat_map(|node| {
            let addrs = node.parse().ok().and_then(|name: NodeName| self.nodes.get(&name));
            addrs.into_iter().flatten().filter(of_family).map(|addr| (*addr, Reach::Node(node.to_owned())))
        });
        own.chain(others.filter(|(addr, _)| !self.own.addresses.contains(addr))).collect()
    }

    /// May the data path translate to these endpoints? SCTP's checksum covers the ports and is not made anew there.
    fn port_kept(
        &self,
        wanted: &mut Wanted,
        port: &Port<'_>,
        field: &str,
        number: u16,
        candidates: &[Candidate<'_>],
    ) -> bool {
        if port.protocol != Protocol::Sctp {
            return true;
        }
        let Some(moved) = candidates.iter().find(|c| c.alive() && c.addr.port() != number) else {
            return true;
        };
        wanted.complain(ServiceProblem::SctpPortChanged {
            owner: self.owner.clone(),
            field: format!("spec.ports[{}].{field}", port.index),
            port: number,
            endpoint: moved.addr,
        });
        false
    }
}
